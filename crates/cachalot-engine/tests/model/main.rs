//! The whole text model against what the public reference computes, and against itself.

mod fidelity;
mod fixture;
mod image;
mod reach;
mod state;
