//! Engine, session, sampling and generation.
#![forbid(unsafe_code)]

pub mod engine;
pub mod forward;
pub mod sampling;
pub mod session;
