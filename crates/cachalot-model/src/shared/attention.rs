//! Attention of one layer: query, window keys, attention over window and compressed keys with sinks, grouped output
//! (spec V4 section 3.5, V4.1 sections 3.6 and 3.9).
//!
//! Which compressed entries a query sees is the architecture's business; it says so with [`Entries`].

use cachalot_kernels::{
    AttentionScratch, Compute, Job, Matrix, Treatment, attend, matmul, matmul_one, mean_square, rms_norm, rope,
};
use smallvec::SmallVec;

use super::buffer::{sized, split_pieces};
use super::codec::Codec;
use super::inputs::Inputs;
use super::records::{RecordPages, RecordRing};
use super::trunk::Trunk;
use super::weights::Attention;
use crate::step::{Angles, Row, Segment, Span, Workspace};

/// Keys that one task decodes when the keys of a single query are shared out.
const KEYS_PER_TASK: usize = 32;

/// Multiplications of one query above which its heads are shared out.
const SHARED_WORK: usize = 1 << 17;

/// Products of one input.
pub type Jobs<'a> = SmallVec<[Job<'a>; 8]>;

/// Reusable buffers of the attention.
#[derive(Default)]
pub struct AttentionBuffers {
    qa: Vec<f32>,
    qr: Vec<f32>,
    latent: Inputs,
    q: Vec<f32>,
    kv_raw: Vec<f32>,
    kv: Vec<f32>,
    /// Window records, `[rows, record]`.
    packed: Vec<u8>,
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

/// The compressed entries that one query sees.
pub enum Entries<'a> {
    /// None.
    None,
    /// The ones listed.
    Listed(&'a RecordPages, &'a [u32]),
    /// So many from the first on.
    First(&'a RecordPages, usize),
}

impl Entries<'_> {
    fn len(&self) -> usize {
        match self {
            Self::None => 0,
            Self::Listed(_, list) => list.len(),
            Self::First(_, count) => *count,
        }
    }

    fn get(&self, index: usize) -> &[u8] {
        match self {
            Self::None => &[],
            Self::Listed(pages, list) => pages.get(list[index] as usize),
            Self::First(pages, _) => pages.get(index),
        }
    }
}

/// Where the keys of one query lie: window positions, then compressed entries.
struct Keys<'a> {
    codecs: [Codec; 2],
    ring: &'a RecordRing<u8>,
    /// This step's window records of the query's segment, the first at position `start`.
    fresh: &'a [u8],
    start: usize,
    record: usize,
    first: usize,
    window: usize,
    entries: Entries<'a>,
}

impl Keys<'_> {
    fn len(&self) -> usize {
        self.window + self.entries.len()
    }

    /// Decodes key `index` into `out` `[head_dim]`.
    fn decode(&self, compute: &Compute, index: usize, out: &mut [f32]) {
        if let Some(chosen) = index.checked_sub(self.window) {
            self.codecs[1].decode(compute, self.entries.get(chosen), out);
            return;
        }
        let position = self.first + index;
        let record = match position.checked_sub(self.start) {
            Some(row) => &self.fresh[row * self.record..(row + 1) * self.record],
            None => self.ring.get(position),
        };
        self.codecs[0].decode(compute, record, out);
    }
}

/// Products of the sublayer's input that every layer makes; the architecture adds its own to the list.
pub fn latent_jobs<'a>(weights: &'a Attention, inputs: &'a Inputs, buffers: &'a mut AttentionBuffers) -> Jobs<'a> {
    let rows = inputs.plain().tokens();
    let mut jobs = Jobs::new();
    let qa = sized(&mut buffers.qa, rows * weights.wq_a.rows());
    jobs.push(Job::whole(&weights.wq_a, inputs.quantised(), qa));
    let kv = sized(&mut buffers.kv_raw, rows * weights.wkv.rows());
    jobs.push(Job::whole(&weights.wkv, inputs.quantised(), kv));
    jobs
}

/// One step's view of one layer, from which a query's keys are found.
pub struct Step<'a> {
    pub layer: usize,
    pub rows: &'a [Row],
    pub spans: &'a [Span],
    /// Window records of the layer, by slot.
    pub window_records: &'a [u8],
    pub segments: &'a [Segment<'a>],
    pub angles: &'a Angles,
    /// Form of the compressed entries.
    pub entry: Codec,
    /// Most entries that a query sees.
    pub entries_at_most: usize,
}

impl Trunk {
    /// Normalises the query latent; query heads and index queries are made from it.
    pub fn normalise_latent(&self, weights: &Attention, buffers: &mut AttentionBuffers) {
        let rank = self.config.q_lora_rank;
        let AttentionBuffers { qa, qr, latent, .. } = buffers;
        sized(qr, qa.len());
        self.compute.pool().run_pieces(qr, rank, |row, out| {
            rms_norm(&self.compute, &qa[row * rank..(row + 1) * rank], &weights.q_norm, self.config.rms_norm_eps, out);
        });
        latent.set(&self.compute, qr, rank, self.dense);
    }

    /// Query heads from the query latent, and index queries where there is an indexer (`index`: its `wq_b`, and where
    /// they go). Heads are not yet rotated.
    pub fn project_heads(
        &self,
        weights: &Attention,
        buffers: &mut AttentionBuffers,
        index: Option<(&Matrix, &mut Vec<f32>)>,
    ) {
        let input = buffers.latent.quantised();
        let rows = input.tokens();
        let mut jobs = Jobs::new();
        jobs.push(Job::whole(&weights.wq_b, input, sized(&mut buffers.q, rows * weights.wq_b.rows())));
        if let Some((wq_b, queries)) = index {
            jobs.push(Job::whole(wq_b, input, sized(queries, rows * wq_b.rows())));
        }
        matmul(&self.compute, &mut jobs);
    }

    /// Rotates the query heads; `normalise` divides each by its root mean square first (V4).
    pub fn rotate_heads(&self, angles: &Angles, normalise: bool, buffers: &mut AttentionBuffers) {
        let dim = self.config.head_dim;
        let plain = dim - self.config.qk_rope_head_dim;
        self.compute.pool().run_pieces(&mut buffers.q, self.config.num_attention_heads * dim, |row, q| {
            let (cos, sin) = angles.of(row);
            for head in q.chunks_exact_mut(dim) {
                if normalise {
                    let reciprocal = 1.0 / (mean_square(&self.compute, head) + self.config.rms_norm_eps).sqrt();
                    head.iter_mut().for_each(|value| *value *= reciprocal);
                }
                rope(&mut head[plain..], cos, sin, false);
            }
        });
    }

    /// Normalises, rotates and packs the window key of every row, into its slot of the layer's `records`.
    pub fn write_window(
        &self,
        weights: &Attention,
        angles: &Angles,
        buffers: &mut AttentionBuffers,
        rows: &[Row],
        records: &mut [u8],
    ) {
        let dim = self.config.head_dim;
        let plain = dim - self.config.qk_rope_head_dim;
        let AttentionBuffers { kv_raw, kv, packed, .. } = buffers;
        sized(kv, kv_raw.len());
        self.compute.pool().run_pieces(kv, dim, |row, out| {
            let raw = &kv_raw[row * dim..(row + 1) * dim];
            rms_norm(&self.compute, raw, &weights.kv_norm, self.config.rms_norm_eps, out);
            let (cos, sin) = angles.of(row);
            rope(&mut out[plain..], cos, sin, false);
        });
        let size = self.window_record();
        sized(packed, rows.len() * size);
        self.compute.pool().run_pieces(packed, size, |row, record| {
            self.window.encode(&self.compute, &kv[row * dim..(row + 1) * dim], record);
        });
        for (row, record) in rows.iter().zip(packed.chunks_exact(size)) {
            records[row.slot * size..][..size].copy_from_slice(record);
        }
    }

    /// Attends for every row, over its window and the entries that `entries_of` says, and rotates the result back.
    pub fn attend<'a>(
        &self,
        step: &Step<'a>,
        sinks: &[f32],
        buffers: &mut AttentionBuffers,
        entries_of: impl Fn(usize) -> Entries<'a> + Sync,
    ) {
        let (dim, heads, rotary) =
            (self.config.head_dim, self.config.num_attention_heads, self.config.qk_rope_head_dim);
        let (compute, pool) = (&self.compute, self.compute.pool());
        let scale = 1.0 / (dim as f32).sqrt();
        let keys_of = |row: usize| self.keys_of(step, row, entries_of(row));
        let unrotate = |row: usize, out: &mut [f32]| {
            let (cos, sin) = step.angles.of(row);
            for head in out.chunks_exact_mut(dim) {
                rope(&mut head[dim - rotary..], cos, sin, true);
            }
        };
        let AttentionBuffers { q, heads: out, lanes, .. } = buffers;
        sized(out, q.len());
        let width = heads * dim;
        lanes.resize_with(pool.threads(), Lane::default);
        let keys_at_most = self.config.sliding_window + step.entries_at_most;
        if step.rows.len() > pool.threads() || width * keys_at_most < SHARED_WORK {
            // Many queries, or little work: one task each.
            let q = &*q;
            pool.run_pieces_with(out, width, lanes, |lane, row, out| {
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
        for row in 0..step.rows.len() {
            let keys = keys_of(row);
            let mut decoded = std::mem::take(&mut lanes[0].keys);
            sized(&mut decoded, keys.len() * dim);
            pool.run_pieces(&mut decoded, KEYS_PER_TASK * dim, |task, piece| {
                for (index, key) in piece.chunks_exact_mut(dim).enumerate() {
                    keys.decode(compute, task * KEYS_PER_TASK + index, key);
                }
            });
            let q = &q[row * width..(row + 1) * width];
            let out = &mut out[row * width..(row + 1) * width];
            pool.run_pieces_with(out, share * dim, lanes, |lane, task, out| {
                let first = task * share;
                let count = out.len() / dim;
                let q = &q[first * dim..(first + count) * dim];
                attend(compute, q, &decoded, scale, &sinks[first..first + count], &mut lane.scratch, out);
                unrotate(row, out);
            });
            lanes[0].keys = decoded;
        }
    }

    fn keys_of<'a>(&self, step: &Step<'a>, row: usize, entries: Entries<'a>) -> Keys<'a> {
        let Row { segment, position, .. } = step.rows[row];
        let (span, sequence) = (step.spans[segment], &*step.segments[segment].sequence);
        let record = self.window_record();
        let base = span.first_row * record;
        let first = self.window_from(step.layer, position, sequence);
        Keys {
            codecs: [self.window, step.entry],
            ring: &sequence.windows[step.layer],
            fresh: &step.window_records[base..base + span.count * record],
            start: span.start,
            record,
            first,
            window: position + 1 - first,
            entries,
        }
    }

    /// Grouped low-rank projection of the heads' outputs into `work.y`.
    pub fn project_output(&self, weights: &Attention, work: &mut Workspace) {
        let rows = work.rows.len();
        let (groups, rank) = (self.config.o_groups, self.config.o_lora_rank);
        let width = self.config.num_attention_heads * self.config.head_dim / groups;
        let buffers = &mut work.attention;
        let heads = &buffers.heads;
        sized(&mut buffers.grouped, heads.len());
        self.compute.pool().run_pieces(&mut buffers.grouped, width, |index, piece| {
            let (group, row) = (index / rows, index % rows);
            piece.copy_from_slice(&heads[(row * groups + group) * width..][..width]);
        });
        // The vendor does not round this input to FP8, unlike those of all other FP8 layers.
        buffers.group_inputs.resize_with(groups, Inputs::default);
        for (input, values) in buffers.group_inputs.iter_mut().zip(buffers.grouped.chunks_exact(rows * width)) {
            input.set(&self.compute, values, width, Treatment::Float32);
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
        buffers.output.set(&self.compute, &buffers.joined, groups * rank, self.dense);
        let output = sized(&mut work.y, rows * self.config.hidden_size);
        matmul_one(&self.compute, &weights.wo_b, buffers.output.quantised(), output);
    }
}
