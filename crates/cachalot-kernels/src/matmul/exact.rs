//! Products with float32 inputs.

use std::array::from_fn;
use std::marker::PhantomData;
use std::ops::Range;

use cachalot_numerics::e8m0;

use super::{Body, TOKENS, Task, ahead, run_strips};
use crate::activations::PRESCALE;
use crate::matrix::{BLOCK, Format, GROUP, Matrix};
use crate::simd::{LANES, Simd};

/// How a format's words become numbers, and its scales factors.
pub(super) trait Decode: Sized {
    /// Words of a group.
    const WORDS: usize;

    /// The scales of a strip.
    fn scales(weight: &Matrix, strip: usize) -> Scales<'_>;

    /// Hands the numbers of one word of each strip to `to`, in the order of the columns.
    fn columns<S: Simd, const N: usize>(simd: S, words: [S::W; N], to: &mut impl Columns<S, N>);
}

/// What is done with decoded numbers. Not a closure: a closure may be left out of line, and would then be compiled
/// without the kernel's instructions.
pub(super) trait Columns<S: Simd, const N: usize> {
    /// The numbers of one column, strip by strip; implementations are `#[inline(always)]`.
    fn take(&mut self, column: usize, weights: [S::F; N]);
}

/// Adds products to sums. The strips' sums take turns, so that none waits for the one before it.
struct Products<'a, S: Simd, const N: usize> {
    simd: S,
    x: &'a [f32],
    sums: [S::F; N],
}

impl<S: Simd, const N: usize> Columns<S, N> for Products<'_, S, N> {
    #[inline(always)]
    fn take(&mut self, column: usize, weights: [S::F; N]) {
        let x = self.simd.splat(self.x[column]);
        for (sum, weight) in self.sums.iter_mut().zip(weights) {
            *sum = self.simd.fma(weight, x, *sum);
        }
    }
}

/// Lays numbers out for several tokens.
struct Numbers<'a, S: Simd, const N: usize> {
    simd: S,
    columns: &'a mut [[[f32; LANES]; N]],
}

impl<S: Simd, const N: usize> Columns<S, N> for Numbers<'_, S, N> {
    #[inline(always)]
    fn take(&mut self, column: usize, weights: [S::F; N]) {
        for (out, weight) in self.columns[column].iter_mut().zip(weights) {
            self.simd.store(weight, out);
        }
    }
}

/// Decodes one column of each strip.
macro_rules! decoded {
    ($simd:ident . $method:ident $(::<$index:literal>)? ($words:ident)) => {{
        let mut weights = [$simd.splat(0.0); N];
        for (weight, word) in weights.iter_mut().zip($words) {
            *weight = $simd.$method$(::<$index>)?(word);
        }
        weights
    }};
}

/// The factors of a strip's groups, [`PRESCALE`] taken back.
#[derive(Clone, Copy)]
pub(super) enum Scales<'a> {
    /// One per row and group.
    Rows(&'a [u8]),
    /// One per so many groups: 2 to this power.
    Shared(&'a [u8], u32),
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
            Self::Shared(codes, shift) => {
                let missing = f32::from_bits((127 + 120) << 23) / PRESCALE;
                simd.splat(e8m0::decode(codes[group >> shift]) * missing)
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
    fn columns<S: Simd, const N: usize>(simd: S, words: [S::W; N], to: &mut impl Columns<S, N>) {
        to.take(0, decoded!(simd.e2m1::<0>(words)));
        to.take(1, decoded!(simd.e2m1::<1>(words)));
        to.take(2, decoded!(simd.e2m1::<2>(words)));
        to.take(3, decoded!(simd.e2m1::<3>(words)));
        to.take(4, decoded!(simd.e2m1::<4>(words)));
        to.take(5, decoded!(simd.e2m1::<5>(words)));
        to.take(6, decoded!(simd.e2m1::<6>(words)));
        to.take(7, decoded!(simd.e2m1::<7>(words)));
    }
}

impl Decode for Fp8 {
    const WORDS: usize = 8;

    #[inline(always)]
    fn scales(weight: &Matrix, strip: usize) -> Scales<'_> {
        let Format::Fp8 { block } = weight.format() else { return Scales::None };
        let (codes, shift) = weight.row_of_scales(strip, block);
        Scales::Shared(codes, shift)
    }

    #[inline(always)]
    fn columns<S: Simd, const N: usize>(simd: S, words: [S::W; N], to: &mut impl Columns<S, N>) {
        to.take(0, decoded!(simd.e4m3::<0>(words)));
        to.take(1, decoded!(simd.e4m3::<1>(words)));
        to.take(2, decoded!(simd.e4m3::<2>(words)));
        to.take(3, decoded!(simd.e4m3::<3>(words)));
    }
}

impl Decode for Bf16 {
    const WORDS: usize = 16;

    #[inline(always)]
    fn scales(_: &Matrix, _: usize) -> Scales<'_> {
        Scales::None
    }

    #[inline(always)]
    fn columns<S: Simd, const N: usize>(simd: S, words: [S::W; N], to: &mut impl Columns<S, N>) {
        to.take(0, decoded!(simd.bf16::<0>(words)));
        to.take(1, decoded!(simd.bf16::<1>(words)));
    }
}

impl Decode for F32 {
    const WORDS: usize = 32;

    #[inline(always)]
    fn scales(_: &Matrix, _: usize) -> Scales<'_> {
        Scales::None
    }

    #[inline(always)]
    fn columns<S: Simd, const N: usize>(simd: S, words: [S::W; N], to: &mut impl Columns<S, N>) {
        to.take(0, decoded!(simd.f32_of(words)));
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

    /// Word `word` of group `group` of each strip.
    #[inline(always)]
    fn words<S: Simd, D: Decode>(&self, simd: S, group: usize, word: usize) -> [S::W; N] {
        let ahead = ahead(group * D::WORDS, self.blocks[0].len(), N);
        let mut words = [simd.splat_word(0); N];
        for (out, blocks) in words.iter_mut().zip(self.blocks) {
            simd.prefetch(blocks.as_ptr().wrapping_add(ahead + word).cast());
            *out = simd.load_words(&blocks[group * D::WORDS + word]);
        }
        words
    }
}

#[inline(always)]
pub(super) fn run<S: Simd, D: Decode>(simd: S, task: &Task) {
    if task.tokens.len() == 1 {
        if S::WIDE {
            run_strips::<S, OneToken<D>, 4, 1>(simd, task);
        } else {
            run_strips::<S, OneToken<D>, 2, 1>(simd, task);
        }
    } else if S::WIDE {
        // As many sums as the registers hold, and a number each of weight and input.
        run_strips::<S, ManyTokens<D>, 2, 12>(simd, task);
    } else {
        run_strips::<S, ManyTokens<D>, 1, 6>(simd, task);
    }
}

struct OneToken<D>(PhantomData<D>);
struct ManyTokens<D>(PhantomData<D>);

impl<D: Decode> Body for OneToken<D> {
    #[inline(always)]
    fn strips<S: Simd, const N: usize, const T: usize>(simd: S, task: &Task, first: usize) {
        one_token::<S, D, N>(simd, task, first);
    }
}

impl<D: Decode> Body for ManyTokens<D> {
    #[inline(always)]
    fn strips<S: Simd, const N: usize, const T: usize>(simd: S, task: &Task, first: usize) {
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
            let words = strips.words::<S, D>(simd, group, word);
            let mut products = Products { simd, x: &x[word * (GROUP / D::WORDS)..], sums };
            D::columns(simd, words, &mut products);
            sums = products.sums;
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
            let words = strips.words::<S, D>(simd, group, word);
            D::columns(simd, words, &mut Numbers { simd, columns: &mut numbers[word * (GROUP / D::WORDS)..] });
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
    task.write(first, &results);
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
