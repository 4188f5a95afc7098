//! The HTTP server: the APIs of OpenAI and Anthropic over the engine's scheduler (protocol.md section 5).
//!
//! Owns everything that HTTP is about: routes, bodies, events, keys, limits. The conversion of requests and the parsing of
//! output belong to `cachalot-text`, answers to the engine. Only this crate is asynchronous; it meets the engine at one
//! place, the [sink](generation) that listens on the scheduler's thread and never waits.
#![forbid(unsafe_code)]

mod answer;
mod api;
mod app;
mod backend;
mod body;
mod error;
mod gate;
mod generation;
mod metrics;
mod openapi;
mod options;
mod page;
mod prepare;
mod replay;
mod serve;
mod sse;
mod status;

pub use backend::{Backend, ModelCard};
pub use gate::Keys;
pub use options::{DEFAULT_PORT, Limits, ServerOptions};
pub use serve::{ServeError, Server};
pub use status::ServerStatus;
