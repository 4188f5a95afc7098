//! FP4 weights times 14-bit integers: exact inside a group of 32.
//!
//! A code, doubled and with 12 added, is an unsigned byte; the input's digits are signed bytes. Both digits' products
//! are summed apart, and the surplus of the added 12 is known from the input alone.

use std::array::from_fn;

use super::{AHEAD, Task};
use crate::matrix::{BLOCK, GROUP};
use crate::simd::{LANES, Simd};

/// Twice the value of each E2M1 code, plus 12.
const DOUBLED: [u8; 16] = [12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0];
/// Words of a group.
const WORDS: usize = GROUP / 8;

#[inline(always)]
pub(super) fn run<S: Simd>(simd: S, task: &Task) {
    if task.tokens.len() == 1 {
        let mut strip = task.strips.start;
        while strip + 2 <= task.strips.end {
            one_token::<S, 2>(simd, task, strip);
            strip += 2;
        }
        (strip..task.strips.end).for_each(|strip| one_token::<S, 1>(simd, task, strip));
        return;
    }
    for strip in task.strips.clone() {
        if S::WIDE { many_tokens::<S, 8>(simd, task, strip) } else { many_tokens::<S, 2>(simd, task, strip) }
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
        for word in 0..WORDS {
            let [even_low, odd_low, even_high, odd_high] = digit_words(simd, digits, word);
            for strip in 0..N {
                simd.prefetch(blocks[strip].as_ptr().wrapping_add(group * WORDS + word + AHEAD).cast());
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

#[inline(always)]
fn many_tokens<S: Simd, const T: usize>(simd: S, task: &Task, strip: usize) {
    let weight = task.job.weight;
    let (blocks, _) = weight.strip(strip).as_chunks::<BLOCK>();
    let (scales, _) = weight.strip_scales(strip).as_chunks::<LANES>();
    let mut results = [[0.0; LANES]; super::TOKENS];
    let mut numbers = [[[0; BLOCK]; 2]; WORDS];
    for (group, blocks) in blocks.chunks_exact(WORDS).enumerate() {
        for (numbers, block) in numbers.iter_mut().zip(blocks) {
            let [even, odd] = simd.lookup_nibbles(simd.load_words(block), &DOUBLED);
            simd.store_words(even, &mut numbers[0]);
            simd.store_words(odd, &mut numbers[1]);
        }
        let scale = simd.scales(&scales[group]);
        let mut token = 0;
        while token < task.tokens.len() {
            let first = task.tokens.start + token;
            let results = &mut results[token..];
            token += if task.tokens.len() - token >= T {
                add_group::<S, T>(simd, task, group, &numbers, scale, first, results);
                T
            } else {
                add_group::<S, 1>(simd, task, group, &numbers, scale, first, results);
                1
            };
        }
    }
    for (token, values) in task.tokens.clone().zip(&results) {
        task.job.write(strip, token, values);
    }
}

#[inline(always)]
fn add_group<S: Simd, const T: usize>(
    simd: S,
    task: &Task,
    group: usize,
    numbers: &[[[u8; BLOCK]; 2]; WORDS],
    scale: S::F,
    first: usize,
    results: &mut [[f32; LANES]],
) {
    let (digits, units, offsets) = task.job.input.digits(group);
    let mut low = [simd.no_sums(); T];
    let mut high = [simd.no_sums(); T];
    for (word, numbers) in numbers.iter().enumerate() {
        let [even, odd] = [simd.load_words(&numbers[0]), simd.load_words(&numbers[1])];
        for (tile, digits) in digits[first..first + T].iter().enumerate() {
            let [even_low, odd_low, even_high, odd_high] = digit_words(simd, digits, word);
            low[tile] = simd.add_byte_products(low[tile], even, even_low);
            low[tile] = simd.add_byte_products(low[tile], odd, odd_low);
            high[tile] = simd.add_byte_products(high[tile], even, even_high);
            high[tile] = simd.add_byte_products(high[tile], odd, odd_high);
        }
    }
    for (tile, result) in results.iter_mut().enumerate().take(T) {
        let scale = simd.mul(scale, simd.splat(units[first + tile]));
        let value = simd.fma(simd.byte_sums(high[tile], low[tile], offsets[first + tile]), scale, simd.load(result));
        simd.store(value, result);
    }
}
