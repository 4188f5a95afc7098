//! The tensors that a block of the family has, and the walk that names them (spec V4 section 2.3, V4.1 section 2.3).
//!
//! Tensors are visited one after the other and never listed, so that absurd numbers in a config cost time at most until
//! the caller has seen enough.

use super::{DsparkConfig, Trunk, VisionConfig};
use crate::inventory::{Expected, Group, Visit};
use crate::{Dtype, Shape};
use std::fmt::Write;
use std::ops::ControlFlow;

/// Prefixes of tensors that a checkpoint may hold without its config declaring them.
pub(crate) const SET_ASIDE: [&str; 4] = ["mtp.", "vision.", "aligner.", "image_"];

/// How the weights of a linear layer are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weights {
    /// E2M1, two codes a byte, with a power-of-two scale per row and 32 columns.
    Fp4,
    /// E4M3 with a power-of-two scale per block of rows and columns.
    Fp8 {
        /// The block's rows and columns.
        block: [usize; 2],
    },
    /// BF16 or F32 without scales.
    Plain,
}

/// Visits tensors whose names start with a common prefix.
pub(crate) struct Visitor<'a, 'v> {
    name: String,
    prefix: usize,
    /// Whether a tensor released as F32 may be stored as BF16.
    narrow: bool,
    visit: &'a mut Visit<'v>,
}

impl<'a, 'v> Visitor<'a, 'v> {
    /// `narrow` says whether a tensor released as F32 may be stored as BF16; the reverse, which loses nothing, always
    /// may.
    pub(crate) fn new(narrow: bool, visit: &'a mut Visit<'v>) -> Self {
        Self { name: String::with_capacity(80), prefix: 0, narrow, visit }
    }

    pub(crate) fn with_prefix(
        &mut self,
        prefix: std::fmt::Arguments<'_>,
        body: impl FnOnce(&mut Self) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let outer = self.prefix;
        self.name.truncate(outer);
        // Writing to a string cannot fail.
        let _ = self.name.write_fmt(prefix);
        self.prefix = self.name.len();
        let flow = body(self);
        self.prefix = outer;
        flow
    }

    pub(crate) fn tensor(&mut self, suffix: &str, dtype: Dtype, shape: Shape, group: Group) -> ControlFlow<()> {
        self.name.truncate(self.prefix);
        self.name.push_str(suffix);
        let also = match dtype {
            Dtype::BF16 => Some(Dtype::F32),
            Dtype::F32 if self.narrow => Some(Dtype::BF16),
            _ => None,
        };
        (self.visit)(Expected { name: &self.name, dtype, also, shape, group })
    }

    pub(crate) fn vector(&mut self, suffix: &str, dtype: Dtype, size: usize, group: Group) -> ControlFlow<()> {
        self.tensor(suffix, dtype, Shape::vector(size), group)
    }

    pub(crate) fn bf16(&mut self, suffix: &str, rows: usize, columns: usize, group: Group) -> ControlFlow<()> {
        self.tensor(suffix, Dtype::BF16, Shape::matrix(rows, columns), group)
    }

    /// `suffix.weight`, and `suffix.scale` if it is quantised.
    pub(crate) fn linear(
        &mut self,
        suffix: &str,
        [rows, columns]: [usize; 2],
        weights: Weights,
        group: Group,
    ) -> ControlFlow<()> {
        self.with_prefix(format_args!("{suffix}."), |v| match weights {
            Weights::Fp4 => {
                v.tensor("weight", Dtype::I8, Shape::matrix(rows, columns / 2), group)?;
                v.tensor("scale", Dtype::F8_E8M0, Shape::matrix(rows, columns / 32), group)
            }
            Weights::Fp8 { block: [high, wide] } => {
                v.tensor("weight", Dtype::F8_E4M3, Shape::matrix(rows, columns), group)?;
                let scales = Shape::matrix(rows.div_ceil(high), columns.div_ceil(wide));
                v.tensor("scale", Dtype::F8_E8M0, scales, group)
            }
            Weights::Plain => v.bf16("weight", rows, columns, group),
        })
    }
}

/// The embedding, the head and the final norm.
pub(crate) fn ends(v: &mut Visitor<'_, '_>, trunk: &Trunk) -> ControlFlow<()> {
    let (vocab, hidden) = (trunk.vocab_size, trunk.hidden_size);
    v.bf16("embed.weight", vocab, hidden, Group::Embedding)?;
    v.bf16("head.weight", vocab, hidden, Group::Head)?;
    v.vector("norm.weight", Dtype::BF16, hidden, Group::Norms)
}

/// What distinguishes the blocks of one model.
#[derive(Clone, Copy)]
pub(crate) struct Block {
    /// How projections and the shared expert are stored.
    pub(crate) dense: Weights,
    /// How routed experts are stored.
    pub(crate) experts: Weights,
    /// Number of routed experts.
    pub(crate) count: usize,
    /// Whether the router has a bias for text, and one for images.
    pub(crate) biases: [bool; 2],
    /// Whether it belongs to the draft module, which counts as a whole.
    pub(crate) draft: bool,
}

/// What every layer and every draft stage has: norms, attention, experts, mixers.
pub(crate) fn block(v: &mut Visitor<'_, '_>, trunk: &Trunk, kind: Block) -> ControlFlow<()> {
    let Block { dense, experts, count, biases: [bias, bias_vl], draft } = kind;
    let group = |group: Group| if draft { Group::Draft } else { group };
    let (hidden, inner) = (trunk.hidden_size, trunk.moe_intermediate_size);
    let (query, output) = (trunk.query_width(), trunk.o_groups * trunk.o_lora_rank);
    v.vector("attn_norm.weight", Dtype::BF16, hidden, group(Group::Norms))?;
    v.vector("ffn_norm.weight", Dtype::BF16, hidden, group(Group::Norms))?;
    let attention = group(Group::Attention);
    v.linear("attn.wq_a", [trunk.q_lora_rank, hidden], dense, attention)?;
    v.vector("attn.q_norm.weight", Dtype::BF16, trunk.q_lora_rank, attention)?;
    v.linear("attn.wq_b", [query, trunk.q_lora_rank], dense, attention)?;
    v.linear("attn.wkv", [trunk.head_dim, hidden], dense, attention)?;
    v.vector("attn.kv_norm.weight", Dtype::BF16, trunk.head_dim, attention)?;
    v.linear("attn.wo_a", [output, query / trunk.o_groups], dense, attention)?;
    v.linear("attn.wo_b", [hidden, output], dense, attention)?;
    v.vector("attn.attn_sink", Dtype::F32, trunk.num_attention_heads, attention)?;
    let router = group(Group::Routers);
    v.bf16("ffn.gate.weight", count, hidden, router)?;
    for (suffix, _) in [("ffn.gate.bias", bias), ("ffn.gate.bias_vl", bias_vl)].iter().filter(|(_, there)| *there) {
        v.vector(suffix, Dtype::F32, count, router)?;
    }
    let shared = group(Group::SharedExperts);
    for (name, shape) in [("w1", [inner, hidden]), ("w3", [inner, hidden]), ("w2", [hidden, inner])] {
        v.with_prefix(format_args!("ffn.shared_experts."), |v| v.linear(name, shape, dense, shared))?;
    }
    let routed = if draft { Group::DraftExperts } else { Group::RoutedExperts };
    for expert in 0..count {
        v.with_prefix(format_args!("ffn.experts.{expert}."), |v| {
            v.linear("w1", [inner, hidden], experts, routed)?;
            v.linear("w3", [inner, hidden], experts, routed)?;
            v.linear("w2", [hidden, inner], experts, routed)
        })?;
    }
    let (mixers, rows) = (group(Group::Mixers), trunk.mixer_rows());
    for site in ["hc_attn_", "hc_ffn_"] {
        v.with_prefix(format_args!("{site}"), |v| {
            v.tensor("fn", Dtype::F32, Shape::matrix(rows, trunk.hc_mult * hidden), mixers)?;
            v.vector("base", Dtype::F32, rows, mixers)?;
            v.vector("scale", Dtype::F32, 3, mixers)
        })?;
    }
    ControlFlow::Continue(())
}

/// What DSpark's first and last stage have beside a block; `markov` are the names of its two Markov matrices.
pub(crate) fn dspark(
    v: &mut Visitor<'_, '_>,
    trunk: &Trunk,
    dspark: &DsparkConfig,
    stage: usize,
    dense: Weights,
    markov: [&str; 2],
) -> ControlFlow<()> {
    let (hidden, vocab, group) = (trunk.hidden_size, trunk.vocab_size, Group::Draft);
    if stage == 0 {
        v.linear("main_proj", [hidden, dspark.target_layer_ids.len() * hidden], dense, group)?;
        v.vector("main_norm.weight", Dtype::BF16, hidden, group)?;
    }
    if stage + 1 == dspark.stages {
        v.vector("norm.weight", Dtype::BF16, hidden, group)?;
        for name in markov {
            v.bf16(name, vocab, dspark.markov_rank, group)?;
        }
        v.bf16("confidence_head.proj.weight", 1, hidden + dspark.markov_rank, group)?;
    }
    ControlFlow::Continue(())
}

/// `vision.*`, `aligner.*`, and the vectors called `around` that stand around an image.
pub(crate) fn vision(
    v: &mut Visitor<'_, '_>,
    trunk: &Trunk,
    vision: &VisionConfig,
    around: &[&str],
) -> ControlFlow<()> {
    let group = Group::Vision;
    let (width, inner, hidden) = (vision.hidden_size, vision.intermediate_size, trunk.hidden_size);
    for name in around {
        v.vector(name, Dtype::BF16, hidden, group)?;
    }
    v.bf16("vision.patch_embed.proj.weight", width, 3 * vision.patch_size * vision.patch_size, group)?;
    v.vector("vision.patch_embed.proj.bias", Dtype::BF16, width, group)?;
    for block in 0..vision.num_hidden_layers {
        v.with_prefix(format_args!("vision.blocks.{block}."), |v| {
            v.vector("norm1.weight", Dtype::BF16, width, group)?;
            v.vector("norm2.weight", Dtype::BF16, width, group)?;
            v.bf16("attn.wqkv.weight", 3 * width, width, group)?;
            v.vector("attn.wqkv.bias", Dtype::BF16, 3 * width, group)?;
            v.bf16("attn.wo.weight", width, width, group)?;
            v.vector("attn.wo.bias", Dtype::BF16, width, group)?;
            v.bf16("mlp.w1.weight", 2 * inner, width, group)?;
            v.bf16("mlp.w2.weight", width, inner, group)
        })?;
    }
    v.vector("vision.norm.weight", Dtype::BF16, width, group)?;
    let cell = width * vision.downsample_ratio * vision.downsample_ratio;
    v.bf16("aligner.w1.weight", hidden, cell, group)?;
    v.vector("aligner.w1.bias", Dtype::BF16, hidden, group)?;
    v.bf16("aligner.w2.weight", hidden, hidden, group)?;
    v.vector("aligner.w2.bias", Dtype::BF16, hidden, group)
}
