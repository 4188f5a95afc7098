//! The forward pass (spec sections 3.4, 3.5, 3.12): a step over the tokens of one or several sequences.

use std::ops::Range;

use cachalot_kernels::{matmul_one, mean_square, rms_norm};

use super::Model;
use super::state::IMAGE_CLASS;
use super::step::{LogitsOf, Row, Segment, Span, Workspace};
use super::trace::Trace;
use super::weights::HyperConnection;
use crate::error::StepError;
use crate::shared::buffer::sized;
use crate::shared::hyper_connections::{Site, collapse, expand};
use cachalot_kernels::Treatment;

impl Model {
    /// Advances every segment's sequence by its tokens, and returns the logits asked for: `[positions, vocabulary]`,
    /// segment by segment.
    ///
    /// How tokens are cut into steps and which sequences share one changes no bit of any result.
    ///
    /// # Errors
    /// If a token is outside the vocabulary, a sequence would outgrow the model's positions, or a weight cannot be
    /// read. Then no sequence has moved.
    pub fn advance<'w>(
        &self,
        work: &'w mut Workspace,
        segments: &mut [Segment],
        mut trace: Option<&mut Trace>,
    ) -> Result<&'w [f32], StepError> {
        self.check(segments)?;
        self.begin(work, segments);
        let outcome = self
            .embed(work, segments)
            .and_then(|()| self.run_layers(0..self.weights.layers.len(), work, segments, trace.as_deref_mut()));
        if let Err(error) = outcome {
            // Entries appended by this step are cut off again; nothing else was touched.
            for segment in segments.iter_mut() {
                let position = segment.sequence.position();
                segment.sequence.truncate_globals(position);
            }
            return Err(error);
        }
        self.commit_windows(0..self.weights.layers.len(), work, segments);
        self.commit_pending(work, segments);
        self.commit_tokens(work, segments);
        if let Some(streams) = trace.and_then(|trace| trace.streams.as_mut()) {
            Trace::list(streams, self.weights.layers.len()).extend_from_slice(&work.streams);
        }
        self.head(work, segments);
        Ok(&work.logits)
    }

    pub(super) fn check(&self, segments: &[Segment]) -> Result<(), StepError> {
        let config = &self.config;
        for segment in segments {
            let (have, more) = (segment.sequence.position(), segment.tokens.len());
            if have + more > config.max_position_embeddings {
                return Err(StepError::TooLong { have, more, limit: config.max_position_embeddings });
            }
            for (index, &token) in segment.tokens.iter().enumerate() {
                if token as usize >= config.vocab_size {
                    return Err(StepError::UnknownToken { token, index, vocabulary: config.vocab_size });
                }
                if Some(token) == config.image_token_id && segment.embeddings.is_none() {
                    return Err(StepError::ImageWithoutEmbedding { token, index });
                }
            }
        }
        Ok(())
    }

    /// Lays out the rows of this step and their rotary angles.
    pub(super) fn begin(&self, work: &mut Workspace, segments: &[Segment]) {
        work.rows.clear();
        work.spans.clear();
        work.classes.clear();
        for (index, segment) in segments.iter().enumerate() {
            let start = segment.sequence.position();
            work.spans.push(Span { first_row: work.rows.len(), count: segment.tokens.len(), start });
            for (offset, &token) in segment.tokens.iter().enumerate() {
                let image = Some(token) == self.config.image_token_id;
                work.rows.push(Row { segment: index, position: start + offset, image });
                work.classes.push(if image {
                    IMAGE_CLASS
                } else {
                    self.classes.get(token as usize).copied().unwrap_or(0)
                });
            }
        }
        self.begin_rows(work);
    }

    /// Prepares everything that depends on the rows' positions only.
    pub(super) fn begin_rows(&self, work: &mut Workspace) {
        for (angles, table) in work.angles.iter_mut().zip([&self.plain_rope, &self.compressed_rope]) {
            let pairs = table.pairs();
            sized(&mut angles.cos, work.rows.len() * pairs);
            sized(&mut angles.sin, work.rows.len() * pairs);
            for ((row, cos), sin) in
                work.rows.iter().zip(angles.cos.chunks_exact_mut(pairs)).zip(angles.sin.chunks_exact_mut(pairs))
            {
                table.angles(row.position, cos, sin);
            }
        }
        let records = self.weights.layers.len() * work.rows.len() * self.records.window;
        sized(&mut work.window_records, records);
    }

    /// Token embeddings (or an image's rows) copied to all streams; the first site reads stream 0.
    pub(super) fn embed(&self, work: &mut Workspace, segments: &[Segment]) -> Result<(), StepError> {
        let (hidden, streams) = (self.config.hidden_size, self.config.hc_mult);
        let ids = &mut work.ids;
        ids.clear();
        ids.extend(segments.iter().flat_map(|segment| segment.tokens).map(|&token| u64::from(token)));
        sized(&mut work.x, ids.len() * hidden);
        self.rows.fetch(self.embedding_table(), ids, &mut work.x)?;
        for (span, segment) in work.spans.iter().zip(segments) {
            let Some(embeddings) = segment.embeddings else { continue };
            for offset in (0..span.count).filter(|offset| work.rows[span.first_row + offset].image) {
                let row = (span.first_row + offset) * hidden;
                work.x[row..row + hidden].copy_from_slice(&embeddings[offset * hidden..(offset + 1) * hidden]);
            }
        }
        sized(&mut work.streams, work.rows.len() * streams * hidden);
        let x = &work.x;
        self.compute.pool().run_pieces(&mut work.streams, hidden, |index, stream| {
            stream.copy_from_slice(&x[index / streams * hidden..][..hidden]);
        });
        work.pre.clear();
        work.pre.extend((0..work.rows.len() * streams).map(|index| if index % streams == 0 { 1.0 } else { 0.0 }));
        Ok(())
    }

    /// Runs layers of all rows.
    pub(super) fn run_layers(
        &self,
        layers: Range<usize>,
        work: &mut Workspace,
        segments: &mut [Segment],
        mut trace: Option<&mut Trace>,
    ) -> Result<(), StepError> {
        for layer in layers {
            if let Some(streams) = trace.as_deref_mut().and_then(|trace| trace.streams.as_mut()) {
                Trace::list(streams, layer).extend_from_slice(&work.streams);
            }
            let weights = &self.weights.layers[layer];
            self.engram(layer, work, segments, trace.as_deref_mut())?;

            self.mix(&weights.attention_site, work);
            self.collapse(&weights.attention_norm, work);
            self.attention(layer, work, segments);
            self.record_selection(layer, work, trace.as_deref_mut());
            self.expand(work);

            self.mix(&weights.ffn_site, work);
            self.collapse(&weights.ffn_norm, work);
            self.moe(layer, work, trace.as_deref_mut())?;
            self.expand(work);
        }
        Ok(())
    }

    /// The current site's coefficients of every row, from the streams as they are.
    pub(super) fn mix(&self, site: &HyperConnection, work: &mut Workspace) {
        let (config, rows) = (&self.config, work.rows.len());
        let width = config.hc_mult * config.hidden_size;
        work.flat.set(&self.compute, &work.streams, width, Treatment::Float32);
        let outputs = site.function.rows();
        sized(&mut work.projected, rows * outputs);
        matmul_one(&self.compute, &site.function, &work.flat, &mut work.projected);
        let site = Site {
            streams: config.hc_mult,
            scale: &site.scale,
            base: &site.base,
            sinkhorn_iterations: config.hc_sinkhorn_iters,
            eps: config.hc_eps,
        };
        work.mixes.resize(rows, None);
        let (streams, projected) = (&work.streams, &work.projected);
        self.compute.pool().run_pieces(&mut work.mixes, 1, |row, mix| {
            let streams = &streams[row * width..(row + 1) * width];
            let reciprocal = 1.0 / (mean_square(&self.compute, streams) + config.rms_norm_eps).sqrt();
            mix[0] = Some(site.mix(&projected[row * outputs..(row + 1) * outputs], reciprocal));
        });
    }

    /// The next sublayer's normalised input, collapsed by the previous site's mix.
    pub(super) fn collapse(&self, norm: &[f32], work: &mut Workspace) {
        let (hidden, count) = (self.config.hidden_size, self.config.hc_mult);
        let width = count * hidden;
        let (streams, pre) = (&work.streams, &work.pre);
        sized(&mut work.collapsed, work.rows.len() * hidden);
        self.compute.pool().run_pieces(&mut work.collapsed, hidden, |row, out| {
            collapse(&streams[row * width..(row + 1) * width], &pre[row * count..(row + 1) * count], out);
        });
        let collapsed = &work.collapsed;
        sized(&mut work.x, collapsed.len());
        self.compute.pool().run_pieces(&mut work.x, hidden, |row, out| {
            let input = &collapsed[row * hidden..(row + 1) * hidden];
            rms_norm(&self.compute, input, norm, self.config.rms_norm_eps, out);
        });
    }

    /// Spreads the sublayer's output over the streams and hands the site's mix on.
    fn expand(&self, work: &mut Workspace) {
        let (hidden, count) = (self.config.hidden_size, self.config.hc_mult);
        let (y, mixes) = (&work.y, &work.mixes);
        self.compute.pool().run_pieces(&mut work.streams, count * hidden, |row, streams| {
            if let Some(mix) = &mixes[row] {
                expand(streams, &y[row * hidden..(row + 1) * hidden], mix);
            }
        });
        for (pre, mix) in work.pre.chunks_exact_mut(count).zip(mixes.iter().flatten()) {
            pre.copy_from_slice(&mix.pre[..count]);
        }
    }

    fn record_selection(&self, layer: usize, work: &Workspace, trace: Option<&mut Trace>) {
        let Some(trace) = trace else { return };
        let Some(index) = self.config.index_sources().position(|(source, _)| source == layer) else { return };
        let list = Trace::list(&mut trace.index_selection, index);
        for row in 0..work.rows.len() {
            let chosen = work.global.selection.of(row);
            list.extend(chosen.iter().map(|&id| id as i32));
            list.extend(std::iter::repeat_n(-1, self.config.index_topk - chosen.len()));
        }
    }

    /// Moves the step's window records of `layers` to the sequences' rings.
    pub(super) fn commit_windows(&self, layers: Range<usize>, work: &Workspace, segments: &mut [Segment]) {
        let size = self.records.window;
        for (segment, span) in segments.iter_mut().zip(&work.spans) {
            for layer in layers.clone() {
                let ring = &mut segment.sequence.windows[layer];
                for offset in span.count.saturating_sub(ring.capacity())..span.count {
                    let start = (layer * work.rows.len() + span.first_row + offset) * size;
                    ring.get_mut(span.start + offset).copy_from_slice(&work.window_records[start..start + size]);
                }
            }
        }
    }

    /// Keeps the halves of groups that the step left incomplete (and those a rollback may return to).
    pub(super) fn commit_pending(&self, work: &Workspace, segments: &mut [Segment]) {
        for (segment, span) in segments.iter_mut().zip(&work.spans) {
            work.global.commit_pending(*span, segment.sequence, self.config.head_dim);
        }
    }

    /// Moves the sequences on by the step's tokens.
    pub(super) fn commit_tokens(&self, work: &Workspace, segments: &mut [Segment]) {
        for (segment, span) in segments.iter_mut().zip(&work.spans) {
            for offset in 0..span.count {
                segment.sequence.set_class(span.start + offset, work.classes[span.first_row + offset]);
            }
            segment.sequence.commit(span.count);
        }
    }

    /// Logits of the positions asked for.
    pub(super) fn head(&self, work: &mut Workspace, segments: &[Segment]) {
        let (config, hidden) = (&self.config, self.config.hidden_size);
        let width = config.hc_mult * hidden;
        let mut wanted = std::mem::take(&mut work.wanted);
        wanted.clear();
        for (span, segment) in work.spans.iter().zip(segments) {
            let skip = match segment.logits {
                LogitsOf::None => span.count,
                LogitsOf::Last => span.count.saturating_sub(1),
                LogitsOf::All => 0,
            };
            wanted.extend(span.first_row + skip..span.first_row + span.count);
        }
        sized(&mut work.collapsed, wanted.len() * hidden);
        sized(&mut work.x, wanted.len() * hidden);
        for (out, &row) in work.collapsed.chunks_exact_mut(hidden).zip(&wanted) {
            let pre = &work.pre[row * config.hc_mult..(row + 1) * config.hc_mult];
            collapse(&work.streams[row * width..(row + 1) * width], pre, out);
        }
        for (out, input) in work.x.chunks_exact_mut(hidden).zip(work.collapsed.chunks_exact(hidden)) {
            rms_norm(&self.compute, input, &self.weights.norm, config.rms_norm_eps, out);
        }
        sized(&mut work.logits, wanted.len() * config.vocab_size);
        if !wanted.is_empty() {
            work.flat.set(&self.compute, &work.x, hidden, Treatment::Float32);
            matmul_one(&self.compute, &self.weights.head, &work.flat, &mut work.logits);
        }
        work.wanted = wanted;
    }
}
