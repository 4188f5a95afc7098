//! The flat `config.json` of V4 (spec sections 1.3 and 1.4): every field checked, none trusted.
//!
//! Reads the released spelling and that of Transformers, field by field: where both are there, they must agree. What
//! a config says of stored types and of the draft module is only a guess until the tensors are seen: see [`Build`].

use super::FP8_BLOCK;
use super::build::Build;
use super::schedule::{self, LayerPlan};
use super::tensors;
use crate::family::{self, DsparkConfig, Rope, Trunk, VISION_KEYS_V4, VisionConfig, Yarn};
use crate::fields::{FieldError, Fields};
use crate::inventory::Expected;
use crate::problems::Problems;
use serde_json::{Map, Value};
use std::ops::{ControlFlow, Deref};

/// Dimensions of an entry's part without rotation that share a scale in the vendor's cache (spec section 4.1).
pub(super) const CACHE_GROUP: usize = 64;
/// Stages of DSpark, where the tensors do not say otherwise.
const DSPARK_STAGES: usize = 3;

/// A V4 configuration that has passed every check; the dimensions of its [`Trunk`] are its own.
///
/// Optional keys and their defaults: `rope_scaling` (none), `dspark_*` (no DSpark; all or none of them), `vision_*` (no
/// vision), `quantization_config` (nothing is quantised), the token ids (none), and the keys that have one known
/// value, such as `hidden_act`. `layer_types`, `mlp_layer_types`, `partial_rotary_factor` and `rope_parameters` of
/// Transformers stand for `compress_ratios`, `num_hash_layers`, `qk_rope_head_dim` and the `rope_*` keys.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Dimensions.
    pub trunk: Trunk,
    /// DSpark, the draft module of the later builds.
    pub dspark: Option<DsparkConfig>,
    /// The image path.
    pub vision: Option<VisionConfig>,
    /// What each layer does.
    pub layers: Vec<LayerPlan>,
    /// How the weights are stored and which parts there are: what the config declares, and in an opened checkpoint
    /// what the tensors show.
    pub build: Build,
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
        let v41 = |key: &str| {
            let prefixes = ["engram_", "candidate_", "kv_source_", "index_source_"];
            ["text_config", "vision_config"].contains(&key) || prefixes.iter().any(|prefix| key.starts_with(prefix))
        };
        root.foreign(v41, crate::deepseek_v41::MODEL_TYPE);
        let quantised = root.optional_object("quantization_config");
        if let Some(fields) = &quantised {
            family::quantization(fields, FP8_BLOCK);
        }
        let trunk = Trunk::read(root, root, rope(root));
        let dspark = root.optional("dspark_block_size").map(|_| {
            let experts = [trunk.n_routed_experts, trunk.num_experts_per_tok];
            DsparkConfig::read(root, DSPARK_STAGES, experts, trunk.num_hidden_layers, trunk.vocab_size)
        });
        let vision = root.optional(VISION_KEYS_V4[0]).map(|_| VisionConfig::read(root, &VISION_KEYS_V4));
        if root.all_right() {
            check_dimensions(&trunk, root);
        }
        let layers = if root.all_right() { schedule::plan(root, &trunk)? } else { Vec::new() };
        let build = Build::declared(root, quantised.is_some(), dspark.is_some(), vision.is_some());
        Some(Self { trunk, dspark, vision, layers, build })
    }

    /// Calls `visit` with every tensor that a checkpoint of this config and [`Build`] holds.
    pub fn for_each_tensor(&self, mut visit: impl FnMut(Expected<'_>)) {
        let _ = tensors::visit(self, &mut |expected| {
            visit(expected);
            ControlFlow::Continue(())
        });
    }
}

/// The rotary fields, in either dialect.
fn rope(root: &Fields<'_>) -> Rope {
    let mut rope = match root.optional_object("rope_parameters") {
        None => Rope { dim: 0, ..Rope::read(root) },
        Some(parameters) => nested_rope(root, &parameters),
    };
    rope.dim = rope_dim(root);
    rope
}

/// Transformers' `rope_parameters`, which the flat keys may repeat.
fn nested_rope(root: &Fields<'_>, parameters: &Fields<'_>) -> Rope {
    let read = |key: &str, flat: &str| {
        let fields = parameters.object(key);
        let theta = fields.as_ref().map_or(1.0, |fields| Rope::base(fields, "rope_theta"));
        if root.optional(flat).is_some_and(|value| value.as_f64() != Some(theta)) && root.all_right() {
            root.wrong(flat, format!("contradicts rope_parameters.{key}"));
        }
        (fields, theta)
    };
    let (main, theta) = read("main", "rope_theta");
    let (compress, compress_theta) = read("compress", "compress_rope_theta");
    if let Some(main) = main {
        main.fixed("rope_type", "default");
    }
    let scaling = compress.and_then(|compress| {
        let scaled = compress.optional("rope_type").is_some_and(|kind| kind.as_str() != Some("default"));
        // cos and sin are not scaled (spec section 3.4).
        compress.fixed("attention_factor", 1.0);
        scaled.then(|| Yarn::read(&compress))
    });
    Rope { dim: 0, theta, compress_theta, scaling }
}

/// `qk_rope_head_dim`, or the share of `head_dim` that Transformers keeps instead.
fn rope_dim(root: &Fields<'_>) -> usize {
    if root.optional("partial_rotary_factor").is_none() {
        return Rope::dim(root);
    }
    let head = root.optional("head_dim").and_then(Value::as_u64).unwrap_or(0) as f64;
    let share = root.number("partial_rotary_factor", 0.0..=1.0) * head;
    let whole = (share.round() - share).abs() < 1e-6 && (2.0..=4096.0).contains(&share.round());
    if !whole && root.all_right() {
        root.wrong("partial_rotary_factor", format!("gives {share} rotated dimensions"));
    }
    let dim = share.round() as usize;
    if root.optional("qk_rope_head_dim").is_some_and(|value| value.as_u64() != Some(dim as u64)) {
        root.wrong("qk_rope_head_dim", "contradicts partial_rotary_factor");
    }
    dim
}

/// What storage formats, cache formats and the indexer require of the dimensions (spec sections 2.1, 4.1 and 11).
fn check_dimensions(trunk: &Trunk, root: &Fields<'_>) {
    trunk.check_dimensions(root);
    let unrotated = trunk.head_dim.saturating_sub(trunk.qk_rope_head_dim);
    if unrotated == 0 || (unrotated > CACHE_GROUP && !unrotated.is_multiple_of(CACHE_GROUP)) {
        let reason =
            format!("leaves {unrotated} dimensions of head_dim; up to {CACHE_GROUP} or a multiple are possible");
        root.wrong("qk_rope_head_dim", reason);
    }
    if !trunk.index_head_dim.is_power_of_two() {
        let reason = format!("is {}, no power of two: index vectors pass a Hadamard transform", trunk.index_head_dim);
        root.wrong("index_head_dim", reason);
    }
}
