//! Which rows the layers behind the last KV source must compute.
//!
//! These layers see a position only through that source's entries and through their own windows. Far from the end of
//! a prompt a token leaves nothing in them that the last logits, a later token or a rollback could read, so its row
//! ends at the source. Exact: it changes no bit of what remains. The vendor's approximate prefill (spec section 3.13,
//! bounded replay) is the same with a reach of one window.

use super::Model;
use super::weights::Layer;
use crate::error::StepError;
use crate::state::ROLLBACK;
use crate::step::{Segment, Span, Workspace};

/// How far back the layers behind the last KV source compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// Everything.
    Whole,
    /// As far as anything that remains depends on them.
    Exact,
    /// Over the last window of the prompt only.
    Replay,
}

impl Model {
    /// How many of the newest positions must pass through `layer`; with the number of layers, through the head.
    ///
    /// The last layer's ring holds the window and what a rollback returns to; a layer before it must have computed
    /// what these attend to, a window less one farther back, and so on.
    fn reach(&self, reach: Reach, layer: usize) -> usize {
        let (layers, window) = (self.layers.len(), self.config.sliding_window);
        match reach {
            _ if self.kv_sources.last().is_none_or(|&source| layer <= source) => usize::MAX,
            Reach::Whole => usize::MAX,
            _ if layer == layers => 1,
            Reach::Exact => window + ROLLBACK + (window - 1) * (layers - 1 - layer),
            Reach::Replay => window,
        }
    }

    /// How many of the last rows of a segment pass through `layer`.
    pub(super) fn within(&self, reach: Reach, layer: usize, segment: &Segment, span: &Span) -> usize {
        let newest = |following| self.reach(reach, layer).saturating_sub(following);
        segment.logits.following().map_or(span.count, newest).min(span.count)
    }

    /// Refuses to compute logits that earlier steps were told nobody would want.
    pub(super) fn check_owed(&self, reach: Reach, segments: &[Segment]) -> Result<(), StepError> {
        for segment in segments.iter().filter(|segment| segment.sequence.owed() > 0) {
            let (have, owed) = (segment.sequence.position(), segment.sequence.owed());
            let following = segment.logits.following().filter(|_| reach != Reach::Whole);
            let position = following.map_or(have, |following| have + segment.tokens.len() + following);
            if position < owed {
                return Err(StepError::Owed { position, owed });
            }
        }
        Ok(())
    }

    /// Ends the rows that no layer behind `layer` needs: what remains of them are their entries and window records.
    pub(super) fn narrow(
        &self,
        reach: Reach,
        layer: usize,
        weights: &Layer,
        work: &mut Workspace,
        segments: &mut [Segment],
    ) {
        let mut kept = std::mem::take(&mut work.kept);
        kept.clear();
        kept.extend((0..work.rows.len()).filter(|&index| {
            let row = &work.rows[index];
            let span = &work.spans[row.segment];
            span.end() - row.position <= self.within(reach, layer + 1, &segments[row.segment], span)
        }));
        if kept.len() < work.rows.len() {
            self.trunk.collapse(&weights.attention_norm, work);
            self.project_latents(layer, weights, work);
            let (angles, records) = (&work.angles[self.rope(layer)], work.window_records.of_mut(layer));
            self.trunk.write_window(&weights.attention, angles, &mut work.attention, &work.rows, records);
            self.append_global(layer, weights, work, segments);
            work.v41.global.appended = !kept.is_empty();
            work.v41.global.candidates.keep(work.rows.len(), &kept);
            work.keep(&kept);
        }
        work.kept = kept;
    }
}
