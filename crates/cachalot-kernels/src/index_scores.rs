//! Scores of the lightning indexer over packed index keys (spec V4.1 section 3.8, step 3, in float32).
//!
//! Queries and keys are FP4 with a power-of-two scale per 32: a group's dot product is exact in integers. A head's
//! groups are added in order by fused multiply-adds; the heads, 16 lanes at a time, are added likewise and in halves.

use cachalot_numerics::{e8m0, records};

use crate::compute::Compute;
use crate::matrix::{BLOCK, GROUP};
use crate::simd::{Kernel, LANES, Simd};

/// Twice the value of each E2M1 code, plus 12: unsigned, for queries.
const QUERY: [u8; 16] = [12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0];
/// Twice the value of each E2M1 code: signed, for keys.
const KEY: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];
/// Words of one group: even and odd columns of 8, four times.
const WORDS: usize = GROUP / 4;

/// One token's index queries, laid out for scoring.
#[derive(Default)]
pub struct IndexQueries {
    dim: usize,
    /// Per 16 heads and group: `[heads / 16, groups, 8, 16 heads]` words.
    words: Vec<[u8; BLOCK]>,
    /// A quarter of the queries' scales (both sides are read doubled): `[heads / 16, groups, 16]`.
    scales: Vec<[f32; LANES]>,
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
        self.words.clear();
        self.words.resize(lanes * groups * WORDS, [QUERY[0]; BLOCK]);
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
                        words[0][4 * lane + byte] = QUERY[usize::from(code & 15)];
                        words[1][4 * lane + byte] = QUERY[usize::from(code >> 4)];
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

/// One group of a key: its 8 words (even and odd columns of 8 in turn), 12 times their sum, and its scale.
#[derive(Clone, Copy)]
struct KeyGroup {
    words: [u32; WORDS],
    offset: i32,
    scale: f32,
}

impl KeyGroup {
    #[inline(always)]
    fn new(codes: &[u8], scale: u8) -> Self {
        let mut bytes = [0u8; GROUP];
        let mut sum = 0;
        for (index, &code) in codes.iter().enumerate().take(GROUP / 2) {
            let (even, odd) = (KEY[usize::from(code & 15)], KEY[usize::from(code >> 4)]);
            sum += i32::from(even) + i32::from(odd);
            let place = index / 4 * 8 + index % 4;
            bytes[place] = even as u8;
            bytes[place + 4] = odd as u8;
        }
        let (words, _) = bytes.as_chunks::<4>();
        let words = std::array::from_fn(|word| u32::from_le_bytes(words[word]));
        Self { words, offset: 12 * sum, scale: e8m0::decode(scale) }
    }
}

impl Kernel for Score<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { queries, keys, out } = self;
        let groups = queries.dim / GROUP;
        for (key, out) in keys.chunks_exact(records::mxfp4_bytes(queries.dim)).zip(out) {
            let (codes, scales) = key.split_at(queries.dim / 2);
            let mut total = simd.splat(0.0);
            for (vector, weights) in queries.weights.iter().enumerate() {
                let mut dots = simd.splat(0.0);
                for (group, &scale) in scales.iter().enumerate() {
                    let key = KeyGroup::new(&codes[group * (GROUP / 2)..(group + 1) * (GROUP / 2)], scale);
                    let index = vector * groups + group;
                    let mut sums = simd.no_sums();
                    for (query, word) in queries.words[index * WORDS..(index + 1) * WORDS].iter().zip(key.words) {
                        sums = simd.add_byte_products(sums, simd.load_words(query), simd.splat_word(word));
                    }
                    let scale = simd.mul(simd.load(&queries.scales[index]), simd.splat(key.scale));
                    dots = simd.fma(simd.byte_sum(sums, key.offset), scale, dots);
                }
                total = simd.fma(simd.relu(dots), simd.load(weights), total);
            }
            *out = simd.sum(total);
        }
    }
}
