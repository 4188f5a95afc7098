//! The tensors that a V4 checkpoint consists of (spec sections 2.2 to 2.4 and 6.1), derived from config and build.

use super::build::Draft;
use super::{Config, LayerPlan, Role, Routing};
use crate::family::tensors::{self, Block, Visitor};
use crate::inventory::{Group, Visit};
use crate::{Dtype, Shape};
use std::ops::ControlFlow;

/// Visits every tensor of a checkpoint with this config and build.
pub(crate) fn visit(config: &Config, visit: &mut Visit<'_>) -> ControlFlow<()> {
    let build = config.build;
    // Transformers writes every floating-point tensor in one type.
    let mut visitor = Visitor::new(true, visit);
    let v = &mut visitor;
    tensors::ends(v, config)?;
    mixed_head(v, config, Group::Mixers)?;
    for (layer, plan) in config.layers.iter().enumerate() {
        let hashed = plan.routing == Routing::Hashed;
        let kind = Block {
            dense: build.dense,
            experts: build.experts,
            count: config.n_routed_experts,
            biases: [!hashed || build.image_routing, build.image_routing],
            draft: false,
        };
        v.with_prefix(format_args!("layers.{layer}."), |v| {
            tensors::block(v, config, kind)?;
            if hashed {
                let table = Shape::matrix(config.vocab_size, config.num_experts_per_tok);
                v.tensor("ffn.gate.tid2eid", Dtype::I64, table, Group::HashTables)?;
            }
            compressed(v, config, plan)
        })?;
    }
    draft(v, config)?;
    match config.vision.as_ref().filter(|_| build.vision) {
        Some(vision) => tensors::vision(v, config, vision, &["image_start", "image_end", "image_newline", "image_pad"]),
        None => ControlFlow::Continue(()),
    }
}

/// `hc_head_*`: what collapses the streams before a final norm.
fn mixed_head(v: &mut Visitor<'_, '_>, config: &Config, group: Group) -> ControlFlow<()> {
    let streams = config.hc_mult;
    v.tensor("hc_head_fn", Dtype::F32, Shape::matrix(streams, streams * config.hidden_size), group)?;
    v.vector("hc_head_base", Dtype::F32, streams, group)?;
    v.vector("hc_head_scale", Dtype::F32, 1, group)
}

/// What layers with compressed entries have: a compressor, and CSA layers an indexer with one of its own.
fn compressed(v: &mut Visitor<'_, '_>, config: &Config, plan: &LayerPlan) -> ControlFlow<()> {
    let group = Group::Indexers;
    // CSA compresses overlapping windows: two series side by side.
    let series = match plan.role {
        Role::Sliding => return ControlFlow::Continue(()),
        Role::Csa => 2,
        Role::Hca => 1,
    };
    let compressor = |v: &mut Visitor<'_, '_>, width: usize| {
        v.tensor("compressor.ape", Dtype::F32, Shape::matrix(plan.ratio, series * width), group)?;
        v.bf16("compressor.wkv.weight", series * width, config.hidden_size, group)?;
        v.bf16("compressor.wgate.weight", series * width, config.hidden_size, group)?;
        v.vector("compressor.norm.weight", Dtype::BF16, width, group)
    };
    v.with_prefix(format_args!("attn."), |v| compressor(v, config.head_dim))?;
    if plan.role != Role::Csa {
        return ControlFlow::Continue(());
    }
    v.with_prefix(format_args!("attn.indexer."), |v| {
        let queries = [config.index_n_heads * config.index_head_dim, config.q_lora_rank];
        v.linear("wq_b", queries, config.build.dense, group)?;
        v.bf16("weights_proj.weight", config.index_n_heads, config.hidden_size, group)?;
        compressor(v, config.index_head_dim)
    })
}

/// `mtp.*`: ratio-0, score-routed blocks and what joins them to the trunk.
fn draft(v: &mut Visitor<'_, '_>, config: &Config) -> ControlFlow<()> {
    let build = config.build;
    let kind = Block {
        dense: build.dense,
        experts: build.experts,
        count: config.n_routed_experts,
        biases: [true, build.image_routing],
        draft: true,
    };
    let (hidden, vocab) = (config.hidden_size, config.vocab_size);
    match (build.draft, &config.dspark) {
        (Some(Draft::Dspark), Some(dspark)) => {
            for stage in 0..dspark.stages {
                v.with_prefix(format_args!("mtp.{stage}."), |v| {
                    tensors::block(v, config, kind)?;
                    if stage + 1 == dspark.stages {
                        mixed_head(v, config, Group::Draft)?;
                    }
                    let markov = ["markov_head.markov_w1.weight", "markov_head.markov_w2.weight"];
                    tensors::dspark(v, config, dspark, stage, build.dense, markov)
                })?;
            }
            ControlFlow::Continue(())
        }
        (Some(Draft::Mtp { copies }), _) => v.with_prefix(format_args!("mtp.0."), |v| {
            tensors::block(v, config, kind)?;
            mixed_head(v, config, Group::Draft)?;
            for name in ["e_proj", "h_proj"] {
                v.linear(name, [hidden, hidden], build.dense, Group::Draft)?;
            }
            for name in ["enorm.weight", "hnorm.weight", "norm.weight"] {
                v.vector(name, Dtype::BF16, hidden, Group::Draft)?;
            }
            for name in ["emb.tok_emb.weight", "head.weight"].iter().filter(|_| copies) {
                v.bf16(name, vocab, hidden, Group::SetAside)?;
            }
            ControlFlow::Continue(())
        }),
        _ => ControlFlow::Continue(()),
    }
}
