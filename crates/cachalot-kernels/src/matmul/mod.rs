//! Products of packed weights and activations.
//!
//! The one order: a row's 32 products of a group are added by fused multiply-adds, column by column, to a sum that
//! starts at zero; that sum times the group's scale is added, fused, to the row's result, group by group. Every row
//! and token stands alone, so neither the number of tokens, nor threads, nor lanes can change a bit. With integers
//! ([`Treatment::Int16`](crate::Treatment)) the sum of a group is exact instead.

mod exact;
mod integer;

use std::marker::PhantomData;
use std::ops::Range;

use crate::activations::Activations;
use crate::compute::Compute;
use crate::matrix::{Format, Matrix};
use crate::simd::{Kernel, LANES, Simd};

/// Tokens that one task computes; their sums lie on its stack.
const TOKENS: usize = 64;
/// Lines of 64 bytes that a strip's weights are asked for ahead of their use.
const AHEAD: usize = 24;
/// Fewest and most strips that one task computes: the registers' worth, and enough to read in long runs.
const STRIPS: [usize; 2] = [4, 32];
/// Tasks per thread that there should be, so that threads end together.
const TASKS: usize = 8;

/// Multiplications below which one thread does all.
const SMALL: usize = 1 << 17;

/// One product: `output = weight[rows] * input`.
pub struct Job<'a> {
    weight: &'a Matrix,
    rows: Range<usize>,
    input: &'a Activations,
    output: *mut f32,
    /// The output is borrowed as long as the job lives.
    borrow: PhantomData<&'a mut [f32]>,
}

// SAFETY: the pointer stands for an exclusive borrow of floats, which may go to another thread.
unsafe impl Send for Job<'_> {}
// SAFETY: through a shared job only `matmul` writes, which needs the jobs exclusively and gives every task other
// elements of the output.
unsafe impl Sync for Job<'_> {}

impl<'a> Job<'a> {
    /// The product of the rows `rows` of `weight` with every token of `input`, into `output` `[tokens, rows]`.
    ///
    /// # Panics
    /// If the shapes do not fit, or `rows` does not start at a multiple of 16.
    pub fn new(weight: &'a Matrix, rows: Range<usize>, input: &'a Activations, output: &'a mut [f32]) -> Self {
        assert!(rows.start.is_multiple_of(LANES) && rows.end <= weight.rows(), "rows {rows:?} of {weight:?}");
        assert_eq!(weight.cols(), input.cols(), "columns of {weight:?}");
        assert_eq!(output.len(), rows.len() * input.tokens(), "output of {weight:?}");
        Self { weight, rows, input, output: output.as_mut_ptr(), borrow: PhantomData }
    }

    /// All rows of `weight`.
    ///
    /// # Panics
    /// If the shapes do not fit.
    pub fn whole(weight: &'a Matrix, input: &'a Activations, output: &'a mut [f32]) -> Self {
        Self::new(weight, 0..weight.rows(), input, output)
    }

    fn strips(&self) -> Range<usize> {
        self.rows.start / LANES..self.rows.end.div_ceil(LANES)
    }

    /// Tasks of `per_task` strips.
    fn tasks(&self, per_task: usize) -> usize {
        self.strips().len().div_ceil(per_task) * self.input.tokens().div_ceil(TOKENS)
    }

    fn work(&self) -> usize {
        self.rows.len() * self.weight.cols() * self.input.tokens()
    }

    /// Strips and tokens of task `index`.
    fn task(&self, index: usize, per_task: usize) -> (Range<usize>, Range<usize>) {
        let strips = self.strips();
        let per_token_block = strips.len().div_ceil(per_task);
        let (block, part) = (index / per_token_block, index % per_token_block);
        let first = strips.start + part * per_task;
        let tokens = block * TOKENS..((block + 1) * TOKENS).min(self.input.tokens());
        (first..(first + per_task).min(strips.end), tokens)
    }

    /// Writes the results of one strip and token.
    fn write(&self, strip: usize, token: usize, values: &[f32; LANES]) {
        let first = strip * LANES;
        let count = (self.rows.end - first).min(LANES);
        let start = token * self.rows.len() + first - self.rows.start;
        assert!(token < self.input.tokens() && first >= self.rows.start && first < self.rows.end);
        // SAFETY: `new` checked that the output holds [tokens, rows]; this range lies in row `token` of it. No other
        // task has the same strip and token.
        unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), self.output.add(start), count) };
    }
}

/// Computes all jobs as one list of work over the pool.
pub fn matmul(compute: &Compute, jobs: &mut [Job<'_>]) {
    let jobs = &*jobs;
    let units: usize = jobs.iter().map(|job| job.tasks(1)).sum();
    let threads = compute.pool().threads();
    let per_task = match units / (TASKS * threads) / STRIPS[0] * STRIPS[0] {
        // So few strips that some threads would have none.
        0 => (units / threads).clamp(1, STRIPS[0]),
        strips => strips.min(STRIPS[1]),
    };
    let total = jobs.iter().map(|job| job.tasks(per_task)).sum();
    let work: usize = jobs.iter().map(Job::work).sum();
    let run = |mut index: usize| {
        for job in jobs {
            let tasks = job.tasks(per_task);
            if index < tasks {
                let (strips, tokens) = job.task(index, per_task);
                compute.isa().run(Task { job, strips, tokens });
                return;
            }
            index -= tasks;
        }
    };
    // Waking the others takes longer than very little work.
    if work < SMALL { (0..total).for_each(run) } else { compute.pool().run(total, run) }
}

/// Computes one product with all rows of `weight`.
///
/// # Panics
/// If the shapes do not fit.
pub fn matmul_one(compute: &Compute, weight: &Matrix, input: &Activations, output: &mut [f32]) {
    matmul(compute, &mut [Job::whole(weight, input, output)]);
}

/// A way to compute `N` strips, with up to `T` tokens in registers.
trait Body {
    fn strips<S: Simd, const N: usize, const T: usize>(simd: S, task: &Task, first: usize);
}

/// Goes through a task's strips, `N` at a time, and the last ones two and one at a time.
#[inline(always)]
fn run_strips<S: Simd, B: Body, const N: usize, const T: usize>(simd: S, task: &Task) {
    let mut first = task.strips.start;
    while task.strips.end - first >= N {
        B::strips::<S, N, T>(simd, task, first);
        first += N;
    }
    if N > 2 && task.strips.end - first >= 2 {
        B::strips::<S, 2, T>(simd, task, first);
        first += 2;
    }
    if N > 1 && task.strips.end > first {
        B::strips::<S, 1, T>(simd, task, first);
    }
}

/// The line to ask for while line `index` of each of `strips` neighbouring strips of `lines` is read: the last lines
/// of a strip bring the first ones of the strip that comes after all of them.
#[inline(always)]
fn ahead(index: usize, lines: usize, strips: usize) -> usize {
    let at = index + AHEAD;
    if at < lines { at } else { at + (strips - 1) * lines }
}

/// A few strips of one job, for some of its tokens.
struct Task<'a, 'b> {
    job: &'b Job<'a>,
    strips: Range<usize>,
    tokens: Range<usize>,
}

impl Task<'_, '_> {
    /// Writes the results of all tokens of this task for the strips from `first` on.
    #[inline(always)]
    fn write<const N: usize>(&self, first: usize, results: &[[[f32; LANES]; N]]) {
        for (token, strips) in self.tokens.clone().zip(results) {
            for (strip, values) in strips.iter().enumerate() {
                self.job.write(first + strip, token, values);
            }
        }
    }
}

impl Kernel for Task<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        match self.job.weight.format() {
            Format::Fp4 if self.job.input.integers() => integer::run(simd, &self),
            Format::Fp4 => exact::run::<S, exact::Fp4>(simd, &self),
            Format::Fp8 { .. } => exact::run::<S, exact::Fp8>(simd, &self),
            Format::Bf16 => exact::run::<S, exact::Bf16>(simd, &self),
            Format::F32 => exact::run::<S, exact::F32>(simd, &self),
        }
    }
}
