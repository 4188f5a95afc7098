//! Engine, session, sampling and generation.
//!
//! Owns what happens between a conversation and a token: loading a model, processing prompts, choosing tokens, parsing
//! the output. Refuses to know file formats, terminals and HTTP.
#![forbid(unsafe_code)]

pub mod chat;
pub mod constraint;
pub mod disk;
pub mod engine;
pub mod forward;
mod generation;
pub mod hot;
mod identity;
pub mod planner;
pub mod prefixes;
mod pressure;
pub mod sampling;
pub mod scheduler;
pub mod session;
pub mod stats;

pub use cachalot_experts::Interrupt;
pub use cachalot_model::Ablation;
pub use chat::{SamplingChoice, Turn, TurnError, TurnEvent, TurnOptions, turn};
pub use constraint::{Constraint, ConstraintError, Constraints};
pub use engine::{CacheChoice, Engine, EngineOptions, KeepOptions, Loading, OpenError};
pub use sampling::SamplingParams;
pub use scheduler::{Job, JobError, JobEvent, Scheduler, SchedulerOptions, SubmitError};
pub use session::{Flow, Outcome, Prefill, Session};
pub use stats::{Stats, StatsReport};
