//! `cachalot ps`: what a running server is doing.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use cachalot_engine::planner::units::gigabytes;
use cachalot_server::ServerStatus;
use clap::Args;

use crate::output;

/// Show what a running server is doing
#[derive(Debug, Args)]
pub struct PsArgs {
    /// Where the server is
    #[arg(long, value_name = "URL", env = "CACHALOT_URL", default_value = "http://127.0.0.1:8080")]
    pub url: String,

    /// A key of the server, if it has any; without it, the first one in CACHALOT_API_KEY
    #[arg(long, value_name = "KEY")]
    pub api_key: Option<String>,

    /// Print one JSON object instead of text
    #[arg(long)]
    pub json: bool,
}

/// Asks and shows.
///
/// # Errors
/// If no server answers there, or it wants another key.
pub fn ps(args: &PsArgs) -> anyhow::Result<ExitCode> {
    let url = format!("{}/status", args.url.trim_end_matches('/'));
    let mut request = ureq::get(&url).timeout(Duration::from_secs(10));
    // The variable holds what it holds for `serve`: keys with commas between.
    let variable = std::env::var("CACHALOT_API_KEY").unwrap_or_default();
    let first = variable.split(',').map(str::trim).find(|key| !key.is_empty());
    if let Some(key) = args.api_key.as_deref().or(first) {
        request = request.set("authorization", &format!("Bearer {key}"));
    }
    let text = match request.call() {
        Ok(response) => response.into_string().with_context(|| format!("{url} did not answer to the end"))?,
        Err(ureq::Error::Status(401, _)) => bail!("the server at {} wants a key: --api-key KEY", args.url),
        Err(ureq::Error::Status(status, _)) => bail!("{url} answers {status}; is that a cachalot server?"),
        Err(error) => return Err(error).with_context(|| format!("no server answers at {}", args.url)),
    };
    let status: ServerStatus =
        serde_json::from_str(&text).with_context(|| format!("{url} is not a cachalot server's"))?;
    if args.json {
        output::print_json(&status)?;
    } else {
        output::print(&shown(&status))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn shown(status: &ServerStatus) -> String {
    let rate = |value: f64| format!("{value:.1} tokens/s");
    let unknown = || "-".to_owned();
    let stopping = if status.stopping { ", stopping" } else { "" };
    let lines = [
        ("model", format!("{} (context {})", status.model, status.context)),
        ("server", format!("cachalot {}, up {}{stopping}", status.version, uptime(status.uptime_seconds))),
        ("answers", format!("{} running, {} waiting", status.running, status.waiting)),
        ("decode", rate(status.tokens_per_second)),
        ("prefill", rate(status.prefill_tokens_per_second)),
        ("experts", status.expert_hit_rate.map_or_else(unknown, |rate| format!("{:.1}% in memory", 100.0 * rate))),
        ("disk", status.disk_bytes_per_second.map_or_else(unknown, |rate| format!("{}/s", gigabytes(rate as u64)))),
        (
            "prefixes",
            format!(
                "{} tokens in {} states, {}",
                status.prefix_tokens_kept,
                status.kept_states,
                gigabytes(status.kept_bytes)
            ),
        ),
        (
            "tokens",
            format!(
                "{} generated, {} of prompts ({} of them kept)",
                status.generated_tokens, status.prompt_tokens, status.cached_prompt_tokens
            ),
        ),
        ("ended", format!("{}, {} cancelled, {} failed", status.finished, status.cancelled, status.failed)),
    ];
    lines.iter().map(|(name, value)| format!("{name:<9} {value}\n")).collect()
}

fn uptime(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours) {
        (0, 0) => format!("{minutes} min"),
        (0, _) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}
