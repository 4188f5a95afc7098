//! One step of a model: the rows that are computed together and the buffers they pass through.

use cachalot_kernels::Activations;

use crate::shared::attention::AttentionBuffers;
use crate::shared::buffer::keep_rows;
use crate::shared::experts::{ExpertBuffers, Routes};
use crate::shared::foresight::Foresight;
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
    /// None.
    None,
    /// None yet: at least this many more tokens follow before logits of any are wanted, as in all chunks of a prompt
    /// but the last. A model may leave out what only earlier logits could need; the sequence then refuses to be asked
    /// before it has got there.
    Later(usize),
    /// The last position.
    Last,
    /// Every position.
    All,
}

impl LogitsOf {
    /// Tokens that are known to follow before logits are wanted; none if every row is wanted for itself.
    pub(crate) fn following(self) -> Option<usize> {
        match self {
            Self::All => None,
            Self::Later(following) => Some(following),
            Self::None | Self::Last => Some(0),
        }
    }
}

/// One token on its way through the layers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row {
    /// Index of the segment it belongs to.
    pub segment: usize,
    /// Its number among all rows that the step began with.
    pub slot: usize,
    pub position: usize,
    pub token: u32,
    /// Whether it belongs to an image span.
    pub image: bool,
}

/// The rows that one segment begins the step with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    pub first_row: usize,
    pub count: usize,
    /// Position of the first row.
    pub start: usize,
}

impl Span {
    /// Position behind the last row.
    pub fn end(&self) -> usize {
        self.start + self.count
    }
}

/// Window records of a step's rows, `[layers, slots, record]`: written to the rings when the step has succeeded.
#[derive(Default)]
pub(crate) struct WindowRecords {
    bytes: Vec<u8>,
    layer: usize,
}

impl WindowRecords {
    /// Room for `slots` records of `record` bytes in each of `layers` layers.
    pub fn begin(&mut self, layers: usize, slots: usize, record: usize) {
        self.layer = slots * record;
        self.bytes.resize(layers * self.layer, 0);
    }

    /// The records of one layer.
    pub fn of(&self, layer: usize) -> &[u8] {
        &self.bytes[layer * self.layer..(layer + 1) * self.layer]
    }

    /// The records of one layer, to be written.
    pub fn of_mut(&mut self, layer: usize) -> &mut [u8] {
        &mut self.bytes[layer * self.layer..(layer + 1) * self.layer]
    }
}

/// Buffers of a step, reused from step to step; they grow to the largest chunk seen.
#[derive(Default)]
pub struct Workspace {
    pub(crate) rows: Vec<Row>,
    pub(crate) spans: Vec<Span>,
    /// Rows that go on where not all do.
    pub(crate) kept: Vec<usize>,
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
    pub(crate) foresight: Foresight,
    pub(crate) window_records: WindowRecords,
    /// Rows whose logits are wanted; when a step has ended, `x` holds what the head reads of them.
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
    /// Drops all rows but those at the indices `kept`, ascending; spans and window records stay as the step began.
    pub(crate) fn keep(&mut self, kept: &[usize]) {
        let rows = self.rows.len();
        for buffer in [&mut self.streams, &mut self.pre] {
            keep_rows(buffer, rows, kept);
        }
        for angles in &mut self.angles {
            keep_rows(&mut angles.cos, rows, kept);
            keep_rows(&mut angles.sin, rows, kept);
        }
        self.index.selection.keep(rows, kept);
        keep_rows(&mut self.rows, rows, kept);
    }

    /// Empty buffers.
    pub fn new() -> Self {
        Self::default()
    }

    /// The logits that were computed last, `[positions, vocabulary]`.
    pub fn logits(&self) -> &[f32] {
        &self.logits
    }
}
