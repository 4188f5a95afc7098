//! The nested `config.json` of the release (spec section 1.4): every field checked, none trusted.
//!
//! Fields keep the names that the file gives them. A field that would change the arithmetic in a way this program
//! does not know is an error; fields that inference does not use are ignored.

use super::schedule::{self, LayerPlan};
use super::tensors;
use super::{DsparkConfig, EngramConfig, EngramTables, VisionConfig, Yarn};
use crate::fields::{FieldError, Fields};
use crate::inventory::Expected;
use crate::problems::Problems;
use serde_json::{Map, Value};
use std::cell::RefCell;

/// Longest config file that is read.
pub const MAX_CONFIG_BYTES: u64 = 1 << 20;
/// Most layers; the release has 40.
pub(super) const MAX_LAYERS: usize = 512;
/// Most routed experts of all layers together; the release has 15,360.
const MAX_EXPERTS: usize = 131_072;
/// Most positions of a context; the release has 2^20.
pub(super) const MAX_POSITIONS: usize = 1 << 26;
/// Largest vocabulary; the release's has 129,280.
pub(super) const MAX_VOCAB: usize = 1 << 22;

/// A V4.1 configuration that has passed every check.
///
/// Optional keys and their defaults: `rope_scaling` (none), `num_nextn_predict_layers` (0), `engram_layer_ids` (none;
/// the other `engram_*` keys are read only with it), `dspark_*` (read only with draft stages), `candidate_*` (read
/// only with `candidate_source_layer_id`), `vision_config` (no vision), the token ids (none), and the keys that have
/// one known value, such as `hidden_act`.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Begin-of-sequence token.
    pub bos_token_id: Option<u32>,
    /// Tokens that end an answer.
    pub eos_token_ids: Vec<u32>,
    /// Padding token.
    pub pad_token_id: Option<u32>,
    /// The token of every position of an image span.
    pub image_token_id: Option<u32>,
    /// Rows of the embedding and of the head.
    pub vocab_size: usize,
    /// Width of a residual stream.
    pub hidden_size: usize,
    /// Width inside an expert.
    pub moe_intermediate_size: usize,
    /// Layers, draft stages not counted.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Width of a head, and of the one key-value vector.
    pub head_dim: usize,
    /// Rotated dimensions, the last ones of a head.
    pub qk_rope_head_dim: usize,
    /// Width of the query latent.
    pub q_lora_rank: usize,
    /// Width of one group's output latent.
    pub o_lora_rank: usize,
    /// Groups of the output projection.
    pub o_groups: usize,
    /// Clamp of the expert's branches.
    pub swiglu_limit: f32,
    /// Epsilon of every norm.
    pub rms_norm_eps: f32,
    /// Longest context.
    pub max_position_embeddings: usize,
    /// Rotary base of window-only layers.
    pub rope_theta: f64,
    /// Rotary base of compressed layers.
    pub compress_rope_theta: f64,
    /// Scaling of the compressed layers' rotary frequencies.
    pub rope_scaling: Option<Yarn>,
    /// Routed experts of a layer.
    pub n_routed_experts: usize,
    /// Experts that a token is routed to.
    pub num_experts_per_tok: usize,
    /// Factor of the normalised routing weights.
    pub routed_scaling_factor: f32,
    /// Positions that a query sees uncompressed, its own included.
    pub sliding_window: usize,
    /// Heads of the indexer.
    pub index_n_heads: usize,
    /// Width of an index key.
    pub index_head_dim: usize,
    /// Compressed entries that a query selects.
    pub index_topk: usize,
    /// The layer whose best blocks restrict later selections from the same entries.
    pub candidate_source_layer_id: Option<usize>,
    /// Blocks that the candidate source keeps (0 without one).
    pub candidate_topk_blocks: usize,
    /// Entries of a block (1 without a candidate source).
    pub candidate_block_size: usize,
    /// Residual streams.
    pub hc_mult: usize,
    /// Normalisation rounds of the stream mixing matrix.
    pub hc_sinkhorn_iters: usize,
    /// Epsilon of the mixers.
    pub hc_eps: f32,
    /// The n-gram memory.
    pub engram: Option<EngramConfig>,
    /// The draft module.
    pub dspark: Option<DsparkConfig>,
    /// The image path.
    pub vision: Option<VisionConfig>,
    /// What each layer does.
    pub layers: Vec<LayerPlan>,
}

impl Config {
    /// Reads and checks a config file's bytes.
    ///
    /// # Errors
    /// All fields that are missing or wrong, each with its path (the first [`crate::MAX_PROBLEMS`] of them).
    pub fn from_json(json: &[u8]) -> Result<Self, Problems<FieldError>> {
        match serde_json::from_slice::<Map<String, Value>>(json) {
            Ok(map) => Self::from_map(&map),
            Err(error) => {
                let mut problems = Problems::default();
                problems.push(FieldError { field: "config.json".to_owned(), reason: error.to_string() });
                Err(problems)
            }
        }
    }

    pub(crate) fn from_map(map: &Map<String, Value>) -> Result<Self, Problems<FieldError>> {
        let problems = RefCell::default();
        let config = Self::read(&Fields::root(map, &problems));
        match config {
            Some(config) if problems.borrow().is_empty() => Ok(config),
            _ => Err(problems.into_inner()),
        }
    }

    /// Plain fields first; what depends on several of them is looked at only if each of them is right.
    fn read(root: &Fields<'_>) -> Option<Self> {
        root.fixed("model_type", super::MODEL_TYPE);
        root.fixed("dtype", "bfloat16");
        root.fixed("tie_word_embeddings", false);
        quantization(root);
        let vision = root.optional_object("vision_config").map(|fields| VisionConfig::read(&fields));
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
        text.fixed("num_key_value_heads", 1);
        text.fixed("n_shared_experts", 1);
        text.fixed("hidden_act", "silu");
        text.fixed("attention_bias", false);
        text.fixed("scoring_func", "sqrtsoftplus");
        text.fixed("topk_method", "noaux_tc");
        text.fixed("norm_topk_prob", true);
        text.fixed("tie_word_embeddings", false);
        text.fixed("expert_dtype", "fp4");
        text.fixed("gate_temp", 1.0);
        let vocab_size = text.integer("vocab_size", 1..=MAX_VOCAB);
        let num_hidden_layers = text.integer("num_hidden_layers", 1..=MAX_LAYERS);
        let stages = text.optional_integer("num_nextn_predict_layers", 0..=16).unwrap_or(0);
        let token = |key: &str| {
            let holder = if root.optional(key).is_some() { root } else { text };
            holder.optional_integer(key, 0..=vocab_size.saturating_sub(1)).map(|id| id as u32)
        };
        let eos = if root.optional("eos_token_id").is_some() { root } else { text };
        let candidate_source_layer_id = text.optional_integer("candidate_source_layer_id", 0..=num_hidden_layers - 1);
        let candidate = |key: &str, absent: usize, most: usize| {
            candidate_source_layer_id.map_or(absent, |_| text.integer(key, 1..=most))
        };
        let engram_layers = text.optional("engram_layer_ids").is_some_and(|list| *list != Value::Array(Vec::new()));
        Self {
            bos_token_id: token("bos_token_id"),
            eos_token_ids: match eos.optional("eos_token_id") {
                Some(_) => eos.integers("eos_token_id", 64, 0..=vocab_size - 1).iter().map(|id| *id as u32).collect(),
                None => Vec::new(),
            },
            pad_token_id: token("pad_token_id"),
            image_token_id: token("image_token_id"),
            vocab_size,
            hidden_size: text.integer("hidden_size", 32..=65_536),
            moe_intermediate_size: text.integer("moe_intermediate_size", 32..=65_536),
            num_hidden_layers,
            num_attention_heads: text.integer("num_attention_heads", 1..=1024),
            head_dim: text.integer("head_dim", 32..=4096),
            qk_rope_head_dim: text.integer("qk_rope_head_dim", 2..=4096),
            q_lora_rank: text.integer("q_lora_rank", 32..=65_536),
            o_lora_rank: text.integer("o_lora_rank", 32..=65_536),
            o_groups: text.integer("o_groups", 1..=1024),
            swiglu_limit: text.number("swiglu_limit", 1e-6..=1e6) as f32,
            rms_norm_eps: text.number("rms_norm_eps", 0.0..=0.1) as f32,
            max_position_embeddings: text.integer("max_position_embeddings", 1..=MAX_POSITIONS),
            rope_theta: text.number("rope_theta", 1.0..=1e12),
            compress_rope_theta: text.number("compress_rope_theta", 1.0..=1e12),
            rope_scaling: text.optional_object("rope_scaling").map(|fields| Yarn::read(&fields)),
            n_routed_experts: text.integer("n_routed_experts", 1..=65_536),
            num_experts_per_tok: text.integer("num_experts_per_tok", 1..=256),
            routed_scaling_factor: text.number("routed_scaling_factor", 1e-6..=1e6) as f32,
            sliding_window: text.integer("sliding_window", 1..=65_536),
            index_n_heads: text.integer("index_n_heads", 1..=1024),
            index_head_dim: text.integer("index_head_dim", 32..=4096),
            index_topk: text.integer("index_topk", 1..=65_536),
            candidate_source_layer_id,
            candidate_topk_blocks: candidate("candidate_topk_blocks", 0, 1 << 20),
            candidate_block_size: candidate("candidate_block_size", 1, 4096),
            hc_mult: text.integer("hc_mult", 1..=16),
            hc_sinkhorn_iters: text.integer("hc_sinkhorn_iters", 1..=1000),
            hc_eps: text.number("hc_eps", 0.0..=0.1) as f32,
            engram: engram_layers.then(|| EngramConfig::read(text, num_hidden_layers, vocab_size)),
            dspark: (stages > 0).then(|| DsparkConfig::read(text, stages, num_hidden_layers, vocab_size)),
            vision: None,
            layers: Vec::new(),
        }
    }

    /// What the storage formats require of the dimensions (spec sections 2.2 and 9).
    fn check_dimensions(&self, text: &Fields<'_>) {
        let multiple = |key: &str, value: usize, of: usize, why: &str| {
            if !value.is_multiple_of(of) {
                text.wrong(key, format!("is {value}, no multiple of {of}: {why}"));
            }
        };
        let blocks = "weights are scaled in blocks of 32 columns";
        multiple("hidden_size", self.hidden_size, 32, blocks);
        multiple("moe_intermediate_size", self.moe_intermediate_size, 32, blocks);
        multiple("q_lora_rank", self.q_lora_rank, 32, blocks);
        multiple("o_lora_rank", self.o_lora_rank, 32, "a block of scales must not reach into another output group");
        multiple("head_dim", self.head_dim, 32, "window entries are scaled in groups of 32");
        multiple("index_head_dim", self.index_head_dim, 32, "index keys are scaled in groups of 32");
        multiple("qk_rope_head_dim", self.qk_rope_head_dim, 2, "rotations act on pairs");
        multiple("num_attention_heads", self.num_attention_heads, self.o_groups, "it is split into o_groups");
        if self.qk_rope_head_dim > self.head_dim.min(self.index_head_dim) {
            let reason = format!("is {}, more than head_dim or index_head_dim", self.qk_rope_head_dim);
            text.wrong("qk_rope_head_dim", reason);
        }
        if self.num_experts_per_tok > self.n_routed_experts {
            let reason = format!("is {}, more than n_routed_experts", self.num_experts_per_tok);
            text.wrong("num_experts_per_tok", reason);
        }
        if self.n_routed_experts * self.num_hidden_layers > MAX_EXPERTS {
            text.wrong("n_routed_experts", format!("times layers is more than {MAX_EXPERTS}"));
        }
        if let Some(engram) = &self.engram {
            multiple("engram_head_dim", engram.head_dim, 32, "rows are scaled in groups of 32");
            if let Err(error) = EngramTables::new(engram) {
                text.wrong("engram_num_embeddings", error.to_string());
            }
        }
    }

    /// Width of a query: heads times head width.
    pub fn query_width(&self) -> usize {
        self.num_attention_heads * self.head_dim
    }

    /// Rows of a mixer `hc_*_fn`: `pre` and `post` per stream, and the stream-to-stream matrix.
    pub fn mixer_rows(&self) -> usize {
        (2 + self.hc_mult) * self.hc_mult
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

/// Weights are FP8 with 32x32 power-of-two scales, experts FP4: nothing else is read.
fn quantization(root: &Fields<'_>) {
    let Some(fields) = root.object("quantization_config") else { return };
    fields.fixed("quant_method", "fp8");
    fields.fixed("fmt", "e4m3");
    fields.fixed("activation_scheme", "dynamic");
    fields.fixed("scale_fmt", "ue8m0");
    fields.fixed("expert_dtype", "fp4");
    let block = fields.integers("weight_block_size", 2, 1..=1 << 20);
    if !block.is_empty() && block != [32, 32] {
        fields.wrong("weight_block_size", format!("is {block:?}; only [32, 32] is known"));
    }
}
