//! Attention of one layer: query, window and compressed keys, sinks, grouped output (spec sections 3.6 and 3.9).

use cachalot_kernels::{
    AttentionScratch, Compute, Job, attend, decode_fp8, decode_nvfp4, encode_fp8, matmul, matmul_one, rms_norm, rope,
};
use smallvec::SmallVec;

use super::Model;
use super::global::halves_of;
use super::step::{Row, Segment, Span, Workspace};
use crate::shared::buffer::{sized, split_pieces};
use crate::shared::inputs::{Arithmetic, Inputs};

/// Keys that one task decodes when the keys of a single query are shared out.
const KEYS_PER_TASK: usize = 32;

/// Multiplications of one query above which its heads are shared out.
const SHARED_WORK: usize = 1 << 17;

/// Reusable buffers of the attention.
#[derive(Default)]
pub(super) struct AttentionBuffers {
    qa: Vec<f32>,
    pub qr: Vec<f32>,
    pub latent: Inputs,
    q: Vec<f32>,
    kv_raw: Vec<f32>,
    kv: Vec<f32>,
    /// `[rows, heads, head_dim]`
    heads: Vec<f32>,
    /// `[groups, rows, heads / groups * head_dim]`
    grouped: Vec<f32>,
    group_inputs: Vec<Inputs>,
    /// `[groups, rows, o_lora_rank]`
    low_rank: Vec<f32>,
    /// `[rows, groups * o_lora_rank]`
    joined: Vec<f32>,
    output: Inputs,
    lanes: Vec<Lane>,
}

/// What one worker needs to attend for one query.
#[derive(Default)]
struct Lane {
    keys: Vec<f32>,
    scratch: AttentionScratch,
}

/// Where the keys of one query lie: window positions, then selected compressed entries.
struct Keys<'a> {
    record: usize,
    segment: &'a Segment<'a>,
    span: Span,
    layer: usize,
    /// This step's window records of the span.
    fresh: &'a [u8],
    first: usize,
    window: usize,
    source: usize,
    selected: &'a [u32],
}

impl Keys<'_> {
    fn len(&self) -> usize {
        self.window + self.selected.len()
    }

    /// Decodes key `index` into `out` `[head_dim]`.
    fn decode(&self, compute: &Compute, index: usize, out: &mut [f32]) {
        if let Some(chosen) = index.checked_sub(self.window) {
            let entries = &self.segment.sequence.globals[self.source].entries;
            decode_nvfp4(compute, entries.get(self.selected[chosen] as usize), out);
            return;
        }
        let position = self.first + index;
        let record = match position.checked_sub(self.span.start) {
            Some(row) => &self.fresh[row * self.record..(row + 1) * self.record],
            None => self.segment.sequence.windows[self.layer].get(position),
        };
        decode_fp8(compute, record, out);
    }
}

impl Model {
    /// Replaces `work.y` by the attention output for `work.x`, the normalised input of all rows.
    pub(super) fn attention(&self, layer: usize, work: &mut Workspace, segments: &mut [Segment]) {
        self.project_latents(layer, work);
        self.project_heads(layer, work);
        self.write_window(layer, work);
        if self.weights.layers[layer].attention.compressor.is_some() && !work.global.appended {
            self.append_global(layer, work, segments);
        }
        if self.weights.layers[layer].attention.indexer.is_some() {
            self.select(layer, work, segments);
        }
        self.attend_rows(layer, work, segments);
        self.project_output(layer, work);
    }

    /// Everything that reads the sublayer's input itself: one work list.
    pub(super) fn project_latents(&self, layer: usize, work: &mut Workspace) {
        let (config, weights) = (&self.config, &self.weights.layers[layer].attention);
        let rows = work.rows.len();
        work.inputs.set(&self.compute, &work.x, config.hidden_size, self.arithmetic.without_integers());
        let (inputs, buffers) = (&work.inputs, &mut work.attention);
        let mut jobs = SmallVec::<[Job; 5]>::new();
        let mut push = |weight, input, output| jobs.push(Job::whole(weight, input, output));
        push(&weights.wq_a, inputs.quantised(), sized(&mut buffers.qa, rows * config.q_lora_rank));
        push(&weights.wkv, inputs.quantised(), sized(&mut buffers.kv_raw, rows * config.head_dim));
        if let Some(compressor) = &weights.compressor {
            let source = self.source_index(layer);
            let halves = halves_of(&mut work.global.halves, source);
            push(&compressor.wkv, inputs.plain(), sized(&mut halves.values, rows * config.head_dim));
            if let Some(wgate) = &compressor.wgate {
                push(wgate, inputs.plain(), sized(&mut halves.gates, rows * config.head_dim));
            }
        }
        if let Some(indexer) = &weights.indexer {
            push(
                &indexer.weights_proj,
                inputs.plain(),
                sized(&mut work.global.head_weights, rows * config.index_n_heads),
            );
        }
        matmul(&self.compute, &mut jobs);
        drop(jobs);
        sized(&mut buffers.qr, rows * config.q_lora_rank);
        let (qa, rank) = (&buffers.qa, config.q_lora_rank);
        self.compute.pool().run_pieces(&mut buffers.qr, rank, |row, out| {
            rms_norm(&self.compute, &qa[row * rank..(row + 1) * rank], &weights.q_norm, config.rms_norm_eps, out);
        });
        buffers.latent.set(&self.compute, &buffers.qr, rank, self.arithmetic.without_integers());
    }

    /// Query heads and index queries from the query latent, rotated.
    fn project_heads(&self, layer: usize, work: &mut Workspace) {
        let (config, weights) = (&self.config, &self.weights.layers[layer].attention);
        let rows = work.rows.len();
        let buffers = &mut work.attention;
        let input = buffers.latent.quantised();
        let mut jobs = SmallVec::<[Job; 2]>::new();
        let output = sized(&mut buffers.q, rows * config.num_attention_heads * config.head_dim);
        jobs.push(Job::whole(&weights.wq_b, input, output));
        if let Some(indexer) = &weights.indexer {
            let output = sized(&mut work.global.queries, rows * indexer.wq_b.rows());
            jobs.push(Job::whole(&indexer.wq_b, input, output));
        }
        matmul(&self.compute, &mut jobs);
        drop(jobs);
        let (cos, sin) = self.angles(layer, &work.angles);
        let (heads, pairs) = (config.num_attention_heads, config.qk_rope_head_dim / 2);
        let plain = config.head_dim - config.qk_rope_head_dim;
        self.compute.pool().run_pieces(&mut buffers.q, heads * config.head_dim, |row, q| {
            let angles = row * pairs..(row + 1) * pairs;
            for head in q.chunks_exact_mut(config.head_dim) {
                rope(&mut head[plain..], &cos[angles.clone()], &sin[angles.clone()], false);
            }
        });
    }

    /// Normalises, rotates and packs the window key of every row.
    fn write_window(&self, layer: usize, work: &mut Workspace) {
        let (config, weights) = (&self.config, &self.weights.layers[layer].attention);
        let (dim, pairs) = (config.head_dim, config.qk_rope_head_dim / 2);
        let plain = dim - config.qk_rope_head_dim;
        let (cos, sin) = self.angles(layer, &work.angles);
        let buffers = &mut work.attention;
        sized(&mut buffers.kv, buffers.kv_raw.len());
        let raw = &buffers.kv_raw;
        self.compute.pool().run_pieces(&mut buffers.kv, dim, |row, out| {
            rms_norm(&self.compute, &raw[row * dim..(row + 1) * dim], &weights.kv_norm, config.rms_norm_eps, out);
            let angles = row * pairs..(row + 1) * pairs;
            rope(&mut out[plain..], &cos[angles.clone()], &sin[angles], false);
        });
        let size = self.records.window;
        let layer_bytes = work.rows.len() * size;
        let records = &mut work.window_records[layer * layer_bytes..(layer + 1) * layer_bytes];
        let kv = &buffers.kv;
        self.compute.pool().run_pieces(records, size, |row, record| {
            encode_fp8(&self.compute, &kv[row * dim..(row + 1) * dim], record);
        });
    }

    fn attend_rows(&self, layer: usize, work: &mut Workspace, segments: &[Segment]) {
        let (config, sinks) = (&self.config, &self.weights.layers[layer].attention.sinks);
        let (dim, heads) = (config.head_dim, config.num_attention_heads);
        let scale = 1.0 / (dim as f32).sqrt();
        let (cos, sin) = self.angles(layer, &work.angles);
        let pairs = config.qk_rope_head_dim / 2;
        let compute = &self.compute;
        let (rows, spans, records) = (&work.rows, &work.spans, &work.window_records);
        let selection = &work.global.selection;
        let keys_of = |row: usize| self.keys_of(layer, row, rows, spans, records, segments, selection.of(row));
        let unrotate = |row: usize, out: &mut [f32]| {
            let angles = row * pairs..(row + 1) * pairs;
            for head in out.chunks_exact_mut(dim) {
                rope(&mut head[dim - 2 * pairs..], &cos[angles.clone()], &sin[angles.clone()], true);
            }
        };
        let AttentionBuffers { q, heads: out, lanes, .. } = &mut work.attention;
        sized(out, q.len());
        let width = heads * dim;
        lanes.resize_with(compute.pool().threads(), Lane::default);
        let keys_at_most = config.sliding_window + config.index_topk;
        if rows.len() > compute.pool().threads() || width * keys_at_most < SHARED_WORK {
            // Many queries, or little work: one task each.
            let q = &*q;
            compute.pool().run_pieces_with(out, width, lanes, |lane, row, out| {
                let keys = keys_of(row);
                let decoded = sized(&mut lane.keys, keys.len() * dim);
                for (index, key) in decoded.chunks_exact_mut(dim).enumerate() {
                    keys.decode(compute, index, key);
                }
                attend(compute, &q[row * width..(row + 1) * width], decoded, scale, sinks, &mut lane.scratch, out);
                unrotate(row, out);
            });
            return;
        }
        // Few queries: the heads of each are shared out, over keys decoded once.
        let share = heads.div_ceil(lanes.len());
        for row in 0..rows.len() {
            let keys = keys_of(row);
            let mut decoded = std::mem::take(&mut lanes[0].keys);
            sized(&mut decoded, keys.len() * dim);
            compute.pool().run_pieces(&mut decoded, KEYS_PER_TASK * dim, |task, piece| {
                for (index, key) in piece.chunks_exact_mut(dim).enumerate() {
                    keys.decode(compute, task * KEYS_PER_TASK + index, key);
                }
            });
            let q = &q[row * width..(row + 1) * width];
            let out = &mut out[row * width..(row + 1) * width];
            compute.pool().run_pieces_with(out, share * dim, lanes, |lane, task, out| {
                let first = task * share;
                let count = out.len() / dim;
                let q = &q[first * dim..(first + count) * dim];
                attend(compute, q, &decoded, scale, &sinks[first..first + count], &mut lane.scratch, out);
                unrotate(row, out);
            });
            lanes[0].keys = decoded;
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn keys_of<'a>(
        &'a self,
        layer: usize,
        row: usize,
        rows: &[Row],
        spans: &[Span],
        records: &'a [u8],
        segments: &'a [Segment<'a>],
        selected: &'a [u32],
    ) -> Keys<'a> {
        let Row { segment, position, .. } = rows[row];
        let span = spans[segment];
        let size = self.records.window;
        let base = (layer * rows.len() + span.first_row) * size;
        let sequence = &segments[segment].sequence;
        let first = (position + 1).saturating_sub(self.config.sliding_window).max(sequence.window_start[layer]);
        let role = &self.config.layers[layer];
        let (source, selected) = match role.kv_source {
            Some(owner) => (self.source_index(owner), selected),
            None => (0, &[][..]),
        };
        Keys {
            record: size,
            segment: &segments[segment],
            span,
            layer,
            fresh: &records[base..base + span.count * size],
            first,
            window: position + 1 - first,
            source,
            selected,
        }
    }

    /// Grouped low-rank projection of the heads' outputs into `work.y`.
    fn project_output(&self, layer: usize, work: &mut Workspace) {
        let (config, weights) = (&self.config, &self.weights.layers[layer].attention);
        let rows = work.rows.len();
        let (groups, rank) = (config.o_groups, config.o_lora_rank);
        let width = config.num_attention_heads * config.head_dim / groups;
        let buffers = &mut work.attention;
        let heads = &buffers.heads;
        sized(&mut buffers.grouped, heads.len());
        self.compute.pool().run_pieces(&mut buffers.grouped, width, |index, piece| {
            let (group, row) = (index / rows, index % rows);
            piece.copy_from_slice(&heads[(row * groups + group) * width..][..width]);
        });
        // The vendor does not round this input to FP8, unlike those of all other FP8 layers.
        let arithmetic = Arithmetic::Exact;
        buffers.group_inputs.resize_with(groups, Inputs::default);
        for (input, values) in buffers.group_inputs.iter_mut().zip(buffers.grouped.chunks_exact(rows * width)) {
            input.set(&self.compute, values, width, arithmetic);
        }
        sized(&mut buffers.low_rank, groups * rows * rank);
        let mut jobs = SmallVec::<[Job; 16]>::new();
        let outputs = split_pieces(&mut buffers.low_rank, std::iter::repeat_n(rows * rank, groups));
        for (group, (input, output)) in buffers.group_inputs.iter().zip(outputs).enumerate() {
            jobs.push(Job::new(&weights.wo_a, group * rank..(group + 1) * rank, input.quantised(), output));
        }
        matmul(&self.compute, &mut jobs);
        drop(jobs);
        sized(&mut buffers.joined, rows * groups * rank);
        for (group, values) in buffers.low_rank.chunks_exact(rows * rank).enumerate() {
            for (row, values) in values.chunks_exact(rank).enumerate() {
                buffers.joined[(row * groups + group) * rank..][..rank].copy_from_slice(values);
            }
        }
        buffers.output.set(&self.compute, &buffers.joined, groups * rank, self.arithmetic.without_integers());
        let output = sized(&mut work.y, rows * config.hidden_size);
        matmul_one(&self.compute, &weights.wo_b, buffers.output.quantised(), output);
    }
}
