//! What a query sees beyond its window: the compressor that makes entries and index keys, and the lightning indexer
//! that selects among them (spec sections 3.7 and 3.8).

use cachalot_kernels::{Activations, Slot, Treatment, matmul_one, pool, rms_norm, rope};

use super::weights::{Compressor, Layer};
use super::{Config, ENTRY, INDEX_KEY, Model};
use crate::shared::buffer::sized;
use crate::shared::index::{IndexBuffers, IndexLane, Scorer};
use crate::shared::selection::{Candidates, Chosen, best_blocks, choose};
use crate::state::{CompressedCache, ROLLBACK, Sequence};
use crate::step::{Angles, Row, Segment, Span, Workspace};

/// Reusable buffers of compressor and indexer.
#[derive(Default)]
pub(super) struct GlobalBuffers {
    /// Per KV source: what its compressor projected for every row; kept until the step is committed.
    pub halves: Vec<Halves>,
    groups: Vec<Group>,
    pooled: Vec<f32>,
    latents: Vec<f32>,
    latent_input: Activations,
    index_raw: Vec<f32>,
    index_keys: Vec<f32>,
    angles: Angles,
    pub candidates: Candidates,
    /// The layer's groups have been appended before, for more rows than are left.
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
        for (cache, halves) in sequence.caches.iter_mut().zip(&self.halves) {
            let ring = &mut cache.rolling[0];
            if ring.bytes() == 0 {
                continue;
            }
            // As many as the ring holds: equal sequences have equal states, however they came about.
            for offset in span.count.saturating_sub(ROLLBACK + 2)..span.count {
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
    pub(super) fn append_global(&self, layer: usize, weights: &Layer, work: &mut Workspace, segments: &mut [Segment]) {
        let Some(compressor) = &weights.compressor else { return };
        let (config, compute) = (&self.config, &self.trunk.compute);
        let source = self.source_index(layer);
        let ratio = config.layers[layer].ratio;
        let buffers = &mut work.v41.global;
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
        sized(&mut buffers.pooled, buffers.groups.len() * dim);
        let (groups, halves) = (&buffers.groups, &buffers.halves[source]);
        let (segments_now, spans) = (&*segments, &work.spans);
        compute.pool().run_pieces(&mut buffers.pooled, dim, |index, pooled| {
            let group = groups[index];
            let cache = &segments_now[group.segment].sequence.caches[source];
            self.pool_group(group, ratio, halves, cache, spans[group.segment], pooled);
        });
        let pooled = &buffers.pooled;
        sized(&mut buffers.latents, pooled.len());
        compute.pool().run_pieces(&mut buffers.latents, dim, |index, latent| {
            let pooled = &pooled[index * dim..(index + 1) * dim];
            rms_norm(compute, pooled, &compressor.norm, config.rms_norm_eps, latent);
        });
        self.index_keys_of(compressor, buffers);
        let rotary = config.qk_rope_head_dim;
        let index_dim = config.index_head_dim;
        let angles = &mut buffers.angles;
        sized(&mut angles.cos, rotary / 2);
        sized(&mut angles.sin, rotary / 2);
        for (index, group) in buffers.groups.iter().enumerate() {
            self.trunk.ropes[1].angles(group.position, &mut angles.cos, &mut angles.sin);
            let key = &mut buffers.index_keys[index * index_dim..(index + 1) * index_dim];
            rope(&mut key[index_dim - rotary..], &angles.cos, &angles.sin, false);
            let entry = &mut buffers.latents[index * dim..(index + 1) * dim];
            rope(&mut entry[dim - rotary..], &angles.cos, &angles.sin, false);
            let cache = &mut segments[group.segment].sequence.caches[source];
            cache.index_keys.push(|record| INDEX_KEY.encode(compute, key, record));
            cache.entries.push(|record| ENTRY.encode(compute, entry, record));
        }
    }

    /// The two tokens of a group pooled at ratio 2, the projection itself at ratio 1.
    fn pool_group(
        &self,
        group: Group,
        ratio: usize,
        halves: &Halves,
        cache: &CompressedCache,
        span: Span,
        out: &mut [f32],
    ) {
        let dim = out.len();
        let row = |row: usize| row * dim..(row + 1) * dim;
        let second = &halves.values[row(group.row)];
        if ratio == 1 {
            out.copy_from_slice(second);
            return;
        }
        let (values, gates) = if group.position >= span.start {
            (&halves.values[row(group.row - 1)], &halves.gates[row(group.row - 1)])
        } else {
            cache.rolling[0].get(group.position / 2).split_at(dim)
        };
        let slots = [Slot { values, gates }, Slot { values: second, gates: &halves.gates[row(group.row)] }];
        pool(&self.trunk.compute, &slots, out);
    }

    /// Normalised index keys of all latents, not yet rotated.
    fn index_keys_of(&self, compressor: &Compressor, buffers: &mut GlobalBuffers) {
        let (compute, dim) = (&self.trunk.compute, self.config.index_head_dim);
        buffers.latent_input.set(compute, &buffers.latents, self.config.head_dim, Treatment::Float32);
        let count = buffers.groups.len() * dim;
        matmul_one(compute, &compressor.wk, &buffers.latent_input, sized(&mut buffers.index_raw, count));
        sized(&mut buffers.index_keys, count);
        for (raw, key) in buffers.index_raw.chunks_exact(dim).zip(buffers.index_keys.chunks_exact_mut(dim)) {
            rms_norm(compute, raw, &compressor.k_norm, self.config.rms_norm_eps, key);
        }
    }

    /// Selects for every row the compressed entries that this layer and those reusing its choice attend to.
    pub(super) fn select(&self, layer: usize, work: &mut Workspace, segments: &[Segment]) {
        let (config, pool) = (&self.config, self.trunk.compute.pool());
        let IndexBuffers { queries, head_weights, packed, selection, lanes } = &mut work.index;
        let scorer = self.trunk.prepare_index(&work.angles[1], INDEX_KEY, false, queries, head_weights, packed);
        let plan = &config.layers[layer];
        let (Some(owner), ratio) = (plan.kv_source, plan.ratio) else { return };
        let chooser =
            Chooser { config, scorer, publishes: plan.is_candidate_source, restricted: plan.candidates_from.is_some() };
        let source = self.source_index(owner);
        let (rows, candidates) = (&work.rows, &mut work.v41.global.candidates);
        selection.reset(rows.len(), config.index_topk);
        if chooser.publishes || candidates.rows() != rows.len() {
            candidates.reset(rows.len(), config.candidate_topk_blocks);
        }
        lanes.resize_with(pool.threads(), IndexLane::default);
        let cache = |row: usize| &segments[rows[row].segment].sequence.caches[source];
        let visible = |row: usize| (rows[row].position + 1) / ratio;
        if rows.len() > pool.threads() {
            let pairs = selection.rows_mut().zip(candidates.rows_mut());
            let mut jobs: Vec<_> = pairs.collect();
            pool.run_pieces_with(&mut jobs, 1, lanes, |lane, row, job| {
                let (chosen, blocks) = &mut job[0];
                chooser.run(row, cache(row), visible(row), lane, false, chosen, blocks);
            });
        } else {
            for (row, (mut chosen, mut blocks)) in selection.rows_mut().zip(candidates.rows_mut()).enumerate() {
                chooser.run(row, cache(row), visible(row), &mut lanes[0], true, &mut chosen, &mut blocks);
            }
        }
    }
}

/// Selects for one query at a time.
struct Chooser<'a> {
    config: &'a Config,
    scorer: Scorer<'a>,
    /// Whether this layer makes the candidate set.
    publishes: bool,
    /// Whether it chooses within it.
    restricted: bool,
}

impl Chooser<'_> {
    /// Chooses among the first `visible` entries of `cache`; `shared` lets the whole pool score them.
    #[allow(clippy::too_many_arguments)]
    fn run(
        &self,
        row: usize,
        cache: &CompressedCache,
        visible: usize,
        lane: &mut IndexLane,
        shared: bool,
        chosen: &mut Chosen,
        blocks: &mut Chosen,
    ) {
        let (config, keys) = (self.config, &cache.index_keys);
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
            self.scorer.begin(row, visible, lane);
            for run in adjacent(blocks.ids(), block, visible) {
                self.scorer.score(row, keys, run, lane);
            }
            let entries = adjacent(blocks.ids(), block, visible).flatten();
            choose(&lane.scores, entries, config.index_topk, &mut lane.order, chosen);
            return;
        }
        let choose_all = visible <= config.index_topk;
        if !choose_all || (self.publishes && !publish_all) {
            self.scorer.score_all(row, keys, visible, shared, lane);
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

/// Runs of entries that ascending, distinct blocks cover together.
fn adjacent(blocks: &[u32], block: usize, visible: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    blocks.chunk_by(|a, b| a + 1 == *b).filter_map(move |run| {
        let (first, last) = (*run.first()? as usize, *run.last()? as usize);
        Some(first * block..((last + 1) * block).min(visible))
    })
}
