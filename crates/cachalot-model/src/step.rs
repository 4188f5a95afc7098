//! One step of a model: the rows that are computed together and the buffers they pass through.

use cachalot_kernels::Activations;

use crate::shared::attention::AttentionBuffers;
use crate::shared::experts::{ExpertBuffers, Routes};
use crate::shared::hyper_connections::Mix;
use crate::shared::index::IndexBuffers;
use crate::shared::inputs::Inputs;
use crate::state::Sequence;
use crate::{deepseek_v4, deepseek_v41};

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
pub(crate) struct Row {
    /// Index of the segment it belongs to.
    pub segment: usize,
    pub position: usize,
    pub token: u32,
    /// Whether it belongs to an image span.
    pub image: bool,
}

/// The rows of one segment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    pub first_row: usize,
    pub count: usize,
    /// Position of the first row.
    pub start: usize,
}

/// Buffers of a step, reused from step to step; they grow to the largest chunk seen.
#[derive(Default)]
pub struct Workspace {
    pub(crate) rows: Vec<Row>,
    pub(crate) spans: Vec<Span>,
    /// `[rows, S, hidden]`
    pub(crate) streams: Vec<f32>,
    /// Weights that collapse the streams to the next sublayer's input, `[rows, S]`.
    pub(crate) pre: Vec<f32>,
    /// The current site's mixes.
    pub(crate) mixes: Vec<Option<Mix>>,
    pub(crate) flat: Activations,
    pub(crate) projected: Vec<f32>,
    pub(crate) collapsed: Vec<f32>,
    /// A sublayer's input and output, `[rows, hidden]`.
    pub(crate) x: Vec<f32>,
    pub(crate) y: Vec<f32>,
    pub(crate) inputs: Inputs,
    /// Cosines and sines of every row for the plain and the compressed table.
    pub(crate) angles: [Angles; 2],
    pub(crate) attention: AttentionBuffers,
    pub(crate) index: IndexBuffers,
    pub(crate) router: Vec<f32>,
    pub(crate) routes: Routes,
    pub(crate) experts: ExpertBuffers,
    /// Window records of this step's rows, `[layers, rows, record]`: written to the rings when the step has succeeded.
    pub(crate) window_records: Vec<u8>,
    /// Rows whose logits are wanted.
    pub(crate) wanted: Vec<usize>,
    pub(crate) ids: Vec<u64>,
    pub(crate) logits: Vec<f32>,
    pub(crate) v4: deepseek_v4::Buffers,
    pub(crate) v41: deepseek_v41::Buffers,
}

/// Cosines and sines, `[rows, pairs]`.
#[derive(Default)]
pub(crate) struct Angles {
    pub pairs: usize,
    pub cos: Vec<f32>,
    pub sin: Vec<f32>,
}

impl Angles {
    /// Cosines and sines of `row`.
    pub fn of(&self, row: usize) -> (&[f32], &[f32]) {
        let range = row * self.pairs..(row + 1) * self.pairs;
        (&self.cos[range.clone()], &self.sin[range])
    }
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
