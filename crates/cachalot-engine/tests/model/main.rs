//! The whole text model against what the public reference computes, and against itself.

#[path = "../../../cachalot-checkpoint/tests/support/decode.rs"]
mod decode;
mod dialect;
mod fidelity;
mod fixture;
mod image;
mod reach;
#[path = "../../../cachalot-checkpoint/tests/support/saved.rs"]
mod saved;
mod state;
