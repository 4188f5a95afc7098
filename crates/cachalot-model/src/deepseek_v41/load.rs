//! From a checkpoint to a model.

use std::sync::Arc;

use cachalot_checkpoint::deepseek_v41::engram::EngramError;
use cachalot_checkpoint::deepseek_v41::{Config, EngramTables};
use cachalot_checkpoint::{Checkpoint, CheckpointError};
use cachalot_experts::{ExpertSource, RowSource};
use cachalot_kernels::Compute;

use super::Model;
use super::global::MAX_HEAD_DIM;
use super::state::RecordSizes;
use super::weights::Weights;
use crate::shared::hyper_connections::MAX_STREAMS;
use crate::shared::inputs::Arithmetic;
use crate::shared::rope::{RopeTable, Yarn};

/// Most bytes that a sequence's fixed state may take: the release's takes 3 MB.
const MAX_FIXED_STATE: usize = 1 << 30;

/// What a model is made of besides its checkpoint.
pub struct Parts {
    /// N-gram class of every token id, from the tokenizer; empty for a model without Engram.
    pub classes: Vec<u32>,
    /// Who provides routed experts.
    pub experts: Arc<dyn ExpertSource>,
    /// Who provides table rows: the Engram tables in order, then the embedding.
    pub rows: Arc<dyn RowSource>,
    /// Where to compute.
    pub compute: Compute,
    /// How to treat the inputs of linear layers.
    pub arithmetic: Arithmetic,
}

/// Why a model could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A tensor that is missing, misshapen or unreadable.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// Table sizes that contradict the hash.
    #[error(transparent)]
    Engram(#[from] EngramError),
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
}

impl Model {
    /// Reads all weights that every token needs; `progress` hears of the bytes of each matrix as it arrives.
    ///
    /// # Errors
    /// If a tensor cannot be read or a part does not fit the config.
    pub fn load(
        checkpoint: &Checkpoint,
        config: &Config,
        parts: Parts,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Self, LoadError> {
        check(config, &parts)?;
        let yarn = config.rope_scaling.as_ref().map(|yarn| Yarn {
            factor: yarn.factor,
            beta_fast: yarn.beta_fast,
            beta_slow: yarn.beta_slow,
            original_positions: yarn.original_max_position_embeddings as f64,
        });
        let engram = config.engram.as_ref();
        Ok(Self {
            weights: Weights::load(checkpoint, config, progress)?,
            records: RecordSizes::of(config),
            kv_sources: config.kv_sources().map(|(layer, _)| layer).collect(),
            experts: parts.experts,
            rows: parts.rows,
            pad_class: engram.map_or(0, |engram| parts.classes[engram.pad_token_id as usize]),
            classes: parts.classes,
            engram_tables: engram.map(EngramTables::new).transpose()?,
            plain_rope: RopeTable::new(config.qk_rope_head_dim, config.rope_theta, None),
            compressed_rope: RopeTable::new(config.qk_rope_head_dim, config.compress_rope_theta, yarn),
            compute: parts.compute,
            arithmetic: parts.arithmetic,
            config: config.clone(),
        })
    }
}

fn check(config: &Config, parts: &Parts) -> Result<(), LoadError> {
    let within = |field, value, limit| {
        if value <= limit { Ok(()) } else { Err(LoadError::TooLarge { field, value, limit }) }
    };
    within("text_config.hc_mult", config.hc_mult, MAX_STREAMS)?;
    within("text_config.head_dim", config.head_dim, MAX_HEAD_DIM)?;
    let window = RecordSizes::of(config).window * config.num_hidden_layers;
    within("text_config.sliding_window", config.sliding_window, MAX_FIXED_STATE / window)?;
    if let Some(engram) = &config.engram {
        let classes = parts.classes.iter().max().map_or(0, |&class| class as usize + 1);
        let expected = engram.compressed_vocab_size as usize;
        if parts.classes.len() != config.vocab_size || classes != expected {
            let (tokens, vocabulary) = (parts.classes.len(), config.vocab_size);
            return Err(LoadError::TokenMap { tokens, classes, vocabulary, expected });
        }
    }
    Ok(())
}
