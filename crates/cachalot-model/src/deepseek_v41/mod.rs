//! DeepSeek-V4.1-Flash: the text model (spec sections 3 and 4).
//!
//! [`Model::step`] reads top to bottom like section 3: embedding, layers (Engram, attention, experts), head. The
//! model asks its sources for experts and rows and never opens a file.

mod attention;
mod engram;
mod forward;
mod global;
mod load;
mod moe;
mod reach;
mod replay;
mod weights;

use std::sync::Arc;

use cachalot_checkpoint::deepseek_v41::{Config, EngramTables};
use cachalot_experts::ExpertSource;

use crate::load::Ablation;
use crate::shared::codec::Codec;
use crate::shared::stack::Stack;
use crate::shared::trunk::Trunk;
use crate::state::{CacheLayout, Layout, ROLLBACK, Sequence};

/// A loaded text model. Shared by all sequences; a step borrows it.
pub struct Model {
    pub(crate) trunk: Trunk,
    config: Config,
    layout: Layout,
    /// Layers that own compressed entries, ascending.
    kv_sources: Vec<usize>,
    layers: Stack<weights::Layer>,
    routers: Vec<weights::Router>,
    experts: Arc<dyn ExpertSource>,
    ablation: Ablation,
    /// N-gram class of every token id.
    classes: Vec<u32>,
    pad_class: u32,
    engram_tables: Option<EngramTables>,
}

/// Form of a compressed entry.
const ENTRY: Codec = Codec::Nvfp4;
/// Form of an index key.
const INDEX_KEY: Codec = Codec::Mxfp4;
/// Form of a window key.
const WINDOW: Codec = Codec::Fp8;

/// Values of an input that share a scale in the vendor's kernels.
const INPUT_BLOCK: usize = 32;

/// Marks a position of an image span in the n-gram history, where tokens have classes.
const IMAGE_CLASS: u32 = u32::MAX;

/// Reusable buffers of what only this generation has.
#[derive(Default)]
pub(crate) struct Buffers {
    /// N-gram class of each row's token.
    classes: Vec<u32>,
    global: global::GlobalBuffers,
    engram: engram::EngramBuffers,
}

impl Model {
    /// The config that the model was loaded with.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// A new, empty sequence.
    pub(crate) fn sequence(&self) -> Sequence {
        Sequence::new(&self.layout)
    }

    /// Number of KV source `layer` among the sources.
    fn source_index(&self, layer: usize) -> usize {
        self.kv_sources.iter().position(|&source| source == layer).unwrap_or(0)
    }

    /// Which rotary table a layer uses.
    fn rope(&self, layer: usize) -> usize {
        usize::from(self.config.layers[layer].ratio > 0)
    }
}

/// Windows of all layers; entries, index keys and pending first halves of the KV sources; n-grams.
fn layout(config: &Config) -> Layout {
    let caches = config.kv_sources().map(|(_, plan)| CacheLayout {
        ratio: plan.ratio,
        entry: ENTRY.bytes(config.head_dim),
        index_key: INDEX_KEY.bytes(config.index_head_dim),
        // Only even positions wait for their partner; as many as a rollback can return to.
        rolling: [if plan.ratio > 1 { (2 * config.head_dim, ROLLBACK / 2 + 1) } else { (0, 0) }, (0, 0)],
    });
    Layout {
        layers: config.num_hidden_layers,
        window: config.sliding_window,
        record: WINDOW.bytes(config.head_dim),
        caches: caches.collect(),
        history: config.engram.as_ref().map_or(0, |engram| engram.max_ngram_size - 1),
    }
}
