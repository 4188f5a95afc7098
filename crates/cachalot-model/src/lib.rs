//! Forward pass and sequence state of the DeepSeek V4 family.
//!
//! One folder per architecture, and the blocks they share; [`Model`] is either of them, and all else that a caller
//! meets (sequence, segment, workspace, trace) is one type for both. Owns the arithmetic and its order; does no IO (it
//! asks an expert source and a row source), contains no intrinsic and no async.
#![forbid(unsafe_code)]

pub mod deepseek_v4;
pub mod deepseek_v41;
mod error;
mod load;
mod model;
mod shared;
mod state;
mod step;
mod stored;
mod trace;

pub use error::StepError;
pub use load::{Ablation, LoadError, Parts};
pub use model::Model;
pub use shared::inputs::Arithmetic;
pub use state::{CachePrecision, ROLLBACK, RollBackError, Sequence, StateBytes};
pub use step::{LogitsOf, Segment, Workspace};
pub use stored::StoredError;
pub use trace::Trace;
