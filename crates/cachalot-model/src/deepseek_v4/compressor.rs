//! Compressors: groups of tokens pooled to one row, for entries and for index keys (spec sections 3.6 and 4.2).
//!
//! A row is made as soon as the last token of its group is there. Until then, and as far as a rollback may return,
//! values and gates of the newest tokens stay in a ring of the sequence; a step writes to it when it has succeeded.

use cachalot_kernels::{Job, Slot, hadamard, pool, rms_norm, rope};
use smallvec::SmallVec;

use super::weights::{Compressed, Compressor};
use super::{Buffers, Model};
use crate::shared::attention::Jobs;
use crate::shared::buffer::sized;
use crate::shared::inputs::Inputs;
use crate::shared::records::RecordRing;
use crate::step::{Angles, Row, Segment, Span, Workspace};

/// Channels of a row that one task pools.
const CHANNELS_PER_TASK: usize = 64;

/// A group of tokens that is complete with this step.
#[derive(Clone, Copy)]
pub(super) struct Group {
    segment: usize,
    /// Position of its first token.
    position: usize,
}

/// A step's rows and the groups that they complete.
#[derive(Clone, Copy)]
struct Complete<'a> {
    rows: &'a [Row],
    spans: &'a [Span],
    groups: &'a [Group],
    segments: &'a [Segment<'a>],
}

/// What one of a layer's compressors computes in a step.
#[derive(Default)]
pub(super) struct Projected {
    /// `[rows, width]`
    values: Vec<f32>,
    /// `[rows, width]`
    gates: Vec<f32>,
    /// `[groups, dim]`
    pooled: Vec<f32>,
    /// Normalised and rotated, `[groups, dim]`.
    rows: Vec<f32>,
    angles: Angles,
    /// Per cache: values and gates of each segment's newest tokens, to be kept when the step has succeeded.
    staged: Vec<Vec<f32>>,
}

/// Tokens of a span that a ring keeps: the newest, at most as many as it has slots.
fn kept(span: Span, ring: &RecordRing<f32>) -> std::ops::Range<usize> {
    span.count.saturating_sub(ring.capacity())..span.count
}

impl Projected {
    /// Adds the products that values and gates are made of.
    pub fn push_jobs<'a>(&'a mut self, compressor: &'a Compressor, inputs: &'a Inputs, jobs: &mut Jobs<'a>) {
        let length = inputs.plain().tokens() * compressor.width();
        jobs.push(Job::whole(&compressor.wkv, inputs.plain(), sized(&mut self.values, length)));
        jobs.push(Job::whole(&compressor.wgate, inputs.plain(), sized(&mut self.gates, length)));
    }

    /// Adds to the gates what depends on a token's place in its group.
    fn add_places(&mut self, compressor: &Compressor, rows: &[Row]) {
        let width = compressor.width();
        for (gates, row) in self.gates.chunks_exact_mut(width).zip(rows) {
            let place = row.position % compressor.ratio * width;
            gates.iter_mut().zip(&compressor.ape[place..]).for_each(|(gate, ape)| *gate += ape);
        }
    }

    /// Sets aside what the ring number `which` of cache `cache` will keep.
    fn stage(&mut self, cache: usize, which: usize, width: usize, spans: &[Span], segments: &[Segment]) {
        if self.staged.len() <= cache {
            self.staged.resize_with(cache + 1, Vec::new);
        }
        let staged = &mut self.staged[cache];
        staged.clear();
        for (span, segment) in spans.iter().zip(segments) {
            for offset in kept(*span, &segment.sequence.caches[cache].rolling[which]) {
                let row = (span.first_row + offset) * width..(span.first_row + offset + 1) * width;
                staged.extend_from_slice(&self.values[row.clone()]);
                staged.extend_from_slice(&self.gates[row]);
            }
        }
    }
}

impl Buffers {
    /// Moves what the compressors set aside to the sequences.
    pub(super) fn commit(&self, spans: &[Span], segments: &mut [Segment]) {
        for (which, projected) in [&self.entries, &self.index_keys].into_iter().enumerate() {
            let staged = projected.staged.iter().enumerate();
            for (cache, staged) in staged.filter(|(_, staged)| !staged.is_empty()) {
                let mut staged = &staged[..];
                for (span, segment) in spans.iter().zip(&mut *segments) {
                    let ring = &mut segment.sequence.caches[cache].rolling[which];
                    for offset in kept(*span, ring) {
                        let slot = ring.get_mut(span.start + offset);
                        let (record, rest) = staged.split_at(slot.len());
                        slot.copy_from_slice(record);
                        staged = rest;
                    }
                }
            }
        }
    }
}

impl Model {
    /// Appends the entries and index keys of all groups that this step completes.
    pub(super) fn compress(&self, compressed: &Compressed, work: &mut Workspace, segments: &mut [Segment]) {
        let (compute, cache) = (&self.trunk.compute, compressed.cache);
        let Buffers { groups, entries, index_keys, .. } = &mut work.v4;
        let ratio = compressed.compressor.ratio;
        groups.clear();
        let complete = work.rows.iter().filter(|row| (row.position + 1).is_multiple_of(ratio));
        groups.extend(complete.map(|row| Group { segment: row.segment, position: row.position + 1 - ratio }));

        let step = Complete { rows: &work.rows, spans: &work.spans, groups, segments };
        self.make_rows(&compressed.compressor, [cache, 0], &step, entries);
        if let Some((_, compressor)) = &compressed.indexer {
            self.make_rows(compressor, [cache, 1], &step, index_keys);
        }
        let dim = compressed.compressor.dim();
        for (group, row) in groups.iter().zip(entries.rows.chunks_exact(dim)) {
            let pages = &mut segments[group.segment].sequence.caches[cache].entries;
            pages.push(|record| self.codecs.key.encode(compute, row, record));
        }
        let Some((_, compressor)) = &compressed.indexer else { return };
        for (group, row) in groups.iter().zip(index_keys.rows.chunks_exact_mut(compressor.dim())) {
            if self.codecs.transform {
                hadamard(row);
            }
            let pages = &mut segments[group.segment].sequence.caches[cache].index_keys;
            pages.push(|record| self.codecs.index_key.encode(compute, row, record));
        }
    }

    /// Makes the rows of all groups of `step`; `ring` is the number of the cache and of its ring.
    fn make_rows(&self, compressor: &Compressor, ring: [usize; 2], step: &Complete, projected: &mut Projected) {
        let Complete { rows, spans, groups, segments } = *step;
        projected.add_places(compressor, rows);
        projected.stage(ring[0], ring[1], compressor.width(), spans, segments);
        let (compute, dim) = (&self.trunk.compute, compressor.dim());
        let Projected { values, gates, pooled, rows: out, angles, .. } = projected;
        let piece = if dim.is_multiple_of(CHANNELS_PER_TASK) { CHANNELS_PER_TASK } else { dim };
        sized(pooled, groups.len() * dim);
        compute.pool().run_pieces(pooled, piece, |index, pooled| {
            let (group, channel) = (groups[index * piece / dim], index * piece % dim);
            let span = spans[group.segment];
            let kept = &segments[group.segment].sequence.caches[ring[0]].rolling[ring[1]];
            let width = compressor.width();
            // The first series of the group before, then the last series of the group itself.
            let before = group.position.checked_sub(compressor.ratio).filter(|_| compressor.series == 2);
            let own = (group.position, width - dim);
            let mut slots = SmallVec::<[Slot; 128]>::new();
            for (first, series) in before.map(|first| (first, 0)).into_iter().chain([own]) {
                let channels = series + channel..series + channel + pooled.len();
                for position in first..first + compressor.ratio {
                    let (values, gates) = match position.checked_sub(span.start) {
                        Some(offset) => {
                            let row = (span.first_row + offset) * width..(span.first_row + offset + 1) * width;
                            (&values[row.clone()], &gates[row])
                        }
                        None => kept.get(position).split_at(width),
                    };
                    slots.push(Slot { values: &values[channels.clone()], gates: &gates[channels.clone()] });
                }
            }
            pool(compute, &slots, pooled);
        });
        let (pairs, eps) = (self.config.qk_rope_head_dim / 2, self.config.rms_norm_eps);
        sized(&mut angles.cos, pairs);
        sized(&mut angles.sin, pairs);
        sized(out, pooled.len());
        for ((group, pooled), row) in groups.iter().zip(pooled.chunks_exact(dim)).zip(out.chunks_exact_mut(dim)) {
            rms_norm(compute, pooled, &compressor.norm, eps, row);
            // A row stands where its group begins.
            self.trunk.ropes[1].angles(group.position, &mut angles.cos, &mut angles.sin);
            rope(&mut row[dim - 2 * pairs..], &angles.cos, &angles.sin, false);
        }
    }
}
