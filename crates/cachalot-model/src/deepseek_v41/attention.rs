//! Attention of one layer (spec sections 3.6 to 3.9): which entries a query sees, and where they come from.

use cachalot_kernels::{Job, matmul};

use super::global::halves_of;
use super::weights::Layer;
use super::{ENTRY, Model};
use crate::shared::attention::{Entries, Step, latent_jobs};
use crate::shared::buffer::sized;
use crate::step::{Segment, Workspace};

impl Model {
    /// Replaces `work.y` by the attention output for `work.x`, the normalised input of all rows.
    pub(super) fn attention(&self, layer: usize, weights: &Layer, work: &mut Workspace, segments: &mut [Segment]) {
        self.project_latents(layer, weights, work);
        let indexer = weights.indexer.as_ref().map(|indexer| (&indexer.wq_b, &mut work.index.queries));
        self.trunk.project_heads(&weights.attention, &mut work.attention, indexer);
        let angles = &work.angles[self.rope(layer)];
        self.trunk.rotate_heads(angles, false, &mut work.attention);
        let records = work.window_records.of_mut(layer);
        self.trunk.write_window(&weights.attention, angles, &mut work.attention, &work.rows, records);
        if !std::mem::take(&mut work.v41.global.appended) {
            self.append_global(layer, weights, work, segments);
        }
        if weights.indexer.is_some() {
            self.select(layer, work, segments);
        }
        self.attend(layer, weights, work, segments);
        self.trunk.project_output(&weights.attention, work);
    }

    /// Everything that reads the sublayer's input itself: one work list.
    pub(super) fn project_latents(&self, layer: usize, weights: &Layer, work: &mut Workspace) {
        let (config, trunk) = (&self.config, &self.trunk);
        let rows = work.rows.len();
        work.inputs.set(&trunk.compute, &work.x, config.hidden_size, trunk.dense);
        let inputs = &work.inputs;
        let mut jobs = latent_jobs(&weights.attention, inputs, &mut work.attention);
        // What appended groups were made of is kept until the step is committed.
        if let Some(compressor) = weights.compressor.as_ref().filter(|_| !work.v41.global.appended) {
            let halves = halves_of(&mut work.v41.global.halves, self.source_index(layer));
            let values = sized(&mut halves.values, rows * config.head_dim);
            jobs.push(Job::whole(&compressor.wkv, inputs.plain(), values));
            if let Some(wgate) = &compressor.wgate {
                jobs.push(Job::whole(wgate, inputs.plain(), sized(&mut halves.gates, rows * config.head_dim)));
            }
        }
        if let Some(indexer) = &weights.indexer {
            let head_weights = sized(&mut work.index.head_weights, rows * config.index_n_heads);
            jobs.push(Job::whole(&indexer.weights_proj, inputs.plain(), head_weights));
        }
        matmul(&trunk.compute, &mut jobs);
        drop(jobs);
        trunk.normalise_latent(&weights.attention, &mut work.attention);
    }

    fn attend(&self, layer: usize, weights: &Layer, work: &mut Workspace, segments: &[Segment]) {
        let (rows, selection) = (&work.rows, &work.index.selection);
        let step = Step {
            layer,
            rows,
            spans: &work.spans,
            window_records: work.window_records.of(layer),
            segments,
            angles: &work.angles[self.rope(layer)],
            entry: ENTRY,
            entries_at_most: self.config.index_topk,
        };
        let owner = self.config.layers[layer].kv_source.filter(|_| !self.ablation.entries);
        let source = owner.map(|owner| self.source_index(owner));
        self.trunk.attend(&step, &weights.attention.sinks, &mut work.attention, |row| match source {
            Some(source) => {
                let cache = &segments[rows[row].segment].sequence.caches[source];
                Entries::Listed(&cache.entries, selection.of(row))
            }
            None => Entries::None,
        });
    }
}
