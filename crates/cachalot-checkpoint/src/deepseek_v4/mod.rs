//! DeepSeek-V4: its config in both dialects, its schedule, its tensor list (spec sections 1 and 2).

mod build;
mod cache;
mod config;
pub(crate) mod dialect;
mod schedule;
pub(crate) mod tensors;

pub use build::{Build, Draft};
pub use config::Config;
pub use schedule::{LayerPlan, Role, Routing};

/// `model_type` of the config.
pub const MODEL_TYPE: &str = "deepseek_v4";
/// The entry of `architectures`.
pub const ARCHITECTURE: &str = "DeepseekV4ForCausalLM";
/// Rows and columns that share a scale of an FP8 matrix.
pub(crate) const FP8_BLOCK: [usize; 2] = [128, 128];
