//! CPU kernels over packed weights and caches, chosen at run time.
//!
//! Owns the arithmetic that dominates and its one defined order: whatever the threads, the batch or the instruction
//! set, the bits are the same. Safe functions that check their shapes at the door; unsafe code only where instructions
//! are chosen and where tasks write their parts of an output. Allocates only when a buffer grows, and does no IO.
//! Follows spec V4 sections 2.1, 3 and 4.1, V4.1 sections 2.2, 3.2, 3.3, 3.8, 3.9 and 3.11.

mod activations;
mod attention;
mod compute;
mod index_scores;
mod matmul;
mod matrix;
mod memory;
mod pooling;
pub mod probe;
mod records;
mod simd;
mod vector;

pub use activations::{Activations, Treatment};
pub use attention::{AttentionScratch, attend};
pub use compute::{Compute, Isa};
pub use index_scores::IndexQueries;
pub use matmul::{Job, matmul, matmul_one};
pub use matrix::{BadCode, Format, Matrix, MatrixError};
pub use pooling::{Slot, pool};
pub use records::{decode_fp8, decode_key, decode_nvfp4, encode_fp8, encode_key, encode_mxfp4, encode_nvfp4};
pub use vector::{dot, hadamard, mean_square, rms_norm, rope, swiglu};
