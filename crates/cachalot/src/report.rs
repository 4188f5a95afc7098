//! A turn as JSON, for programs. Fields are only ever added.

use cachalot_engine::sampling::LogProb;
use cachalot_engine::{Engine, Turn};
use cachalot_text::parser::FinishReason;
use serde_json::{Value, json};

/// The object that `cachalot run --json` prints.
pub fn turn(engine: &Engine, turn: &Turn, with_logprobs: bool) -> Value {
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
            "prefill_tokens_per_second": outcome.prefill_rate(),
            "decode_tokens_per_second": outcome.decode_rate(),
        },
        "sampling": turn.sampling,
    });
    if let FinishReason::StopSequence(text) = &turn.finish {
        object["stop_sequence"] = json!(text);
    }
    if with_logprobs {
        object["logprobs"] = logprobs(engine, turn);
    }
    object
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
