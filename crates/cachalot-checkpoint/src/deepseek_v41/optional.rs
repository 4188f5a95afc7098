//! The parts of the config that a checkpoint may lack: YaRN, Engram, draft, vision (spec section 1.4).

use super::config::MAX_POSITIONS;
use crate::fields::Fields;

/// Most rows of one Engram table; the release's have 384 million.
const MAX_ENGRAM_ROWS: usize = 1 << 38;
/// Largest start of the search for primes, within what the primality test is exact for; the release has 16 million.
const MAX_ENGRAM_VOCAB: usize = u32::MAX as usize;
/// Most hash columns of all Engram layers together; the release has 48.
const MAX_ENGRAM_COLUMNS: usize = 4096;

/// YaRN scaling of rotary frequencies (spec section 3.6).
#[derive(Clone, Debug, PartialEq)]
pub struct Yarn {
    /// Factor by which slow frequencies are divided.
    pub factor: f64,
    /// Rotations over the original context above which a frequency is kept.
    pub beta_fast: f64,
    /// Rotations below which a frequency is divided.
    pub beta_slow: f64,
    /// The context that the model was first trained with.
    pub original_max_position_embeddings: usize,
}

impl Yarn {
    pub(super) fn read(fields: &Fields<'_>) -> Self {
        if fields.optional("rope_type").is_none() && fields.optional("type").is_none() {
            fields.wrong("rope_type", "is missing");
        }
        fields.fixed("rope_type", "yarn");
        fields.fixed("type", "yarn");
        let yarn = Self {
            factor: fields.number("factor", 1.0..=1e6),
            beta_fast: fields.number("beta_fast", 1e-3..=1e6),
            beta_slow: fields.number("beta_slow", 1e-3..=1e6),
            original_max_position_embeddings: fields.integer("original_max_position_embeddings", 1..=MAX_POSITIONS),
        };
        if yarn.beta_fast < yarn.beta_slow {
            fields.wrong("beta_fast", "is smaller than beta_slow");
        }
        yarn
    }
}

/// The n-gram memory (spec section 3.10).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngramConfig {
    /// Layers that read it, ascending.
    pub layer_ids: Vec<usize>,
    /// Rows of each of those layers' tables.
    pub num_embeddings: Vec<u64>,
    /// Longest n-gram; 2 is the shortest.
    pub max_ngram_size: usize,
    /// Where the search for a column's prime starts.
    pub vocab_size: u64,
    /// Hash columns per n-gram length.
    pub n_heads: usize,
    /// Width of a row.
    pub head_dim: usize,
    /// The token whose class stands for what is not there.
    pub pad_token_id: u32,
    /// Classes of the token map.
    pub compressed_vocab_size: u32,
}

impl EngramConfig {
    pub(super) fn read(text: &Fields<'_>, layers: usize, vocab_size: usize) -> Self {
        let rows = |count: usize| count as u64;
        let engram = Self {
            layer_ids: text.integers("engram_layer_ids", layers, 0..=layers - 1),
            num_embeddings: text
                .integers("engram_num_embeddings", layers, 1..=MAX_ENGRAM_ROWS)
                .into_iter()
                .map(rows)
                .collect(),
            max_ngram_size: text.integer("engram_max_ngram_size", 2..=16),
            vocab_size: text.integer("engram_vocab_size", 2..=MAX_ENGRAM_VOCAB) as u64,
            n_heads: text.integer("engram_n_heads", 1..=256),
            head_dim: text.integer("engram_head_dim", 32..=65_536),
            pad_token_id: text.integer("engram_pad_token_id", 0..=vocab_size - 1) as u32,
            compressed_vocab_size: text.integer("engram_compressed_vocab_size", 1..=vocab_size) as u32,
        };
        if !engram.layer_ids.is_sorted_by(|a, b| a < b) {
            text.wrong("engram_layer_ids", "is not ascending");
        }
        let (tables, layers) = (engram.num_embeddings.len(), engram.layer_ids.len());
        if tables != layers {
            text.wrong("engram_num_embeddings", format!("has {tables} entries for {layers} engram_layer_ids"));
        }
        if engram.columns().saturating_mul(layers) > MAX_ENGRAM_COLUMNS {
            text.wrong("engram_n_heads", format!("gives more than {MAX_ENGRAM_COLUMNS} hash columns"));
        }
        engram
    }

    /// Rows that one layer reads per token: n-gram lengths times heads.
    pub fn columns(&self) -> usize {
        (self.max_ngram_size - 1) * self.n_heads
    }
}

/// The draft module, `mtp.*` (spec section 5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DsparkConfig {
    /// `num_nextn_predict_layers`: its layers.
    pub stages: usize,
    /// Tokens that one draft proposes.
    pub block_size: usize,
    /// Fills the draft's positions behind the first.
    pub noise_token_id: u32,
    /// Layers whose streams it reads, ascending.
    pub target_layer_ids: Vec<usize>,
    /// Width of its Markov correction.
    pub markov_rank: usize,
    /// Routed experts of a stage.
    pub n_routed_experts: usize,
    /// Experts that a token is routed to.
    pub num_experts_per_tok: usize,
}

impl DsparkConfig {
    pub(super) fn read(text: &Fields<'_>, stages: usize, layers: usize, vocab_size: usize) -> Self {
        let dspark = Self {
            stages,
            block_size: text.integer("dspark_block_size", 1..=256),
            noise_token_id: text.integer("dspark_noise_token_id", 0..=vocab_size - 1) as u32,
            target_layer_ids: text.integers("dspark_target_layer_ids", layers, 0..=layers - 1),
            markov_rank: text.integer("dspark_markov_rank", 1..=65_536),
            n_routed_experts: text.integer("dspark_n_routed_experts", 1..=8192),
            num_experts_per_tok: text.integer("dspark_num_experts_per_tok", 1..=256),
        };
        if dspark.target_layer_ids.is_empty() || !dspark.target_layer_ids.is_sorted_by(|a, b| a < b) {
            text.wrong("dspark_target_layer_ids", "is empty or not ascending");
        }
        if dspark.num_experts_per_tok > dspark.n_routed_experts {
            text.wrong("dspark_num_experts_per_tok", "is more than dspark_n_routed_experts");
        }
        dspark
    }
}

/// The image path (spec section 6).
#[derive(Clone, Debug, PartialEq)]
pub struct VisionConfig {
    /// Blocks.
    pub num_hidden_layers: usize,
    /// Width.
    pub hidden_size: usize,
    /// Heads.
    pub num_attention_heads: usize,
    /// Width inside a block's feed-forward part.
    pub intermediate_size: usize,
    /// Pixels along a patch's side.
    pub patch_size: usize,
    /// Rotary base.
    pub rope_theta: f64,
    /// Patches along the side of one image token.
    pub downsample_ratio: usize,
    /// Most positions of one image.
    pub max_image_tokens: usize,
    /// Smaller images are enlarged to this many pixels.
    pub min_pixels: usize,
    /// Widest image, as width over height.
    pub max_wh_ratio: Option<f64>,
}

impl VisionConfig {
    pub(super) fn read(fields: &Fields<'_>) -> Self {
        fields.fixed("model_type", "deepseek_v41_vision");
        let vision = Self {
            num_hidden_layers: fields.integer("num_hidden_layers", 1..=512),
            hidden_size: fields.integer("hidden_size", 4..=65_536),
            num_attention_heads: fields.integer("num_attention_heads", 1..=1024),
            intermediate_size: fields.integer("intermediate_size", 1..=262_144),
            patch_size: fields.integer("patch_size", 1..=256),
            rope_theta: fields.number("rope_theta", 1.0..=1e12),
            downsample_ratio: fields.integer("downsample_ratio", 1..=16),
            max_image_tokens: fields.integer("max_image_tokens", 4..=1 << 20),
            min_pixels: fields.integer("min_pixels", 1..=1 << 30),
            max_wh_ratio: fields.optional("max_wh_ratio").map(|_| fields.number("max_wh_ratio", 1.0..=1e6)),
        };
        // Each head is rotated by two half-size angle vectors of pairs (spec section 6.2).
        if !vision.hidden_size.is_multiple_of(4 * vision.num_attention_heads) {
            fields.wrong("num_attention_heads", "does not split hidden_size into heads of a multiple of 4");
        }
        vision
    }
}
