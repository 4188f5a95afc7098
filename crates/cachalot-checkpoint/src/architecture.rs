//! What kind of model a checkpoint holds: config.json decides, and a kind that is not known is named.
//!
//! Owns the choice between the generations of the family, and nothing that only one of them has.

use crate::error::CheckpointError;
use crate::family::Trunk;
use crate::inventory::{Expected, Visit};
use crate::{Abilities, deepseek_v4, deepseek_v41};
use serde_json::{Map, Value};
use std::ops::ControlFlow;

/// What kind of model a checkpoint holds.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Architecture {
    /// DeepSeek-V4: Flash, Pro, and their builds.
    DeepseekV4(Box<deepseek_v4::Config>),
    /// DeepSeek-V4.1.
    DeepseekV41(Box<deepseek_v41::Config>),
}

impl Architecture {
    /// Reads a config file's bytes; `model_type` and `architectures` decide what kind of config it is.
    ///
    /// # Errors
    /// If it is no JSON object, names an unknown model, or has fields that are missing or wrong.
    pub fn from_config(json: &[u8]) -> Result<Self, CheckpointError> {
        let map: Map<String, Value> = serde_json::from_slice(json)
            .map_err(|error| CheckpointError::ConfigSyntax { reason: error.to_string() })?;
        let text = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_owned);
        let class = text(map.get("architectures").and_then(|list| list.get(0)));
        let model_type = text(map.get("model_type"));
        match (model_type.as_deref(), class.as_deref()) {
            (Some(deepseek_v4::MODEL_TYPE), _) | (None, Some(deepseek_v4::ARCHITECTURE)) => {
                let config = deepseek_v4::Config::from_map(&map).map_err(CheckpointError::Config)?;
                Ok(Self::DeepseekV4(Box::new(config)))
            }
            (Some(deepseek_v41::MODEL_TYPE), _) | (None, Some(deepseek_v41::ARCHITECTURE)) => {
                let config = deepseek_v41::Config::from_map(&map).map_err(CheckpointError::Config)?;
                Ok(Self::DeepseekV41(Box::new(config)))
            }
            _ => {
                let found = model_type.or(class).unwrap_or_else(|| "(none)".to_owned());
                let model_type = found.chars().take(80).collect();
                let known = [deepseek_v4::MODEL_TYPE, deepseek_v41::MODEL_TYPE];
                Err(CheckpointError::Architecture { model_type, known })
            }
        }
    }

    /// `model_type` of the config.
    pub fn model_type(&self) -> &'static str {
        match self {
            Self::DeepseekV4(_) => deepseek_v4::MODEL_TYPE,
            Self::DeepseekV41(_) => deepseek_v41::MODEL_TYPE,
        }
    }

    /// The V4 config, if this is a V4 model.
    pub fn deepseek_v4(&self) -> Option<&deepseek_v4::Config> {
        match self {
            Self::DeepseekV4(config) => Some(config),
            Self::DeepseekV41(_) => None,
        }
    }

    /// The V4.1 config, if this is a V4.1 model.
    pub fn deepseek_v41(&self) -> Option<&deepseek_v41::Config> {
        match self {
            Self::DeepseekV4(_) => None,
            Self::DeepseekV41(config) => Some(config),
        }
    }

    /// The dimensions that every kind has.
    pub fn trunk(&self) -> &Trunk {
        match self {
            Self::DeepseekV4(config) => config,
            Self::DeepseekV41(config) => config,
        }
    }

    /// Rows and columns that share a scale of an FP8 matrix.
    pub fn fp8_block(&self) -> [usize; 2] {
        match self {
            Self::DeepseekV4(_) => deepseek_v4::FP8_BLOCK,
            Self::DeepseekV41(_) => deepseek_v41::FP8_BLOCK,
        }
    }

    /// Bytes of a sequence's state that do not depend on its length.
    pub fn fixed_cache_bytes(&self) -> u64 {
        match self {
            Self::DeepseekV4(config) => config.fixed_cache_bytes(),
            Self::DeepseekV41(config) => config.fixed_cache_bytes(),
        }
    }

    /// Bytes of compressed entries and index keys that a sequence of `tokens` tokens keeps.
    pub fn entry_cache_bytes(&self, tokens: u64) -> u64 {
        match self {
            Self::DeepseekV4(config) => config.entry_cache_bytes(tokens),
            Self::DeepseekV41(config) => config.entry_cache_bytes(tokens),
        }
    }

    /// Bytes of caches that a token at position `tokens - 1` reads.
    pub fn cache_read_bytes(&self, tokens: u64) -> u64 {
        match self {
            Self::DeepseekV4(config) => config.cache_read_bytes(tokens),
            Self::DeepseekV41(config) => config.cache_read_bytes(tokens),
        }
    }

    /// Bytes of table rows that a token reads beside its embedding row: Engram rows, or expert ids by token id.
    pub fn table_row_bytes(&self) -> u64 {
        match self {
            Self::DeepseekV4(config) => {
                let hashed = |plan: &&deepseek_v4::LayerPlan| plan.routing == deepseek_v4::Routing::Hashed;
                (config.layers.iter().filter(hashed).count() * config.num_experts_per_tok * 8) as u64
            }
            Self::DeepseekV41(config) => config.engram.as_ref().map_or(0, |engram| {
                let row = engram.head_dim + engram.head_dim / 32;
                (engram.layer_ids.len() * engram.columns() * row) as u64
            }),
        }
    }

    /// Calls `visit` with every tensor that a checkpoint of this config holds, draft module and image path included if
    /// the config declares them.
    pub fn for_each_tensor(&self, visit: impl FnMut(Expected<'_>)) {
        match self {
            Self::DeepseekV4(config) => config.for_each_tensor(visit),
            Self::DeepseekV41(config) => config.for_each_tensor(visit),
        }
    }

    /// Visits the tensors of a checkpoint with these optional parts.
    pub(crate) fn visit(&self, abilities: Abilities, visit: &mut Visit<'_>) -> ControlFlow<()> {
        match self {
            Self::DeepseekV4(config) => deepseek_v4::tensors::visit(config, visit),
            Self::DeepseekV41(config) => {
                deepseek_v41::tensors::visit(config, (abilities.draft, abilities.vision), visit)
            }
        }
    }
}
