//! Parts of the config that a checkpoint may lack: YaRN, DSpark, vision (spec V4 sections 1.3 and 5.2, V4.1 section 1.4).

use super::MAX_POSITIONS;
use crate::fields::Fields;

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
    pub(crate) fn read(fields: &Fields<'_>) -> Self {
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

/// The draft module, `mtp.*` (spec section 5 of V4.1, 5.2 of V4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DsparkConfig {
    /// Its layers: V4.1 says so in `num_nextn_predict_layers`, of V4 only the tensors do.
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
    /// Reads the keys that both generations have. `experts` are those of a stage, and how many a token is routed to.
    pub(crate) fn read(
        text: &Fields<'_>,
        stages: usize,
        [n_routed_experts, num_experts_per_tok]: [usize; 2],
        layers: usize,
        vocab_size: usize,
    ) -> Self {
        let dspark = Self {
            stages,
            block_size: text.integer("dspark_block_size", 1..=256),
            noise_token_id: text.integer("dspark_noise_token_id", 0..=vocab_size - 1) as u32,
            target_layer_ids: text.integers("dspark_target_layer_ids", layers, 0..=layers - 1),
            markov_rank: text.integer("dspark_markov_rank", 1..=65_536),
            n_routed_experts,
            num_experts_per_tok,
        };
        if dspark.target_layer_ids.is_empty() || !dspark.target_layer_ids.is_sorted_by(|a, b| a < b) {
            text.wrong("dspark_target_layer_ids", "is empty or not ascending");
        }
        dspark
    }
}

/// What a config calls the fields of its image path, in the order of [`VisionConfig`].
pub(crate) type VisionKeys = [&'static str; 10];

/// Inside V4.1's `vision_config`.
pub(crate) const VISION_KEYS_V41: VisionKeys = [
    "num_hidden_layers",
    "hidden_size",
    "num_attention_heads",
    "intermediate_size",
    "patch_size",
    "rope_theta",
    "downsample_ratio",
    "max_image_tokens",
    "min_pixels",
    "max_wh_ratio",
];

/// At the top of V4-Flash-Vision-Exp's config.
pub(crate) const VISION_KEYS_V4: VisionKeys = [
    "vision_n_layers",
    "vision_dim",
    "vision_n_heads",
    "vision_inter_dim",
    "vision_patch_size",
    "vision_rope_theta",
    "vision_downsample_ratio",
    "vision_max_n_token",
    "vision_min_pixels",
    "vision_max_wh_ratio",
];

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
    pub(crate) fn read(fields: &Fields<'_>, keys: &VisionKeys) -> Self {
        let [layers, hidden, heads, inner, patch, theta, downsample, tokens, pixels, ratio] = *keys;
        let vision = Self {
            num_hidden_layers: fields.integer(layers, 1..=512),
            hidden_size: fields.integer(hidden, 4..=65_536),
            num_attention_heads: fields.integer(heads, 1..=1024),
            intermediate_size: fields.integer(inner, 1..=262_144),
            patch_size: fields.integer(patch, 1..=256),
            rope_theta: fields.number(theta, 1.0..=1e12),
            downsample_ratio: fields.integer(downsample, 1..=16),
            max_image_tokens: fields.integer(tokens, 4..=1 << 20),
            min_pixels: fields.integer(pixels, 1..=1 << 30),
            max_wh_ratio: fields.optional(ratio).map(|_| fields.number(ratio, 1.0..=1e6)),
        };
        // Each head is rotated by two half-size angle vectors of pairs (spec section 6.2).
        if !vision.hidden_size.is_multiple_of(4 * vision.num_attention_heads) {
            fields.wrong(heads, "does not split hidden_size into heads of a multiple of 4");
        }
        vision
    }
}
