//! Scores of the lightning indexer over packed index keys (spec V4.1 section 3.8, step 3, in float32).
//!
//! Queries and keys are FP4 with a power-of-two scale per 32: a group's dot product is exact in integers. A head's
//! groups are added in order by fused multiply-adds; the heads, 16 lanes at a time, are added likewise and in halves.

use cachalot_numerics::{e8m0, records};

use crate::compute::Compute;
use crate::matrix::{BLOCK, GROUP};
use crate::simd::{Kernel, LANES, Simd};

/// Twice the value of each E2M1 code: signed, for queries.
const QUERY: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];
/// Twice the value of each E2M1 code, plus 12: unsigned, for keys. What that adds depends on the query alone.
const KEY: [u8; 16] = [12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0];
/// Words of one group: even and odd columns of 8, four times.
const WORDS: usize = GROUP / 4;
/// Groups whose codes fill a vector.
const GROUPS: usize = 2 * BLOCK / GROUP;
/// Vectors of heads that are scored together.
const VECTORS: usize = 2;

/// One token's index queries, laid out for scoring.
#[derive(Default)]
pub struct IndexQueries {
    dim: usize,
    /// Per 16 heads and group: `[heads / 16, groups, 8, 16 heads]` words.
    words: Vec<[u8; BLOCK]>,
    /// A quarter of the queries' scales (both sides are read doubled): `[heads / 16, groups, 16]`.
    scales: Vec<[f32; LANES]>,
    /// -12 times the sum of each query's codes: `[heads / 16, groups, 16]`.
    offsets: Vec<[f32; LANES]>,
    /// `[heads / 16, 16]`, zeros behind the last head.
    weights: Vec<[f32; LANES]>,
}

impl IndexQueries {
    /// Takes over the MXFP4 records `queries` of one token, one per head, and the heads' weights.
    ///
    /// # Panics
    /// If there is not one record of `dim` values per weight, or `dim` is no multiple of 32.
    pub fn set(&mut self, queries: &[u8], weights: &[f32], dim: usize) {
        let record = records::mxfp4_bytes(dim);
        assert!(dim > 0 && dim.is_multiple_of(GROUP) && queries.len() == weights.len() * record, "one record per head");
        let (groups, lanes) = (dim / GROUP, weights.len().div_ceil(LANES));
        self.dim = dim;
        self.weights.clear();
        self.weights.resize(lanes, [0.0; LANES]);
        self.scales.clear();
        self.scales.resize(lanes * groups, [0.0; LANES]);
        self.offsets.clear();
        self.offsets.resize(lanes * groups, [0.0; LANES]);
        self.words.clear();
        self.words.resize(lanes * groups * WORDS, [0; BLOCK]);
        for (head, (query, &weight)) in queries.chunks_exact(record).zip(weights).enumerate() {
            let (vector, lane) = (head / LANES, head % LANES);
            self.weights[vector][lane] = weight;
            let (codes, scales) = query.split_at(dim / 2);
            for (group, (codes, &scale)) in codes.chunks_exact(GROUP / 2).zip(scales).enumerate() {
                let index = vector * groups + group;
                self.scales[index][lane] = e8m0::decode(scale) * 0.25;
                for (word, codes) in codes.chunks_exact(4).enumerate() {
                    let words = &mut self.words[index * WORDS + 2 * word..][..2];
                    for (byte, code) in codes.iter().enumerate() {
                        let (even, odd) = (QUERY[usize::from(code & 15)], QUERY[usize::from(code >> 4)]);
                        words[0][4 * lane + byte] = even as u8;
                        words[1][4 * lane + byte] = odd as u8;
                        self.offsets[index][lane] -= 12.0 * (f32::from(even) + f32::from(odd));
                    }
                }
            }
        }
    }

    /// Scores of the MXFP4 records `keys`, one per element of `out`.
    ///
    /// # Panics
    /// If `keys` holds not one record per element of `out`.
    pub fn score(&self, compute: &Compute, keys: &[u8], out: &mut [f32]) {
        assert_eq!(keys.len(), out.len() * records::mxfp4_bytes(self.dim));
        compute.isa().run(Score { queries: self, keys, out });
    }
}

struct Score<'a> {
    queries: &'a IndexQueries,
    keys: &'a [u8],
    out: &'a mut [f32],
}

impl Kernel for Score<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { queries, keys, out } = self;
        for (key, out) in keys.chunks_exact(records::mxfp4_bytes(queries.dim)).zip(out) {
            let mut total = simd.splat(0.0);
            let mut vector = 0;
            while vector < queries.weights.len() {
                vector += if queries.weights.len() - vector >= VECTORS {
                    total = queries.add_heads::<S, VECTORS>(simd, key, vector, total);
                    VECTORS
                } else {
                    total = queries.add_heads::<S, 1>(simd, key, vector, total);
                    1
                };
            }
            *out = simd.sum(total);
        }
    }
}

impl IndexQueries {
    /// Adds the weighted scores of `N` vectors of heads from `first` on to `total`.
    #[inline(always)]
    fn add_heads<S: Simd, const N: usize>(&self, simd: S, key: &[u8], first: usize, total: S::F) -> S::F {
        let groups = self.dim / GROUP;
        let (codes, scales) = key.split_at(self.dim / 2);
        let mut dots = [simd.splat(0.0); N];
        for (part, (codes, scales)) in codes.chunks(BLOCK).zip(scales.chunks(GROUPS)).enumerate() {
            let mut block = [0; BLOCK];
            block[..codes.len()].copy_from_slice(codes);
            let words = simd.lookup_nibbles(simd.load_words(&block), &KEY);
            let mut bytes = [[0; BLOCK]; 2];
            simd.store_words(words[0], &mut bytes[0]);
            simd.store_words(words[1], &mut bytes[1]);
            let (even, odd) = (bytes[0].as_chunks::<4>().0, bytes[1].as_chunks::<4>().0);
            for (group, &scale) in scales.iter().enumerate() {
                let scale = simd.splat(e8m0::decode(scale));
                let mut sums = [simd.no_sums(); N];
                for word in 0..WORDS / 2 {
                    let even = simd.splat_word(u32::from_le_bytes(even[group * (WORDS / 2) + word]));
                    let odd = simd.splat_word(u32::from_le_bytes(odd[group * (WORDS / 2) + word]));
                    for (vector, sums) in sums.iter_mut().enumerate() {
                        let index = ((first + vector) * groups + part * GROUPS + group) * WORDS + 2 * word;
                        *sums = simd.add_byte_products(*sums, even, simd.load_words(&self.words[index]));
                        *sums = simd.add_byte_products(*sums, odd, simd.load_words(&self.words[index + 1]));
                    }
                }
                for (vector, (dots, sums)) in dots.iter_mut().zip(sums).enumerate() {
                    let index = (first + vector) * groups + part * GROUPS + group;
                    let sum = simd.add(simd.byte_sum(sums, 0), simd.load(&self.offsets[index]));
                    *dots = simd.fma(sum, simd.mul(simd.load(&self.scales[index]), scale), *dots);
                }
            }
        }
        let mut total = total;
        for (dots, weights) in dots.into_iter().zip(&self.weights[first..]) {
            total = simd.fma(simd.relu(dots), simd.load(weights), total);
        }
        total
    }
}
