//! DeepSeek-V4.1: its config, its tensor list, and the constants of its Engram hash (spec sections 1, 2 and 3.10).

pub(crate) mod config;
pub mod engram;
mod optional;
mod schedule;
pub mod tensors;

pub use config::Config;
pub use engram::EngramTables;
pub use optional::{DsparkConfig, EngramConfig, VisionConfig, Yarn};
pub use schedule::{LayerPlan, Role};

/// `model_type` of the config.
pub const MODEL_TYPE: &str = "deepseek_v41";
/// The entry of `architectures`.
pub const ARCHITECTURE: &str = "DeepseekV41ForCausalLM";
