//! A turn as JSON, for programs. Fields are only ever added.

use std::time::Duration;

use cachalot_engine::sampling::LogProb;
use cachalot_engine::{Engine, Stats, Turn};
use cachalot_text::parser::FinishReason;
use serde::Serialize;
use serde_json::{Value, json};

use crate::terminal::seconds;

/// The object that `cachalot run --json` prints.
pub fn turn(engine: &Engine, turn: &Turn, with_logprobs: bool, roofline: Option<&Roofline>) -> Value {
    let outcome = &turn.outcome;
    let reasoning = (!turn.reasoning.is_empty()).then_some(&turn.reasoning);
    let mut object = json!({
        "answer": turn.answer,
        "reasoning": reasoning,
        "finish": finish(&turn.finish),
        "model": engine.label(),
        "usage": {
            "prompt_tokens": outcome.prompt_tokens,
            "cached_tokens": outcome.cached_tokens,
            "generated_tokens": outcome.generated_tokens,
        },
        "timings": {
            "prefill_seconds": outcome.prefill_time.as_secs_f64(),
            "time_to_first_token_seconds": outcome.time_to_first_token.as_secs_f64(),
            "decode_seconds": outcome.decode_time.as_secs_f64(),
            "computed_seconds": computed(&engine.stats(), turn).as_secs_f64(),
            "prefill_tokens_per_second": outcome.prefill_rate(),
            "decode_tokens_per_second": outcome.decode_rate(),
        },
        "sampling": turn.sampling,
        "stats": engine.stats().report(),
    });
    if let FinishReason::StopSequence(text) = &turn.finish {
        object["stop_sequence"] = json!(text);
    }
    if let Some(roofline) = roofline {
        object["roofline"] = json!(roofline);
    }
    if with_logprobs {
        object["logprobs"] = logprobs(engine, turn);
    }
    object
}

/// A turn beside what the machine allows.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Roofline {
    /// Bytes per second that all threads read from memory, plainly, just after the turn.
    memory_bytes_per_s: f64,
    /// Of that, what the answer's tokens took.
    memory_share: f64,
    /// Bytes per second that the disk gave when the model was opened; absent where nothing is on a disk.
    disk_bytes_per_s: Option<f64>,
    /// Of that, what was read over the whole turn.
    disk_share: Option<f64>,
}

impl Roofline {
    /// Measures memory (a tenth of a second), and compares.
    ///
    /// # Errors
    /// If there is not the memory for it.
    pub fn measure(engine: &Engine, stats: &Stats, turn: &Turn) -> anyhow::Result<Self> {
        let outcome = &turn.outcome;
        let memory = cachalot_bench::plain_read(engine.threads())?;
        let depth = (outcome.prompt_tokens + outcome.generated_tokens / 2) as u64;
        let taken = outcome.decode_rate() * engine.bytes_per_token(depth) as f64;
        let disk = engine.probe().bytes_per_second;
        let all = (outcome.prefill_time + outcome.decode_time).as_secs_f64();
        let share = |rate: f64| stats.disk.bytes as f64 / all.max(f64::MIN_POSITIVE) / rate;
        Ok(Self {
            memory_bytes_per_s: memory,
            memory_share: taken / memory,
            disk_bytes_per_s: disk,
            disk_share: disk.map(share),
        })
    }
}

/// What of a turn's time nobody waited for the disk.
fn computed(stats: &Stats, turn: &Turn) -> Duration {
    let waited = stats.experts.waited + stats.rows.waited + stats.layers.waited;
    (turn.outcome.prefill_time + turn.outcome.decode_time).saturating_sub(waited)
}

/// The figures of `cachalot run --stats`: bytes by tier, time by stage, shares of the roofline.
pub fn stats(stats: &Stats, turn: &Turn, roofline: &Roofline) -> String {
    let (report, outcome) = (stats.report(), &turn.outcome);
    let mb = |bytes: u64| format!("{:.1} MB", bytes as f64 / 1e6);
    let mut text = format!(
        "experts: {} of {} uses from memory ({:.1} %), {} of {} slots full\n",
        report.expert_hits,
        report.expert_hits + report.expert_misses,
        100.0 * report.expert_hit_rate,
        report.experts_kept,
        report.expert_slots,
    );
    text += &format!(
        "bytes: {} of experts from memory; from disk {} awaited, {} ahead, {} of rows",
        mb(report.memory_bytes),
        mb(report.disk_demand_bytes),
        mb(report.disk_prefetch_bytes),
        mb(report.disk_row_bytes),
    );
    if let Some(rate) = report.disk_bytes_per_s.filter(|_| roofline.disk_share.is_some()) {
        text += &format!("; {:.2} GB/s while it was read", rate / 1e9);
    }
    if report.streamed_layers > 0 {
        text += &format!(
            "\nlayers: {} read every step, {} so far, waited for {}",
            report.streamed_layers,
            mb(report.disk_layer_bytes),
            seconds(stats.layers.waited)
        );
    }
    text += &format!(
        "\ntime: prompt {}, answer {}; of both {} waited for experts, {} for rows, {} computed",
        seconds(outcome.prefill_time),
        seconds(outcome.decode_time),
        seconds(stats.experts.waited),
        seconds(stats.rows.waited),
        seconds(computed(stats, turn)),
    );
    text += &format!(
        "\nroofline: the answer took {:.1} % of what memory gives ({:.1} GB/s)",
        100.0 * roofline.memory_share,
        roofline.memory_bytes_per_s / 1e9
    );
    if let (Some(share), Some(rate)) = (roofline.disk_share, roofline.disk_bytes_per_s) {
        text += &format!(", all of it {:.1} % of what the disk gave ({:.2} GB/s)", 100.0 * share, rate / 1e9);
    }
    if let (Some(precision), Some(recall)) = (report.prefetch_precision, report.prefetch_recall) {
        let gain = report.prefetch_gain.map_or_else(String::new, |gain| format!(", gain {:.1} %", 100.0 * gain));
        let percent = |share: f64| 100.0 * share;
        text += &format!("\nguesses: {:.1} % right, {:.1} % found{gain}", percent(precision), percent(recall));
    }
    text
}

fn finish(reason: &FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "stop",
        FinishReason::ToolCalls => "tool_calls",
        FinishReason::StopSequence(_) => "stop_sequence",
        FinishReason::Length => "length",
        FinishReason::Cancelled => "cancelled",
    }
}

fn logprobs(engine: &Engine, turn: &Turn) -> Value {
    let entry = |entry: &LogProb| {
        let bytes = engine.tokenizer().token_bytes(entry.id).unwrap_or_default();
        let token = String::from_utf8_lossy(bytes);
        // JSON has no infinity: what cannot happen gets the lowest number.
        json!({ "id": entry.id, "token": token, "bytes": bytes, "logprob": entry.logprob.max(-9999.0) })
    };
    let token = |token: &cachalot_engine::chat::TokenLogProbs| {
        let mut object = entry(&token.chosen);
        object["top"] = token.top.iter().map(entry).collect();
        object
    };
    turn.logprobs.iter().map(token).collect()
}
