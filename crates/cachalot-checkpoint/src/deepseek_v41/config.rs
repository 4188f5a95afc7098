//! The nested `config.json` of V4.1 (spec section 1.4): every field checked, none trusted.
//!
//! Fields keep the names that the file gives them. A field that would change the arithmetic in a way this program
//! does not know is an error; fields that inference does not use are ignored.

use super::schedule::{self, LayerPlan};
use super::tensors;
use super::{EngramConfig, EngramTables};
use crate::family::{self, DsparkConfig, MAX_STAGES, Rope, Trunk, VISION_KEYS_V41, VisionConfig};
use crate::fields::{FieldError, Fields};
use crate::inventory::Expected;
use crate::problems::Problems;
use serde_json::{Map, Value};
use std::ops::Deref;

/// Keys that only V4 configs have.
const V4_KEYS: [&str; 3] = ["num_hash_layers", "compress_rates", "mlp_layer_types"];

/// A V4.1 configuration that has passed every check; the dimensions of its [`Trunk`] are its own.
///
/// Optional keys and their defaults: `rope_scaling` (none), `num_nextn_predict_layers` (0), `engram_layer_ids` (none;
/// the other `engram_*` keys are read only with it), `dspark_*` (read only with draft stages), `candidate_*` (read
/// only with `candidate_source_layer_id`), `vision_config` (no vision), the token ids (none), and the keys that have
/// one known value, such as `hidden_act`.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Dimensions.
    pub trunk: Trunk,
    /// The token of every position of an image span.
    pub image_token_id: Option<u32>,
    /// The layer whose best blocks restrict later selections from the same entries.
    pub candidate_source_layer_id: Option<usize>,
    /// Blocks that the candidate source keeps (0 without one).
    pub candidate_topk_blocks: usize,
    /// Entries of a block (1 without a candidate source).
    pub candidate_block_size: usize,
    /// The n-gram memory.
    pub engram: Option<EngramConfig>,
    /// The draft module.
    pub dspark: Option<DsparkConfig>,
    /// The image path.
    pub vision: Option<VisionConfig>,
    /// What each layer does.
    pub layers: Vec<LayerPlan>,
}

impl Deref for Config {
    type Target = Trunk;

    fn deref(&self) -> &Trunk {
        &self.trunk
    }
}

impl Config {
    /// Reads and checks a config file's bytes.
    ///
    /// # Errors
    /// All fields that are missing or wrong, each with its path (the first [`crate::MAX_PROBLEMS`] of them).
    pub fn from_json(json: &[u8]) -> Result<Self, Problems<FieldError>> {
        Fields::read_json(json, Self::read)
    }

    pub(crate) fn from_map(map: &Map<String, Value>) -> Result<Self, Problems<FieldError>> {
        Fields::read_map(map, Self::read)
    }

    /// Plain fields first; what depends on several of them is looked at only if each of them is right.
    fn read(root: &Fields<'_>) -> Option<Self> {
        root.fixed("model_type", super::MODEL_TYPE);
        root.fixed("dtype", "bfloat16");
        root.fixed("tie_word_embeddings", false);
        root.foreign(|key| key == "compress_ratios" || V4_KEYS.contains(&key), crate::deepseek_v4::MODEL_TYPE);
        // Weights are FP8 with 32x32 power-of-two scales, experts FP4: nothing else is read.
        if let Some(fields) = root.object("quantization_config") {
            family::quantization(&fields, super::FP8_BLOCK);
            fields.fixed("expert_dtype", "fp4");
        }
        let vision = root.optional_object("vision_config").map(|fields| {
            fields.fixed("model_type", "deepseek_v41_vision");
            VisionConfig::read(&fields, &VISION_KEYS_V41)
        });
        let text = root.object("text_config")?;
        let mut config = Self::text(root, &text);
        config.vision = vision;
        if config.vision.is_some() && config.image_token_id.is_none() {
            root.wrong("image_token_id", "is missing, but there is a vision_config");
        }
        if root.all_right() {
            config.check_dimensions(&text);
        }
        if root.all_right() {
            config.layers = schedule::plan(&text, &config)?;
        }
        Some(config)
    }

    fn text(root: &Fields<'_>, text: &Fields<'_>) -> Self {
        text.fixed("model_type", "deepseek_v41_text");
        text.fixed("expert_dtype", "fp4");
        text.fixed("gate_temp", 1.0);
        text.foreign(|key| V4_KEYS.contains(&key), crate::deepseek_v4::MODEL_TYPE);
        let trunk = Trunk::read(root, text, Rope::read(text));
        let (layers, vocab_size) = (trunk.num_hidden_layers, trunk.vocab_size);
        let stages = text.optional_integer("num_nextn_predict_layers", 0..=MAX_STAGES).unwrap_or(0);
        let candidate_source_layer_id = text.optional_integer("candidate_source_layer_id", 0..=layers - 1);
        let candidate = |key: &str, absent: usize, most: usize| {
            candidate_source_layer_id.map_or(absent, |_| text.integer(key, 1..=most))
        };
        let engram_layers = text.optional("engram_layer_ids").is_some_and(|list| *list != Value::Array(Vec::new()));
        Self {
            image_token_id: Trunk::token(root, text, "image_token_id", vocab_size),
            candidate_source_layer_id,
            candidate_topk_blocks: candidate("candidate_topk_blocks", 0, 1 << 20),
            candidate_block_size: candidate("candidate_block_size", 1, 4096),
            engram: engram_layers.then(|| EngramConfig::read(text, layers, vocab_size)),
            dspark: (stages > 0).then(|| dspark(text, stages, &trunk)),
            vision: None,
            layers: Vec::new(),
            trunk,
        }
    }

    /// What the storage formats require of the dimensions (spec sections 2.2 and 9).
    fn check_dimensions(&self, text: &Fields<'_>) {
        self.trunk.check_dimensions(text);
        if let Some(engram) = &self.engram {
            text.multiple("engram_head_dim", engram.head_dim, 32, "rows are scaled in groups of 32");
            if let Err(error) = EngramTables::new(engram) {
                text.wrong("engram_num_embeddings", error.to_string());
            }
        }
    }

    /// Layers that own compressed entries, ascending.
    pub fn kv_sources(&self) -> impl Iterator<Item = (usize, &LayerPlan)> {
        self.layers.iter().enumerate().filter(|(layer, plan)| plan.kv_source == Some(*layer))
    }

    /// Layers that select entries with their own index query, ascending.
    pub fn index_sources(&self) -> impl Iterator<Item = (usize, &LayerPlan)> {
        self.layers.iter().enumerate().filter(|(layer, plan)| plan.index_source == Some(*layer))
    }

    /// Bytes of compressed entries and index keys that a sequence of `tokens` tokens keeps (spec section 4.1).
    pub fn entry_cache_bytes(&self, tokens: u64) -> u64 {
        let (head, index) = (self.head_dim as u64, self.index_head_dim as u64);
        let entry = head / 2 + head / 16 + index / 2 + index / 32;
        self.kv_sources().map(|(_, plan)| tokens / plan.ratio as u64 * entry).sum()
    }

    /// Bytes of a sequence's state that do not depend on its length: windows and pending groups (spec section 4.1).
    pub fn fixed_cache_bytes(&self) -> u64 {
        let head = self.head_dim as u64;
        let window = self.num_hidden_layers as u64 * self.sliding_window as u64 * (head + head / 32);
        let pending = self.kv_sources().filter(|(_, plan)| plan.ratio == 2).count() as u64 * 2 * head * 4;
        window + pending
    }
}

impl Config {
    /// Bytes of caches that a token at position `tokens - 1` reads (spec section 7.2): windows, selected entries, index
    /// keys.
    pub fn cache_read_bytes(&self, tokens: u64) -> u64 {
        let (head, index) = (self.head_dim as u64, self.index_head_dim as u64);
        let window = self.num_hidden_layers as u64 * tokens.min(self.sliding_window as u64) * (head + head / 32);
        let candidates = (self.candidate_topk_blocks * self.candidate_block_size) as u64;
        let compressed = self.layers.iter().enumerate().filter(|(_, plan)| plan.ratio > 0);
        let per_layer = compressed.map(|(layer, plan)| {
            let entries = tokens / plan.ratio as u64;
            let scored = match plan.index_source {
                Some(source) if source == layer && plan.candidates_from.is_some() => entries.min(candidates),
                Some(source) if source == layer => entries,
                _ => 0,
            };
            entries.min(self.index_topk as u64) * (head / 2 + head / 16) + scored * (index / 2 + index / 32)
        });
        window + per_layer.sum::<u64>()
    }

    /// Calls `visit` with every tensor that a checkpoint of this config holds, the draft module's and the image path's
    /// included if the config declares them.
    pub fn for_each_tensor(&self, mut visit: impl FnMut(Expected<'_>)) {
        let _ = tensors::visit(self, (true, true), &mut |expected| {
            visit(expected);
            std::ops::ControlFlow::Continue(())
        });
    }
}

/// The draft module, whose stages have experts of their own number.
fn dspark(text: &Fields<'_>, stages: usize, trunk: &Trunk) -> DsparkConfig {
    let experts = text.integer("dspark_n_routed_experts", 1..=8192);
    let chosen = text.integer("dspark_num_experts_per_tok", 1..=256);
    if chosen > experts {
        text.wrong("dspark_num_experts_per_tok", "is more than dspark_n_routed_experts");
    }
    DsparkConfig::read(text, stages, [experts, chosen], trunk.num_hidden_layers, trunk.vocab_size)
}
