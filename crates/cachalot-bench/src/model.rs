//! How fast a whole model runs, over what memory and arithmetic allow it in the same minutes.
//!
//! Owns the windows: a probe of the machine, the model, the probe again; each window's rate is a share of the mean of its
//! two probes, and the middle of all shares counts. Refuses to state a rate without the roofline beside it.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use cachalot_engine::engine::Engine;
use cachalot_engine::planner::{Forecast, Rates};
use cachalot_kernels::{Compute, Format, Matrix, MatrixError, probe};
use cachalot_model::{LogitsOf, Segment, Sequence, StepError, Workspace};
use cachalot_runtime::Pool;
use serde::Serialize;

use crate::shapes::Shape;

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
        "{tokens} tokens do not fit the context of {context}: lower --depth, --tokens or --windows, or raise --context"
    )]
    TooLong {
        /// Tokens asked for.
        tokens: usize,
        /// Tokens that the context holds.
        context: usize,
    },
    /// The model could not take a step.
    #[error(transparent)]
    Step(#[from] StepError),
    /// No memory for the probe.
    #[error(transparent)]
    Memory(#[from] MatrixError),
}

/// One window.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Window {
    /// What was measured.
    pub test: Test,
    /// `resident`: every expert was in memory. `streamed`: some were read.
    pub tier: &'static str,
    /// Tokens measured.
    pub tokens: usize,
    /// Tokens in the context before.
    pub depth: usize,
    /// Tokens per second.
    pub tokens_per_s: f64,
    /// Tokens per second if memory were the only limit (decode), or float32 arithmetic (prefill); for experts from the
    /// disk, if the slower of that and the disk were.
    pub roofline_tokens_per_s: f64,
    /// The former over the latter.
    pub share: f64,
    /// Bytes of weights and caches that one decoded token reads from memory.
    pub memory_bytes_per_token: u64,
    /// Plain read of memory in this window's probes, GB/s.
    pub memory_gb_per_s: f64,
    /// Records from the disk in this window's probes, read as the model reads them, GB/s; absent if nothing was read.
    pub disk_gb_per_s: Option<f64>,
    /// Bytes of experts and layers that were used and had to be read, per token.
    pub disk_bytes_per_token: u64,
    /// What the disk gave while it was busy in the window, wrong guesses included, GB/s.
    pub disk_busy_gb_per_s: Option<f64>,
    /// Share of the window in which the disk had nothing to do.
    pub disk_idle: f64,
    /// Share of the window in which the model waited for experts.
    pub expert_wait: f64,
    /// Share of the window in which the model waited for layers that do not stay.
    pub layer_wait: f64,
    /// Milliseconds waited for table rows, per token.
    pub row_wait_ms_per_token: f64,
    /// Share of the guesses that were right; absent without guesses.
    pub guess_precision: Option<f64>,
    /// Share of the experts not kept that had been read before they were asked for; absent without any.
    pub guess_recall: Option<f64>,
    /// What guessing gains, as a share of the time; absent until measured.
    pub guess_gain: Option<f64>,
    /// Experts that were found in memory, per token.
    pub expert_hits_per_token: f64,
    /// Experts that were read, per token.
    pub expert_misses_per_token: f64,
    /// Share of the experts' bytes that need not be read: found in memory.
    pub hit_rate: f64,
    /// Tokens per second that the planner's arithmetic makes of the rates of this window: kernels, disk, hit rate.
    pub forecast_tokens_per_s: f64,
    /// What was measured over that.
    pub forecast_ratio: f64,
    /// Tokens per second that the planner would have said, not knowing the hit rate.
    pub planned_tokens_per_s: f64,
    /// Seconds of the window, and those that the disk needs for what was read; the latter absent if nothing was.
    pub seconds: f64,
    /// See `seconds`.
    pub disk_seconds: Option<f64>,
}

/// Windows of a model that is read from the disk, beside those of the same model in memory.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Comparison {
    /// What was measured.
    pub test: Test,
    /// Tokens of a window.
    pub tokens: usize,
    /// Seconds of a window; the middle one, as all that follow.
    pub streamed_seconds: f64,
    /// Seconds that the disk needs for what such a window read, at the rate of its own probes.
    pub disk_seconds: f64,
    /// Seconds of a window with everything in memory.
    pub resident_seconds: f64,
    /// A window's seconds over the larger of the other two.
    pub ratio: f64,
}

impl Comparison {
    /// Compares two runs; `None` if one has no windows, or nothing was read in the first.
    pub fn new(streamed: &ModelReport, resident: &ModelReport) -> Option<Self> {
        let [_, resident_seconds, _] = resident.spread(|window| window.seconds);
        let last = streamed.windows.last().filter(|_| !resident.windows.is_empty())?;
        last.disk_seconds?;
        let disk = |window: &Window| window.disk_seconds.unwrap_or(0.0);
        Some(Self {
            test: last.test,
            tokens: last.tokens,
            streamed_seconds: streamed.spread(|window| window.seconds)[1],
            disk_seconds: streamed.spread(disk)[1],
            resident_seconds,
            ratio: streamed.spread(|window| window.seconds / disk(window).max(resident_seconds))[1],
        })
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tokens, streamed_seconds, disk_seconds, resident_seconds, ratio, .. } = self;
        write!(
            f,
            "{tokens} tokens: {streamed_seconds:.2} s; the disk alone {disk_seconds:.2} s, everything in memory \
             {resident_seconds:.2} s: {ratio:.2} times the larger"
        )
    }
}

/// All windows of one run.
#[derive(Clone, Debug, Serialize)]
pub struct ModelReport {
    /// Threads that computed.
    pub threads: usize,
    /// Instruction set.
    pub instruction_set: &'static str,
    /// In the order measured.
    pub windows: Vec<Window>,
}

impl ModelReport {
    /// Minimum, middle and maximum of `value` over the windows.
    pub fn spread(&self, value: impl Fn(&Window) -> f64) -> [f64; 3] {
        let mut values: Vec<f64> = self.windows.iter().map(value).collect();
        values.sort_by(f64::total_cmp);
        [values.first(), values.get(values.len() / 2), values.last()].map(|value| value.copied().unwrap_or(0.0))
    }
}

impl fmt::Display for ModelReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(last) = self.windows.last() else { return Ok(()) };
        let name = if last.test == Test::Decode { "decode" } else { "prefill" };
        writeln!(
            f,
            "{name}, {} tokens at depth {}, {} windows, {} threads, {}, experts {}",
            last.tokens,
            last.depth,
            self.windows.len(),
            self.threads,
            self.instruction_set,
            last.tier
        )?;
        let mut row = |name: &str, value: &dyn Fn(&Window) -> f64| {
            let [least, middle, most] = self.spread(value);
            writeln!(f, "  {name:<28}{least:>12.3}{middle:>12.3}{most:>12.3}")
        };
        row("(min, median, max)  tokens/s", &|window| window.tokens_per_s)?;
        row("roofline, tokens/s", &|window| window.roofline_tokens_per_s)?;
        row("share", &|window| window.share)?;
        row("plain read, GB/s", &|window| window.memory_gb_per_s)?;
        if last.tier == "streamed" {
            row("disk, GB/s", &|window| window.disk_gb_per_s.unwrap_or(0.0))?;
            row("disk bytes per token, MB", &|window| window.disk_bytes_per_token as f64 / 1e6)?;
            row("layers waited for, share", &|window| window.layer_wait)?;
            row("disk idle, share", &|window| window.disk_idle)?;
            row("waiting for experts, share", &|window| window.expert_wait)?;
            row("waiting for rows, ms/token", &|window| window.row_wait_ms_per_token)?;
            row("guesses right, share", &|window| window.guess_precision.unwrap_or(0.0))?;
            row("found by guesses, share", &|window| window.guess_recall.unwrap_or(0.0))?;
            row("gain of guesses, share", &|window| window.guess_gain.unwrap_or(0.0))?;
        }
        row("forecast, tokens/s", &|window| window.forecast_tokens_per_s)?;
        row("measured over forecast", &|window| window.forecast_ratio)?;
        row("planned, tokens/s", &|window| window.planned_tokens_per_s)?;
        row("expert hits per token", &|window| window.expert_hits_per_token)?;
        row("expert misses per token", &|window| window.expert_misses_per_token)?;
        write!(f, "  one decoded token reads {:.3} GB from memory", last.memory_bytes_per_token as f64 / 1e9)
    }
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
        return Err(ModelError::TooLong { tokens: longest, context: engine.context() });
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
