//! Forward pass and sequence state of the DeepSeek V4 family.
//!
//! One folder per architecture, and the blocks they share. Owns the arithmetic and its order; does no IO (it asks an
//! expert source and a row source), contains no intrinsic and no async.
#![forbid(unsafe_code)]

pub mod deepseek_v41;
mod error;
mod shared;

pub use error::StepError;
pub use shared::inputs::Arithmetic;
