//! Sessions and turns: going on from what was kept, stopping, refusing; on the model that ships and on fixtures.

mod ahead;
mod keeping;
mod layers;
mod open;
mod scheduling;
mod scoring;
mod sessions;
mod streaming;
mod turns;

use std::path::PathBuf;
use std::sync::Arc;

use cachalot_engine::session::{Event, Flow, Outcome, Prefill, Request, Session};
use cachalot_engine::{Engine, EngineOptions, SamplingParams};
use cachalot_model::Arithmetic;
use cachalot_storage::Directory;

pub(crate) fn repository(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

pub(crate) fn options() -> EngineOptions {
    EngineOptions { arithmetic: Arithmetic::Exact, threads: Some(2), ..EngineOptions::default() }
}

pub(crate) fn engine(path: &str) -> Arc<Engine> {
    Arc::new(Engine::open(Arc::new(Directory::new(repository(path))), &options(), &mut |_| ()).expect("a model"))
}

/// Ids without the placeholders at the end of the vocabulary.
pub(crate) fn ids(count: usize, salt: usize) -> Vec<u32> {
    (0..count).map(|index| ((index * 37 + salt * 101 + 11) % 600) as u32).collect()
}

pub(crate) fn greedy(max_tokens: usize, prefill: Prefill) -> Request {
    let sampling = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
    Request { sampling, max_tokens, prefill, top_logprobs: Some(3), prompt_logprobs: None, constraint: None }
}

/// Every token with the bits of its log-probabilities, and the outcome.
pub(crate) fn generate(session: &mut Session, prompt: &[u32], request: &Request) -> (Vec<(u32, Vec<u64>)>, Outcome) {
    let mut tokens = Vec::new();
    let outcome = session.generate(prompt, request, &mut |event| {
        if let Event::Token { id, logprobs } = event {
            let (chosen, top) = logprobs.expect("they were asked for");
            let bits = top.iter().chain([&chosen]).map(|entry| entry.logprob.to_bits());
            tokens.push((id, bits.collect()));
        }
        Flow::Continue
    });
    (tokens, outcome.expect("it generates"))
}
