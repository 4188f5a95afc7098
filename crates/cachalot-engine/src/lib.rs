//! Engine, session, sampling and generation.
#![forbid(unsafe_code)]

pub mod sampling;
