//! What a run has taken from memory and from the disk, and how long it waited.

use std::time::Duration;

use cachalot_experts::{ExpertStats, LayerStats, RowStats};
use cachalot_storage::Activity;
use serde::Serialize;

/// Counters of an engine since it was opened, or of a part of its life.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stats {
    /// Routed experts.
    pub experts: ExpertStats,
    /// Rows of tables.
    pub rows: RowStats,
    /// Layers that are not kept.
    pub layers: LayerStats,
    /// Everything that the disk was asked for while the model ran.
    pub disk: Activity,
}

/// The figures that people and programs are shown.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StatsReport {
    /// Experts found in memory.
    pub expert_hits: u64,
    /// Experts waited for.
    pub expert_misses: u64,
    /// The former over both.
    pub expert_hit_rate: f64,
    /// Slots for experts, and how many of them are full.
    pub expert_slots: usize,
    /// See `expert_slots`.
    pub experts_kept: usize,
    /// Bytes of experts used from memory.
    pub memory_bytes: u64,
    /// Bytes of experts read because they were waited for.
    pub disk_demand_bytes: u64,
    /// Bytes of experts read because they were expected.
    pub disk_prefetch_bytes: u64,
    /// Bytes of table rows read.
    pub disk_row_bytes: u64,
    /// Layers that are read in every step.
    pub streamed_layers: usize,
    /// Bytes of them that were read.
    pub disk_layer_bytes: u64,
    /// Bytes per second while the disk was busy; absent if it never was.
    pub disk_bytes_per_s: Option<f64>,
    /// Seconds that the disk was busy.
    pub disk_busy_s: f64,
    /// Seconds waited for experts.
    pub expert_wait_s: f64,
    /// Seconds waited for rows.
    pub row_wait_s: f64,
    /// Seconds waited for layers.
    pub layer_wait_s: f64,
    /// Share of the guesses that were right; absent without guesses.
    pub prefetch_precision: Option<f64>,
    /// Share of the experts that were not kept which had been read before they were asked for; absent without any.
    pub prefetch_recall: Option<f64>,
    /// Reads dropped before they were issued.
    pub prefetch_dropped: u64,
    /// What guessing gains, as a share of the time; absent until measured.
    pub prefetch_gain: Option<f64>,
}

impl Stats {
    /// What happened since `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let (rows, disk) = (&self.rows, &self.disk);
        Self {
            experts: self.experts.since(&earlier.experts),
            rows: RowStats {
                hits: rows.hits - earlier.rows.hits,
                misses: rows.misses - earlier.rows.misses,
                bytes: rows.bytes - earlier.rows.bytes,
                waited: rows.waited.saturating_sub(earlier.rows.waited),
            },
            layers: self.layers.since(&earlier.layers),
            disk: Activity {
                reads: disk.reads - earlier.disk.reads,
                bytes: disk.bytes - earlier.disk.bytes,
                busy: disk.busy.saturating_sub(earlier.disk.busy),
            },
        }
    }

    /// Bytes per second while the disk was busy.
    pub fn disk_rate(&self) -> Option<f64> {
        (self.disk.busy > Duration::ZERO).then(|| self.disk.bytes as f64 / self.disk.busy.as_secs_f64())
    }

    /// The figures.
    pub fn report(&self) -> StatsReport {
        let Self { experts, rows, layers, .. } = self;
        StatsReport {
            expert_hits: experts.hits,
            expert_misses: experts.misses,
            expert_hit_rate: experts.hit_rate(),
            expert_slots: experts.slots,
            experts_kept: experts.kept,
            memory_bytes: experts.hit_bytes,
            disk_demand_bytes: experts.demand_bytes,
            disk_prefetch_bytes: experts.prefetch_bytes,
            disk_row_bytes: rows.bytes,
            streamed_layers: layers.streamed,
            disk_layer_bytes: layers.bytes,
            disk_bytes_per_s: self.disk_rate(),
            disk_busy_s: self.disk.busy.as_secs_f64(),
            expert_wait_s: experts.waited.as_secs_f64(),
            row_wait_s: rows.waited.as_secs_f64(),
            layer_wait_s: layers.waited.as_secs_f64(),
            prefetch_precision: experts.prefetch.precision(),
            prefetch_recall: experts.prefetch_recall(),
            prefetch_dropped: experts.prefetch.dropped,
            prefetch_gain: experts.prefetch.gain,
        }
    }
}
