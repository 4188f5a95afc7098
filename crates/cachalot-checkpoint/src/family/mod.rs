//! What the generations of the V4 family have in common: dimensions, optional parts, and the tensors of a block.
//!
//! Owns fields, checks and tensor lists that V4 and V4.1 share. Refuses to know which generation it is read for: key
//! names that differ, block sizes and what only one generation has come from the caller.

mod parts;
pub(crate) mod tensors;
mod trunk;

pub use parts::{DsparkConfig, VisionConfig, Yarn};
pub(crate) use parts::{VISION_KEYS_V4, VISION_KEYS_V41};
pub use tensors::Weights;
pub use trunk::Trunk;
pub(crate) use trunk::{Rope, quantization};

/// Longest config file that is read.
pub const MAX_CONFIG_BYTES: u64 = 1 << 20;
/// Most layers; V4-Pro has 61.
pub(crate) const MAX_LAYERS: usize = 512;
/// Most routed experts of all layers together; V4-Pro has 23,424.
const MAX_EXPERTS: usize = 131_072;
/// Most positions of a context; the releases have 2^20.
const MAX_POSITIONS: usize = 1 << 26;
/// Largest vocabulary; the releases' has 129,280.
const MAX_VOCAB: usize = 1 << 22;
/// Most stages of a draft module; DSpark has 3.
pub(crate) const MAX_STAGES: usize = 16;
