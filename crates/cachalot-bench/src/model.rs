//! How fast a whole model runs, over what memory and arithmetic allow it in the same minutes.
//!
//! Owns the windows: a probe of the machine, the model, the probe again; each window's rate is a share of the mean of its
//! two probes, and the middle of all shares counts. Refuses to state a rate without the roofline beside it.

use std::sync::Arc;
use std::time::Instant;

use cachalot_engine::engine::Engine;
use cachalot_engine::planner::{Forecast, Rates};
use cachalot_kernels::{Compute, Format, Matrix, MatrixError, probe};
use cachalot_model::{LogitsOf, Segment, Sequence, StepError, Workspace};
use cachalot_runtime::Pool;
use serde::Serialize;

use crate::shapes::Shape;
use crate::window::{ModelReport, Window};

/// Memory that a probe reads, MiB: far more than the caches hold.
const PROBE_MEBIBYTES: usize = 256;
/// Time of a probe of the disk.
const DISK_PROBE: std::time::Duration = std::time::Duration::from_millis(700);
/// Reads of that memory per probe.
const PROBE_ROUNDS: usize = 4;
/// Tokens decoded before anything is measured.
const WARM_UP: usize = 2;

/// What a model is measured at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Test {
    /// Single-token steps.
    Decode,
    /// One prompt.
    Prefill,
}

/// How to measure.
#[derive(Clone, Copy, Debug)]
pub struct ModelOptions {
    /// What.
    pub test: Test,
    /// Tokens of a window.
    pub tokens: usize,
    /// Tokens in the context before a window begins.
    pub depth: usize,
    /// Windows.
    pub windows: usize,
}

/// Why a model could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// Nothing to measure.
    #[error("{tokens} tokens in {windows} windows leave nothing to measure; both must be at least 1")]
    Nothing {
        /// Tokens of a window.
        tokens: usize,
        /// Windows.
        windows: usize,
    },
    /// More tokens than the context holds.
    #[error(
        "{tokens} tokens do not fit the context of {context}: lower --depth, --tokens or --windows{}",
        if tokens < limit { ", or raise --context" } else { "" }
    )]
    TooLong {
        /// Tokens asked for.
        tokens: usize,
        /// Tokens that the context holds.
        context: usize,
        /// Tokens that the model goes up to.
        limit: usize,
    },
    /// The model could not take a step.
    #[error(transparent)]
    Step(#[from] StepError),
    /// No memory for the probe.
    #[error(transparent)]
    Memory(#[from] MatrixError),
}

/// Measures `engine`; `on_window` hears of each window as it ends.
///
/// # Errors
/// If the tokens do not fit the context, or the model cannot take a step.
pub fn model(
    engine: &Engine,
    options: &ModelOptions,
    on_window: &mut dyn FnMut(&Window),
) -> Result<ModelReport, ModelError> {
    let ModelOptions { test, tokens, depth, windows } = *options;
    if tokens == 0 || windows == 0 {
        return Err(ModelError::Nothing { tokens, windows });
    }
    let longest = depth + if test == Test::Decode { WARM_UP + tokens * windows } else { tokens };
    if longest >= engine.context() {
        let (context, limit) = (engine.context(), engine.context_limit());
        return Err(ModelError::TooLong { tokens: longest, context, limit });
    }
    let mut run = Run::new(engine, options)?;
    let mut report =
        ModelReport { threads: engine.threads(), instruction_set: engine.instruction_set(), windows: Vec::new() };
    for _ in 0..windows {
        let window = run.window()?;
        on_window(&window);
        report.windows.push(window);
    }
    Ok(report)
}

struct Run<'a> {
    engine: &'a Engine,
    options: ModelOptions,
    probe: Probe,
    work: Workspace,
    /// The context that windows begin with; a decode goes on from window to window.
    sequence: Sequence,
    random: u64,
}

impl<'a> Run<'a> {
    fn new(engine: &'a Engine, options: &ModelOptions) -> Result<Self, ModelError> {
        let (probe, sequence) = (Probe::new(engine.threads())?, engine.model().sequence());
        let mut run = Self { engine, options: *options, probe, work: Workspace::new(), sequence, random: 1 };
        if engine.experts_fit() {
            engine.read_experts().map_err(StepError::from)?;
        }
        run.prefill(options.depth)?;
        if options.test == Test::Decode {
            run.decode(WARM_UP)?;
        }
        Ok(run)
    }

    fn window(&mut self) -> Result<Window, ModelError> {
        let ModelOptions { test, tokens, .. } = self.options;
        let depth = self.sequence.position();
        let first = self.probe.measure(test);
        // Where all experts are in memory, there is no disk to be measured.
        let disk_before = self.disk();
        let before = self.engine.stats();
        let seconds = match test {
            Test::Decode => self.decode(tokens)?,
            Test::Prefill => {
                let kept = self.sequence.clone();
                let seconds = self.prefill(tokens)?;
                self.sequence = kept;
                seconds
            }
        };
        let during = self.engine.stats().since(&before);
        let disk = disk_before.zip(self.disk()).map(|(before, after)| (before + after) / 2.0);
        let machine = first.mean(self.probe.measure(test));
        let experts = &during.experts;
        let used = experts.demand_bytes + experts.prefetch.used * self.engine.experts().record_bytes() as u64;
        let read = used + during.layers.bytes;
        let streamed = read > 0;
        let bytes = self.engine.bytes_per_token(depth as u64);
        let tokens_per_s = tokens as f64 / seconds;
        let memory_roofline = match test {
            Test::Decode => machine.read * 1e9 / bytes as f64,
            Test::Prefill => {
                machine.multiply_add * 1e9 / (2.0 * self.engine.inspection().token.active_parameters as f64)
            }
        };
        let disk_roofline = disk.filter(|_| streamed).map(|rate| rate * tokens as f64 / read as f64);
        let roofline = disk_roofline.map_or(memory_roofline, |disk| disk.min(memory_roofline));
        let share_of_time = |time: std::time::Duration| time.as_secs_f64() / seconds;
        let rates = Rates { disk: disk.map(|rate| [rate; 2]), ..self.rates()? };
        let asked = (experts.hits + experts.misses) * self.engine.experts().record_bytes() as u64;
        let hit_rate = 1.0 - used.min(asked) as f64 / asked.max(1) as f64;
        let speed = |forecast: &Forecast| match test {
            Test::Decode => forecast.tokens_per_s[0],
            Test::Prefill => tokens as f64 / forecast.prompts.first().map_or(f64::NAN, |prompt| prompt.seconds[1]),
        };
        let forecast = speed(&self.engine.forecast(&rates, hit_rate, tokens));
        let plan = self.engine.plan();
        let kept = plan.experts as f64 / self.engine.inspection().memory.experts_bytes.max(1) as f64;
        let planned = speed(&self.engine.forecast(&rates, kept, tokens));
        Ok(Window {
            test,
            tier: if streamed { "streamed" } else { "resident" },
            tokens,
            depth,
            tokens_per_s,
            roofline_tokens_per_s: roofline,
            share: tokens_per_s / roofline,
            memory_bytes_per_token: bytes,
            memory_gb_per_s: machine.read,
            disk_gb_per_s: disk.filter(|_| streamed).map(|rate| rate / 1e9),
            disk_bytes_per_token: read / tokens as u64,
            disk_busy_gb_per_s: streamed.then(|| during.disk.bytes as f64 / 1e9 / during.disk.busy.as_secs_f64()),
            disk_idle: (1.0 - share_of_time(during.disk.busy)).max(0.0),
            expert_wait: share_of_time(experts.waited),
            layer_wait: share_of_time(during.layers.waited),
            row_wait_ms_per_token: during.rows.waited.as_secs_f64() * 1e3 / tokens as f64,
            guess_precision: experts.prefetch.precision(),
            guess_recall: experts.prefetch_recall(),
            guess_gain: experts.prefetch.gain,
            expert_hits_per_token: experts.hits as f64 / tokens as f64,
            expert_misses_per_token: experts.misses as f64 / tokens as f64,
            hit_rate,
            forecast_tokens_per_s: forecast,
            forecast_ratio: tokens_per_s / forecast,
            planned_tokens_per_s: planned,
            seconds,
            disk_seconds: disk.filter(|_| streamed).map(|rate| read as f64 / rate),
        })
    }

    /// Rates of the kernels at this model's shapes.
    fn rates(&self) -> Result<Rates, MatrixError> {
        let (engine, trunk) = (self.engine, self.engine.model().config());
        crate::rates(trunk, engine.inspection(), engine.fp8_block(), engine.threads(), engine.prefill_chunk())
    }

    /// Bytes per second from the disk, if experts or layers come from there.
    fn disk(&mut self) -> Option<f64> {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        if self.engine.experts_fit() && self.engine.plan().streamed_layers.is_empty() {
            None
        } else {
            self.engine.measure_disk(DISK_PROBE, self.random)
        }
    }

    /// Single-token steps; returns the seconds that they took.
    fn decode(&mut self, tokens: usize) -> Result<f64, ModelError> {
        let ids = self.ids(tokens);
        let start = Instant::now();
        for id in &ids {
            self.advance(std::slice::from_ref(id), LogitsOf::Last)?;
        }
        Ok(start.elapsed().as_secs_f64())
    }

    /// One prompt; returns the seconds that it took.
    fn prefill(&mut self, tokens: usize) -> Result<f64, ModelError> {
        let ids = self.ids(tokens);
        let start = Instant::now();
        let (mut done, mut expected) = (0, 0usize);
        for chunk in ids.chunks(self.engine.prefill_chunk()) {
            let (model, work) = (self.engine.model(), &mut self.work);
            expected = done + model.expect(work, &self.sequence, &ids[done..], expected.saturating_sub(done));
            done += chunk.len();
            let logits = if done < tokens { LogitsOf::Later(tokens - done) } else { LogitsOf::Last };
            self.advance(chunk, logits)?;
        }
        Ok(start.elapsed().as_secs_f64())
    }

    fn advance(&mut self, tokens: &[u32], logits: LogitsOf) -> Result<(), StepError> {
        let mut segments = [Segment { sequence: &mut self.sequence, tokens, embeddings: None, logits }];
        self.engine.model().advance(&mut self.work, &mut segments, None)?;
        Ok(())
    }

    /// Tokens that look random; the placeholder of an image is left out.
    fn ids(&mut self, count: usize) -> Vec<u32> {
        let vocabulary = self.engine.model().config().vocab_size as u64;
        let image = self.engine.tokenizer().image_token_id();
        let mut next = || {
            self.random ^= self.random << 13;
            self.random ^= self.random >> 7;
            self.random ^= self.random << 17;
            (self.random % vocabulary) as u32
        };
        std::iter::repeat_with(&mut next).filter(|id| Some(*id) != image).take(count).collect()
    }
}

/// Bytes per second that `threads` threads read from memory, plainly: the roofline of decoding.
///
/// # Errors
/// If there is not the memory for it.
pub fn plain_read(threads: usize) -> Result<f64, MatrixError> {
    Ok(Probe::new(threads)?.measure(Test::Decode).read * 1e9)
}

/// What the machine does at best, with the threads that the model has.
struct Probe {
    compute: Compute,
    memory: Vec<Matrix>,
}

/// Rates in giga-units per second.
#[derive(Clone, Copy)]
struct Machine {
    read: f64,
    multiply_add: f64,
}

impl Machine {
    fn mean(self, other: Self) -> Self {
        Self { read: (self.read + other.read) / 2.0, multiply_add: (self.multiply_add + other.multiply_add) / 2.0 }
    }
}

impl Probe {
    fn new(threads: usize) -> Result<Self, MatrixError> {
        let shape = Shape { name: "probe", format: Format::Bf16, rows: 1024, cols: 8192 };
        let memory = crate::matrices(&shape, PROBE_MEBIBYTES << 20)?;
        Ok(Self { compute: Compute::new(Arc::new(Pool::new(threads))), memory })
    }

    fn measure(&self, test: Test) -> Machine {
        let best = |burst: &dyn Fn() -> f64| (0..PROBE_ROUNDS).map(|_| crate::rate(burst)).fold(0.0, f64::max);
        Machine {
            read: best(&|| probe::read(&self.compute, &self.memory) as f64),
            multiply_add: if test == Test::Prefill { best(&|| probe::multiply_add(&self.compute, 5_000)) } else { 0.0 },
        }
    }
}
