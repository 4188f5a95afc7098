//! Products with float32 inputs.

use std::array::from_fn;
use std::ops::Range;

use cachalot_numerics::e8m0;

use super::{AHEAD, TOKENS, Task};
use crate::activations::PRESCALE;
use crate::matrix::{BLOCK, Format, GROUP, Matrix};
use crate::simd::{LANES, Simd};

/// How a format's words become numbers, and its scales factors.
pub(super) trait Decode: Sized {
    /// Words of a group.
    const WORDS: usize;

    /// The scales of a strip.
    fn scales(weight: &Matrix, strip: usize) -> Scales<'_>;

    /// Hands the numbers of a word to `to`, in the order of the columns.
    fn columns<S: Simd>(simd: S, word: S::W, to: &mut impl Columns<S>);
}

/// What is done with decoded numbers. Not a closure: a closure may be left out of line, and would then be compiled
/// without the kernel's instructions.
pub(super) trait Columns<S: Simd> {
    /// The numbers of one column; implementations are `#[inline(always)]`.
    fn take(&mut self, column: usize, weight: S::F);
}

/// Adds products to a sum.
struct Products<'a, S: Simd> {
    simd: S,
    x: &'a [f32],
    sum: S::F,
}

impl<S: Simd> Columns<S> for Products<'_, S> {
    #[inline(always)]
    fn take(&mut self, column: usize, weight: S::F) {
        self.sum = self.simd.fma(weight, self.simd.splat(self.x[column]), self.sum);
    }
}

/// Lays numbers out for several tokens.
struct Numbers<'a, S: Simd, const N: usize> {
    simd: S,
    columns: &'a mut [[[f32; LANES]; N]],
    strip: usize,
}

impl<S: Simd, const N: usize> Columns<S> for Numbers<'_, S, N> {
    #[inline(always)]
    fn take(&mut self, column: usize, weight: S::F) {
        self.simd.store(weight, &mut self.columns[column][self.strip]);
    }
}

/// The factors of a strip's groups, [`PRESCALE`] taken back.
#[derive(Clone, Copy)]
pub(super) enum Scales<'a> {
    /// One per row and group.
    Rows(&'a [u8]),
    /// One per so many groups.
    Shared(&'a [u8], usize),
    /// None.
    None,
}

impl Scales<'_> {
    #[inline(always)]
    fn of<S: Simd>(self, simd: S, group: usize) -> S::F {
        match self {
            Self::Rows(codes) => {
                let (codes, _) = codes[group * LANES..].as_chunks::<LANES>();
                simd.mul(simd.scales(&codes[0]), simd.splat(1.0 / PRESCALE / S::E2M1_UNIT))
            }
            // FP8's numbers come times 2^-120.
            Self::Shared(codes, groups) => {
                let missing = f32::from_bits((127 + 120) << 23) / PRESCALE;
                simd.splat(e8m0::decode(codes[group / groups]) * missing)
            }
            Self::None => simd.splat(1.0 / PRESCALE),
        }
    }
}

pub(super) struct Fp4;
pub(super) struct Fp8;
pub(super) struct Bf16;
pub(super) struct F32;

impl Decode for Fp4 {
    const WORDS: usize = 4;

    #[inline(always)]
    fn scales(weight: &Matrix, strip: usize) -> Scales<'_> {
        Scales::Rows(weight.strip_scales(strip))
    }

    #[inline(always)]
    fn columns<S: Simd>(simd: S, word: S::W, to: &mut impl Columns<S>) {
        to.take(0, simd.e2m1::<0>(word));
        to.take(1, simd.e2m1::<1>(word));
        to.take(2, simd.e2m1::<2>(word));
        to.take(3, simd.e2m1::<3>(word));
        to.take(4, simd.e2m1::<4>(word));
        to.take(5, simd.e2m1::<5>(word));
        to.take(6, simd.e2m1::<6>(word));
        to.take(7, simd.e2m1::<7>(word));
    }
}

impl Decode for Fp8 {
    const WORDS: usize = 8;

    #[inline(always)]
    fn scales(weight: &Matrix, strip: usize) -> Scales<'_> {
        let Format::Fp8 { block } = weight.format() else { return Scales::None };
        let (codes, groups) = weight.row_of_scales(strip, block);
        Scales::Shared(codes, groups)
    }

    #[inline(always)]
    fn columns<S: Simd>(simd: S, word: S::W, to: &mut impl Columns<S>) {
        to.take(0, simd.e4m3::<0>(word));
        to.take(1, simd.e4m3::<1>(word));
        to.take(2, simd.e4m3::<2>(word));
        to.take(3, simd.e4m3::<3>(word));
    }
}

impl Decode for Bf16 {
    const WORDS: usize = 16;

    #[inline(always)]
    fn scales(_: &Matrix, _: usize) -> Scales<'_> {
        Scales::None
    }

    #[inline(always)]
    fn columns<S: Simd>(simd: S, word: S::W, to: &mut impl Columns<S>) {
        to.take(0, simd.bf16::<0>(word));
        to.take(1, simd.bf16::<1>(word));
    }
}

impl Decode for F32 {
    const WORDS: usize = 32;

    #[inline(always)]
    fn scales(_: &Matrix, _: usize) -> Scales<'_> {
        Scales::None
    }

    #[inline(always)]
    fn columns<S: Simd>(simd: S, word: S::W, to: &mut impl Columns<S>) {
        to.take(0, simd.f32_of(word));
    }
}

/// `N` strips that are computed together.
struct Strips<'a, const N: usize> {
    blocks: [&'a [[u8; BLOCK]]; N],
    scales: [Scales<'a>; N],
}

impl<'a, const N: usize> Strips<'a, N> {
    #[inline(always)]
    fn new<D: Decode>(weight: &'a Matrix, first: usize) -> Self {
        Self {
            blocks: from_fn(|strip| weight.strip(first + strip).as_chunks::<BLOCK>().0),
            scales: from_fn(|strip| D::scales(weight, first + strip)),
        }
    }
}

#[inline(always)]
pub(super) fn run<S: Simd, D: Decode>(simd: S, task: &Task) {
    if task.tokens.len() == 1 {
        run_strips::<S, D, OneToken, 4, 1>(simd, task);
    } else if S::WIDE {
        // As many sums as the registers hold, and a number each of weight and input.
        run_strips::<S, D, ManyTokens, 2, 12>(simd, task);
    } else {
        run_strips::<S, D, ManyTokens, 1, 6>(simd, task);
    }
}

/// A way to compute `N` strips, with up to `T` tokens in registers.
trait Body {
    fn strips<S: Simd, D: Decode, const N: usize, const T: usize>(simd: S, task: &Task, first: usize);
}

/// Goes through a task's strips, `N` at a time, and the last ones two and one at a time.
#[inline(always)]
fn run_strips<S: Simd, D: Decode, B: Body, const N: usize, const T: usize>(simd: S, task: &Task) {
    let mut first = task.strips.start;
    while task.strips.end - first >= N {
        B::strips::<S, D, N, T>(simd, task, first);
        first += N;
    }
    if N > 2 && task.strips.end - first >= 2 {
        B::strips::<S, D, 2, T>(simd, task, first);
        first += 2;
    }
    if N > 1 && task.strips.end > first {
        B::strips::<S, D, 1, T>(simd, task, first);
    }
}

struct OneToken;
struct ManyTokens;

impl Body for OneToken {
    #[inline(always)]
    fn strips<S: Simd, D: Decode, const N: usize, const T: usize>(simd: S, task: &Task, first: usize) {
        one_token::<S, D, N>(simd, task, first);
    }
}

impl Body for ManyTokens {
    #[inline(always)]
    fn strips<S: Simd, D: Decode, const N: usize, const T: usize>(simd: S, task: &Task, first: usize) {
        many_tokens::<S, D, N, T>(simd, task, first);
    }
}

/// One token: numbers go from their words straight into the sums.
#[inline(always)]
fn one_token<S: Simd, D: Decode, const N: usize>(simd: S, task: &Task, first: usize) {
    let strips = Strips::<N>::new::<D>(task.job.weight, first);
    let token = task.tokens.start;
    let mut results = [simd.splat(0.0); N];
    for group in 0..task.job.input.groups() {
        let x = &task.job.input.group(group)[token];
        let mut sums = [simd.splat(0.0); N];
        for word in 0..D::WORDS {
            let x = &x[word * (GROUP / D::WORDS)..];
            for strip in 0..N {
                let blocks = strips.blocks[strip].as_ptr();
                simd.prefetch(blocks.wrapping_add(group * D::WORDS + word + AHEAD).cast());
                let word = simd.load_words(&strips.blocks[strip][group * D::WORDS + word]);
                let mut products = Products { simd, x, sum: sums[strip] };
                D::columns(simd, word, &mut products);
                sums[strip] = products.sum;
            }
        }
        for strip in 0..N {
            results[strip] = simd.fma(sums[strip], strips.scales[strip].of(simd, group), results[strip]);
        }
    }
    for (strip, result) in results.into_iter().enumerate() {
        let mut values = [0.0; LANES];
        simd.store(result, &mut values);
        task.job.write(first + strip, token, &values);
    }
}

/// Several tokens: a group's numbers are laid out once and used for all of them.
#[inline(always)]
fn many_tokens<S: Simd, D: Decode, const N: usize, const T: usize>(simd: S, task: &Task, first: usize) {
    let strips = Strips::<N>::new::<D>(task.job.weight, first);
    let mut numbers = [[[0.0; LANES]; N]; GROUP];
    let mut results = [[[0.0; LANES]; N]; TOKENS];
    for group in 0..task.job.input.groups() {
        for word in 0..D::WORDS {
            let columns = &mut numbers[word * (GROUP / D::WORDS)..];
            for strip in 0..N {
                let word = simd.load_words(&strips.blocks[strip][group * D::WORDS + word]);
                D::columns(simd, word, &mut Numbers { simd, columns: &mut *columns, strip });
            }
        }
        let scales = from_fn(|strip| strips.scales[strip].of(simd, group));
        let mut token = 0;
        while token < task.tokens.len() {
            let rest = task.tokens.len() - token;
            let tile = |count: usize| task.tokens.start + token..task.tokens.start + token + count;
            let results = &mut results[token..];
            token += if rest >= T {
                add_group::<S, N, T>(simd, task, group, &numbers, scales, tile(T), results);
                T
            } else if T > 8 && rest >= 8 {
                add_group::<S, N, 8>(simd, task, group, &numbers, scales, tile(8), results);
                8
            } else if rest >= 4 {
                add_group::<S, N, 4>(simd, task, group, &numbers, scales, tile(4), results);
                4
            } else if rest >= 2 {
                add_group::<S, N, 2>(simd, task, group, &numbers, scales, tile(2), results);
                2
            } else {
                add_group::<S, N, 1>(simd, task, group, &numbers, scales, tile(1), results);
                1
            };
        }
    }
    for (token, strips) in task.tokens.clone().zip(&results) {
        for (strip, values) in strips.iter().enumerate() {
            task.job.write(first + strip, token, values);
        }
    }
}

/// Adds one group's products of `T` tokens to their results.
#[inline(always)]
fn add_group<S: Simd, const N: usize, const T: usize>(
    simd: S,
    task: &Task,
    group: usize,
    numbers: &[[[f32; LANES]; N]; GROUP],
    scales: [S::F; N],
    tokens: Range<usize>,
    results: &mut [[[f32; LANES]; N]],
) {
    let (inputs, _) = task.job.input.group(group)[tokens].as_chunks::<T>();
    let inputs = &inputs[0];
    let mut sums = [[simd.splat(0.0); N]; T];
    for (column, numbers) in numbers.iter().enumerate() {
        let weights: [S::F; N] = from_fn(|strip| simd.load(&numbers[strip]));
        for (sums, x) in sums.iter_mut().zip(inputs) {
            let x = simd.splat(x[column]);
            for strip in 0..N {
                sums[strip] = simd.fma(weights[strip], x, sums[strip]);
            }
        }
    }
    for (sums, results) in sums.into_iter().zip(results) {
        for strip in 0..N {
            let result = simd.fma(sums[strip], scales[strip], simd.load(&results[strip]));
            simd.store(result, &mut results[strip]);
        }
    }
}
