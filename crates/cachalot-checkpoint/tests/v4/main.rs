//! V4 checkpoints: config, headers of every build, and the dialects that they are stored in.

mod config;
#[path = "../support/decode.rs"]
mod decode;
mod dialect;
mod open;
mod release;
#[path = "../support/saved.rs"]
mod saved;
#[path = "../support/seen.rs"]
mod seen;
#[path = "../support/release.rs"]
mod support;
