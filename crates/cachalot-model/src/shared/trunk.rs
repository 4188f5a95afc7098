//! What the layers are strung on: the rows of a step, the residual streams, the window rings, the head's norm.
//!
//! Owns the parts of a step that read and write the same way in both generations; the order in which they follow each
//! other is the architecture's (its `forward.rs`).

use std::ops::Range;
use std::sync::Arc;

use cachalot_checkpoint::{CheckpointError, family};
use cachalot_experts::RowSource;
use cachalot_kernels::{Compute, Matrix, Treatment, matmul_one, mean_square, rms_norm};

use super::buffer::sized;
use super::codec::Codec;
use super::hyper_connections::{Site, collapse, expand};
use super::inputs::Arithmetic;
use super::rope::RopeTable;
use super::weights::{HyperConnection, Reader};
use crate::error::StepError;
use crate::load::Parts;
use crate::state::Sequence;
use crate::step::{LogitsOf, Row, Segment, Span, Workspace};

/// Everything of a model but its layers.
pub struct Trunk {
    /// Dimensions and constants, under the config's names.
    pub config: family::Trunk,
    /// The token of every position of an image span.
    pub image_token: Option<u32>,
    pub compute: Compute,
    pub arithmetic: Arithmetic,
    /// How inputs that routed experts read are treated.
    pub routed: Treatment,
    /// How all other inputs of quantised layers are: no FP4 weight reads them, so integers would be made for nobody.
    pub dense: Treatment,
    pub rows: Arc<dyn RowSource>,
    /// Number of the embedding among the row source's tables.
    pub embedding: usize,
    /// For layers without compressed entries, and for those with them.
    pub ropes: [RopeTable; 2],
    /// Form of the window keys.
    pub window: Codec,
    /// `[hidden]`
    pub norm: Vec<f32>,
    /// `[vocabulary, hidden]`
    pub head: Matrix,
}

impl Trunk {
    /// Reads norm and head; `block` values of an input share a scale in the vendor's kernels, and `embedding` is the embedding's number among the row source's tables.
    pub fn read(
        reader: &mut Reader,
        config: &family::Trunk,
        parts: &Parts,
        window: Codec,
        block: usize,
        embedding: usize,
    ) -> Result<Self, CheckpointError> {
        let rotary = config.qk_rope_head_dim;
        Ok(Self {
            compute: parts.compute.clone(),
            arithmetic: parts.arithmetic,
            routed: parts.arithmetic.treatment(block),
            dense: match parts.arithmetic.treatment(block) {
                Treatment::Int16 => Treatment::Float32,
                treatment => treatment,
            },
            rows: Arc::clone(&parts.rows),
            embedding,
            ropes: [
                RopeTable::new(rotary, config.rope_theta, None),
                RopeTable::new(rotary, config.compress_rope_theta, config.rope_scaling.as_ref()),
            ],
            window,
            norm: reader.vector("norm.weight")?,
            head: reader.matrix("head")?,
            image_token: None,
            config: config.clone(),
        })
    }

    /// Bytes of a window record.
    pub fn window_record(&self) -> usize {
        self.window.bytes(self.config.head_dim)
    }

    /// Refuses tokens that the model does not have, and sequences that would outgrow it.
    pub fn check(&self, segments: &[Segment]) -> Result<(), StepError> {
        let (vocabulary, limit) = (self.config.vocab_size, self.config.max_position_embeddings);
        for segment in segments {
            let (have, more) = (segment.sequence.position(), segment.tokens.len());
            if have + more > limit {
                return Err(StepError::TooLong { have, more, limit });
            }
            for (index, &token) in segment.tokens.iter().enumerate() {
                if token as usize >= vocabulary {
                    return Err(StepError::UnknownToken { token, index, vocabulary });
                }
                if Some(token) == self.image_token && segment.embeddings.is_none() {
                    return Err(StepError::ImageWithoutEmbedding { token, index });
                }
            }
        }
        Ok(())
    }

    /// Lays out the rows of this step and their rotary angles.
    pub fn begin(&self, work: &mut Workspace, segments: &[Segment]) {
        work.rows.clear();
        work.spans.clear();
        for (index, segment) in segments.iter().enumerate() {
            let start = segment.sequence.position();
            work.spans.push(Span { first_row: work.rows.len(), count: segment.tokens.len(), start });
            for (offset, &token) in segment.tokens.iter().enumerate() {
                let image = Some(token) == self.image_token;
                work.rows.push(Row { segment: index, slot: work.rows.len(), position: start + offset, token, image });
            }
        }
        for (angles, table) in work.angles.iter_mut().zip(&self.ropes) {
            let pairs = table.pairs();
            angles.pairs = pairs;
            sized(&mut angles.cos, work.rows.len() * pairs);
            sized(&mut angles.sin, work.rows.len() * pairs);
            for ((row, cos), sin) in
                work.rows.iter().zip(angles.cos.chunks_exact_mut(pairs)).zip(angles.sin.chunks_exact_mut(pairs))
            {
                table.angles(row.position, cos, sin);
            }
        }
        work.window_records.begin(self.config.num_hidden_layers, work.rows.len(), self.window_record());
    }

    /// Has the embeddings of `tokens[from..]` read beforehand, as far as there is room; returns where it ended.
    pub fn expect(&self, work: &mut Workspace, tokens: &[u32], from: usize) -> usize {
        let end = tokens.len().min(self.rows.room(self.embedding) / 2).max(from);
        work.ids.clear();
        work.ids.extend(tokens[from..end].iter().map(|&token| u64::from(token)));
        self.rows.prefetch(self.embedding, &work.ids);
        end
    }

    /// Token embeddings (or an image's rows) copied to all streams.
    pub fn embed(&self, work: &mut Workspace, segments: &[Segment]) -> Result<(), StepError> {
        let (hidden, streams) = (self.config.hidden_size, self.config.hc_mult);
        let ids = &mut work.ids;
        ids.clear();
        ids.extend(segments.iter().flat_map(|segment| segment.tokens).map(|&token| u64::from(token)));
        sized(&mut work.x, ids.len() * hidden);
        self.rows.fetch(self.embedding, ids, &mut work.x)?;
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
        Ok(())
    }

    /// `function` times the flattened streams of every row, into `work.projected`, and nothing else: the reciprocal of
    /// the streams' root mean square is still to be multiplied.
    fn project_streams(&self, function: &Matrix, work: &mut Workspace) {
        let width = self.config.hc_mult * self.config.hidden_size;
        work.flat.set(&self.compute, &work.streams, width, Treatment::Float32);
        sized(&mut work.projected, work.rows.len() * function.rows());
        matmul_one(&self.compute, function, &work.flat, &mut work.projected);
    }

    /// One over the root mean square of one row's flattened streams.
    fn reciprocal_rms(&self, streams: &[f32]) -> f32 {
        1.0 / (mean_square(&self.compute, streams) + self.config.rms_norm_eps).sqrt()
    }

    /// A site's coefficients of every row, from the streams as they are.
    pub fn mix(&self, site: &HyperConnection, work: &mut Workspace) {
        let (streams, hidden) = (self.config.hc_mult, self.config.hidden_size);
        self.project_streams(&site.function, work);
        let (width, outputs) = (streams * hidden, site.function.rows());
        let site = Site {
            streams,
            scale: &site.scale,
            base: &site.base,
            sinkhorn_iterations: self.config.hc_sinkhorn_iters,
            eps: self.config.hc_eps,
        };
        work.mixes.resize(work.rows.len(), None);
        let (streams, projected) = (&work.streams, &work.projected);
        self.compute.pool().run_pieces(&mut work.mixes, 1, |row, mix| {
            let reciprocal = self.reciprocal_rms(&streams[row * width..(row + 1) * width]);
            mix[0] = Some(site.mix(&projected[row * outputs..(row + 1) * outputs], reciprocal));
        });
    }

    /// Lets the current site's mixes collapse the streams from here on.
    pub fn hand_over(&self, work: &mut Workspace) {
        let count = self.config.hc_mult;
        work.pre.clear();
        for mix in work.mixes[..work.rows.len()].iter().flatten() {
            work.pre.extend_from_slice(&mix.pre[..count]);
        }
    }

    /// The head's weights of every row's streams, where the model predicts them (V4 section 3.3, `hc_head`).
    pub fn mix_head(&self, head: &HyperConnection, work: &mut Workspace) {
        let (streams, eps) = (self.config.hc_mult, self.config.hc_eps);
        self.project_streams(&head.function, work);
        let width = streams * self.config.hidden_size;
        sized(&mut work.pre, work.rows.len() * streams);
        let rows = work.pre.chunks_exact_mut(streams).zip(work.projected.chunks_exact(streams));
        for ((pre, projected), streams) in rows.zip(work.streams.chunks_exact(width)) {
            let site = Site { streams: pre.len(), scale: &head.scale, base: &head.base, sinkhorn_iterations: 0, eps };
            site.pre(projected, self.reciprocal_rms(streams), pre);
        }
    }

    /// The next sublayer's normalised input, collapsed by `work.pre`.
    pub fn collapse(&self, norm: &[f32], work: &mut Workspace) {
        let (count, hidden, eps) = (self.config.hc_mult, self.config.hidden_size, self.config.rms_norm_eps);
        let width = count * hidden;
        let (streams, pre) = (&work.streams, &work.pre);
        sized(&mut work.collapsed, work.rows.len() * hidden);
        self.compute.pool().run_pieces(&mut work.collapsed, hidden, |row, out| {
            collapse(&streams[row * width..(row + 1) * width], &pre[row * count..(row + 1) * count], out);
        });
        let collapsed = &work.collapsed;
        sized(&mut work.x, collapsed.len());
        self.compute.pool().run_pieces(&mut work.x, hidden, |row, out| {
            rms_norm(&self.compute, &collapsed[row * hidden..(row + 1) * hidden], norm, eps, out);
        });
    }

    /// Spreads the sublayer's output `work.y` over the streams.
    pub fn expand(&self, work: &mut Workspace) {
        let (count, hidden) = (self.config.hc_mult, self.config.hidden_size);
        let (y, mixes) = (&work.y, &work.mixes);
        self.compute.pool().run_pieces(&mut work.streams, count * hidden, |row, streams| {
            if let Some(mix) = &mixes[row] {
                expand(streams, &y[row * hidden..(row + 1) * hidden], mix);
            }
        });
    }

    /// Takes back what a failed step appended; nothing else was touched.
    pub fn undo(&self, segments: &mut [Segment]) {
        segments.iter_mut().for_each(|segment| segment.sequence.cut_off());
    }

    /// Moves the step's window records to the sequences' rings: of each layer and segment those of the `written` last
    /// rows.
    pub fn commit_windows(
        &self,
        work: &Workspace,
        segments: &mut [Segment],
        written: impl Fn(usize, &Segment, &Span) -> usize,
    ) {
        let size = self.window_record();
        for (segment, span) in segments.iter_mut().zip(&work.spans) {
            for layer in 0..self.config.num_hidden_layers {
                let records = work.window_records.of(layer);
                let written = written(layer, segment, span);
                let ring = &mut segment.sequence.windows[layer];
                for offset in span.count - written.min(span.count).min(ring.capacity())..span.count {
                    let start = (span.first_row + offset) * size;
                    ring.get_mut(span.start + offset).copy_from_slice(&records[start..start + size]);
                }
            }
        }
    }

    /// Ends a step: collapses by `work.pre` and normalises the streams of the positions whose logits are wanted, which
    /// become `work.x`.
    pub fn end(&self, work: &mut Workspace, segments: &[Segment]) {
        let (count, hidden, eps) = (self.config.hc_mult, self.config.hidden_size, self.config.rms_norm_eps);
        let width = count * hidden;
        let mut wanted = std::mem::take(&mut work.wanted);
        wanted.clear();
        let rows = work.rows.iter().enumerate();
        let rows = rows.filter(|(_, row)| match segments[row.segment].logits {
            LogitsOf::None | LogitsOf::Later(_) => false,
            LogitsOf::Last => row.position + 1 == work.spans[row.segment].end(),
            LogitsOf::All => true,
        });
        wanted.extend(rows.map(|(index, _)| index));
        sized(&mut work.collapsed, wanted.len() * hidden);
        sized(&mut work.x, wanted.len() * hidden);
        for (out, &row) in work.collapsed.chunks_exact_mut(hidden).zip(&wanted) {
            let pre = &work.pre[row * count..(row + 1) * count];
            collapse(&work.streams[row * width..(row + 1) * width], pre, out);
        }
        for (out, input) in work.x.chunks_exact_mut(hidden).zip(work.collapsed.chunks_exact(hidden)) {
            rms_norm(&self.compute, input, &self.norm, eps, out);
        }
        work.wanted = wanted;
    }

    /// Logits of these positions among those that the step which ended wanted.
    pub fn logits(&self, work: &mut Workspace, positions: Range<usize>) {
        let hidden = self.config.hidden_size;
        sized(&mut work.logits, positions.len() * self.config.vocab_size);
        if !positions.is_empty() {
            let x = &work.x[positions.start * hidden..positions.end * hidden];
            work.flat.set(&self.compute, x, hidden, Treatment::Float32);
            matmul_one(&self.compute, &self.head, &work.flat, &mut work.logits);
        }
    }

    /// First position of `layer`'s window that a query at `position` sees.
    pub fn window_from(&self, layer: usize, position: usize, sequence: &Sequence) -> usize {
        (position + 1).saturating_sub(self.config.sliding_window).max(sequence.window_start[layer])
    }
}
