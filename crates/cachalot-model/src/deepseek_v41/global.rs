//! What a query sees beyond its window: the compressor that makes entries and index keys, and the lightning indexer
//! that selects among them (spec sections 3.7 and 3.8).

use std::ops::Range;

use cachalot_kernels::{Activations, Compute, IndexQueries, encode_mxfp4, encode_nvfp4, matmul_one, rms_norm, rope};
use cachalot_numerics::math;

use super::selection::{Candidates, Selection, best_blocks, choose};
use super::state::{GlobalCache, ROLLBACK, Sequence};
use super::step::{Angles, Row, Segment, Span, Workspace};
use super::weights::Compressor;
use super::{Config, Model};
use crate::shared::buffer::sized;
use crate::shared::records::RecordPages;

/// Index keys that one task scores when the keys of a single query are shared out: one page of records.
const KEYS_PER_TASK: usize = 256;

/// Reusable buffers of compressor and indexer.
#[derive(Default)]
pub(super) struct GlobalBuffers {
    /// Per KV source: what its compressor projected for every row; kept until the step is committed.
    pub halves: Vec<Halves>,
    groups: Vec<Group>,
    latents: Vec<f32>,
    latent_input: Activations,
    index_raw: Vec<f32>,
    index_keys: Vec<f32>,
    angles: Angles,
    /// `[rows, index_n_heads * index_head_dim]`
    pub queries: Vec<f32>,
    /// `[rows, index_n_heads]`
    pub head_weights: Vec<f32>,
    /// `[rows, index_n_heads, record]`
    packed_queries: Vec<u8>,
    pub selection: Selection,
    candidates: Candidates,
    lanes: Vec<Lane>,
    /// The step's groups have been appended before (decoder replay).
    pub appended: bool,
}

/// Projections of a compressor, `[rows, head_dim]`.
#[derive(Default)]
pub(super) struct Halves {
    pub values: Vec<f32>,
    /// Empty at ratio 1.
    pub gates: Vec<f32>,
}

/// A group of tokens that is complete with this step.
#[derive(Clone, Copy)]
struct Group {
    segment: usize,
    /// Row of its last token.
    row: usize,
    /// Position of its first token.
    position: usize,
}

/// What one worker needs to select for one query.
#[derive(Default)]
struct Lane {
    queries: IndexQueries,
    scores: Vec<f32>,
    order: Vec<u64>,
}

/// Buffers of KV source number `source`.
pub(super) fn halves_of(halves: &mut Vec<Halves>, source: usize) -> &mut Halves {
    if halves.len() <= source {
        halves.resize_with(source + 1, Halves::default);
    }
    &mut halves[source]
}

impl GlobalBuffers {
    /// Writes the pending halves of a step's last even positions to the rings of `sequence`.
    pub fn commit_pending(&self, span: Span, sequence: &mut Sequence, dim: usize) {
        for (global, halves) in sequence.globals.iter_mut().zip(&self.halves) {
            let Some(ring) = &mut global.pending else { continue };
            for offset in span.count.saturating_sub(ROLLBACK + 1)..span.count {
                let position = span.start + offset;
                if position.is_multiple_of(2) {
                    let row = (span.first_row + offset) * dim;
                    let (values, gates) = ring.get_mut(position / 2).split_at_mut(dim);
                    values.copy_from_slice(&halves.values[row..row + dim]);
                    gates.copy_from_slice(&halves.gates[row..row + dim]);
                }
            }
        }
    }
}

impl Model {
    /// Appends the entries and index keys of all groups that this step completes, on KV source `layer`.
    pub(super) fn append_global(&self, layer: usize, work: &mut Workspace, segments: &mut [Segment]) {
        let Some(compressor) = &self.weights.layers[layer].attention.compressor else { return };
        let config = &self.config;
        let source = self.source_index(layer);
        let ratio = config.layers[layer].ratio;
        let buffers = &mut work.global;
        buffers.groups.clear();
        for (row, &Row { segment, position, .. }) in work.rows.iter().enumerate() {
            if (position + 1).is_multiple_of(ratio) {
                buffers.groups.push(Group { segment, row, position: position + 1 - ratio });
            }
        }
        if buffers.groups.is_empty() {
            return;
        }
        let dim = config.head_dim;
        sized(&mut buffers.latents, buffers.groups.len() * dim);
        let (groups, halves) = (&buffers.groups, &buffers.halves[source]);
        let (segments_now, spans) = (&*segments, &work.spans);
        self.compute.pool().run_pieces(&mut buffers.latents, dim, |index, latent| {
            let group = groups[index];
            let global = &segments_now[group.segment].sequence.globals[source];
            self.latent(compressor, group, halves, global, spans[group.segment], latent);
        });
        self.index_keys_of(compressor, buffers);
        let rotary = config.qk_rope_head_dim;
        let index_dim = config.index_head_dim;
        let angles = &mut buffers.angles;
        sized(&mut angles.cos, rotary / 2);
        sized(&mut angles.sin, rotary / 2);
        for (index, group) in buffers.groups.iter().enumerate() {
            self.compressed_rope.angles(group.position, &mut angles.cos, &mut angles.sin);
            let key = &mut buffers.index_keys[index * index_dim..(index + 1) * index_dim];
            rope(&mut key[index_dim - rotary..], &angles.cos, &angles.sin, false);
            let entry = &mut buffers.latents[index * dim..(index + 1) * dim];
            rope(&mut entry[dim - rotary..], &angles.cos, &angles.sin, false);
            let global = &mut segments[group.segment].sequence.globals[source];
            global.index_keys.push(|record| encode_mxfp4(&self.compute, key, record));
            global.entries.push(|record| encode_nvfp4(&self.compute, entry, record));
        }
    }

    /// The normalised latent of one group, before rotation: pooled at ratio 2, the projection itself at ratio 1.
    fn latent(
        &self,
        compressor: &Compressor,
        group: Group,
        halves: &Halves,
        global: &GlobalCache,
        span: Span,
        out: &mut [f32],
    ) {
        let dim = out.len();
        let eps = self.config.rms_norm_eps;
        let at = |values: &[f32], row: usize| -> Range<usize> {
            debug_assert!((row + 1) * dim <= values.len());
            row * dim..(row + 1) * dim
        };
        let second = &halves.values[at(&halves.values, group.row)];
        let Some(ring) = &global.pending else {
            rms_norm(&self.compute, second, &compressor.norm, eps, out);
            return;
        };
        let second_gate = &halves.gates[at(&halves.gates, group.row)];
        let (first, first_gate) = if group.position >= span.start {
            let row = group.row - 1;
            (&halves.values[at(&halves.values, row)], &halves.gates[at(&halves.gates, row)])
        } else {
            ring.get(group.position / 2).split_at(dim)
        };
        let mut pooled = [0.0; MAX_HEAD_DIM];
        for c in 0..dim {
            let max = first_gate[c].max(second_gate[c]);
            let (a, b) = (math::exp(first_gate[c] - max), math::exp(second_gate[c] - max));
            let sum = a + b;
            pooled[c] = (a / sum) * first[c] + (b / sum) * second[c];
        }
        rms_norm(&self.compute, &pooled[..dim], &compressor.norm, eps, out);
    }

    /// Normalised index keys of all latents, not yet rotated.
    fn index_keys_of(&self, compressor: &Compressor, buffers: &mut GlobalBuffers) {
        let (compute, dim) = (&self.compute, self.config.index_head_dim);
        buffers.latent_input.set(compute, &buffers.latents, self.config.head_dim, cachalot_kernels::Treatment::Float32);
        let count = buffers.groups.len() * dim;
        matmul_one(compute, &compressor.wk, &buffers.latent_input, sized(&mut buffers.index_raw, count));
        sized(&mut buffers.index_keys, count);
        for (raw, key) in buffers.index_raw.chunks_exact(dim).zip(buffers.index_keys.chunks_exact_mut(dim)) {
            rms_norm(compute, raw, &compressor.k_norm, self.config.rms_norm_eps, key);
        }
    }

    /// Selects for every row the compressed entries that this layer and those reusing its choice attend to.
    pub(super) fn select(&self, layer: usize, work: &mut Workspace, segments: &[Segment]) {
        let config = &self.config;
        let (heads, dim) = (config.index_n_heads, config.index_head_dim);
        let (rotary, record) = (config.qk_rope_head_dim, self.records.index);
        let angles = &work.angles[1];
        let buffers = &mut work.global;
        let compute = &self.compute;
        let pairs = rotary / 2;
        sized(&mut buffers.packed_queries, work.rows.len() * heads * record);
        compute.pool().run_pieces(&mut buffers.queries, heads * dim, |row, queries| {
            let row = row * pairs..(row + 1) * pairs;
            for query in queries.chunks_exact_mut(dim) {
                rope(&mut query[dim - rotary..], &angles.cos[row.clone()], &angles.sin[row.clone()], false);
            }
        });
        let queries = &buffers.queries;
        compute.pool().run_pieces(&mut buffers.packed_queries, heads * record, |row, packed| {
            let queries = &queries[row * heads * dim..(row + 1) * heads * dim];
            for (query, packed) in queries.chunks_exact(dim).zip(packed.chunks_exact_mut(record)) {
                encode_mxfp4(compute, query, packed);
            }
        });
        let scale = (1.0 / (dim as f32).sqrt()) * (1.0 / (heads as f32).sqrt());
        buffers.head_weights.iter_mut().for_each(|weight| *weight *= scale);

        let plan = &config.layers[layer];
        let (Some(owner), ratio) = (plan.kv_source, plan.ratio) else { return };
        let chooser = Chooser {
            config,
            record,
            compute,
            queries: &buffers.packed_queries,
            head_weights: &buffers.head_weights,
            publishes: plan.is_candidate_source,
            restricted: plan.candidates_from.is_some(),
        };
        let source = self.source_index(owner);
        let GlobalBuffers { selection, candidates, lanes, .. } = buffers;
        selection.reset(work.rows.len(), config.index_topk);
        if chooser.publishes || candidates.rows() != work.rows.len() {
            candidates.reset(work.rows.len(), config.candidate_topk_blocks);
        }
        lanes.resize_with(compute.pool().threads(), Lane::default);
        let rows = &work.rows;
        let global = |row: usize| &segments[rows[row].segment].sequence.globals[source];
        let visible = |row: usize| (rows[row].position + 1) / ratio;
        if rows.len() > compute.pool().threads() {
            let pairs = selection.rows_mut().zip(candidates.rows_mut());
            let mut jobs: Vec<_> = pairs.collect();
            compute.pool().run_pieces_with(&mut jobs, 1, lanes, |lane, row, job| {
                let (chosen, blocks) = &mut job[0];
                chooser.run(row, global(row), visible(row), lane, false, chosen, blocks);
            });
        } else {
            for (row, (mut chosen, mut blocks)) in selection.rows_mut().zip(candidates.rows_mut()).enumerate() {
                chooser.run(row, global(row), visible(row), &mut lanes[0], true, &mut chosen, &mut blocks);
            }
        }
    }
}

/// Largest head dimension; the config is checked against it.
pub(super) const MAX_HEAD_DIM: usize = 4096;

/// Selects for one query at a time.
struct Chooser<'a> {
    config: &'a Config,
    /// Bytes of an index record.
    record: usize,
    compute: &'a Compute,
    queries: &'a [u8],
    head_weights: &'a [f32],
    /// Whether this layer makes the candidate set.
    publishes: bool,
    /// Whether it chooses within it.
    restricted: bool,
}

impl Chooser<'_> {
    /// Lays out the row's queries, and room for its scores.
    fn prepare(&self, row: usize, visible: usize, lane: &mut Lane) {
        let heads = self.config.index_n_heads;
        let queries = &self.queries[row * heads * self.record..(row + 1) * heads * self.record];
        let weights = &self.head_weights[row * heads..(row + 1) * heads];
        lane.queries.set(queries, weights, self.config.index_head_dim);
        sized(&mut lane.scores, visible);
    }

    /// Chooses among the first `visible` entries of `global`; `shared` lets the whole pool score them.
    #[allow(clippy::too_many_arguments)]
    fn run(
        &self,
        row: usize,
        global: &GlobalCache,
        visible: usize,
        lane: &mut Lane,
        shared: bool,
        chosen: &mut super::selection::Chosen,
        blocks: &mut super::selection::Chosen,
    ) {
        let config = self.config;
        let (compute, keys) = (self.compute, &global.index_keys);
        let block = config.candidate_block_size;
        let all_blocks = visible.div_ceil(block);
        let publish_all = all_blocks <= config.candidate_topk_blocks;
        if self.restricted {
            let allowed: usize = blocks.ids().iter().map(|&id| block.min(visible - id as usize * block)).sum();
            lane.order.clear();
            if allowed <= config.index_topk {
                for &id in blocks.ids() {
                    let start = id as usize * block;
                    chosen.extend((start..(start + block).min(visible)).map(|entry| entry as u32));
                }
                return;
            }
            self.prepare(row, visible, lane);
            for run in adjacent(blocks.ids(), block, visible) {
                score(compute, &lane.queries, keys, run.clone(), &mut lane.scores[run]);
            }
            let entries = adjacent(blocks.ids(), block, visible).flatten();
            choose(&lane.scores, entries, config.index_topk, &mut lane.order, chosen);
            return;
        }
        let choose_all = visible <= config.index_topk;
        if !choose_all || (self.publishes && !publish_all) {
            self.prepare(row, visible, lane);
            let queries = &lane.queries;
            if shared {
                compute.pool().run_pieces(&mut lane.scores, KEYS_PER_TASK, |task, scores| {
                    let first = task * KEYS_PER_TASK;
                    score(compute, queries, keys, first..first + scores.len(), scores);
                });
            } else {
                score(compute, queries, keys, 0..visible, &mut lane.scores);
            }
        }
        if self.publishes {
            if publish_all {
                blocks.extend(0..all_blocks as u32);
            } else {
                best_blocks(&lane.scores, block, config.candidate_topk_blocks, &mut lane.order, blocks);
            }
        }
        if choose_all {
            chosen.extend(0..visible as u32);
        } else {
            choose(&lane.scores, 0..visible, config.index_topk, &mut lane.order, chosen);
        }
    }
}

/// Scores the entries of `range` into `out`, which begins with the first of them.
fn score(compute: &Compute, queries: &IndexQueries, keys: &RecordPages, range: Range<usize>, out: &mut [f32]) {
    for (first, keys, count) in keys.runs(range.start, range.end) {
        queries.score(compute, keys, &mut out[first - range.start..][..count]);
    }
}

/// Runs of entries that ascending, distinct blocks cover together.
fn adjacent(blocks: &[u32], block: usize, visible: usize) -> impl Iterator<Item = Range<usize>> {
    blocks.chunk_by(|a, b| a + 1 == *b).filter_map(move |run| {
        let (first, last) = (*run.first()? as usize, *run.last()? as usize);
        Some(first * block..((last + 1) * block).min(visible))
    })
}
