//! The names that Transformers gives to V4's tensors (spec section 2.5), turned into the released ones.
//!
//! Owns the only place where a name of the file differs from the name that everyone asks for. An expert of a stacked
//! tensor becomes a tensor of its own: a range of rows in the same shard. Names that are not known stay as they are,
//! and are reported as such.

use super::{Config, FP8_BLOCK};
use crate::Shape;
use crate::checkpoint::TensorInfo;
use crate::inventory::Problem;
use crate::problems::Problems;
use std::borrow::Cow;

/// What a tensor of the file is, in released names.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Released<'a> {
    /// One tensor.
    One(Cow<'a, str>),
    /// All experts of a layer, one behind the other.
    Stack(Stack<'a>),
}

/// A tensor of all experts of one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stack<'a> {
    layer: &'a str,
    /// Matrices of an expert, in the order of their rows.
    matrices: &'static [&'static str],
    /// `weight` or `scale`.
    part: &'static str,
}

/// Parts of a layer, `attn_norm` and the like.
const LAYER: [(&str, &str); 8] = [
    ("input_layernorm.weight", "attn_norm.weight"),
    ("post_attention_layernorm.weight", "ffn_norm.weight"),
    ("attn_hc.fn", "hc_attn_fn"),
    ("attn_hc.base", "hc_attn_base"),
    ("attn_hc.scale", "hc_attn_scale"),
    ("ffn_hc.fn", "hc_ffn_fn"),
    ("ffn_hc.base", "hc_ffn_base"),
    ("ffn_hc.scale", "hc_ffn_scale"),
];

/// Parts of `self_attn`. Where `save_pretrained` restores the released names, it turns `kv_norm` into `norm`.
const ATTENTION: [(&str, &str); 9] = [
    ("q_a_proj", "wq_a"),
    ("q_a_norm", "q_norm"),
    ("q_b_proj", "wq_b"),
    ("kv_proj", "wkv"),
    ("norm", "kv_norm"),
    ("o_a_proj", "wo_a"),
    ("o_b_proj", "wo_b"),
    ("sinks", "attn_sink"),
    ("compressor.indexer.scorer.weights_proj", "indexer.weights_proj"),
];

/// Parts of a compressor.
const COMPRESSOR: [(&str, &str); 4] =
    [("kv_proj", "wkv"), ("gate_proj", "wgate"), ("position_bias", "ape"), ("kv_norm", "norm")];

/// Parts of `mlp`.
const EXPERTS: [(&str, &str); 4] = [
    ("gate.e_score_correction_bias", "gate.bias"),
    ("shared_experts.gate_proj", "shared_experts.w1"),
    ("shared_experts.up_proj", "shared_experts.w3"),
    ("shared_experts.down_proj", "shared_experts.w2"),
];

/// Stacked experts, in the spellings of plain and quantised files.
const STACKS: [(&str, &[&str], &str); 4] = [
    ("experts.gate_up_proj", &["w1", "w3"], "weight"),
    ("experts.down_proj", &["w2"], "weight"),
    ("experts.gate_up_proj_scale_inv", &["w1", "w3"], "scale"),
    ("experts.down_proj_scale_inv", &["w2"], "scale"),
];

fn lookup<'a>(table: &[(&str, &'a str)], name: &str) -> Option<&'a str> {
    table.iter().find(|(known, _)| *known == name).map(|(_, released)| *released)
}

/// What the file calls `name`, in released names.
pub(crate) fn released(name: &str) -> Released<'_> {
    let bare = name.strip_prefix("model.").unwrap_or(name);
    let top = match bare {
        "lm_head.weight" => Some("head.weight"),
        "embed_tokens.weight" => Some("embed.weight"),
        "hc_head.hc_fn" => Some("hc_head_fn"),
        "hc_head.hc_base" => Some("hc_head_base"),
        "hc_head.hc_scale" => Some("hc_head_scale"),
        _ => None,
    };
    if let Some(top) = top {
        return Released::One(top.into());
    }
    let Some((layer, part)) = bare.strip_prefix("layers.").and_then(|rest| rest.split_once('.')) else {
        return Released::One(bare.into());
    };
    let part = match part.strip_suffix("_scale_inv") {
        // A stack's name has no `weight` in it, and its scales are found by their whole name.
        Some(stem) if stem.ends_with(".weight") => {
            Cow::from(format!("{}.scale", &stem[..stem.len() - ".weight".len()]))
        }
        _ => Cow::from(part),
    };
    let of_layer = |part: String| Released::One(format!("layers.{layer}.{part}").into());
    if let Some(part) = lookup(&LAYER, &part) {
        return of_layer(part.to_owned());
    }
    if let Some(part) = strip_either(&part, ["self_attn.", "attn."]) {
        return of_layer(format!("attn.{}", attention(part)));
    }
    if let Some(part) = strip_either(&part, ["mlp.", "ffn."]) {
        let stack = STACKS.iter().find(|(name, ..)| *name == part);
        return match stack {
            Some((_, matrices, part)) => Released::Stack(Stack { layer, matrices, part }),
            None => of_layer(format!("ffn.{}", renamed(part, &EXPERTS))),
        };
    }
    of_layer(part.into_owned())
}

fn strip_either<'a>(name: &'a str, prefixes: [&str; 2]) -> Option<&'a str> {
    prefixes.into_iter().find_map(|prefix| name.strip_prefix(prefix))
}

/// `part` with its stem, which is all of it or all but its last word, looked up in `table`.
fn renamed<'a>(part: &'a str, table: &[(&str, &str)]) -> Cow<'a, str> {
    if let Some(whole) = lookup(table, part) {
        return whole.to_owned().into();
    }
    let known = part.rsplit_once('.').and_then(|(stem, leaf)| Some((lookup(table, stem)?, leaf)));
    known.map_or(Cow::from(part), |(stem, leaf)| format!("{stem}.{leaf}").into())
}

/// The released name of a part of attention.
fn attention(part: &str) -> Cow<'_, str> {
    let indexer = |part: &str| match part.strip_prefix("q_b_proj.") {
        Some(leaf) => format!("indexer.wq_b.{leaf}").into(),
        None => format!("indexer.compressor.{}", renamed(part, &COMPRESSOR)).into(),
    };
    match (part.strip_prefix("compressor.indexer."), part.strip_prefix("compressor.")) {
        (Some(part), _) if !part.starts_with("scorer.") => indexer(part),
        (None, Some(part)) => format!("compressor.{}", renamed(part, &COMPRESSOR)).into(),
        _ => renamed(part, &ATTENTION),
    }
}

impl Stack<'_> {
    /// Rows that one of its matrices has in a tensor of this `shape`, if the shape is `[experts, rows, columns]` with
    /// as many experts and rows as the config says.
    fn rows(&self, config: &Config, shape: &Shape) -> Option<u64> {
        let [experts, rows, _] = **shape else { return None };
        let matrices = self.matrices.len() as u64;
        let one = if matrices == 2 { config.moe_intermediate_size } else { config.hidden_size };
        let blocks = FP8_BLOCK[0];
        // Scales stand for one row (FP4) or for a block of rows, which must not reach over two matrices.
        let possible = match self.part {
            "scale" if one.is_multiple_of(blocks) => [one, one / blocks],
            _ => [one, one],
        };
        let fits = possible.into_iter().map(|one| one as u64).find(|one| rows == matrices * one);
        fits.filter(|_| experts == config.n_routed_experts as u64)
    }

    /// Names of its matrices, expert by expert.
    fn names(&self, config: &Config) -> impl Iterator<Item = Box<str>> {
        let Self { layer, matrices, part } = *self;
        (0..config.n_routed_experts).flat_map(move |expert| {
            let name = move |matrix| format!("layers.{layer}.ffn.experts.{expert}.{matrix}.{part}").into_boxed_str();
            matrices.iter().map(name)
        })
    }

    /// Its matrices as tensors of their own.
    fn split(&self, config: &Config, tensor: &TensorInfo) -> Option<Vec<TensorInfo>> {
        let rows = self.rows(config, &tensor.shape)?;
        let columns = tensor.shape[2];
        // The header's check of shape against range makes the products fit.
        let bytes = rows * columns * tensor.dtype.bytes();
        let shape = Shape::new(&[rows, columns])?;
        let part = |(place, name): (usize, Box<str>)| {
            let start = tensor.start + place as u64 * bytes;
            TensorInfo { name, dtype: tensor.dtype, shape, bytes, shard: tensor.shard, start }
        };
        Some(self.names(config).enumerate().map(part).collect())
    }
}

/// Gives all tensors their released names, ascending; `held` are those whose shard's header has arrived, `absent` the
/// others. Shapes of stacks that do not fit the config, and names given twice, are problems.
pub(crate) fn translate(
    config: &Config,
    held: &mut Vec<TensorInfo>,
    absent: &mut Vec<(Box<str>, u32)>,
    shard: impl Fn(u32) -> String,
    problems: &mut Problems<Problem>,
) {
    let mut translated = Vec::with_capacity(held.len());
    for mut tensor in held.drain(..) {
        match released(&tensor.name) {
            Released::One(Cow::Owned(name)) => tensor.name = name.into(),
            Released::One(Cow::Borrowed(name)) if *name != *tensor.name => tensor.name = name.into(),
            Released::One(_) => {}
            Released::Stack(stack) => {
                match stack.split(config, &tensor) {
                    Some(parts) => translated.extend(parts),
                    None => problems.push(Problem::Stack {
                        tensor: tensor.name.to_string(),
                        shard: shard(tensor.shard),
                        found: tensor.shape,
                        experts: config.n_routed_experts,
                    }),
                }
                continue;
            }
        }
        translated.push(tensor);
    }
    translated.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    *held = translated;
    let mut names = Vec::with_capacity(absent.len());
    for (name, shard) in absent.drain(..) {
        match released(&name) {
            Released::One(name) => names.push((name.as_ref().into(), shard)),
            Released::Stack(stack) => names.extend(stack.names(config).map(|name| (name, shard))),
        }
    }
    *absent = names;
    for pair in held.windows(2).filter(|pair| pair[0].name == pair[1].name) {
        let shards = [&pair[0], &pair[1]].map(|tensor| shard(tensor.shard));
        problems.push(Problem::Twice { tensor: pair[0].name.to_string(), shards });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_both_dialects() {
        let rows = [
            ("model.embed_tokens.weight", "embed.weight"),
            ("lm_head.weight", "head.weight"),
            ("model.norm.weight", "norm.weight"),
            ("model.hc_head.hc_fn", "hc_head_fn"),
            ("model.layers.3.input_layernorm.weight", "layers.3.attn_norm.weight"),
            ("layers.3.post_attention_layernorm.weight", "layers.3.ffn_norm.weight"),
            ("model.layers.3.attn_hc.scale", "layers.3.hc_attn_scale"),
            ("model.layers.3.ffn_hc.fn", "layers.3.hc_ffn_fn"),
            ("model.layers.3.self_attn.q_a_proj.weight", "layers.3.attn.wq_a.weight"),
            ("model.layers.3.self_attn.q_a_proj.weight_scale_inv", "layers.3.attn.wq_a.scale"),
            ("model.layers.3.self_attn.q_a_norm.weight", "layers.3.attn.q_norm.weight"),
            ("model.layers.3.self_attn.kv_norm.weight", "layers.3.attn.kv_norm.weight"),
            ("model.layers.3.attn.norm.weight", "layers.3.attn.kv_norm.weight"),
            ("model.layers.3.self_attn.o_a_proj.weight", "layers.3.attn.wo_a.weight"),
            ("model.layers.3.self_attn.sinks", "layers.3.attn.attn_sink"),
            ("model.layers.3.self_attn.compressor.kv_proj.weight", "layers.3.attn.compressor.wkv.weight"),
            ("model.layers.3.self_attn.compressor.position_bias", "layers.3.attn.compressor.ape"),
            ("model.layers.3.self_attn.compressor.kv_norm.weight", "layers.3.attn.compressor.norm.weight"),
            (
                "model.layers.3.self_attn.compressor.indexer.gate_proj.weight",
                "layers.3.attn.indexer.compressor.wgate.weight",
            ),
            ("model.layers.3.self_attn.compressor.indexer.q_b_proj.weight", "layers.3.attn.indexer.wq_b.weight"),
            (
                "model.layers.3.self_attn.compressor.indexer.scorer.weights_proj.weight",
                "layers.3.attn.indexer.weights_proj.weight",
            ),
            ("model.layers.3.mlp.gate.weight", "layers.3.ffn.gate.weight"),
            ("model.layers.3.mlp.gate.tid2eid", "layers.3.ffn.gate.tid2eid"),
            ("model.layers.3.mlp.gate.e_score_correction_bias", "layers.3.ffn.gate.bias"),
            ("model.layers.3.mlp.shared_experts.up_proj.weight", "layers.3.ffn.shared_experts.w3.weight"),
            ("layers.3.mlp.experts.5.w2.scale", "layers.3.ffn.experts.5.w2.scale"),
        ];
        for (name, expected) in rows {
            assert_eq!(released(name), Released::One(expected.into()), "{name}");
            assert_eq!(released(expected), Released::One(expected.into()), "{expected}");
        }
        // What nobody knows keeps its name, to be reported by it.
        for name in ["model.x", "layers.3.attn.q_proj.weight", "layers", "layers.3", "mtp.0.e_proj.weight"] {
            assert_eq!(released(name), Released::One(name.strip_prefix("model.").unwrap_or(name).into()));
        }
        let stack = Stack { layer: "3", matrices: &["w1", "w3"], part: "scale" };
        assert_eq!(released("model.layers.3.mlp.experts.gate_up_proj_scale_inv"), Released::Stack(stack));
    }
}
