//! Attention of one token's heads over decoded keys, which are the values too (spec V4.1 section 3.9, in float32).
//!
//! Orders: a score is a [`dot`](crate::dot); weights are summed in 16 lanes and halves; an output element adds its
//! products key by key, fused. Heads stand alone, so they can be shared out.

use std::array::from_fn;

use cachalot_numerics::math;

use crate::compute::Compute;
use crate::simd::{Kernel, LANES, Simd};
use crate::vector::dot_lanes;

/// Buffers of [`attend`], reused.
#[derive(Default)]
pub struct AttentionScratch {
    /// `[heads, keys]`
    weights: Vec<f32>,
}

/// `out = softmax(scale * q . keys, with sink) * keys` for every head.
///
/// `q` and `out` are `[heads, dim]`, `keys` `[n, dim]`, `sinks` `[heads]`; a sink enters the denominator only.
///
/// # Panics
/// If the shapes do not fit, there is no key, or `dim` is no multiple of 16.
pub fn attend(
    compute: &Compute,
    q: &[f32],
    keys: &[f32],
    scale: f32,
    sinks: &[f32],
    scratch: &mut AttentionScratch,
    out: &mut [f32],
) {
    let heads = sinks.len();
    assert!(heads > 0 && q.len() == out.len() && q.len().is_multiple_of(heads), "queries of {heads} heads");
    let dim = q.len() / heads;
    assert!(dim.is_multiple_of(LANES) && !keys.is_empty() && keys.len().is_multiple_of(dim), "keys of {dim} values");
    scratch.weights.resize(heads * (keys.len() / dim), 0.0);
    compute.isa().run(Attend { q, keys, scale, sinks, dim, weights: &mut scratch.weights, out });
}

struct Attend<'a> {
    q: &'a [f32],
    keys: &'a [f32],
    scale: f32,
    sinks: &'a [f32],
    dim: usize,
    weights: &'a mut [f32],
    out: &'a mut [f32],
}

impl Kernel for Attend<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        // As many sums as the registers hold, and what they are made of.
        if S::WIDE {
            self.score::<S, 4, 4>(simd)
        } else {
            self.score::<S, 2, 3>(simd)
        }
        let count = self.keys.len() / self.dim;
        for (head, weights) in self.weights.chunks_exact_mut(count).enumerate() {
            softmax(simd, weights, self.sinks[head]);
        }
        if S::WIDE { self.combine::<S, 4, 4>(simd) } else { self.combine::<S, 4, 1>(simd) }
    }
}

impl Attend<'_> {
    /// Scaled scores of all heads and keys, `HEADS` and `KEYS` of them together.
    #[inline(always)]
    fn score<S: Simd, const HEADS: usize, const KEYS: usize>(&mut self, simd: S) {
        let (dim, count) = (self.dim, self.keys.len() / self.dim);
        let heads = self.sinks.len();
        // A block of keys stays in the nearest cache while all heads pass over it.
        for first in (0..count).step_by(KEYS) {
            let block = KEYS.min(count - first);
            for head in (0..heads).step_by(HEADS) {
                let group = HEADS.min(heads - head);
                if block == KEYS && group == HEADS {
                    let q: [&[f32]; HEADS] = from_fn(|h| &self.q[(head + h) * dim..(head + h + 1) * dim]);
                    let keys: [&[f32]; KEYS] = from_fn(|k| &self.keys[(first + k) * dim..(first + k + 1) * dim]);
                    let sums = dots(simd, q, keys);
                    for (h, sums) in sums.into_iter().enumerate() {
                        let row = (head + h) * count + first;
                        for (weight, sum) in self.weights[row..row + KEYS].iter_mut().zip(sums) {
                            *weight = simd.sum(sum) * self.scale;
                        }
                    }
                    continue;
                }
                for h in head..head + group {
                    for k in first..first + block {
                        let dot = dot_lanes(simd, &self.q[h * dim..(h + 1) * dim], &self.keys[k * dim..(k + 1) * dim]);
                        self.weights[h * count + k] = dot * self.scale;
                    }
                }
            }
        }
    }

    /// Weighted sums of the keys, for `HEADS` heads and `VECTORS` vectors of the output together.
    #[inline(always)]
    fn combine<S: Simd, const HEADS: usize, const VECTORS: usize>(&mut self, simd: S) {
        let heads = self.sinks.len();
        let width = LANES * VECTORS;
        for start in (0..self.dim).step_by(width) {
            for head in (0..heads).step_by(HEADS) {
                if self.dim - start >= width && heads - head >= HEADS {
                    self.combine_tile::<S, HEADS, VECTORS>(simd, head, start);
                    continue;
                }
                for h in head..heads.min(head + HEADS) {
                    for column in (start..self.dim.min(start + width)).step_by(LANES) {
                        self.combine_tile::<S, 1, 1>(simd, h, column);
                    }
                }
            }
        }
    }

    #[inline(always)]
    fn combine_tile<S: Simd, const H: usize, const V: usize>(&mut self, simd: S, head: usize, start: usize) {
        let (dim, count) = (self.dim, self.keys.len() / self.dim);
        let weights: [&[f32]; H] = from_fn(|h| &self.weights[(head + h) * count..(head + h + 1) * count]);
        let mut sums = [[simd.splat(0.0); V]; H];
        for (index, key) in self.keys.chunks_exact(dim).enumerate() {
            let (key, _) = key[start..start + V * LANES].as_chunks::<LANES>();
            let key: [S::F; V] = from_fn(|vector| simd.load(&key[vector]));
            for h in 0..H {
                let weight = simd.splat(weights[h][index]);
                for vector in 0..V {
                    sums[h][vector] = simd.fma(weight, key[vector], sums[h][vector]);
                }
            }
        }
        for (h, sums) in sums.into_iter().enumerate() {
            let row = (head + h) * dim + start;
            let (out, _) = self.out[row..row + V * LANES].as_chunks_mut::<LANES>();
            for (out, sum) in out.iter_mut().zip(sums) {
                simd.store(sum, out);
            }
        }
    }
}

/// The lanes of all dot products of some queries and some keys.
#[inline(always)]
fn dots<S: Simd, const HEADS: usize, const KEYS: usize>(
    simd: S,
    q: [&[f32]; HEADS],
    keys: [&[f32]; KEYS],
) -> [[S::F; KEYS]; HEADS] {
    let q = q.map(|q| q.as_chunks::<LANES>().0);
    let keys = keys.map(|key| key.as_chunks::<LANES>().0);
    let mut sums = [[simd.splat(0.0); KEYS]; HEADS];
    for chunk in 0..q[0].len() {
        let keys: [S::F; KEYS] = from_fn(|k| simd.load(&keys[k][chunk]));
        for (sums, q) in sums.iter_mut().zip(q) {
            let q = simd.load(&q[chunk]);
            for (sum, key) in sums.iter_mut().zip(keys) {
                *sum = simd.fma(q, key, *sum);
            }
        }
    }
    sums
}

/// Turns scores into weights that already carry the denominator, the sink's part included.
#[inline(always)]
fn softmax<S: Simd>(simd: S, weights: &mut [f32], sink: f32) {
    let max = weights.iter().fold(f32::MIN, |max, &score| if score > max { score } else { max });
    for weight in weights.iter_mut() {
        *weight = math::exp(*weight - max);
    }
    let (chunks, rest) = weights.as_chunks::<LANES>();
    let mut sums = simd.splat(0.0);
    for chunk in chunks {
        sums = simd.add(sums, simd.load(chunk));
    }
    let mut last = [0.0; LANES];
    last[..rest.len()].copy_from_slice(rest);
    let sum = simd.sum(simd.add(sums, simd.load(&last))) + math::exp(sink - max);
    for weight in weights.iter_mut() {
        *weight /= sum;
    }
}
