//! Engine, session, sampling and generation.
//!
//! Owns what happens between a conversation and a token: loading a model, processing prompts, choosing tokens, parsing
//! the output. Refuses to know file formats, terminals and HTTP.
#![forbid(unsafe_code)]

pub mod chat;
mod disk;
pub mod engine;
pub mod forward;
pub mod hot;
pub mod planner;
pub mod sampling;
pub mod session;
pub mod stats;

pub use cachalot_experts::Interrupt;
pub use cachalot_model::Ablation;
pub use chat::{SamplingChoice, Turn, TurnError, TurnEvent, TurnOptions, turn};
pub use engine::{CacheChoice, Engine, EngineOptions, Loading, OpenError};
pub use sampling::SamplingParams;
pub use session::{Flow, Outcome, Prefill, Session};
pub use stats::{Stats, StatsReport};
