//! What became of the experts that were asked for and of those that were expected.

use std::time::Duration;

use serde::Serialize;

use crate::guard::Verdict;

/// What a source of experts has done so far, and holds now.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ExpertStats {
    /// Experts that were asked for and kept.
    pub hits: u64,
    /// Experts that were asked for and had to be waited for.
    pub misses: u64,
    /// Bytes of experts that came from memory.
    pub hit_bytes: u64,
    /// Bytes of experts that were read because somebody waited for them.
    pub demand_bytes: u64,
    /// Bytes of experts that were read because they were expected.
    pub prefetch_bytes: u64,
    /// Time that somebody waited for experts.
    pub waited: Duration,
    /// Experts that are kept.
    pub kept: usize,
    /// Bytes of the experts that are kept.
    pub kept_bytes: u64,
    /// Slots, full or empty.
    pub slots: usize,
    /// Bytes of a slot.
    pub slot_bytes: u64,
    /// What became of expectations.
    pub prefetch: PrefetchStats,
}

/// What layers that are not kept have cost so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LayerStats {
    /// Number of these layers.
    pub streamed: usize,
    /// Bytes of them that were read.
    pub bytes: u64,
    /// Time that somebody waited for one.
    pub waited: Duration,
}

impl LayerStats {
    /// What happened since `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let waited = self.waited.saturating_sub(earlier.waited);
        Self { streamed: self.streamed, bytes: self.bytes - earlier.bytes, waited }
    }
}

/// What became of experts that were read before they were asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct PrefetchStats {
    /// Read, or being read.
    pub issued: u64,
    /// Dropped before they were issued: it turned out that nobody wants them.
    pub dropped: u64,
    /// Read and then asked for.
    pub used: u64,
    /// Read, and displaced before anybody asked.
    pub wasted: u64,
    /// Guesses made from the layer before, of those experts that were not there.
    pub guessed: u64,
    /// Of these, right ones.
    pub guessed_right: u64,
    /// Whether guesses are read now.
    pub guessing: bool,
    /// What guessing gains, as a share of the time; absent until measured.
    pub gain: Option<f64>,
}

impl PrefetchStats {
    /// Share of the guesses that were right.
    pub fn precision(&self) -> Option<f64> {
        (self.guessed > 0).then(|| self.guessed_right as f64 / self.guessed as f64)
    }

    pub(crate) fn set_verdict(&mut self, verdict: Verdict) {
        (self.guessing, self.gain) = (verdict.on, verdict.gain);
    }
}

impl ExpertStats {
    /// Share of the experts asked for that were there.
    pub fn hit_rate(&self) -> f64 {
        self.hits as f64 / (self.hits + self.misses).max(1) as f64
    }

    /// Share of what was missing that expectations had brought: used over used and missed.
    pub fn prefetch_recall(&self) -> Option<f64> {
        let all = self.prefetch.used + self.misses;
        (self.prefetch.issued > 0 && all > 0).then(|| self.prefetch.used as f64 / all as f64)
    }

    /// What happened since `earlier`; what is held, and the guard's verdict, as they are now.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let mut now = *self;
        now.hits -= earlier.hits;
        now.misses -= earlier.misses;
        now.hit_bytes -= earlier.hit_bytes;
        now.demand_bytes -= earlier.demand_bytes;
        now.prefetch_bytes -= earlier.prefetch_bytes;
        now.waited = now.waited.saturating_sub(earlier.waited);
        now.prefetch.issued -= earlier.prefetch.issued;
        now.prefetch.dropped -= earlier.prefetch.dropped;
        now.prefetch.used -= earlier.prefetch.used;
        now.prefetch.wasted -= earlier.prefetch.wasted;
        now.prefetch.guessed -= earlier.prefetch.guessed;
        now.prefetch.guessed_right -= earlier.prefetch.guessed_right;
        now
    }
}
