//! The tensors that a V4.1 checkpoint consists of (spec section 2.3), derived from its config.
//!
//! Owns names, shapes, stored types and groups. Tensors are visited one after the other and never listed, so that
//! absurd numbers in a config cost time at most until the caller has seen enough.

use super::{Config, DsparkConfig, VisionConfig};
use crate::inventory::{Expected, Group, Visit};
use crate::{Dtype, Shape};
use std::fmt::Write;
use std::ops::ControlFlow;

/// Prefixes of tensors that a checkpoint may hold without its config declaring them.
pub const SET_ASIDE: [&str; 4] = ["mtp.", "vision.", "aligner.", "image_"];

/// Visits tensors whose names start with a common prefix.
struct Visitor<'a, 'v> {
    name: String,
    prefix: usize,
    visit: &'a mut Visit<'v>,
}

impl Visitor<'_, '_> {
    fn with_prefix(
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

    fn tensor(&mut self, suffix: &str, dtype: Dtype, shape: Shape, group: Group) -> ControlFlow<()> {
        self.name.truncate(self.prefix);
        self.name.push_str(suffix);
        (self.visit)(Expected { name: &self.name, dtype, shape, group })
    }

    fn vector(&mut self, suffix: &str, dtype: Dtype, size: usize, group: Group) -> ControlFlow<()> {
        self.tensor(suffix, dtype, Shape::vector(size), group)
    }

    fn bf16(&mut self, suffix: &str, rows: usize, columns: usize, group: Group) -> ControlFlow<()> {
        self.tensor(suffix, Dtype::BF16, Shape::matrix(rows, columns), group)
    }

    /// `suffix.weight` in FP8 with one scale per 32x32 tile.
    fn fp8(&mut self, suffix: &str, rows: usize, columns: usize, group: Group) -> ControlFlow<()> {
        self.with_prefix(format_args!("{suffix}."), |v| {
            v.tensor("weight", Dtype::F8_E4M3, Shape::matrix(rows, columns), group)?;
            v.tensor("scale", Dtype::F8_E8M0, Shape::matrix(rows.div_ceil(32), columns.div_ceil(32)), group)
        })
    }

    /// `suffix.weight` in FP4, two codes a byte, with one scale per row and 32 columns.
    fn fp4(&mut self, suffix: &str, rows: usize, columns: usize, group: Group) -> ControlFlow<()> {
        self.with_prefix(format_args!("{suffix}."), |v| {
            v.tensor("weight", Dtype::I8, Shape::matrix(rows, columns / 2), group)?;
            v.tensor("scale", Dtype::F8_E8M0, Shape::matrix(rows, columns / 32), group)
        })
    }
}

/// Visits every tensor that `config` declares. `optional` says of each of the two parts that a checkpoint may lack
/// whether to visit it: `(draft, vision)`.
pub(crate) fn visit(config: &Config, optional: (bool, bool), visit: &mut Visit<'_>) -> ControlFlow<()> {
    let mut visitor = Visitor { name: String::with_capacity(80), prefix: 0, visit };
    let v = &mut visitor;
    let (vocab, hidden) = (config.vocab_size, config.hidden_size);
    v.bf16("embed.weight", vocab, hidden, Group::Embedding)?;
    v.bf16("head.weight", vocab, hidden, Group::Head)?;
    v.vector("norm.weight", Dtype::BF16, hidden, Group::Norms)?;
    for layer in 0..config.num_hidden_layers {
        v.with_prefix(format_args!("layers.{layer}."), |v| {
            block(v, config, config.n_routed_experts, [Group::RoutedExperts, Group::SharedExperts, Group::Routers])?;
            selection(v, config, layer)?;
            engram(v, config, layer)
        })?;
    }
    if let Some(dspark) = config.dspark.as_ref().filter(|_| optional.0) {
        draft(v, config, dspark)?;
    }
    if let Some(vision_config) = config.vision.as_ref().filter(|_| optional.1) {
        vision(v, config, vision_config)?;
    }
    ControlFlow::Continue(())
}

/// What every layer has: norms, attention, experts, mixers. `groups` are those of routed experts, shared expert and
/// router; a draft stage counts as draft as a whole.
fn block(v: &mut Visitor<'_, '_>, config: &Config, experts: usize, groups: [Group; 3]) -> ControlFlow<()> {
    let [routed, shared, router] = groups;
    let draft = routed == Group::DraftExperts;
    let group = |group: Group| if draft { Group::Draft } else { group };
    let (hidden, inner) = (config.hidden_size, config.moe_intermediate_size);
    let (query, output) = (config.query_width(), config.o_groups * config.o_lora_rank);
    v.vector("attn_norm.weight", Dtype::BF16, hidden, group(Group::Norms))?;
    v.vector("ffn_norm.weight", Dtype::BF16, hidden, group(Group::Norms))?;
    let attention = group(Group::Attention);
    v.fp8("attn.wq_a", config.q_lora_rank, hidden, attention)?;
    v.vector("attn.q_norm.weight", Dtype::BF16, config.q_lora_rank, attention)?;
    v.fp8("attn.wq_b", query, config.q_lora_rank, attention)?;
    v.fp8("attn.wkv", config.head_dim, hidden, attention)?;
    v.vector("attn.kv_norm.weight", Dtype::BF16, config.head_dim, attention)?;
    v.fp8("attn.wo_a", output, query / config.o_groups, attention)?;
    v.fp8("attn.wo_b", hidden, output, attention)?;
    v.vector("attn.attn_sink", Dtype::F32, config.num_attention_heads, attention)?;
    v.bf16("ffn.gate.weight", experts, hidden, router)?;
    v.vector("ffn.gate.bias", Dtype::F32, experts, router)?;
    v.vector("ffn.gate.bias_vl", Dtype::F32, experts, router)?;
    v.fp8("ffn.shared_experts.w1", inner, hidden, shared)?;
    v.fp8("ffn.shared_experts.w3", inner, hidden, shared)?;
    v.fp8("ffn.shared_experts.w2", hidden, inner, shared)?;
    for expert in 0..experts {
        v.with_prefix(format_args!("ffn.experts.{expert}."), |v| {
            v.fp4("w1", inner, hidden, routed)?;
            v.fp4("w3", inner, hidden, routed)?;
            v.fp4("w2", hidden, inner, routed)
        })?;
    }
    let (mixers, rows) = (group(Group::Mixers), config.mixer_rows());
    for (function, base, scale) in
        [("hc_attn_fn", "hc_attn_base", "hc_attn_scale"), ("hc_ffn_fn", "hc_ffn_base", "hc_ffn_scale")]
    {
        v.tensor(function, Dtype::F32, Shape::matrix(rows, config.hc_mult * hidden), mixers)?;
        v.vector(base, Dtype::F32, rows, mixers)?;
        v.vector(scale, Dtype::F32, 3, mixers)?;
    }
    ControlFlow::Continue(())
}

/// What KV sources and index sources have.
fn selection(v: &mut Visitor<'_, '_>, config: &Config, layer: usize) -> ControlFlow<()> {
    let plan = &config.layers[layer];
    let group = Group::Indexers;
    if plan.kv_source == Some(layer) {
        v.bf16("attn.compressor.wkv.weight", config.head_dim, config.hidden_size, group)?;
        if plan.ratio > 1 {
            v.bf16("attn.compressor.wgate.weight", config.head_dim, config.hidden_size, group)?;
        }
        v.vector("attn.compressor.norm.weight", Dtype::BF16, config.head_dim, group)?;
        v.bf16("attn.indexer.wk.weight", config.index_head_dim, config.head_dim, group)?;
        v.vector("attn.indexer.k_norm.weight", Dtype::BF16, config.index_head_dim, group)?;
    }
    if plan.index_source == Some(layer) {
        v.fp8("attn.indexer.wq_b", config.index_n_heads * config.index_head_dim, config.q_lora_rank, group)?;
        v.bf16("attn.indexer.weights_proj.weight", config.index_n_heads, config.hidden_size, group)?;
    }
    ControlFlow::Continue(())
}

/// What Engram layers have.
fn engram(v: &mut Visitor<'_, '_>, config: &Config, layer: usize) -> ControlFlow<()> {
    let Some((engram, table)) = config.engram.as_ref().zip(config.layers[layer].engram) else {
        return ControlFlow::Continue(());
    };
    let (rows, width) = (engram.num_embeddings[table] as usize, engram.head_dim);
    let (streams, hidden) = (config.hc_mult, config.hidden_size);
    v.tensor("engram.embed.weight", Dtype::F8_E4M3, Shape::matrix(rows, width), Group::EngramTables)?;
    v.tensor("engram.embed.scale", Dtype::F8_E8M0, Shape::matrix(rows, width / 32), Group::EngramTables)?;
    v.fp8("engram.wkv", (streams + 1) * hidden, engram.columns() * width, Group::EngramProjections)?;
    v.bf16("engram.q_weight", streams, hidden, Group::EngramProjections)?;
    v.bf16("engram.k_weight", streams, hidden, Group::EngramProjections)
}

/// `mtp.*`.
fn draft(v: &mut Visitor<'_, '_>, config: &Config, dspark: &DsparkConfig) -> ControlFlow<()> {
    let (hidden, vocab, group) = (config.hidden_size, config.vocab_size, Group::Draft);
    for stage in 0..dspark.stages {
        v.with_prefix(format_args!("mtp.{stage}."), |v| {
            block(v, config, dspark.n_routed_experts, [Group::DraftExperts, group, group])?;
            if stage == 0 {
                v.fp8("main_proj", hidden, dspark.target_layer_ids.len() * hidden, group)?;
                v.vector("main_norm.weight", Dtype::BF16, hidden, group)?;
            }
            if stage + 1 == dspark.stages {
                v.vector("norm.weight", Dtype::BF16, hidden, group)?;
                v.bf16("markov_head.embed.weight", vocab, dspark.markov_rank, group)?;
                v.bf16("markov_head.head.weight", vocab, dspark.markov_rank, group)?;
                v.bf16("confidence_head.proj.weight", 1, hidden + dspark.markov_rank, group)?;
            }
            ControlFlow::Continue(())
        })?;
    }
    ControlFlow::Continue(())
}

/// `vision.*`, `aligner.*` and the three vectors around an image.
fn vision(v: &mut Visitor<'_, '_>, config: &Config, vision: &VisionConfig) -> ControlFlow<()> {
    let group = Group::Vision;
    let (width, inner, hidden) = (vision.hidden_size, vision.intermediate_size, config.hidden_size);
    for name in ["image_start", "image_end", "image_newline"] {
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
