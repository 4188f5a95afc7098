//! A sequence's state: everything a step needs to know of the tokens before it (spec sections 4.1 to 4.4).
//!
//! One value. It grows by [`super::Model::advance`], is forked by `clone` (forks share the pages of the compressed
//! caches), and rolls back in place by up to [`ROLLBACK`] tokens; to go back farther, keep a fork.

use super::Config;
use crate::shared::records::{RecordPages, RecordRing};

/// How many tokens [`Sequence::roll_back`] can take back in place: a rejected draft.
pub const ROLLBACK: usize = 8;

/// Marks a position of an image span in the n-gram history, where tokens have classes.
pub(super) const IMAGE_CLASS: u32 = u32::MAX;

/// Bytes of one record of each cache (spec section 4.1).
#[derive(Clone, Copy, Debug)]
pub(super) struct RecordSizes {
    /// A window key: FP8 with a scale per 32.
    pub window: usize,
    /// A compressed entry: FP4 with a scale per 16.
    pub entry: usize,
    /// An index key: FP4 with a scale per 32.
    pub index: usize,
}

impl RecordSizes {
    pub fn of(config: &Config) -> Self {
        let (head, index) = (config.head_dim, config.index_head_dim);
        Self { window: head + head / 32, entry: head / 2 + head / 16, index: index / 2 + index / 32 }
    }
}

/// The state of one sequence.
#[derive(Clone, Debug)]
pub struct Sequence {
    /// Tokens so far; the next token sits at this position.
    pub(super) position: usize,
    /// Positions below this one cannot be returned to.
    floor: usize,
    pub(super) windows: Vec<RecordRing<u8>>,
    /// Of each layer, the first position whose window record exists (replay leaves out earlier ones).
    pub(super) window_start: Vec<usize>,
    /// One per KV source layer, in the order of the layers.
    pub(super) globals: Vec<GlobalCache>,
    /// N-gram class of the newest positions.
    history: Vec<u32>,
}

/// What a KV source layer keeps of the whole sequence.
#[derive(Clone, Debug)]
pub(super) struct GlobalCache {
    /// Compressed entries: NVFP4 records.
    pub entries: RecordPages,
    /// Index keys: MXFP4 records.
    pub index_keys: RecordPages,
    /// Values and gates (float32) of the newest first halves of a group; empty at ratio 1.
    pub pending: Option<RecordRing<f32>>,
}

/// Bytes of a sequence's state by kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateBytes {
    /// Compressed entries, growing with the sequence.
    pub entries: usize,
    /// Index keys, growing with the sequence.
    pub index_keys: usize,
    /// Window rings, fixed.
    pub windows: usize,
    /// Pending half-groups and n-gram history, fixed.
    pub other: usize,
}

/// Why a sequence could not go back.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "cannot roll back to position {to}: the sequence is at {position} and can return to {floor} at the earliest (keep a fork to go farther)"
)]
pub struct RollBackError {
    /// Where the caller wanted to go.
    pub to: usize,
    /// Where the sequence is.
    pub position: usize,
    /// The earliest position it can return to.
    pub floor: usize,
}

impl Sequence {
    /// The state before any token.
    pub(super) fn new(config: &Config) -> Self {
        let look_back = config.engram.as_ref().map_or(0, |engram| engram.max_ngram_size - 1);
        let slots = config.sliding_window + ROLLBACK;
        let sizes = RecordSizes::of(config);
        let globals = config.kv_sources().map(|(_, plan)| {
            // Only even positions wait for their partner; as many as a rollback can return to.
            let pending = (plan.ratio > 1).then(|| RecordRing::new(2 * config.head_dim, ROLLBACK / 2 + 1));
            GlobalCache { entries: RecordPages::new(sizes.entry), index_keys: RecordPages::new(sizes.index), pending }
        });
        Self {
            position: 0,
            floor: 0,
            windows: vec![RecordRing::new(sizes.window, slots); config.num_hidden_layers],
            window_start: vec![0; config.num_hidden_layers],
            globals: globals.collect(),
            history: vec![0; look_back + ROLLBACK],
        }
    }

    /// Tokens so far.
    pub fn position(&self) -> usize {
        self.position
    }

    /// The earliest position that [`Sequence::roll_back`] accepts.
    pub fn floor(&self) -> usize {
        self.floor
    }

    /// Goes back to `to` tokens, as if the later ones had never been.
    ///
    /// # Errors
    /// If `to` lies ahead, or more than [`ROLLBACK`] tokens behind the farthest position reached, or before the end of
    /// a replayed prompt.
    pub fn roll_back(&mut self, to: usize) -> Result<(), RollBackError> {
        if to > self.position || to < self.floor {
            return Err(RollBackError { to, position: self.position, floor: self.floor });
        }
        self.truncate_globals(to);
        self.position = to;
        Ok(())
    }

    /// Cuts off the entries of all groups that `position` tokens do not complete.
    pub(super) fn truncate_globals(&mut self, position: usize) {
        for global in &mut self.globals {
            let ratio = if global.pending.is_some() { 2 } else { 1 };
            global.entries.truncate(position / ratio);
            global.index_keys.truncate(position / ratio);
        }
    }

    /// Bytes by kind.
    pub fn bytes(&self) -> StateBytes {
        let pending = |global: &GlobalCache| global.pending.as_ref().map_or(0, RecordRing::bytes);
        StateBytes {
            entries: self.globals.iter().map(|global| global.entries.bytes()).sum(),
            index_keys: self.globals.iter().map(|global| global.index_keys.bytes()).sum(),
            windows: self.windows.iter().map(RecordRing::bytes).sum(),
            other: self.globals.iter().map(pending).sum::<usize>() + self.history.len() * size_of::<u32>(),
        }
    }

    /// Moves on by `count` tokens whose records have been written.
    pub(super) fn commit(&mut self, count: usize) {
        self.position += count;
        self.floor = self.floor.max(self.position.saturating_sub(ROLLBACK));
    }

    /// Forbids returning to earlier positions: their windows are incomplete.
    pub(super) fn forget_before_here(&mut self) {
        self.floor = self.position;
    }

    /// The n-gram class at `position`, one of the newest.
    pub(super) fn class_at(&self, position: usize) -> u32 {
        self.history[position % self.history.len()]
    }

    pub(super) fn set_class(&mut self, position: usize, class: u32) {
        let slot = position % self.history.len();
        self.history[slot] = class;
    }
}
