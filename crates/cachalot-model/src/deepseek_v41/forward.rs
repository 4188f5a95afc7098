//! The forward pass (spec sections 3.4, 3.5, 3.12): a step over the tokens of one or several sequences.

use super::Model;
use super::reach::Reach;
use crate::error::StepError;
use crate::step::{LogitsOf, Segment, Workspace};
use crate::trace::Trace;

impl Model {
    /// As [`crate::Model::step`].
    pub(crate) fn step(
        &self,
        work: &mut Workspace,
        segments: &mut [Segment],
        trace: Option<&mut Trace>,
    ) -> Result<(), StepError> {
        // Whoever records internal choices wants those of every row.
        let reach = if trace.is_some() { Reach::Whole } else { Reach::Exact };
        self.step_within(reach, work, segments, trace)
    }

    /// One step in which each layer computes the rows within its reach.
    pub(super) fn step_within(
        &self,
        reach: Reach,
        work: &mut Workspace,
        segments: &mut [Segment],
        mut trace: Option<&mut Trace>,
    ) -> Result<(), StepError> {
        self.trunk.check(segments)?;
        self.check_owed(reach, segments)?;
        self.begin(work, segments);
        // The embedding is waited for here and now, table rows only in later layers.
        let outcome = self.embed(work, segments).and_then(|()| {
            self.expect_rows(work, segments);
            self.run_layers(reach, work, segments, trace.as_deref_mut())
        });
        if let Err(error) = outcome {
            self.trunk.undo(segments);
            return Err(error);
        }
        self.trunk.commit_windows(work, segments, |layer, segment, span| self.within(reach, layer, segment, span));
        self.commit_pending(work, segments);
        self.commit_tokens(work, segments);
        if let Some(trace) = trace {
            trace.record_streams(self.layers.len(), &work.streams);
        }
        self.trunk.end(work, segments);
        Ok(())
    }

    /// Lays out the rows of this step, their angles and their n-gram classes.
    fn begin(&self, work: &mut Workspace, segments: &[Segment]) {
        self.trunk.begin(work, segments);
        work.v41.classes.clear();
        work.v41.classes.extend(work.rows.iter().map(|row| self.class(row.token, row.image)));
    }

    /// Streams of the embedded tokens; the first site reads stream 0.
    fn embed(&self, work: &mut Workspace, segments: &[Segment]) -> Result<(), StepError> {
        self.trunk.embed(work, segments)?;
        let streams = self.config.hc_mult;
        work.pre.clear();
        work.pre.extend((0..work.rows.len() * streams).map(|index| if index % streams == 0 { 1.0 } else { 0.0 }));
        Ok(())
    }

    /// Runs all layers, each over the rows within reach. A sublayer reads the streams by the mix of the site before it.
    fn run_layers(
        &self,
        reach: Reach,
        work: &mut Workspace,
        segments: &mut [Segment],
        mut trace: Option<&mut Trace>,
    ) -> Result<(), StepError> {
        let end = self.end(reach, work, segments);
        for layer in 0..self.layers.len() {
            if let Some(trace) = trace.as_deref_mut() {
                trace.record_streams(layer, &work.streams);
            }
            let held = self.layers.hold(layer, end)?;
            let weights = &*held;
            if let Some(engram) = &weights.engram {
                self.engram(engram, work, segments, trace.as_deref_mut())?;
            }
            self.narrow(reach, layer, weights, work, segments);
            if work.rows.is_empty() {
                break;
            }

            self.trunk.mix(&weights.attention_site, work);
            self.trunk.collapse(&weights.attention_norm, work);
            self.attention(layer, weights, work, segments);
            self.record_selection(layer, work, trace.as_deref_mut());
            self.trunk.expand(work);
            self.trunk.hand_over(work);

            self.trunk.mix(&weights.ffn_site, work);
            self.trunk.collapse(&self.routers[layer].norm, work);
            let next_rows = self.rows_behind(reach, layer, work, segments);
            self.moe(layer, &weights.shared, next_rows, work, trace.as_deref_mut())?;
            self.trunk.expand(work);
            self.trunk.hand_over(work);
        }
        Ok(())
    }

    /// How many of the step's rows will pass through the layer behind `layer`.
    fn rows_behind(&self, reach: Reach, layer: usize, work: &Workspace, segments: &[Segment]) -> usize {
        if layer + 1 == self.layers.len() { 0 } else { self.rows_within(reach, layer + 2, work, segments) }
    }

    /// Number of the first layer that the step does not come to.
    fn end(&self, reach: Reach, work: &Workspace, segments: &[Segment]) -> usize {
        let layers = self.layers.len();
        (1..layers).find(|layer| self.rows_within(reach, *layer, work, segments) == 0).unwrap_or(layers)
    }

    fn rows_within(&self, reach: Reach, layer: usize, work: &Workspace, segments: &[Segment]) -> usize {
        let spans = work.spans.iter().zip(segments);
        spans.map(|(span, segment)| self.within(reach, layer, segment, span)).sum()
    }

    fn record_selection(&self, layer: usize, work: &Workspace, trace: Option<&mut Trace>) {
        let Some(trace) = trace else { return };
        if let Some(index) = self.config.index_sources().position(|(source, _)| source == layer) {
            trace.record_selection(index, &work.index.selection, self.config.index_topk);
        }
    }

    /// Keeps the halves of groups that the step left incomplete (and those a rollback may return to).
    fn commit_pending(&self, work: &Workspace, segments: &mut [Segment]) {
        for (segment, span) in segments.iter_mut().zip(&work.spans) {
            work.v41.global.commit_pending(*span, segment.sequence, self.config.head_dim);
        }
    }

    /// Moves the sequences on by the step's tokens.
    fn commit_tokens(&self, work: &Workspace, segments: &mut [Segment]) {
        for (segment, span) in segments.iter_mut().zip(&work.spans) {
            for offset in 0..span.count {
                segment.sequence.set_class(span.start + offset, work.v41.classes[span.first_row + offset]);
            }
            segment.sequence.commit(span.count);
            if let LogitsOf::Later(following) = segment.logits {
                segment.sequence.owe(segment.sequence.position() + following);
            }
        }
    }
}
