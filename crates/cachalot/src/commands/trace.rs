//! `cachalot trace`: which experts a prompt uses, and what caches of several sizes and policies make of it.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use cachalot_engine::{Session, turn};
use cachalot_experts::Policy;
use cachalot_experts::trace::Trace;
use cachalot_text::Message;
use clap::{Args, Subcommand};
use serde::Serialize;

use crate::cli::{EngineArgs, ModelArgs};
use crate::stream::{Stream, figures};
use crate::text_args::{SamplingArgs, TextArgs};
use crate::{interrupt, open, output, prompt};

const AFTER: &str = "\
Examples:
  cachalot trace record --model DIR --out uses.jsonl \"Why is the sky blue?\"
  cachalot trace replay uses.jsonl                 hit rates, by policy and size, over the best possible";

/// Shares of all experts that are replayed as the cache's size.
const SHARES: [f64; 5] = [0.05, 0.125, 0.25, 0.5, 0.75];
/// Half-lives that are tried, in tokens.
const HALF_LIVES: [f64; 4] = [16.0, 64.0, 256.0, 1024.0];

/// Record which experts a prompt uses, and replay it under several caches.
#[derive(Debug, Args)]
#[command(after_help = AFTER)]
pub struct TraceArgs {
    /// What to do
    #[command(subcommand)]
    pub what: What,
}

/// What can be done.
#[derive(Debug, Subcommand)]
pub enum What {
    /// Answer a prompt and write which experts were used
    Record(Box<RecordArgs>),
    /// Show what caches would have made of it
    Replay(ReplayArgs),
}

/// What to record.
#[derive(Debug, Args)]
pub struct RecordArgs {
    /// What to ask
    #[arg(value_name = "PROMPT")]
    pub prompt: Vec<String>,

    /// Append the text of this file to the prompt (repeatable)
    #[arg(long, short, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub file: Vec<PathBuf>,

    /// File to write
    #[arg(long, short, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub out: PathBuf,

    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub engine: EngineArgs,
    #[command(flatten)]
    pub text: TextArgs,
    #[command(flatten)]
    pub sampling: SamplingArgs,
}

/// What to replay.
#[derive(Debug, Args)]
pub struct ReplayArgs {
    /// A file written by `cachalot trace record`
    #[arg(value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub file: PathBuf,

    /// Slots of the cache (repeatable); several shares of all experts if not given
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub slots: Vec<u32>,

    /// Print one JSON object instead of a table
    #[arg(long)]
    pub json: bool,
}

impl TraceArgs {
    /// Whether a program reads the output.
    pub fn wants_json(&self) -> bool {
        matches!(&self.what, What::Replay(args) if args.json)
    }
}

/// Records or replays.
///
/// # Errors
/// If the prompt cannot be answered, or a file cannot be written, read or understood.
pub fn trace(args: &TraceArgs) -> anyhow::Result<ExitCode> {
    match &args.what {
        What::Record(args) => record(args),
        What::Replay(args) => replay(args),
    }
}

fn record(args: &RecordArgs) -> anyhow::Result<ExitCode> {
    let question = prompt::gather(&args.prompt, &args.file)?;
    let options = args.text.turn_options(&args.sampling, None);
    options.sampling.validate()?;
    // Before anything is answered: whoever cannot write there should not have to wait to hear of it.
    let cannot = || format!("cannot write {}", args.out.display());
    let out = OpenOptions::new().write(true).create(true).truncate(false).open(&args.out).with_context(cannot)?;
    let engine = Arc::new(open::model(&args.model, &args.engine, false)?);
    let mut conversation = args.text.conversation(args.model.thinks(), engine.effort_texts());
    conversation.messages.push(Message::user(question));
    let mut session = Session::new(Arc::clone(&engine));
    interrupt::listen();
    engine.experts().start_trace();
    let mut stream = Stream::new(&engine, true);
    let turn = turn(&mut session, &conversation, &options, &mut |event| stream.event(&event))?;
    stream.finish()?;
    eprintln!("{}", figures(&turn));
    let trace = engine.experts().take_trace();
    let text = trace.to_text();
    out.set_len(0).and_then(|()| (&out).write_all(text.as_bytes())).with_context(cannot)?;
    eprintln!("{} uses of experts written to {}", trace.uses(), args.out.display());
    Ok(interrupt::exit_code(&turn))
}

#[derive(Serialize)]
struct Line {
    slots: usize,
    policy: String,
    hit_rate: f64,
    /// Over that of the best possible.
    of_optimum: f64,
}

fn replay(args: &ReplayArgs) -> anyhow::Result<ExitCode> {
    let text = std::fs::read_to_string(&args.file).with_context(|| format!("cannot read {}", args.file.display()))?;
    let trace = Trace::from_text(&text).with_context(|| args.file.display().to_string())?;
    let all = f64::from(trace.layers) * f64::from(trace.experts);
    let sizes: Vec<usize> = match args.slots.is_empty() {
        true => SHARES.iter().map(|share| ((all * share) as usize).max(1)).collect(),
        false => args.slots.iter().map(|slots| *slots as usize).collect(),
    };
    let policies: Vec<Policy> = [Policy::Lru, Policy::Lfu]
        .into_iter()
        .chain(HALF_LIVES.map(|half_life| Policy::FrequencyRecency { half_life }))
        .collect();
    let uses = trace.uses().max(1) as f64;
    let mut lines = Vec::new();
    for slots in sizes {
        let best = trace.optimum(slots);
        let mut line = |policy: String, hits: usize| {
            lines.push(Line {
                slots,
                policy,
                hit_rate: hits as f64 / uses,
                of_optimum: hits as f64 / best.max(1) as f64,
            });
        };
        policies.iter().for_each(|policy| line(policy.to_string(), trace.replay(*policy, slots)));
        line("best possible (Belady)".to_owned(), best);
    }
    if args.json {
        output::print_json(&serde_json::json!({ "uses": trace.uses(), "lines": lines }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = format!("{} uses of {} experts in {} layers\n", trace.uses(), trace.experts, trace.layers);
    table += &format!("{:>8}  {:<36}{:>10}{:>14}\n", "slots", "policy", "hits", "of the best");
    for Line { slots, policy, hit_rate, of_optimum } in lines {
        table += &format!("{slots:>8}  {policy:<36}{:>8.1} %{:>12.1} %\n", 100.0 * hit_rate, 100.0 * of_optimum);
    }
    output::print(&table)?;
    Ok(ExitCode::SUCCESS)
}
