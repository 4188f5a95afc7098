//! FP4 weights times 14-bit integers: exact inside a group of 32.
//!
//! A code, doubled and with 12 added, is an unsigned byte; the input's digits are signed bytes. Both digits' products
//! are summed apart, and the surplus of the added 12 is known from the input alone.

use std::array::from_fn;

use super::{Body, Task, ahead, run_strips};
use crate::matrix::{BLOCK, GROUP};
use crate::simd::{LANES, Simd};

/// Twice the value of each E2M1 code, plus 12.
const DOUBLED: [u8; 16] = [12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0];
/// Words of a group.
const WORDS: usize = GROUP / 8;

#[inline(always)]
pub(super) fn run<S: Simd>(simd: S, task: &Task) {
    match (S::WIDE, task.tokens.len()) {
        (true, 1) => run_strips::<S, OneToken, 2, 1>(simd, task),
        (false, 1) => run_strips::<S, OneToken, 2, 1>(simd, task),
        // As many sums (of two digits each) as the registers hold, and the weights.
        (true, _) => run_strips::<S, ManyTokens, 2, 6>(simd, task),
        (false, _) => run_strips::<S, ManyTokens, 1, 2>(simd, task),
    }
}

struct OneToken;
struct ManyTokens;

impl Body for OneToken {
    #[inline(always)]
    fn strips<S: Simd, const N: usize, const T: usize>(simd: S, task: &Task, first: usize) {
        one_token::<S, N>(simd, task, first);
    }
}

impl Body for ManyTokens {
    #[inline(always)]
    fn strips<S: Simd, const N: usize, const T: usize>(simd: S, task: &Task, first: usize) {
        many_tokens::<S, N, T>(simd, task, first);
    }
}

/// The four words of digits that belong to a word of weights: low digits of its even and odd columns, then high ones.
#[inline(always)]
fn digit_words<S: Simd>(simd: S, digits: &[i8; 2 * GROUP], word: usize) -> [S::W; 4] {
    let (words, _) = digits[16 * word..].as_chunks::<4>();
    from_fn(|index| simd.splat_word(u32::from_le_bytes(words[index].map(|digit| digit as u8))))
}

#[inline(always)]
fn one_token<S: Simd, const N: usize>(simd: S, task: &Task, first: usize) {
    let weight = task.job.weight;
    let token = task.tokens.start;
    let blocks: [&[[u8; BLOCK]]; N] = from_fn(|strip| weight.strip(first + strip).as_chunks::<BLOCK>().0);
    let scales: [&[[u8; LANES]]; N] = from_fn(|strip| weight.strip_scales(first + strip).as_chunks::<LANES>().0);
    let mut results = [simd.splat(0.0); N];
    for group in 0..task.job.input.groups() {
        let (digits, units, offsets) = task.job.input.digits(group);
        let digits = &digits[token];
        let mut low = [simd.no_sums(); N];
        let mut high = [simd.no_sums(); N];
        let ahead = ahead(group * WORDS, blocks[0].len(), N);
        for word in 0..WORDS {
            let [even_low, odd_low, even_high, odd_high] = digit_words(simd, digits, word);
            for strip in 0..N {
                simd.prefetch(blocks[strip].as_ptr().wrapping_add(ahead + word).cast());
                let codes = simd.load_words(&blocks[strip][group * WORDS + word]);
                let [even, odd] = simd.lookup_nibbles(codes, &DOUBLED);
                low[strip] = simd.add_byte_products(low[strip], even, even_low);
                low[strip] = simd.add_byte_products(low[strip], odd, odd_low);
                high[strip] = simd.add_byte_products(high[strip], even, even_high);
                high[strip] = simd.add_byte_products(high[strip], odd, odd_high);
            }
        }
        for strip in 0..N {
            let scale = simd.mul(simd.scales(&scales[strip][group]), simd.splat(units[token]));
            results[strip] = simd.fma(simd.byte_sums(high[strip], low[strip], offsets[token]), scale, results[strip]);
        }
    }
    for (strip, result) in results.into_iter().enumerate() {
        let mut values = [0.0; LANES];
        simd.store(result, &mut values);
        task.job.write(first + strip, token, &values);
    }
}

/// A group's weights of `N` strips as bytes, even and odd columns apart.
type Numbers<const N: usize> = [[[[u8; BLOCK]; 2]; N]; WORDS];

#[inline(always)]
fn many_tokens<S: Simd, const N: usize, const T: usize>(simd: S, task: &Task, first: usize) {
    let weight = task.job.weight;
    let blocks: [&[[u8; BLOCK]]; N] = from_fn(|strip| weight.strip(first + strip).as_chunks::<BLOCK>().0);
    let scales: [&[[u8; LANES]]; N] = from_fn(|strip| weight.strip_scales(first + strip).as_chunks::<LANES>().0);
    let mut results = [[[0.0; LANES]; N]; super::TOKENS];
    let mut numbers: Numbers<N> = [[[[0; BLOCK]; 2]; N]; WORDS];
    for group in 0..task.job.input.groups() {
        for (word, numbers) in numbers.iter_mut().enumerate() {
            for (numbers, blocks) in numbers.iter_mut().zip(blocks) {
                let [even, odd] = simd.lookup_nibbles(simd.load_words(&blocks[group * WORDS + word]), &DOUBLED);
                simd.store_words(even, &mut numbers[0]);
                simd.store_words(odd, &mut numbers[1]);
            }
        }
        let mut factors = [simd.splat(0.0); N];
        for (factor, scales) in factors.iter_mut().zip(scales) {
            *factor = simd.scales(&scales[group]);
        }
        let mut token = 0;
        while token < task.tokens.len() {
            let rest = task.tokens.len() - token;
            let at = task.tokens.start + token;
            let results = &mut results[token..];
            token += if rest >= T {
                add_group::<S, N, T>(simd, task, group, &numbers, factors, at, results);
                T
            } else if T > 2 && rest >= 2 {
                add_group::<S, N, 2>(simd, task, group, &numbers, factors, at, results);
                2
            } else {
                add_group::<S, N, 1>(simd, task, group, &numbers, factors, at, results);
                1
            };
        }
    }
    task.write(first, &results);
}

/// Adds one group's products of `T` tokens, the first being `at`, to their results.
#[inline(always)]
fn add_group<S: Simd, const N: usize, const T: usize>(
    simd: S,
    task: &Task,
    group: usize,
    numbers: &Numbers<N>,
    factors: [S::F; N],
    at: usize,
    results: &mut [[[f32; LANES]; N]],
) {
    let (digits, units, offsets) = task.job.input.digits(group);
    let (digits, units, offsets) = (&digits[at..at + T], &units[at..at + T], &offsets[at..at + T]);
    let mut low = [[simd.no_sums(); N]; T];
    let mut high = [[simd.no_sums(); N]; T];
    for (word, numbers) in numbers.iter().enumerate() {
        let mut weights = [[simd.splat_word(0); 2]; N];
        for (weights, numbers) in weights.iter_mut().zip(numbers) {
            *weights = [simd.load_words(&numbers[0]), simd.load_words(&numbers[1])];
        }
        for ((digits, low), high) in digits.iter().zip(&mut low).zip(&mut high) {
            let [even_low, odd_low, even_high, odd_high] = digit_words(simd, digits, word);
            for ((&[even, odd], low), high) in weights.iter().zip(low).zip(high) {
                *low = simd.add_byte_products(*low, even, even_low);
                *low = simd.add_byte_products(*low, odd, odd_low);
                *high = simd.add_byte_products(*high, even, even_high);
                *high = simd.add_byte_products(*high, odd, odd_high);
            }
        }
    }
    for (tile, results) in results.iter_mut().enumerate().take(T) {
        for (strip, result) in results.iter_mut().enumerate() {
            let scale = simd.mul(factors[strip], simd.splat(units[tile]));
            let sums = simd.byte_sums(high[tile][strip], low[tile][strip], offsets[tile]);
            let value = simd.fma(sums, scale, simd.load(result));
            simd.store(value, result);
        }
    }
}
