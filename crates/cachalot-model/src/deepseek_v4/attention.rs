//! Attention of one layer (spec sections 3.5, 3.7, 3.8): sliding, compressed sparse (CSA), heavily compressed (HCA).

use cachalot_kernels::{Job, matmul};

use super::Model;
use super::weights::{Compressed, Layer};
use crate::shared::attention::{Entries, Step, latent_jobs};
use crate::shared::buffer::sized;
use crate::shared::index::{IndexBuffers, IndexLane};
use crate::shared::selection::choose;
use crate::step::{Segment, Workspace};

impl Model {
    /// Replaces `work.y` by the attention output for `work.x`, the normalised input of all rows.
    pub(super) fn attention(&self, layer: usize, weights: &Layer, work: &mut Workspace, segments: &mut [Segment]) {
        let trunk = &self.trunk;
        // As long as every entry is selected, nobody asks for scores.
        let most = work.rows.iter().map(|row| self.visible(layer, row.position)).max().unwrap_or(0);
        let indexer = weights.indexer().map(|(indexer, _)| indexer).filter(|_| most > self.config.index_topk);

        self.project(weights, indexer.is_some(), work);
        let index_queries = indexer.map(|indexer| (&indexer.wq_b, &mut work.index.queries));
        trunk.project_heads(&weights.attention, &mut work.attention, index_queries);
        let angles = &work.angles[self.rope(layer)];
        trunk.rotate_heads(angles, true, &mut work.attention);
        trunk.write_window(
            &weights.attention,
            angles,
            &mut work.attention,
            &work.rows,
            work.window_records.of_mut(layer),
        );
        if let Some(compressed) = &weights.compressed {
            if !work.v4.appended {
                self.compress(compressed, work, segments);
            }
            if compressed.indexer.is_some() {
                self.select(layer, compressed, indexer.is_some(), work, segments);
            }
        }
        self.attend(layer, weights, most, work, segments);
        trunk.project_output(&weights.attention, work);
    }

    /// What a layer keeps of all rows' input: their window keys, and the groups that they complete.
    pub(super) fn keep_input(&self, layer: usize, weights: &Layer, work: &mut Workspace, segments: &mut [Segment]) {
        self.project(weights, false, work);
        let (angles, records) = (&work.angles[self.rope(layer)], work.window_records.of_mut(layer));
        self.trunk.write_window(&weights.attention, angles, &mut work.attention, &work.rows, records);
        if let Some(compressed) = &weights.compressed {
            self.compress(compressed, work, segments);
        }
    }

    /// Entries that a query at `position` can see: the groups that are complete, its own included.
    fn visible(&self, layer: usize, position: usize) -> usize {
        (position + 1).checked_div(self.config.layers[layer].ratio).unwrap_or(0)
    }

    /// Everything that reads the sublayer's input itself: one work list.
    fn project(&self, weights: &Layer, scored: bool, work: &mut Workspace) {
        let (config, trunk) = (&self.config, &self.trunk);
        work.inputs.set(&trunk.compute, &work.x, config.hidden_size, trunk.dense);
        let (inputs, rows) = (&work.inputs, work.rows.len());
        let mut jobs = latent_jobs(&weights.attention, inputs, &mut work.attention);
        if let Some(compressed) = &weights.compressed {
            work.v4.entries.push_jobs(&compressed.compressor, inputs, &mut jobs);
            if let Some((indexer, compressor)) = &compressed.indexer {
                work.v4.index_keys.push_jobs(compressor, inputs, &mut jobs);
                if scored {
                    let head_weights = sized(&mut work.index.head_weights, rows * config.index_n_heads);
                    jobs.push(Job::whole(&indexer.weights_proj, inputs.plain(), head_weights));
                }
            }
        }
        matmul(&trunk.compute, &mut jobs);
        drop(jobs);
        trunk.normalise_latent(&weights.attention, &mut work.attention);
    }

    /// Selects for every row the entries that it attends to; `scored` if not all rows see all of theirs.
    fn select(&self, layer: usize, compressed: &Compressed, scored: bool, work: &mut Workspace, segments: &[Segment]) {
        let (rows, pool, limit) = (&work.rows, self.trunk.compute.pool(), self.config.index_topk);
        let visible = |row: usize| self.visible(layer, rows[row].position);
        let IndexBuffers { queries, head_weights, packed, selection, lanes } = &mut work.index;
        selection.reset(rows.len(), limit);
        if !scored {
            selection.rows_mut().enumerate().for_each(|(row, mut chosen)| chosen.extend(0..visible(row) as u32));
            return;
        }
        let (codec, transform) = (self.codecs.index_key, self.codecs.transform);
        let scorer = self.trunk.prepare_index(&work.angles[1], codec, transform, queries, head_weights, packed);
        let select = |row: usize, chosen: &mut _, lane: &mut IndexLane, shared: bool| {
            let (visible, keys) =
                (visible(row), &segments[rows[row].segment].sequence.caches[compressed.cache].index_keys);
            if visible > limit {
                scorer.score_all(row, keys, visible, shared, lane);
                choose(&lane.scores, 0..visible, limit, &mut lane.order, chosen);
            } else {
                chosen.extend(0..visible as u32);
            }
        };
        lanes.resize_with(pool.threads(), IndexLane::default);
        if rows.len() > pool.threads() {
            let mut lists: Vec<_> = selection.rows_mut().collect();
            pool.run_pieces_with(&mut lists, 1, lanes, |lane, row, list| select(row, &mut list[0], lane, false));
        } else {
            for (row, mut list) in selection.rows_mut().enumerate() {
                select(row, &mut list, &mut lanes[0], true);
            }
        }
    }

    fn attend(&self, layer: usize, weights: &Layer, most: usize, work: &mut Workspace, segments: &[Segment]) {
        let (rows, selection) = (&work.rows, &work.index.selection);
        let step = Step {
            layer,
            rows,
            spans: &work.spans,
            window_records: work.window_records.of(layer),
            segments,
            angles: &work.angles[self.rope(layer)],
            entry: self.codecs.key,
            entries_at_most: if weights.indexer().is_some() { most.min(self.config.index_topk) } else { most },
        };
        self.trunk.attend(&step, &weights.attention.sinks, &mut work.attention, |row| match &weights.compressed {
            None => Entries::None,
            Some(compressed) => {
                let pages = &segments[rows[row].segment].sequence.caches[compressed.cache].entries;
                match compressed.indexer {
                    Some(_) => Entries::Listed(pages, selection.of(row)),
                    None => Entries::First(pages, self.visible(layer, rows[row].position)),
                }
            }
        });
    }
}
