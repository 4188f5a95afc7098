//! Decoder replay: the vendor's approximate prefill (spec section 3.13, bounded replay).
//!
//! The layers up to the last KV source, and its entries and index keys, see the whole prompt; the layers behind it, and
//! its own attention, see the last window of tokens only, whose windows begin there.

use super::Model;
use super::reach::Reach;
use crate::error::StepError;
use crate::state::Sequence;
use crate::step::{LogitsOf, Segment, Workspace};

impl Model {
    /// Advances `sequence` by `tokens` in chunks of at most `chunk`, with decoder replay; returns the last position's
    /// logits, `[vocabulary]`. `progress` hears of the tokens done and ends the step early by returning false.
    ///
    /// Where there are no more tokens than the window holds, or no compressed layers, this is the exact prefill.
    ///
    /// # Errors
    /// As [`crate::Model::step`], and [`StepError::Cancelled`]. Then the sequence has not moved.
    pub(crate) fn prefill_replay<'w>(
        &self,
        work: &'w mut Workspace,
        sequence: &mut Sequence,
        tokens: &[u32],
        chunk: usize,
        progress: &mut dyn FnMut(usize) -> bool,
    ) -> Result<&'w [f32], StepError> {
        let mut fork = sequence.clone();
        let window = self.config.sliding_window;
        let decoder = self.kv_sources.last().filter(|_| tokens.len() > window);
        if let Some(&decoder) = decoder {
            let tail_start = fork.position() + tokens.len() - window;
            fork.window_start[decoder..].fill(tail_start);
        }
        let reach = if decoder.is_some() { Reach::Replay } else { Reach::Exact };
        let mut done = 0;
        for tokens_now in tokens.chunks(chunk.max(1)) {
            done += tokens_now.len();
            let logits = if done < tokens.len() { LogitsOf::Later(tokens.len() - done) } else { LogitsOf::Last };
            let segments = &mut [Segment { sequence: &mut fork, tokens: tokens_now, embeddings: None, logits }];
            self.step_within(reach, work, segments, None)?;
            if !progress(done) {
                return Err(StepError::Cancelled);
            }
        }
        if decoder.is_some() {
            fork.forget_before_here();
        }
        *sequence = fork;
        self.trunk.logits(work, 0..work.wanted.len());
        Ok(&work.logits)
    }
}
