//! A sequence's state: everything a step needs to know of the tokens before it (spec V4 section 4, V4.1 sections 4.1
//! to 4.4).
//!
//! One value for both generations; an architecture says with a [`Layout`] which caches there are. It grows by
//! [`Model::step`](crate::Model::step), is forked by `clone` (forks share the pages of the compressed caches), and
//! rolls back in place by up to [`ROLLBACK`] tokens; to go back farther, keep a fork.

use crate::shared::records::{RecordPages, RecordRing};

/// How many tokens [`Sequence::roll_back`] can take back in place: a rejected draft.
pub const ROLLBACK: usize = 8;

/// How a sequence keeps keys and compressed entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum CachePrecision {
    /// Packed as the vendor's program rounds them.
    #[default]
    Vendor,
    /// Float32, for comparison with references that round no cache (V4 only).
    Float32,
}

/// Which caches the sequences of a model have.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    pub layers: usize,
    /// Positions that a query sees uncompressed.
    pub window: usize,
    /// Bytes of one window record.
    pub record: usize,
    /// One per layer that owns compressed entries, in the order of the layers.
    pub caches: Vec<CacheLayout>,
    /// Positions whose n-gram class is kept.
    pub history: usize,
}

/// One compressed cache.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CacheLayout {
    /// Tokens per entry.
    pub ratio: usize,
    /// Bytes of an entry.
    pub entry: usize,
    /// Bytes of an index key; 0 where nothing is selected.
    pub index_key: usize,
    /// Values and slots of what the compressors of entries and of index keys keep of the newest tokens.
    pub rolling: [(usize, usize); 2],
}

impl Layout {
    /// Bytes of a sequence's state that do not depend on its length.
    pub fn fixed_bytes(&self) -> u128 {
        let product = |factors: &[usize]| factors.iter().map(|&factor| factor as u128).product::<u128>();
        let windows = product(&[self.layers, self.window + ROLLBACK, self.record]);
        let rolling = self.caches.iter().flat_map(|cache| cache.rolling);
        windows + rolling.map(|(values, slots)| product(&[values, slots, size_of::<f32>()])).sum::<u128>()
    }
}

/// The state of one sequence; equal states hold the same records.
#[derive(Clone, Debug, PartialEq)]
pub struct Sequence {
    /// Tokens so far; the next token sits at this position.
    position: usize,
    /// Positions below this one cannot be returned to.
    floor: usize,
    /// Where the sequence must get before logits are wanted; what only earlier ones need has been left out.
    owed: usize,
    pub(crate) windows: Vec<RecordRing<u8>>,
    /// Of each layer, the first position whose window record exists (replay leaves out earlier ones).
    pub(crate) window_start: Vec<usize>,
    pub(crate) caches: Vec<CompressedCache>,
    /// N-gram class of the newest positions.
    history: Vec<u32>,
}

/// What a layer keeps of the whole sequence.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct CompressedCache {
    ratio: usize,
    /// Compressed entries.
    pub entries: RecordPages,
    /// Index keys; empty where nothing is selected.
    pub index_keys: RecordPages,
    /// Values and gates of the newest tokens, from the compressor of the entries and from that of the index keys:
    /// what groups that are not complete are made of. Without slots where the architecture keeps none.
    pub rolling: [RecordRing<f32>; 2],
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
    /// Groups that are not complete, and n-gram history; fixed.
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

impl CompressedCache {
    /// Tokens per entry.
    pub fn ratio(&self) -> usize {
        self.ratio
    }
}

impl Sequence {
    /// The state before any token.
    pub(crate) fn new(layout: &Layout) -> Self {
        let caches = layout.caches.iter().map(|cache| CompressedCache {
            ratio: cache.ratio,
            entries: RecordPages::new(cache.entry),
            index_keys: RecordPages::new(cache.index_key),
            rolling: cache.rolling.map(|(values, slots)| RecordRing::new(values, slots)),
        });
        Self {
            position: 0,
            floor: 0,
            owed: 0,
            windows: vec![RecordRing::new(layout.record, layout.window + ROLLBACK); layout.layers],
            window_start: vec![0; layout.layers],
            caches: caches.collect(),
            history: vec![0; layout.history + ROLLBACK],
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

    /// The position that must be reached before logits are wanted, as [`LogitsOf::Later`](crate::LogitsOf::Later)
    /// promised; 0 if the sequence has got there, or nothing was promised.
    pub fn owed(&self) -> usize {
        self.owed
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
        self.position = to;
        self.cut_off();
        Ok(())
    }

    /// Cuts off the entries of all groups that the tokens so far do not complete: those of a step that failed.
    pub(crate) fn cut_off(&mut self) {
        for cache in &mut self.caches {
            cache.entries.truncate(self.position / cache.ratio);
            cache.index_keys.truncate(self.position / cache.ratio);
        }
    }

    /// Bytes by kind.
    pub fn bytes(&self) -> StateBytes {
        let rolling = self.caches.iter().flat_map(|cache| &cache.rolling).map(RecordRing::bytes).sum::<usize>();
        StateBytes {
            entries: self.caches.iter().map(|cache| cache.entries.bytes()).sum(),
            index_keys: self.caches.iter().map(|cache| cache.index_keys.bytes()).sum(),
            windows: self.windows.iter().map(RecordRing::bytes).sum(),
            other: rolling + self.history.len() * size_of::<u32>(),
        }
    }

    /// Visits every page that forks may share: where it is, and its bytes.
    pub fn pages(&self, visit: &mut dyn FnMut(usize, usize)) {
        for cache in &self.caches {
            cache.entries.pages().chain(cache.index_keys.pages()).for_each(|(page, bytes)| visit(page, bytes));
        }
    }

    /// Bytes that no fork shares.
    pub fn own_bytes(&self) -> usize {
        let StateBytes { windows, other, .. } = self.bytes();
        windows + other
    }

    /// Moves on by `count` tokens whose records have been written.
    pub(crate) fn commit(&mut self, count: usize) {
        self.position += count;
        if self.owed <= self.position {
            self.owed = 0;
        }
        self.floor = self.floor.max(self.position.saturating_sub(ROLLBACK));
    }

    /// Leaves out what only logits before position `position` need.
    pub(crate) fn owe(&mut self, position: usize) {
        self.owed = self.owed.max(position);
    }

    /// Forbids returning to earlier positions: their windows are incomplete.
    pub(crate) fn forget_before_here(&mut self) {
        self.floor = self.position;
    }

    /// N-gram classes of the newest positions.
    pub(crate) fn history(&self) -> &[u32] {
        &self.history
    }

    /// As [`Sequence::history`], to be written.
    pub(crate) fn history_mut(&mut self) -> &mut [u32] {
        &mut self.history
    }

    /// The counters of a state that was stored.
    pub(crate) fn restore(&mut self, position: usize, floor: usize, owed: usize) {
        (self.position, self.floor, self.owed) = (position, floor, owed);
    }

    /// The n-gram class at `position`, one of the newest.
    pub(crate) fn class_at(&self, position: usize) -> u32 {
        self.history[position % self.history.len()]
    }

    pub(crate) fn set_class(&mut self, position: usize, class: u32) {
        let slot = position % self.history.len();
        self.history[slot] = class;
    }
}
