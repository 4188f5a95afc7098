//! The dimensions that every text model of the family has (spec V4 section 1.2, V4.1 section 1.4).

use super::{MAX_EXPERTS, MAX_LAYERS, MAX_POSITIONS, MAX_VOCAB, Yarn};
use crate::fields::Fields;

/// Dimensions and constants of a text model, under the names that config files give them.
#[derive(Clone, Debug, PartialEq)]
pub struct Trunk {
    /// Begin-of-sequence token.
    pub bos_token_id: Option<u32>,
    /// Tokens that end an answer.
    pub eos_token_ids: Vec<u32>,
    /// Padding token.
    pub pad_token_id: Option<u32>,
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
    /// Residual streams.
    pub hc_mult: usize,
    /// Normalisation rounds of the stream mixing matrix.
    pub hc_sinkhorn_iters: usize,
    /// Epsilon of the mixers.
    pub hc_eps: f32,
}

/// The rotary fields, which dialects spell differently.
pub(crate) struct Rope {
    pub(crate) dim: usize,
    pub(crate) theta: f64,
    pub(crate) compress_theta: f64,
    pub(crate) scaling: Option<Yarn>,
}

impl Rope {
    /// The released spelling: `rope_theta`, `compress_rope_theta`, `rope_scaling`, `qk_rope_head_dim`.
    pub(crate) fn read(text: &Fields<'_>) -> Self {
        Self {
            dim: Self::dim(text),
            theta: Self::base(text, "rope_theta"),
            compress_theta: Self::base(text, "compress_rope_theta"),
            scaling: text.optional_object("rope_scaling").map(|fields| Yarn::read(&fields)),
        }
    }

    pub(crate) fn dim(text: &Fields<'_>) -> usize {
        text.integer("qk_rope_head_dim", 2..=4096)
    }

    /// A rotary base.
    pub(crate) fn base(fields: &Fields<'_>, key: &str) -> f64 {
        fields.number(key, 1.0..=1e12)
    }
}

impl Trunk {
    /// Reads `text`; token ids may also stand in `root`, which then counts.
    pub(crate) fn read(root: &Fields<'_>, text: &Fields<'_>, rope: Rope) -> Self {
        text.fixed("num_key_value_heads", 1);
        text.fixed("n_shared_experts", 1);
        text.fixed("hidden_act", "silu");
        text.fixed("attention_bias", false);
        text.fixed("scoring_func", "sqrtsoftplus");
        text.fixed("topk_method", "noaux_tc");
        text.fixed("norm_topk_prob", true);
        text.fixed("tie_word_embeddings", false);
        let vocab_size = text.integer("vocab_size", 1..=MAX_VOCAB);
        let token = |key: &str| Self::token(root, text, key, vocab_size);
        let eos = if root.optional("eos_token_id").is_some() { root } else { text };
        Self {
            bos_token_id: token("bos_token_id"),
            eos_token_ids: match eos.optional("eos_token_id") {
                Some(_) => eos.integers("eos_token_id", 64, 0..=vocab_size - 1).iter().map(|id| *id as u32).collect(),
                None => Vec::new(),
            },
            pad_token_id: token("pad_token_id"),
            vocab_size,
            hidden_size: text.integer("hidden_size", 32..=65_536),
            moe_intermediate_size: text.integer("moe_intermediate_size", 32..=65_536),
            num_hidden_layers: text.integer("num_hidden_layers", 1..=MAX_LAYERS),
            num_attention_heads: text.integer("num_attention_heads", 1..=1024),
            head_dim: text.integer("head_dim", 32..=4096),
            qk_rope_head_dim: rope.dim,
            q_lora_rank: text.integer("q_lora_rank", 32..=65_536),
            o_lora_rank: text.integer("o_lora_rank", 32..=65_536),
            o_groups: text.integer("o_groups", 1..=1024),
            swiglu_limit: text.number("swiglu_limit", 1e-6..=1e6) as f32,
            rms_norm_eps: text.number("rms_norm_eps", 0.0..=0.1) as f32,
            max_position_embeddings: text.integer("max_position_embeddings", 1..=MAX_POSITIONS),
            rope_theta: rope.theta,
            compress_rope_theta: rope.compress_theta,
            rope_scaling: rope.scaling,
            n_routed_experts: text.integer("n_routed_experts", 1..=65_536),
            num_experts_per_tok: text.integer("num_experts_per_tok", 1..=256),
            routed_scaling_factor: text.number("routed_scaling_factor", 1e-6..=1e6) as f32,
            sliding_window: text.integer("sliding_window", 1..=65_536),
            index_n_heads: text.integer("index_n_heads", 1..=1024),
            index_head_dim: text.integer("index_head_dim", 32..=4096),
            index_topk: text.integer("index_topk", 1..=65_536),
            hc_mult: text.integer("hc_mult", 1..=16),
            hc_sinkhorn_iters: text.integer("hc_sinkhorn_iters", 1..=1000),
            hc_eps: text.number("hc_eps", 0.0..=0.1) as f32,
        }
    }

    /// An optional token id of `root` or, if it is not there, of `text`.
    pub(crate) fn token(root: &Fields<'_>, text: &Fields<'_>, key: &str, vocab_size: usize) -> Option<u32> {
        let holder = if root.optional(key).is_some() { root } else { text };
        holder.optional_integer(key, 0..=vocab_size.saturating_sub(1)).map(|id| id as u32)
    }

    /// What the storage formats require of the dimensions.
    pub(crate) fn check_dimensions(&self, text: &Fields<'_>) {
        let blocks = "weights are scaled in blocks of 32 columns";
        text.multiple("hidden_size", self.hidden_size, 32, blocks);
        text.multiple("moe_intermediate_size", self.moe_intermediate_size, 32, blocks);
        text.multiple("q_lora_rank", self.q_lora_rank, 32, blocks);
        let groups = "a block of scales must not reach into another output group";
        text.multiple("o_lora_rank", self.o_lora_rank, 32, groups);
        text.multiple("head_dim", self.head_dim, 32, "window entries are scaled in groups of 32");
        text.multiple("index_head_dim", self.index_head_dim, 32, "index keys are scaled in groups of 32");
        text.multiple("qk_rope_head_dim", self.qk_rope_head_dim, 2, "rotations act on pairs");
        text.multiple("num_attention_heads", self.num_attention_heads, self.o_groups, "it is split into o_groups");
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
    }

    /// Width of a query: heads times head width.
    pub fn query_width(&self) -> usize {
        self.num_attention_heads * self.head_dim
    }

    /// Rows of a mixer `hc_*_fn`: `pre` and `post` per stream, and the stream-to-stream matrix.
    pub fn mixer_rows(&self) -> usize {
        (2 + self.hc_mult) * self.hc_mult
    }
}

/// The quantisation of the releases: FP8 with a power-of-two scale per `block` of rows and columns.
pub(crate) fn quantization(fields: &Fields<'_>, block: [usize; 2]) {
    fields.fixed("quant_method", "fp8");
    fields.fixed("fmt", "e4m3");
    fields.fixed("activation_scheme", "dynamic");
    fields.fixed("scale_fmt", "ue8m0");
    let found = fields.integers("weight_block_size", 2, 1..=1 << 20);
    if !found.is_empty() && found != block {
        fields.wrong("weight_block_size", format!("is {found:?}; only {block:?} is known"));
    }
}
