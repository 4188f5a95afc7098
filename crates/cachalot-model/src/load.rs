//! What a model is made of besides its checkpoint, and why it could not be made.

use std::sync::Arc;

use cachalot_checkpoint::CheckpointError;
use cachalot_checkpoint::deepseek_v41::engram::EngramError;
use cachalot_experts::{ExpertSource, LayerSource, RowSource};
use cachalot_kernels::Compute;

use crate::shared::inputs::Arithmetic;
use crate::state::{CachePrecision, Layout};

/// Most bytes that a sequence's fixed state may take: the releases take 3 to 25 MB.
const MAX_FIXED_STATE: u128 = 1 << 30;

/// What a model is made of besides its checkpoint.
pub struct Parts {
    /// Who provides routed experts.
    pub experts: Arc<dyn ExpertSource>,
    /// Who provides the matrices of layers that do not stay; absent if all stay.
    pub layers: Option<Arc<dyn LayerSource>>,
    /// Who provides table rows: the Engram tables in order, then the embedding.
    pub rows: Arc<dyn RowSource>,
    /// Where to compute.
    pub compute: Compute,
    /// How to treat the inputs of linear layers.
    pub arithmetic: Arithmetic,
    /// How sequences keep keys and entries.
    pub cache: CachePrecision,
    /// What is left out, to see what it is good for.
    pub ablation: Ablation,
    /// N-gram class of every token id, from the tokenizer; empty for a model without Engram.
    pub classes: Vec<u32>,
}

/// Parts of a V4.1 model that are left out, for whoever wants to see what they contribute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ablation {
    /// Engram rows are zero.
    pub engram: bool,
    /// Queries see their window and no compressed entries.
    pub entries: bool,
}

/// Why a model could not be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// A tensor that is missing, misshapen or unreadable.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// Table sizes that contradict the hash.
    #[error(transparent)]
    Engram(#[from] EngramError),
    /// A model of a kind that can only be looked at.
    #[error("{model_type} checkpoints can be inspected, but not run")]
    Architecture {
        /// `model_type` of the config.
        model_type: &'static str,
    },
    /// A source of layers that belongs to another model.
    #[error("{tensor} is to be read in every step, but the layer and the source do not both know it")]
    Streamed {
        /// The tensor.
        tensor: String,
    },
    /// A dimension that this program has no room for.
    #[error("config.json: {field} is {value}; this program goes up to {limit}")]
    TooLarge {
        /// The field.
        field: &'static str,
        /// Its value.
        value: usize,
        /// The limit.
        limit: usize,
    },
    /// A config whose sequences would each take too much memory.
    #[error(
        "config.json: a sequence of this model would take {bytes} bytes before its first token (sliding_window, head_dim and layers decide); this program goes up to {MAX_FIXED_STATE}"
    )]
    State {
        /// Bytes it would take.
        bytes: u128,
    },
    /// A token map that does not belong to the model.
    #[error("the token map has {tokens} tokens in {classes} classes; the model has {vocabulary} in {expected}")]
    TokenMap {
        /// Tokens in the map.
        tokens: usize,
        /// Classes in the map.
        classes: usize,
        /// Tokens of the model.
        vocabulary: usize,
        /// Classes of the model.
        expected: usize,
    },
    /// A cache precision that the architecture does not have.
    #[error("the float32 cache is there for V4 only: what is published of {architecture} rounds its caches")]
    Cache {
        /// `model_type` of the config.
        architecture: &'static str,
    },
}

/// Checks that `value` of the config's `field` is at most `limit`.
pub(crate) fn within(field: &'static str, value: usize, limit: usize) -> Result<(), LoadError> {
    if value <= limit { Ok(()) } else { Err(LoadError::TooLarge { field, value, limit }) }
}

/// Checks that a sequence of this layout can be made.
pub(crate) fn check_layout(layout: &Layout) -> Result<(), LoadError> {
    let bytes = layout.fixed_bytes();
    if bytes <= MAX_FIXED_STATE { Ok(()) } else { Err(LoadError::State { bytes }) }
}
