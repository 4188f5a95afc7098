//! How fast a plan will run: arithmetic over rates that were measured on the machine.
//!
//! Owns the sums, and nothing that measures. A token's dense weights stream from memory; its routed experts are computed
//! while those that are missing come from the disk, so the slower of the two counts. Layers that are not kept are read all
//! the while; nothing else overlaps.

use cachalot_checkpoint::{Group, Inspection};
use serde::Serialize;

use super::memory::MemoryPlan;

/// Prompts whose time to the first token is forecast, in tokens.
pub const PROMPTS: [usize; 3] = [100, 1_000, 10_000];

/// What the machine does, in bytes or operations per second.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Rates {
    /// Weights of one token, by how they are stored: from memory, through the kernels.
    pub fp4: f64,
    /// As `fp4`.
    pub fp8: f64,
    /// As `fp4`.
    pub bf16: f64,
    /// As `fp4`.
    pub f32: f64,
    /// Operations of a prefill step, two for a multiply-add.
    pub operations: f64,
    /// Seconds of one layer's work that no weight accounts for: synchronisation, norms, attention of a short context.
    pub layer: f64,
    /// Records from the disk, the slowest and the fastest seen; absent where nothing is read or was measured.
    pub disk: Option<[f64; 2]>,
}

/// What limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Bound {
    /// Reading missing experts.
    Disk,
    /// Reading weights from memory.
    Memory,
    /// Multiplying.
    Arithmetic,
}

/// A prompt's time.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct PromptTime {
    /// Tokens.
    pub tokens: usize,
    /// Seconds to the first token: with the fastest disk, and the slowest.
    pub seconds: [f64; 2],
    /// What limits.
    pub bound: Bound,
}

/// How fast it will be.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Forecast {
    /// Tokens per second: with the slowest disk, and the fastest.
    pub tokens_per_s: [f64; 2],
    /// What limits.
    pub bound: Bound,
    /// Share of the routed experts asked for that will be in memory, if all are equally likely.
    pub hit_rate: f64,
    /// Prompts.
    pub prompts: Vec<PromptTime>,
}

impl Forecast {
    /// Forecasts a model under a plan; `late` is the share of a long prompt's layer work that is not needed (V4.1's layers
    /// behind the last KV source), beyond its last `reach` tokens.
    pub fn new(inspection: &Inspection, plan: &MemoryPlan, rates: &Rates, late: Late) -> Self {
        let hit_rate = plan.experts as f64 / (inspection.memory.experts_bytes.max(1)) as f64;
        Self::with(inspection, plan, rates, late, hit_rate, &PROMPTS)
    }

    /// As [`Forecast::new`], where `hit_rate` of the experts asked for is known to be in memory, for prompts of `lengths`
    /// tokens: what arithmetic makes of a measurement.
    pub fn with(
        inspection: &Inspection,
        plan: &MemoryPlan,
        rates: &Rates,
        late: Late,
        hit_rate: f64,
        lengths: &[usize],
    ) -> Self {
        let model = Model::of(inspection, rates);
        let missing = (1.0 - hit_rate).clamp(0.0, 1.0) * inspection.token.experts_bytes as f64;
        let layers = plan.streamed_bytes as f64;
        let decode = |disk: f64| (model.dense + model.experts.max(missing / disk)).max((missing + layers) / disk);
        let disk = rates.disk.unwrap_or([f64::INFINITY; 2]);
        let reading = missing / disk[0] > model.experts || layers / disk[0] > model.dense;
        let bound = if reading { Bound::Disk } else { Bound::Memory };
        Self {
            tokens_per_s: disk.map(|disk| 1.0 / decode(disk)),
            bound,
            hit_rate: hit_rate.min(1.0),
            prompts: lengths
                .iter()
                .map(|tokens| prompt(inspection, plan, rates, &model, late, hit_rate, *tokens))
                .collect(),
        }
    }
}

/// Layers that need not see all of a long prompt.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Late {
    /// Share of the layers.
    pub share: f64,
    /// Tokens at the end of a prompt that they see, on average.
    pub reach: f64,
}

/// Seconds of one decoded token.
struct Model {
    dense: f64,
    experts: f64,
}

impl Model {
    fn of(inspection: &Inspection, rates: &Rates) -> Self {
        let bytes = |groups: &[Group]| groups.iter().map(|group| inspection.group(*group).bytes as f64).sum::<f64>();
        use Group::{Attention, EngramProjections, Head, Indexers, Mixers, Norms, Routers, SharedExperts};
        let fp8 = bytes(&[Attention, Indexers, SharedExperts, EngramProjections]);
        let dense = fp8 / rates.fp8
            + bytes(&[Head, Routers, Norms]) / rates.bf16
            + bytes(&[Mixers]) / rates.f32
            + rates.layer * inspection.layers as f64;
        Self { dense, experts: inspection.token.experts_bytes as f64 / rates.fp4 }
    }
}

fn prompt(
    inspection: &Inspection,
    plan: &MemoryPlan,
    rates: &Rates,
    model: &Model,
    late: Late,
    hit_rate: f64,
    tokens: usize,
) -> PromptTime {
    let memory = &inspection.memory;
    let per_layer = memory.experts as f64 / inspection.layers as f64;
    let chosen = inspection.token.experts_bytes as f64 / memory.expert_bytes.max(1) as f64 / inspection.layers as f64;
    let layer_operations = 2.0 * (inspection.token.active_parameters - inspection.group(Group::Head).parameters) as f64;
    let mut seconds = [0.0; 2];
    let (mut reading, mut computing) = (0.0, 0.0);
    let mut done = 0;
    while done < tokens {
        let chunk = plan.chunk.min(tokens - done);
        done += chunk;
        // Of the layers that see only the end, this chunk passes through so much.
        let behind = (tokens - done) as f64;
        let seen = ((late.reach - behind) / chunk as f64).clamp(0.0, 1.0);
        let share = 1.0 - late.share * (1.0 - seen);
        let touched =
            per_layer * (1.0 - (1.0 - chosen / per_layer).powi(chunk as i32)) * inspection.layers as f64 * share;
        // A chunk that wants nearly all experts of a layer finds in memory what the cache kept of it.
        let missing = touched * (1.0 - hit_rate).clamp(0.0, 1.0) * memory.expert_bytes as f64
            + plan.streamed_bytes as f64 * share;
        let compute = (chunk as f64 * layer_operations * share / rates.operations).max(model.dense * share);
        let disk = rates.disk.unwrap_or([f64::INFINITY; 2]);
        for (seconds, disk) in seconds.iter_mut().zip([disk[1], disk[0]]) {
            *seconds += compute.max(missing / disk);
        }
        reading += missing / disk[0];
        computing += compute;
    }
    PromptTime { tokens, seconds, bound: if reading > computing { Bound::Disk } else { Bound::Arithmetic } }
}
