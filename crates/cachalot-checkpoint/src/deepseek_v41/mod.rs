//! DeepSeek-V4.1: its config, its tensor list, and the constants of its Engram hash (spec sections 1, 2 and 3.10).

mod config;
pub mod engram;
mod engram_config;
mod schedule;
pub(crate) mod tensors;

pub use config::Config;
pub use engram::EngramTables;
pub use engram_config::EngramConfig;
pub use schedule::{LayerPlan, Role};

/// `model_type` of the config.
pub const MODEL_TYPE: &str = "deepseek_v41";
/// The entry of `architectures`.
pub const ARCHITECTURE: &str = "DeepseekV41ForCausalLM";
/// Rows and columns that share a scale of an FP8 matrix.
pub(crate) const FP8_BLOCK: [usize; 2] = [32, 32];
