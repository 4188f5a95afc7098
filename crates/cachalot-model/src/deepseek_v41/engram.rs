//! Engram: n-gram rows added to the residual streams behind a gate (spec section 3.10 d to f).

use cachalot_checkpoint::deepseek_v41::EngramTables;
use cachalot_experts::RowError;
use cachalot_kernels::{matmul_one, mean_square};
use cachalot_numerics::math;
use smallvec::SmallVec;

use super::weights::Engram;
use super::{IMAGE_CLASS, Model};
use crate::shared::buffer::{sized, weighted_dot};
use crate::shared::inputs::Inputs;
use crate::state::Sequence;
use crate::step::{Segment, Span, Workspace};
use crate::trace::Trace;

/// Reusable buffers of Engram.
#[derive(Default)]
pub(super) struct EngramBuffers {
    /// Rows of the table, `[rows, columns]`.
    ids: Vec<u64>,
    /// Decoded, `[rows, columns * engram_head_dim]`.
    values: Vec<f32>,
    inputs: Inputs,
    /// `[rows, (S + 1) * hidden]`
    keys: Vec<f32>,
}

/// The class of the token `back` positions before `position`, or none at the start, beyond it or behind an image.
fn class_before(position: usize, back: usize, span: Span, classes: &[u32], sequence: &Sequence) -> Option<u32> {
    let position = position.checked_sub(back)?;
    let class = match position.checked_sub(span.start) {
        Some(offset) => classes[span.first_row + offset],
        None => sequence.class_at(position),
    };
    (class != IMAGE_CLASS).then_some(class)
}

impl Model {
    /// Adds what `engram` remembers to the streams of all rows.
    pub(super) fn engram(
        &self,
        engram: &Engram,
        work: &mut Workspace,
        segments: &[Segment],
        trace: Option<&mut Trace>,
    ) -> Result<(), RowError> {
        let (config, table) = (&self.config, engram.table);
        let Some(tables) = &self.engram_tables else { return Ok(()) };
        if self.ablation.engram {
            // Rows of zeros make a value of zeros: nothing is added, whatever the gate says.
            return Ok(());
        }
        self.hash(tables, table, work, segments);
        let buffers = &mut work.v41.engram;
        if let Some(trace) = trace {
            Trace::list(&mut trace.engram_rows, table).extend(buffers.ids.iter().map(|&id| id as i64));
        }
        let width = tables.columns() * self.trunk.rows.width(table);
        sized(&mut buffers.values, work.rows.len() * width);
        self.trunk.rows.fetch(table, &buffers.ids, &mut buffers.values)?;
        buffers.inputs.set(&self.trunk.compute, &buffers.values, width, self.trunk.dense);
        sized(&mut buffers.keys, work.rows.len() * engram.wkv.rows());
        matmul_one(&self.trunk.compute, &engram.wkv, buffers.inputs.quantised(), &mut buffers.keys);

        let (streams, hidden, eps) = (config.hc_mult, config.hidden_size, config.rms_norm_eps);
        let scale = 1.0 / (hidden as f32).sqrt();
        let (rows, keys) = (&work.rows, &buffers.keys);
        self.trunk.compute.pool().run_pieces(&mut work.streams, streams * hidden, |row, x| {
            if rows[row].image {
                return;
            }
            let (keys, value) =
                keys[row * (streams + 1) * hidden..][..(streams + 1) * hidden].split_at(streams * hidden);
            let weights = engram.gate.chunks_exact(hidden);
            for ((x, key), weight) in x.chunks_exact_mut(hidden).zip(keys.chunks_exact(hidden)).zip(weights) {
                let reciprocal = |values: &[f32]| 1.0 / (mean_square(&self.trunk.compute, values) + eps).sqrt();
                let d = weighted_dot(x, weight, key) * (reciprocal(x) * reciprocal(key)) * scale;
                let gate = math::sigmoid(d.abs().max(1e-6).sqrt().copysign(d));
                x.iter_mut().zip(value).for_each(|(x, value)| *x += gate * value);
            }
        });
        Ok(())
    }

    /// Says which table rows the step will ask for, all at once, so that they are read while the first layers compute.
    pub(super) fn expect_rows(&self, work: &mut Workspace, segments: &[Segment]) {
        let Some(tables) = &self.engram_tables else { return };
        for table in 0..tables.tables().len() {
            self.hash(tables, table, work, segments);
            self.trunk.rows.prefetch(table, &work.v41.engram.ids);
        }
    }

    /// As [`crate::Model::expect`].
    pub(crate) fn expect(&self, work: &mut Workspace, sequence: &Sequence, tokens: &[u32], from: usize) -> usize {
        let Some(tables) = &self.engram_tables else { return self.trunk.expect(work, tokens, from) };
        let rows = &self.trunk.rows;
        // Half of the room: what was expected last is still to be asked for when this is.
        let fit = (0..tables.tables().len()).map(|table| rows.room(table) / tables.columns().max(1) / 2).min();
        let end = fit.map_or(tokens.len(), |fit| tokens.len().min(fit));
        let end = self.trunk.expect(work, &tokens[..end.max(from)], from);
        let buffers = &mut work.v41;
        buffers.classes.clear();
        buffers
            .classes
            .extend(tokens[..end].iter().map(|&token| self.class(token, Some(token) == self.trunk.image_token)));
        let span = Span { first_row: 0, count: end, start: sequence.position() };
        for table in 0..tables.tables().len() {
            let columns = tables.columns();
            let ids = sized(&mut buffers.engram.ids, (end - from) * columns);
            for (offset, ids) in (from..end).zip(ids.chunks_exact_mut(columns)) {
                let position = span.start + offset;
                self.hash_row(tables, table, ids, |back| {
                    class_before(position, back, span, &buffers.classes, sequence)
                });
            }
            rows.prefetch(table, &buffers.engram.ids);
        }
        end
    }

    /// The table rows of every row's n-grams.
    fn hash(&self, tables: &EngramTables, table: usize, work: &mut Workspace, segments: &[Segment]) {
        let ids = sized(&mut work.v41.engram.ids, work.rows.len() * tables.columns());
        for (row, ids) in work.rows.iter().zip(ids.chunks_exact_mut(tables.columns())) {
            let (span, sequence) = (work.spans[row.segment], &segments[row.segment].sequence);
            self.hash_row(tables, table, ids, |back| {
                class_before(row.position, back, span, &work.v41.classes, sequence)
            });
        }
    }

    /// The table rows of one position, whose n-grams end with the classes that `before` finds so many positions back.
    fn hash_row(&self, tables: &EngramTables, table: usize, ids: &mut [u64], before: impl FnMut(usize) -> Option<u32>) {
        let history: SmallVec<[Option<u32>; 16]> = (0..tables.look_back()).map(before).collect();
        tables.hash_rows(table, &history, self.pad_class, ids);
    }

    /// The n-gram class of a token.
    pub(super) fn class(&self, token: u32, image: bool) -> u32 {
        if image { IMAGE_CLASS } else { self.classes.get(token as usize).copied().unwrap_or(0) }
    }
}
