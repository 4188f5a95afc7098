//! The tensors that a V4.1 checkpoint consists of (spec section 2.3), derived from its config.

use super::Config;
use crate::family::tensors::{self, Block, Visitor, Weights};
use crate::inventory::{Group, Visit};
use crate::{Dtype, Shape};
use std::ops::ControlFlow;

/// How projections are stored.
const DENSE: Weights = Weights::Fp8 { block: super::FP8_BLOCK };

/// Visits every tensor that `config` declares. `optional` says of each of the two parts that a checkpoint may lack
/// whether to visit it: `(draft, vision)`.
pub(crate) fn visit(config: &Config, optional: (bool, bool), visit: &mut Visit<'_>) -> ControlFlow<()> {
    let mut visitor = Visitor::new(false, visit);
    let v = &mut visitor;
    let kind = Block {
        dense: DENSE,
        experts: Weights::Fp4,
        count: config.n_routed_experts,
        biases: [true, true],
        draft: false,
    };
    tensors::ends(v, config)?;
    for layer in 0..config.num_hidden_layers {
        v.with_prefix(format_args!("layers.{layer}."), |v| {
            tensors::block(v, config, kind)?;
            selection(v, config, layer)?;
            engram(v, config, layer)
        })?;
    }
    if let Some(dspark) = config.dspark.as_ref().filter(|_| optional.0) {
        for stage in 0..dspark.stages {
            v.with_prefix(format_args!("mtp.{stage}."), |v| {
                tensors::block(v, config, Block { count: dspark.n_routed_experts, draft: true, ..kind })?;
                let markov = ["markov_head.embed.weight", "markov_head.head.weight"];
                tensors::dspark(v, config, dspark, stage, DENSE, markov)
            })?;
        }
    }
    match config.vision.as_ref().filter(|_| optional.1) {
        Some(vision) => tensors::vision(v, config, vision, &["image_start", "image_end", "image_newline"]),
        None => ControlFlow::Continue(()),
    }
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
        let queries = [config.index_n_heads * config.index_head_dim, config.q_lora_rank];
        v.linear("attn.indexer.wq_b", queries, DENSE, group)?;
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
    let projections = Group::EngramProjections;
    v.linear("engram.wkv", [(streams + 1) * hidden, engram.columns() * width], DENSE, projections)?;
    v.bf16("engram.q_weight", streams, hidden, projections)?;
    v.bf16("engram.k_weight", streams, hidden, projections)
}
