//! The forward pass (spec sections 3.2, 3.3, 3.10): a step over the tokens of one or several sequences.

use cachalot_checkpoint::deepseek_v4::Role;

use super::Model;
use super::weights::Layer;
use crate::error::StepError;
use crate::step::{LogitsOf, Segment, Workspace};
use crate::trace::Trace;

impl Model {
    /// As [`crate::Model::step`].
    pub(crate) fn step(
        &self,
        work: &mut Workspace,
        segments: &mut [Segment],
        mut trace: Option<&mut Trace>,
    ) -> Result<(), StepError> {
        self.trunk.check(segments)?;
        self.trunk.begin(work, segments);
        work.v4.appended = false;
        let outcome = self.trunk.embed(work, segments).and_then(|()| {
            // Only now, or the embedding would wait behind a few hundred megabytes of them.
            self.expect_experts(work);
            self.run_layers(work, segments, trace.as_deref_mut())
        });
        if let Err(error) = outcome {
            self.trunk.undo(segments);
            return Err(error);
        }
        self.trunk.commit_windows(work, segments, |_, _, span| span.count);
        work.v4.commit(&work.spans, segments);
        for (segment, span) in segments.iter_mut().zip(&work.spans) {
            segment.sequence.commit(span.count);
        }
        if let Some(trace) = trace {
            trace.record_streams(self.layers.len(), &work.streams);
        }
        if segments.iter().any(|segment| matches!(segment.logits, LogitsOf::Last | LogitsOf::All)) {
            self.trunk.mix_head(&self.head_site, work);
        }
        self.trunk.end(work, segments);
        Ok(())
    }

    /// Runs all layers of all rows. A sublayer reads the streams by the mix of its own site.
    fn run_layers(
        &self,
        work: &mut Workspace,
        segments: &mut [Segment],
        mut trace: Option<&mut Trace>,
    ) -> Result<(), StepError> {
        let layers = self.layers.len();
        for layer in 0..layers {
            if let Some(trace) = trace.as_deref_mut() {
                trace.record_streams(layer, &work.streams);
            }
            let held = self.layers.hold(layer, layers)?;
            let weights = &*held;
            // Whoever records internal choices wants those of every row.
            if layer + 1 == layers && trace.is_none() {
                self.end_rows(layer, weights, work, segments);
                if work.rows.is_empty() {
                    break;
                }
            }
            self.read_streams(weights, work);
            self.attention(layer, weights, work, segments);
            self.record_selection(layer, work, trace.as_deref_mut());
            self.trunk.expand(work);

            self.trunk.mix(&weights.ffn_site, work);
            self.trunk.hand_over(work);
            self.trunk.collapse(&self.routers[layer].norm, work);
            self.moe(layer, &weights.shared, work, trace.as_deref_mut())?;
            self.trunk.expand(work);
        }
        Ok(())
    }

    /// The input of a layer's attention.
    fn read_streams(&self, weights: &Layer, work: &mut Workspace) {
        self.trunk.mix(&weights.attention_site, work);
        self.trunk.hand_over(work);
        self.trunk.collapse(&weights.attention_norm, work);
    }

    /// Ends the rows whose logits nobody wants at the last layer: what remains of them is what it keeps of their input.
    fn end_rows(&self, layer: usize, weights: &Layer, work: &mut Workspace, segments: &mut [Segment]) {
        let mut kept = std::mem::take(&mut work.kept);
        kept.clear();
        kept.extend((0..work.rows.len()).filter(|&index| {
            let row = &work.rows[index];
            match segments[row.segment].logits {
                LogitsOf::All => true,
                LogitsOf::Last => row.position + 1 == work.spans[row.segment].end(),
                LogitsOf::None | LogitsOf::Later(_) => false,
            }
        }));
        if kept.len() < work.rows.len() {
            self.read_streams(weights, work);
            self.keep_input(layer, weights, work, segments);
            work.v4.appended = true;
            work.keep(&kept);
        }
        work.kept = kept;
    }

    fn record_selection(&self, layer: usize, work: &Workspace, trace: Option<&mut Trace>) {
        let sparse = |layer: usize| self.config.layers[layer].role == Role::Csa;
        if let Some(trace) = trace.filter(|_| sparse(layer)) {
            let source = (0..layer).filter(|&layer| sparse(layer)).count();
            trace.record_selection(source, &work.index.selection, self.config.index_topk);
        }
    }
}
