//! Decoder replay: the vendor's approximate prefill (spec section 3.13, bounded replay).
//!
//! The layers before the last KV source see the whole prompt; that source's entries and index keys are made for the
//! whole prompt; the layers from it on run over the last window of tokens only, whose windows begin with that tail.

use super::Model;
use crate::error::StepError;
use crate::shared::buffer::sized;
use crate::state::Sequence;
use crate::step::{LogitsOf, Row, Segment, Span, Workspace};

/// Streams and mixes of the last tokens, as they enter the decoder half.
#[derive(Default)]
struct Tail {
    rows: Vec<Row>,
    streams: Vec<f32>,
    pre: Vec<f32>,
}

impl Model {
    /// As [`crate::Model::prefill_replay`].
    ///
    /// Where there are no more tokens than the window holds, or no compressed layers, this is the exact prefill.
    pub(crate) fn prefill_replay<'w>(
        &self,
        work: &'w mut Workspace,
        sequence: &mut Sequence,
        tokens: &[u32],
        chunk: usize,
        progress: &mut dyn FnMut(usize) -> bool,
    ) -> Result<&'w [f32], StepError> {
        let config = &self.config;
        let mut fork = sequence.clone();
        let Some(&decoder) = self.kv_sources.last().filter(|_| tokens.len() > config.sliding_window) else {
            let mut segments = [Segment { sequence: &mut fork, tokens, embeddings: None, logits: LogitsOf::Last }];
            self.advance(work, &mut segments, None)?;
            *sequence = fork;
            return Ok(&work.logits);
        };
        if let Some(layer) = (decoder..self.layers.len()).find(|&layer| config.layers[layer].engram.is_some()) {
            return Err(StepError::ReplayUnsupported { layer, decoder });
        }
        let tail_start = sequence.position() + tokens.len() - config.sliding_window;
        let mut tail = Tail::default();
        let mut done = 0;
        for tokens in tokens.chunks(chunk.max(1)) {
            let segments = &mut [Segment { sequence: &mut fork, tokens, embeddings: None, logits: LogitsOf::None }];
            self.encode(decoder, work, segments)?;
            self.keep_tail(tail_start, work, &mut tail);
            done += tokens.len();
            if !progress(done) {
                return Err(StepError::Cancelled);
            }
        }
        self.replay(decoder, tail_start, tail, work, &mut fork)?;
        *sequence = fork;
        Ok(&work.logits)
    }

    /// Runs the layers before `decoder`, and of `decoder` itself only the compressor.
    fn encode(&self, decoder: usize, work: &mut Workspace, segments: &mut [Segment]) -> Result<(), StepError> {
        self.trunk.check(segments)?;
        self.begin(work, segments);
        self.embed(work, segments)?;
        self.run_layers(0..decoder, work, segments, None)?;
        self.trunk.collapse(&self.layers[decoder].attention_norm, work);
        self.project_latents(decoder, work);
        self.append_global(decoder, work, segments);
        self.trunk.commit_windows(0..decoder, work, segments);
        self.commit_pending(work, segments);
        self.commit_tokens(work, segments);
        Ok(())
    }

    fn keep_tail(&self, tail_start: usize, work: &Workspace, tail: &mut Tail) {
        let count = self.config.hc_mult;
        let width = count * self.config.hidden_size;
        for (index, row) in work.rows.iter().enumerate().filter(|(_, row)| row.position >= tail_start) {
            tail.rows.push(*row);
            tail.streams.extend_from_slice(&work.streams[index * width..(index + 1) * width]);
            tail.pre.extend_from_slice(&work.pre[index * count..(index + 1) * count]);
        }
    }

    /// Runs the layers from `decoder` on over the tail.
    fn replay(
        &self,
        decoder: usize,
        tail_start: usize,
        tail: Tail,
        work: &mut Workspace,
        sequence: &mut Sequence,
    ) -> Result<(), StepError> {
        let layers = decoder..self.layers.len();
        sequence.window_start[layers.clone()].fill(tail_start);
        work.spans.clear();
        work.spans.push(Span { first_row: 0, count: tail.rows.len(), start: tail_start });
        work.rows.clone_from(&tail.rows);
        work.pre.clone_from(&tail.pre);
        sized(&mut work.streams, tail.streams.len()).copy_from_slice(&tail.streams);
        self.trunk.begin_rows(work);
        let segments = &mut [Segment { sequence, tokens: &[], embeddings: None, logits: LogitsOf::Last }];
        work.v41.global.appended = true;
        let outcome = self.run_layers(layers.clone(), work, segments, None);
        work.v41.global.appended = false;
        outcome?;
        self.trunk.commit_windows(layers, work, segments);
        self.trunk.logits(work, segments);
        segments[0].sequence.forget_before_here();
        Ok(())
    }
}
