//! Scores of the lightning indexer (spec V4 section 3.8, V4.1 section 3.8), and the buffers of what it selects.

use std::ops::Range;

use cachalot_kernels::{Compute, IndexQueries, dot, hadamard, rope};

use super::buffer::sized;
use super::codec::Codec;
use super::records::RecordPages;
use super::selection::Selection;
use super::trunk::Trunk;
use crate::step::Angles;

/// Index keys that one task scores when the keys of a single query are shared out: one page of records.
const KEYS_PER_TASK: usize = 256;

/// Reusable buffers of the indexer.
#[derive(Default)]
pub struct IndexBuffers {
    /// `[rows, heads * dim]`
    pub queries: Vec<f32>,
    /// `[rows, heads]`
    pub head_weights: Vec<f32>,
    /// `[rows, heads, record]`; empty where keys are float32.
    pub packed: Vec<u8>,
    pub selection: Selection,
    pub lanes: Vec<IndexLane>,
}

/// What one worker needs to select for one query.
#[derive(Default)]
pub struct IndexLane {
    queries: IndexQueries,
    pub scores: Vec<f32>,
    pub order: Vec<u64>,
}

/// The index queries of a step, ready to be scored.
#[derive(Clone, Copy)]
pub struct Scorer<'a> {
    compute: &'a Compute,
    codec: Codec,
    heads: usize,
    dim: usize,
    queries: &'a [f32],
    packed: &'a [u8],
    head_weights: &'a [f32],
}

impl Trunk {
    /// Rotates and packs the step's index queries, and scales their heads' weights. `transform` is V4's Hadamard
    /// transform, which keys have passed too.
    pub fn prepare_index<'a>(
        &'a self,
        angles: &Angles,
        codec: Codec,
        transform: bool,
        queries: &'a mut [f32],
        head_weights: &'a mut [f32],
        packed: &'a mut Vec<u8>,
    ) -> Scorer<'a> {
        let (heads, dim, rotary) =
            (self.config.index_n_heads, self.config.index_head_dim, self.config.qk_rope_head_dim);
        let pool = self.compute.pool();
        pool.run_pieces(queries, heads * dim, |row, queries| {
            let (cos, sin) = angles.of(row);
            for query in queries.chunks_exact_mut(dim) {
                rope(&mut query[dim - rotary..], cos, sin, false);
                if transform {
                    hadamard(query);
                }
            }
        });
        let queries = &*queries;
        packed.clear();
        if codec != Codec::Float32 {
            let record = codec.bytes(dim);
            sized(packed, queries.len() / dim * record);
            pool.run_pieces(packed, heads * record, |row, packed| {
                let queries = &queries[row * heads * dim..(row + 1) * heads * dim];
                for (query, packed) in queries.chunks_exact(dim).zip(packed.chunks_exact_mut(record)) {
                    codec.encode(&self.compute, query, packed);
                }
            });
        }
        let scale = (1.0 / (dim as f32).sqrt()) * (1.0 / (heads as f32).sqrt());
        head_weights.iter_mut().for_each(|weight| *weight *= scale);
        Scorer { compute: &self.compute, codec, heads, dim, queries, packed, head_weights }
    }
}

impl Scorer<'_> {
    /// Lays out the row's queries, and room for the scores of `visible` keys.
    pub fn begin(&self, row: usize, visible: usize, lane: &mut IndexLane) {
        sized(&mut lane.scores, visible);
        if self.codec == Codec::Float32 {
            return;
        }
        let record = self.codec.bytes(self.dim);
        let queries = &self.packed[row * self.heads * record..(row + 1) * self.heads * record];
        lane.queries.set(queries, self.weights(row), self.dim);
    }

    fn weights(&self, row: usize) -> &[f32] {
        &self.head_weights[row * self.heads..(row + 1) * self.heads]
    }

    /// Scores the keys of `range`, after [`Scorer::begin`].
    pub fn score(&self, row: usize, keys: &RecordPages, range: Range<usize>, lane: &mut IndexLane) {
        let IndexLane { queries, scores, .. } = lane;
        self.score_into(row, queries, keys, range.clone(), &mut scores[range]);
    }

    /// Scores the first `visible` keys; `shared` lets the whole pool do it.
    pub fn score_all(&self, row: usize, keys: &RecordPages, visible: usize, shared: bool, lane: &mut IndexLane) {
        self.begin(row, visible, lane);
        if !shared {
            return self.score(row, keys, 0..visible, lane);
        }
        let IndexLane { queries, scores, .. } = lane;
        self.compute.pool().run_pieces(scores, KEYS_PER_TASK, |task, scores| {
            let first = task * KEYS_PER_TASK;
            self.score_into(row, queries, keys, first..first + scores.len(), scores);
        });
    }

    fn score_into(&self, row: usize, queries: &IndexQueries, keys: &RecordPages, range: Range<usize>, out: &mut [f32]) {
        for (first, keys, count) in keys.runs(range.start, range.end) {
            let out = &mut out[first - range.start..][..count];
            match self.codec {
                Codec::Float32 => self.score_float32(row, keys, out),
                _ => queries.score(self.compute, keys, out),
            }
        }
    }

    /// `sum over heads of weight * max(0, query . key)`, heads in ascending order.
    fn score_float32(&self, row: usize, keys: &[u8], out: &mut [f32]) {
        let queries = &self.queries[row * self.heads * self.dim..(row + 1) * self.heads * self.dim];
        let mut key = vec![0.0; self.dim];
        for (record, out) in keys.chunks_exact(self.codec.bytes(self.dim)).zip(out) {
            self.codec.decode(self.compute, record, &mut key);
            let heads = queries.chunks_exact(self.dim).zip(self.weights(row));
            *out = heads.map(|(query, weight)| weight * dot(self.compute, query, &key).max(0.0)).sum();
        }
    }
}
