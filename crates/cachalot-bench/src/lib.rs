//! How fast kernels and whole models are, as ratios to what the machine can do, taken in one run.
//!
//! Other work on a machine slows bursts down and its memory changes speed from one second to the next: a burst of a
//! kernel follows one of its ceiling at once, and the middle of all rounds' ratios counts. Refuses to compare across runs: rates of
//! two machines, or of one machine on two days, mean nothing side by side.
#![forbid(unsafe_code)]

mod abilities;
mod model;
mod rates;
mod report;
mod shapes;
mod window;

use std::sync::Arc;
use std::time::Instant;

use cachalot_kernels::{
    Activations, AttentionScratch, Compute, Format, IndexQueries, Isa, Job, Matrix, MatrixError, Treatment, attend,
    matmul, probe,
};
use cachalot_runtime::Pool;

pub use abilities::{AbilityError, AbilityReport, Judge, Question, Score, abilities, prompt_of, questions};
pub use model::{ModelError, ModelOptions, Test, model, plain_read};
pub use rates::rates;
pub use report::{Measurement, Report};
pub use shapes::{AttentionTask, RELEASES, Release, Shape, format_name};
pub use window::{Comparison, ModelReport, Window};

/// What to measure, and how long.
#[derive(Clone, Debug)]
pub struct Options {
    /// Threads; 0 means all cores.
    pub threads: usize,
    /// Bursts of each kernel.
    pub rounds: usize,
    /// Weights read in a burst, MiB; far more than the caches hold.
    pub mebibytes: usize,
    /// Matrices to measure.
    pub shapes: Vec<Shape>,
    /// Only these instruction sets, by name; empty means all but the portable path.
    pub isas: Vec<String>,
    /// Tokens of the matrix-matrix products.
    pub batch: usize,
    /// Attention and index scoring to measure.
    pub attention: Vec<AttentionTask>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            threads: 0,
            rounds: 24,
            mebibytes: 128,
            shapes: RELEASES[2].shapes.to_vec(),
            isas: Vec::new(),
            batch: 64,
            attention: RELEASES[2].attention.to_vec(),
        }
    }
}

/// Measures the matrix products.
///
/// # Errors
/// If there is not the memory for [`Options::mebibytes`] of weights.
pub fn kernels(options: &Options) -> Result<Report, MatrixError> {
    let pool = Arc::new(if options.threads == 0 { Pool::with_all_cores() } else { Pool::new(options.threads) });
    let chosen = |isa: &Isa| match &*options.isas {
        [] => *isa != Isa::PORTABLE,
        names => names.iter().any(|name| name == isa.name()),
    };
    let isas: Vec<Isa> = Isa::available().into_iter().filter(chosen).collect();
    let bench = Bench { options, pool, isas };
    let mut report = Report {
        threads: bench.pool.threads(),
        isas: bench.isas.iter().map(|isa| isa.name()).collect(),
        multiply_add_peak: 0.0,
        read_memory: 0.0,
        measurements: Vec::new(),
    };
    for shape in &options.shapes {
        bench.vector(shape, &mut report)?;
    }
    for shape in options.shapes.iter().filter(|shape| shape.format == Format::Fp4) {
        bench.batch(shape, &mut report)?;
    }
    for task in &options.attention {
        bench.attention(task, &mut report);
    }
    Ok(report)
}

struct Bench<'a> {
    options: &'a Options,
    pool: Arc<Pool>,
    isas: Vec<Isa>,
}

/// One kernel under test: how to compute and on what, its best rate so far, and in each round its share of the ceiling.
struct Contender {
    compute: Compute,
    arithmetic: &'static str,
    input: Activations,
    best: f64,
    shares: Vec<f64>,
}

impl Contender {
    /// `tokens` inputs of `cols` values, treated so.
    fn new(compute: Compute, cols: usize, tokens: usize, treatment: Treatment) -> Self {
        let x: Vec<f32> = (0..tokens * cols).map(|index| (index * 37 % 255) as f32 / 128.0 - 1.0).collect();
        let mut input = Activations::new();
        input.set(&compute, &x, cols, treatment);
        let arithmetic = if treatment == Treatment::Int16 { "fast" } else { "exact" };
        Self { compute, arithmetic, input, best: 0.0, shares: Vec::new() }
    }

    /// The middle one of all rounds.
    fn share(&self) -> f64 {
        let mut shares = self.shares.clone();
        shares.sort_by(f64::total_cmp);
        shares.get(shares.len() / 2).copied().unwrap_or(0.0)
    }
}

impl Bench<'_> {
    fn contenders(&self, pool: &Arc<Pool>, shape: &Shape, tokens: usize) -> Vec<Contender> {
        let mut list = Vec::new();
        for &isa in &self.isas {
            let compute = Compute::with_isa(Arc::clone(pool), isa);
            for treatment in [Treatment::Float32, Treatment::Int16] {
                if treatment == Treatment::Float32 || shape.format == Format::Fp4 {
                    list.push(Contender::new(compute.clone(), shape.cols, tokens, treatment));
                }
            }
        }
        list
    }

    /// Matrix-vector products from memory on all threads, and from cache on one.
    fn vector(&self, shape: &Shape, report: &mut Report) -> Result<(), MatrixError> {
        let matrices = matrices(shape, self.options.mebibytes << 20)?;
        let mut contenders = self.contenders(&self.pool, shape, 1);
        for _ in 0..self.options.rounds {
            let read = |compute: &Compute| probe::read(compute, &matrices) as f64;
            report.read_memory = report.read_memory.max(run_all(&mut contenders, &matrices, 1, read));
        }
        record(report, shape, &contenders, 1, "memory", "GB/s");
        drop(matrices);

        // A quarter of a MiB stays in every core's second-level cache.
        let rows = ((256 << 10) / row_bytes(shape) / 16).max(4).min(shape.rows / 16) * 16;
        let small = Shape { rows, ..shape.clone() };
        let matrices = matrices_of(&small, 1)?;
        let mut contenders = self.contenders(&Arc::new(Pool::new(1)), &small, 1);
        for _ in 0..self.options.rounds {
            let read = |compute: &Compute| (0..100).map(|_| probe::read(compute, &matrices) as f64).sum();
            run_all(&mut contenders, &matrices, 100, read);
        }
        record(report, &small, &contenders, 1, "cache", "GB/s");
        Ok(())
    }

    /// Matrix-matrix products on all threads.
    fn batch(&self, shape: &Shape, report: &mut Report) -> Result<(), MatrixError> {
        let tokens = self.options.batch;
        let matrices = matrices_of(shape, 4)?;
        let mut contenders = self.contenders(&self.pool, shape, tokens);
        // From operations to bytes, so that shares are of operations: two per weight and token.
        let operations = 2.0 * (shape.rows * shape.cols * tokens) as f64 / matrices[0].bytes() as f64;
        let fastest = self.isas.iter().map(|&isa| Compute::with_isa(Arc::clone(&self.pool), isa));
        let fastest = fastest.max_by(|a, b| peak(a).total_cmp(&peak(b)));
        let Some(fastest) = fastest else { return Ok(()) };
        for _ in 0..self.options.rounds {
            let ceiling = |_: &Compute| probe::multiply_add(&fastest, 5_000) / operations;
            let peak = run_all(&mut contenders, &matrices, 1, ceiling) * operations;
            report.multiply_add_peak = report.multiply_add_peak.max(peak);
        }
        contenders.iter_mut().for_each(|contender| contender.best *= operations);
        record(report, shape, &contenders, tokens, "memory", "Gop/s");
        Ok(())
    }
}

impl Bench<'_> {
    /// One token's work on one thread: attention over decoded keys, or scores of packed index keys.
    fn attention(&self, task: &AttentionTask, report: &mut Report) {
        let one = Arc::new(Pool::new(1));
        let operations = task.operations();
        for &isa in &self.isas {
            let compute = Compute::with_isa(Arc::clone(&one), isa);
            let mut burst = task.prepare(&compute);
            let (mut best, mut shares) = (0.0f64, Vec::new());
            for _ in 0..self.options.rounds {
                let limit = rate(|| probe::multiply_add(&compute, 2_000));
                let reached = rate(|| {
                    burst();
                    operations
                });
                best = best.max(reached);
                shares.push(reached / limit);
            }
            shares.sort_by(f64::total_cmp);
            report.measurements.push(Measurement {
                shape: task.name.to_owned(),
                format: if task.index { "fp4" } else { "f32" },
                rows: task.heads,
                cols: task.keys,
                tokens: 1,
                weights: "cache",
                isa: isa.name(),
                arithmetic: "exact",
                rate: best,
                unit: "Gop/s",
                ratio: shares[shares.len() / 2],
            });
        }
    }
}

impl AttentionTask {
    /// Two for a multiply-add.
    fn operations(&self) -> f64 {
        let products = self.heads * self.keys * self.dim;
        (if self.index { 2 * products } else { 4 * products }) as f64
    }

    /// Something that computes it once.
    fn prepare(&self, compute: &Compute) -> Box<dyn FnMut()> {
        let compute = compute.clone();
        let values = |count: usize| -> Vec<f32> { (0..count).map(|i| (i * 37 % 255) as f32 / 128.0 - 1.0).collect() };
        if self.index {
            let record = self.dim / 2 + self.dim / 32;
            let bytes = |count: usize| -> Vec<u8> { (0..count * record).map(|i| (i * 37 % 251) as u8).collect() };
            let mut queries = IndexQueries::default();
            queries.set(&bytes(self.heads), &values(self.heads), self.dim);
            let (keys, mut out) = (bytes(self.keys), vec![0.0; self.keys]);
            return Box::new(move || queries.score(&compute, &keys, &mut out));
        }
        let (q, keys, sinks) = (values(self.heads * self.dim), values(self.keys * self.dim), values(self.heads));
        let (mut out, mut scratch) = (vec![0.0; self.heads * self.dim], AttentionScratch::default());
        Box::new(move || attend(&compute, &q, &keys, 0.044, &sinks, &mut scratch, &mut out))
    }
}

/// The best of a few bursts of multiply-adds, Gop/s.
fn peak(compute: &Compute) -> f64 {
    (0..5).map(|_| rate(|| probe::multiply_add(compute, 2_000))).fold(0.0, f64::max)
}

/// Giga-units per second of a burst that returns its units.
fn rate(burst: impl FnOnce() -> f64) -> f64 {
    let start = Instant::now();
    let units = burst();
    units / start.elapsed().as_secs_f64() / 1e9
}

/// One burst of each contender, each right after one of its ceiling; returns the best of the ceiling's rates.
///
/// A machine that others use too changes from one moment to the next, so only neighbouring bursts are compared.
fn run_all(
    contenders: &mut [Contender],
    matrices: &[Matrix],
    repeats: usize,
    ceiling: impl Fn(&Compute) -> f64,
) -> f64 {
    let bytes: usize = matrices.iter().map(Matrix::bytes).sum();
    let mut best = 0.0f64;
    for contender in contenders {
        let (compute, input) = (&contender.compute, &contender.input);
        let mut outputs: Vec<Vec<f32>> =
            matrices.iter().map(|matrix| vec![0.0; matrix.rows() * input.tokens()]).collect();
        let mut jobs: Vec<Job> =
            matrices.iter().zip(&mut outputs).map(|(matrix, out)| Job::whole(matrix, input, out)).collect();
        let limit = rate(|| ceiling(compute));
        let reached = rate(|| {
            (0..repeats).for_each(|_| matmul(compute, &mut jobs));
            (bytes * repeats) as f64
        });
        best = best.max(limit);
        contender.best = contender.best.max(reached);
        contender.shares.push(reached / limit);
    }
    best
}

fn record(
    report: &mut Report,
    shape: &Shape,
    contenders: &[Contender],
    tokens: usize,
    weights: &'static str,
    unit: &'static str,
) {
    report.measurements.extend(contenders.iter().map(|contender| Measurement {
        shape: shape.name.to_owned(),
        format: format_name(shape.format),
        rows: shape.rows,
        cols: shape.cols,
        tokens,
        weights,
        isa: contender.compute.isa().name(),
        arithmetic: contender.arithmetic,
        rate: contender.best,
        unit,
        ratio: contender.share(),
    }));
}

fn row_bytes(shape: &Shape) -> usize {
    match shape.format {
        Format::Fp4 => shape.cols / 2,
        Format::Fp8 { .. } => shape.cols,
        Format::Bf16 => 2 * shape.cols,
        Format::F32 => 4 * shape.cols,
    }
}

/// As many matrices of this shape as `bytes` hold, at least one.
fn matrices(shape: &Shape, bytes: usize) -> Result<Vec<Matrix>, MatrixError> {
    matrices_of(shape, (bytes / (row_bytes(shape) * shape.rows)).max(1))
}

/// `count` matrices with codes that look random and stand for ordinary numbers in every format.
fn matrices_of(shape: &Shape, count: usize) -> Result<Vec<Matrix>, MatrixError> {
    let mut state = 88_172_645_463_325_252u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        // Any four bits are an FP4 number. FP8 and the upper bytes of BF16 and F32 get exponents in the middle of
        // their range, as almost all weights of a checkpoint have.
        if shape.format == Format::Fp4 { state } else { state & 0xbfbf_bfbf_bfbf_bfbf | 0x2020_2020_2020_2020 }
    };
    let strip: Vec<u8> = (0..2 * row_bytes(shape)).flat_map(|_| next().to_le_bytes()).collect();
    (0..count)
        .map(|_| {
            let mut matrix = Matrix::zeroed(shape.format, shape.rows, shape.cols)?;
            for row in (0..shape.rows).step_by(16) {
                let rows = (shape.rows - row).min(16);
                let loaded = matrix.load_rows(row, &strip[..rows * row_bytes(shape)]);
                assert_eq!(loaded, Ok(()), "the codes above are numbers");
            }
            let scales = vec![120; matrix.released_scales()];
            if !scales.is_empty() {
                assert_eq!(matrix.load_scales(&scales), Ok(()), "120 is a scale");
            }
            Ok(matrix)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_run_measures_everything_it_names() {
        let shapes = vec![
            Shape { name: "small", format: Format::Fp4, rows: 64, cols: 64 },
            Shape { name: "wide", format: Format::Fp8 { block: [32, 32] }, rows: 32, cols: 128 },
        ];
        let options = Options { threads: 2, rounds: 1, mebibytes: 1, shapes, batch: 3, ..Options::default() };
        let attention = options.attention.len();
        let report = kernels(&options).unwrap();
        // FP4: exact and fast from memory, cache and in a batch; FP8: exact from memory and cache.
        assert_eq!(report.measurements.len(), report.isas.len() * (6 + 2 + attention));
        assert!(report.measurements.iter().all(|m| m.rate > 0.0 && m.ratio > 0.0));
        assert!(report.to_string().contains("small"));
        assert!(serde_json::to_string(&report).unwrap().contains("\"arithmetic\":\"exact\""));
    }
}
