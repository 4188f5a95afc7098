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
    /// Seconds to the first token of a model that has run for a while: with the fastest disk, and the slowest.
    pub seconds: [f64; 2],
    /// What limits.
    pub bound: Bound,
    /// The same of the first prompt after a start, when nothing but the weights that every token needs has been read.
    pub cold_seconds: [f64; 2],
    /// What limits then.
    pub cold_bound: Bound,
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
    let disk = rates.disk.unwrap_or([f64::INFINITY; 2]);
    let mut times = [Time::default(); 2];
    let mut done = 0;
    while done < tokens {
        let chunk = plan.chunk.min(tokens - done);
        // Of all experts, those that the tokens before have asked for: at the first start, no other is in memory.
        let seen = touched(per_layer, chosen, done) / per_layer;
        done += chunk;
        // Of the layers that see only the end, this chunk passes through so much.
        let behind = (tokens - done) as f64;
        let reached = ((late.reach - behind) / chunk as f64).clamp(0.0, 1.0);
        let share = 1.0 - late.share * (1.0 - reached);
        let wanted = touched(per_layer, chosen, chunk) * inspection.layers as f64 * share * memory.expert_bytes as f64;
        let layers = plan.streamed_bytes as f64 * share;
        let compute = (chunk as f64 * layer_operations * share / rates.operations).max(model.dense * share);
        // A chunk that wants nearly all experts of a layer finds in memory what the cache kept of it.
        for (time, kept) in times.iter_mut().zip([hit_rate, hit_rate.min(seen)]) {
            time.add(compute, wanted * (1.0 - kept).clamp(0.0, 1.0) + layers, disk);
        }
    }
    let [warm, cold] = times;
    PromptTime {
        tokens,
        seconds: warm.seconds,
        bound: warm.bound(),
        cold_seconds: cold.seconds,
        cold_bound: cold.bound(),
    }
}

/// The experts of a layer that `tokens` tokens ask for, if each chooses `chosen` of all `experts` at random.
pub(super) fn touched(experts: f64, chosen: f64, tokens: usize) -> f64 {
    experts * (1.0 - (1.0 - chosen / experts).powi(tokens as i32))
}

/// A sum of steps of which each reads while it computes.
#[derive(Clone, Copy, Default)]
struct Time {
    /// With the fastest disk, and the slowest.
    seconds: [f64; 2],
    reading: f64,
    computing: f64,
}

impl Time {
    fn add(&mut self, computing: f64, bytes: f64, [slowest, fastest]: [f64; 2]) {
        for (seconds, disk) in self.seconds.iter_mut().zip([fastest, slowest]) {
            *seconds += computing.max(bytes / disk);
        }
        self.reading += bytes / slowest;
        self.computing += computing;
    }

    fn bound(&self) -> Bound {
        if self.reading > self.computing { Bound::Disk } else { Bound::Arithmetic }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cachalot_checkpoint::{Amount, GroupAmount, Memory, Token};

    const MB: u64 = 1_000_000;

    /// Ten layers of 100 experts of 1 MB, of which a token chooses five; 1 GB of FP8 attention.
    fn inspection() -> Inspection {
        let attention = Amount { tensors: 1, parameters: 1000 * MB, bytes: 1000 * MB };
        Inspection {
            location: String::new(),
            model_type: "made up",
            layers: 10,
            vocabulary: 1,
            max_context: 1 << 20,
            total: Amount::default(),
            declared_bytes: None,
            groups: vec![GroupAmount { group: Group::Attention, amount: attention }],
            dtypes: Vec::new(),
            shards: Vec::new(),
            vision: false,
            draft: false,
            memory: Memory {
                resident_bytes: 1000 * MB,
                experts_bytes: 1000 * MB,
                experts: 1000,
                expert_bytes: MB,
                rows_bytes: 0,
            },
            token: Token {
                active_parameters: 1100 * MB,
                experts_bytes: 50 * MB,
                layers_bytes: 1000 * MB,
                head_bytes: 0,
                rows_bytes: 0,
            },
            cache: Vec::new(),
        }
    }

    fn plan(experts: u64, streamed_bytes: u64) -> MemoryPlan {
        MemoryPlan {
            lines: Vec::new(),
            total: 0,
            budget: 0,
            available: None,
            context: 1 << 20,
            chunk: 500,
            experts,
            experts_fit: experts == 1000 * MB,
            layers: 10,
            streamed_layers: Vec::new(),
            streamed_bytes,
        }
    }

    /// 10 GB/s of FP8, 1 GB/s of FP4, 2.2 T operations per second (1000 tokens of the model).
    fn rates(disk: Option<[f64; 2]>) -> Rates {
        Rates { fp4: 1e9, fp8: 10e9, bf16: 1e9, f32: 1e9, operations: 2.2e12, layer: 0.001, disk }
    }

    fn close(found: f64, expected: f64) -> bool {
        (found - expected).abs() <= 1e-9 * expected.abs()
    }

    #[test]
    fn a_token_takes_what_memory_and_disk_take() {
        // Dense: 0.1 s of weights and 0.01 s of ten layers. Experts: 0.05 s.
        let cases = [
            // All in memory: the disk does not count.
            (plan(1000 * MB, 0), Some([1e6, 1e9]), [0.16, 0.16], Bound::Memory),
            // Half of 50 MB is missing: at 100 MB/s that takes 0.25 s, at 1 GB/s less than the experts' own work.
            (plan(500 * MB, 0), Some([100e6, 1e9]), [0.11 + 0.25, 0.16], Bound::Disk),
            (plan(500 * MB, 0), Some([1e9, 1e9]), [0.16, 0.16], Bound::Memory),
            // 200 MB of layers besides: they and the experts come from one disk.
            (plan(500 * MB, 200 * MB), Some([100e6, 1e9]), [2.25, 0.225], Bound::Disk),
            (plan(1000 * MB, 50 * MB), Some([1e9, 1e9]), [0.16, 0.16], Bound::Memory),
            // Not measured: as if the disk were infinitely fast.
            (plan(0, 0), None, [0.16, 0.16], Bound::Memory),
        ];
        for (plan, disk, seconds, bound) in cases {
            let found = Forecast::new(&inspection(), &plan, &rates(disk), Late::default());
            let [slow, fast] = found.tokens_per_s.map(|rate| 1.0 / rate);
            assert!(close(slow, seconds[0]) && close(fast, seconds[1]), "{found:?} {seconds:?}");
            assert_eq!((found.bound, found.hit_rate), (bound, plan.experts as f64 / 1e9), "{plan:?}");
        }
    }

    #[test]
    fn a_prompt_takes_what_its_chunks_take() {
        let prompt = |plan: &MemoryPlan, disk, tokens: usize| {
            let hit_rate = plan.experts as f64 / 1e9;
            Forecast::with(&inspection(), plan, &rates(disk), Late::default(), hit_rate, &[tokens]).prompts[0]
        };
        // In memory: 0.5 s a chunk of 500, and a token takes no less than its dense weights.
        let resident = prompt(&plan(1000 * MB, 0), Some([100e6, 1e9]), 1000);
        assert!(resident.seconds.iter().all(|seconds| close(*seconds, 1.0)), "{resident:?}");
        assert_eq!(resident.bound, Bound::Arithmetic);
        assert!(close(prompt(&plan(1000 * MB, 0), None, 1).seconds[1], 0.11));
        // The first after a start reads all that it asks for, once: 1 GB in the first chunk, hardly any in the second.
        let most = 1.0 - 0.95_f64.powi(500);
        assert!(close(resident.cold_seconds[1], most * 10.0 + 0.5), "{resident:?}");
        assert_eq!(resident.cold_bound, Bound::Disk);
        assert!(resident.cold_seconds[0] < resident.cold_seconds[1], "{resident:?}");
        // A few tokens, a few experts: 5 of each layer, 9.75 for two.
        for (tokens, megabytes) in [(1, 50.0), (2, 97.5)] {
            let found = prompt(&plan(1000 * MB, 0), Some([100e6, 100e6]), tokens);
            assert!(close(found.cold_seconds[0], megabytes / 100.0), "{found:?}");
        }
        // A tenth is kept: every chunk reads nine tenths, and the first after a start all.
        let streamed = prompt(&plan(100 * MB, 0), Some([100e6, 100e6]), 1000);
        assert!(close(streamed.seconds[0], 2.0 * 9.0 * most), "{streamed:?}");
        assert!(close(streamed.cold_seconds[0], (10.0 + 9.0) * most), "{streamed:?}");
        assert_eq!(streamed.bound, Bound::Disk);
        // Layers that do not stay are read by every chunk.
        let layers = prompt(&plan(1000 * MB, 200 * MB), Some([100e6, 100e6]), 1000);
        assert!(close(layers.seconds[0], 2.0 * 2.0), "{layers:?}");
    }

    #[test]
    fn late_layers_see_the_end_of_a_long_prompt() {
        let late = Late { share: 0.5, reach: 250.0 };
        let seconds = |tokens| {
            Forecast::with(&inspection(), &plan(1000 * MB, 0), &rates(None), late, 1.0, &[tokens]).prompts[0].seconds[0]
        };
        // Half of the layers see the last 250 tokens only.
        assert!(close(seconds(500), 0.5 * 0.75), "{}", seconds(500));
        assert!(close(seconds(2000), 0.5 * (3.0 * 0.5 + 0.75)), "{}", seconds(2000));
    }

    #[test]
    fn few_tokens_touch_few_experts() {
        for (tokens, experts) in [(0, 0.0), (1, 5.0), (2, 9.75)] {
            assert!((touched(100.0, 5.0, tokens) - experts).abs() < 1e-9, "{tokens}");
        }
        assert!(touched(100.0, 5.0, 500) > 99.99);
    }
}
