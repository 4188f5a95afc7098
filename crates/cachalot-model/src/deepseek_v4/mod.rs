//! DeepSeek-V4: Flash, Pro and their builds, and the text half of Vision-Exp (spec sections 3 and 4).
//!
//! [`Model::step`](crate::Model::step) reads top to bottom like section 3: embedding, layers (attention, experts,
//! each between the mixes of its own site), head. Draft blocks and the image path are not read.

mod attention;
mod compressor;
mod forward;
mod load;
mod moe;
mod weights;

use std::sync::Arc;

use cachalot_checkpoint::deepseek_v4::{Config, Role};
use cachalot_experts::ExpertSource;

use crate::shared::codec::Codec;
use crate::shared::stack::Stack;
use crate::shared::trunk::Trunk;
use crate::shared::weights::HyperConnection;
use crate::state::{CacheLayout, CachePrecision, Layout, ROLLBACK, Sequence};

/// A loaded text model. Shared by all sequences; a step borrows it.
pub struct Model {
    pub(crate) trunk: Trunk,
    config: Config,
    layout: Layout,
    codecs: Codecs,
    layers: Stack<weights::Layer>,
    routers: Vec<weights::Router>,
    /// Predicts the weights that collapse the streams for the head.
    head_site: HyperConnection,
    experts: Arc<dyn ExpertSource>,
}

/// Values of an input that share a scale in the vendor's kernels (spec section 3.1).
const INPUT_BLOCK: usize = 128;

/// Reusable buffers of what only this generation has.
#[derive(Default)]
pub(crate) struct Buffers {
    groups: Vec<compressor::Group>,
    entries: compressor::Projected,
    index_keys: compressor::Projected,
    /// Experts of a layer that routes by a table.
    expected: Vec<u32>,
    /// The last layer has appended its groups before, with the rows that ended there.
    appended: bool,
}

/// The forms of what sequences keep.
#[derive(Clone, Copy, Debug)]
struct Codecs {
    /// Window keys and compressed entries.
    key: Codec,
    index_key: Codec,
    /// Whether index keys and queries pass the Hadamard transform, which only their rounding makes a difference to.
    transform: bool,
}

impl Codecs {
    fn new(precision: CachePrecision, config: &Config) -> Self {
        match precision {
            CachePrecision::Vendor => {
                Self { key: Codec::Key { rotary: config.qk_rope_head_dim }, index_key: Codec::Mxfp4, transform: true }
            }
            CachePrecision::Float32 => Self { key: Codec::Float32, index_key: Codec::Float32, transform: false },
        }
    }
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

    /// Which rotary table a layer uses.
    fn rope(&self, layer: usize) -> usize {
        usize::from(self.config.layers[layer].role != Role::Sliding)
    }
}

/// Windows of all layers; of every compressed layer its entries, of CSA its index keys; and what their compressors keep
/// of the newest tokens, values and gates: two groups of two series for CSA, one of one for HCA.
fn layout(config: &Config, codecs: &Codecs) -> Layout {
    let caches = config.compressed().map(|(_, plan)| {
        let (head, index) = (config.head_dim, config.index_head_dim);
        let sparse = plan.role == Role::Csa;
        CacheLayout {
            ratio: plan.ratio,
            entry: codecs.key.bytes(head),
            index_key: if sparse { codecs.index_key.bytes(index) } else { 0 },
            rolling: if sparse {
                [(2 * 2 * head, 2 * plan.ratio + ROLLBACK), (2 * 2 * index, 2 * plan.ratio + ROLLBACK)]
            } else {
                [(2 * head, plan.ratio + ROLLBACK), (0, 0)]
            },
        }
    });
    Layout {
        layers: config.num_hidden_layers,
        window: config.sliding_window,
        record: codecs.key.bytes(config.head_dim),
        caches: caches.collect(),
        history: 0,
    }
}
