//! DeepSeek-V4.1-Flash: the text model (spec sections 3 and 4).
//!
//! [`Model::advance`] reads top to bottom like section 3: embedding, layers (Engram, attention, experts), head. The
//! model asks its sources for experts and rows and never opens a file.

mod attention;
mod engram;
mod forward;
mod global;
mod load;
mod moe;
mod replay;
mod selection;
mod state;
mod step;
mod trace;
mod weights;

use std::sync::Arc;

use cachalot_checkpoint::deepseek_v41::{Config, EngramTables};
use cachalot_experts::{ExpertSource, RowSource};
use cachalot_kernels::Compute;

use crate::shared::inputs::Arithmetic;
use crate::shared::rope::RopeTable;

pub use load::{LoadError, Parts};
pub use state::{ROLLBACK, RollBackError, Sequence, StateBytes};
pub use step::{LogitsOf, Segment, Workspace};
pub use trace::Trace;

/// A loaded text model. Shared by all sequences; a step borrows it.
pub struct Model {
    config: Config,
    records: state::RecordSizes,
    /// Layers that own compressed entries, ascending.
    kv_sources: Vec<usize>,
    weights: weights::Weights,
    experts: Arc<dyn ExpertSource>,
    rows: Arc<dyn RowSource>,
    /// N-gram class of every token id.
    classes: Vec<u32>,
    pad_class: u32,
    engram_tables: Option<EngramTables>,
    plain_rope: RopeTable,
    compressed_rope: RopeTable,
    compute: Compute,
    arithmetic: Arithmetic,
}

impl Model {
    /// The config that the model was loaded with.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The treatment of linear layers' inputs.
    pub fn arithmetic(&self) -> Arithmetic {
        self.arithmetic
    }

    /// A new, empty sequence.
    pub fn sequence(&self) -> Sequence {
        Sequence::new(&self.config)
    }

    /// Number of the embedding among the row source's tables: behind those of Engram.
    fn embedding_table(&self) -> usize {
        self.engram_tables.as_ref().map_or(0, |tables| tables.tables().len())
    }

    /// Number of KV source `layer` among the sources.
    fn source_index(&self, layer: usize) -> usize {
        self.kv_sources.iter().position(|&source| source == layer).unwrap_or(0)
    }

    /// Cosines and sines of this layer's rotary table.
    fn angles<'a>(&self, layer: usize, angles: &'a [step::Angles; 2]) -> (&'a [f32], &'a [f32]) {
        let angles = &angles[usize::from(self.config.layers[layer].ratio > 0)];
        (&angles.cos, &angles.sin)
    }
}
