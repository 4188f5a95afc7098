//! What fits where, and what it will do per second: known before anything is allocated.

mod available;
mod forecast;
mod memory;
pub mod units;

use cachalot_checkpoint::{Architecture, Checkpoint, CheckpointError, Inspection};
use cachalot_experts::{ExpertLayout, FEWEST_SLOTS, LayerLayout};
use cachalot_storage::Reader;

pub use available::Available;
pub use forecast::{Bound, Forecast, Late, PROMPTS, PromptTime, Rates};
pub use memory::{Line, MemoryPlan, MemoryRequest, PlanError, Sizes};

use crate::disk::{ROW_BYTES, devices};
use crate::engine::ROW_CACHE_BYTES;
use crate::session::SNAPSHOTS;

/// Buffers of reads that a device takes at most: [`cachalot_storage::probe`] tries 16 in flight, and threads have half as
/// many more.
const READS: u64 = 24;

/// The sizes of a checkpoint that memory is planned for.
///
/// # Errors
/// If there is not the memory for a single expert.
pub fn sizes<'a>(
    checkpoint: &'a Checkpoint,
    inspection: &Inspection,
    layout: &ExpertLayout,
    layers: &LayerLayout,
) -> Result<Sizes<'a>, CheckpointError> {
    let (expert, architecture) = (layout.slot_bytes()? as u64, checkpoint.architecture());
    let read = Reader::buffer_bytes_for(layout.largest_read().max(layers.largest_read()).max(ROW_BYTES));
    let reads = READS * devices(checkpoint).len().max(1) as u64;
    Ok(Sizes {
        architecture,
        resident: inspection.memory.resident_bytes,
        experts: expert * inspection.memory.experts,
        expert,
        fewest_experts: FEWEST_SLOTS,
        reading: reads * read as u64 + ROW_CACHE_BYTES as u64,
        streamed: layers.choices(),
        kept_states: SNAPSHOTS as u64,
    })
}

impl Late {
    /// The layers behind the last KV source of V4.1; none of V4, whose layers all own their entries.
    pub fn of(architecture: &Architecture) -> Self {
        let Some(config) = architecture.deepseek_v41() else { return Self::default() };
        let Some((source, _)) = config.kv_sources().last() else { return Self::default() };
        let (layers, window) = (config.num_hidden_layers, config.sliding_window);
        let late = layers - 1 - source;
        // The last layer sees a window, each one before it a window less one more.
        let reach = window as f64 + (window - 1) as f64 * late.saturating_sub(1) as f64 / 2.0;
        Self { share: late as f64 / layers as f64, reach }
    }
}
