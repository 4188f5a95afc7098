//! One step of the model: the rows that are computed together and the buffers they pass through.

use cachalot_kernels::Activations;

use super::attention::AttentionBuffers;
use super::engram::EngramBuffers;
use super::global::GlobalBuffers;
use super::state::Sequence;
use crate::shared::experts::{ExpertBuffers, Routes};
use crate::shared::hyper_connections::Mix;
use crate::shared::inputs::Inputs;

/// Tokens that one sequence is advanced by.
pub struct Segment<'a> {
    /// The state; moves on by all tokens, or not at all if the step fails.
    pub sequence: &'a mut Sequence,
    /// Token ids.
    pub tokens: &'a [u32],
    /// Rows that replace the embedding of image placeholders, `[tokens, hidden]` (other rows are not read).
    pub embeddings: Option<&'a [f32]>,
    /// Which positions get logits.
    pub logits: LogitsOf,
}

/// Positions whose logits are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogitsOf {
    /// None: more of the prompt follows.
    None,
    /// The last position.
    Last,
    /// Every position.
    All,
}

/// One token on its way through the layers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    /// Index of the segment it belongs to.
    pub segment: usize,
    pub position: usize,
    /// Whether it belongs to an image span.
    pub image: bool,
}

/// The rows of one segment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    pub first_row: usize,
    pub count: usize,
    /// Position of the first row.
    pub start: usize,
}

/// Buffers of a step, reused from step to step; they grow to the largest chunk seen.
#[derive(Default)]
pub struct Workspace {
    pub(super) rows: Vec<Row>,
    pub(super) spans: Vec<Span>,
    /// N-gram class of each row's token.
    pub(super) classes: Vec<u32>,
    /// `[rows, S, hidden]`
    pub(super) streams: Vec<f32>,
    /// The mix handed over by the previous site, `[rows, S]`.
    pub(super) pre: Vec<f32>,
    /// The current site's mixes.
    pub(super) mixes: Vec<Option<Mix>>,
    pub(super) flat: Activations,
    pub(super) projected: Vec<f32>,
    pub(super) collapsed: Vec<f32>,
    /// A sublayer's input and output, `[rows, hidden]`.
    pub(super) x: Vec<f32>,
    pub(super) y: Vec<f32>,
    pub(super) inputs: Inputs,
    /// Cosines and sines of every row for the plain and the compressed table, `[rows, pairs]`.
    pub(super) angles: [Angles; 2],
    pub(super) attention: AttentionBuffers,
    pub(super) global: GlobalBuffers,
    pub(super) engram: EngramBuffers,
    pub(super) router: Vec<f32>,
    pub(super) routes: Routes,
    pub(super) experts: ExpertBuffers,
    /// Window records of this step's rows, `[layers, rows, record]`: written to the rings when the step has succeeded.
    pub(super) window_records: Vec<u8>,
    /// Rows whose logits are wanted.
    pub(super) wanted: Vec<usize>,
    pub(super) ids: Vec<u64>,
    pub(super) logits: Vec<f32>,
}

#[derive(Default)]
pub(super) struct Angles {
    pub cos: Vec<f32>,
    pub sin: Vec<f32>,
}

impl Workspace {
    /// Empty buffers.
    pub fn new() -> Self {
        Self::default()
    }

    /// The logits of the last step, `[positions, vocabulary]`.
    pub fn logits(&self) -> &[f32] {
        &self.logits
    }
}
