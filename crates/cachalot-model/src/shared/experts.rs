//! Evaluation of routed and shared experts for a chunk of tokens (spec V4.1 section 3.11, V4 likewise).
//!
//! Every expert runs once per chunk, over all tokens routed to it. A token's results are summed in ascending expert
//! id, the shared expert last, so that neither batching nor the order in which experts arrive changes a bit.

use std::sync::Arc;

use cachalot_experts::{Expert, ExpertError, ExpertSource};
use cachalot_kernels::{Activations, Compute, Job, Matrix, Treatment, matmul, swiglu};
use smallvec::SmallVec;

use super::buffer::{sized, split_pieces};
use super::inputs::Inputs;

/// Experts that are held and computed together: enough to keep every core busy, few enough to bound the memory.
const BATCH: usize = 16;

/// Which experts each token goes to.
#[derive(Clone, Debug, Default)]
pub struct Routes {
    /// Experts per token.
    pub top_k: usize,
    /// `[rows, top_k]`, descending by weight.
    pub experts: Vec<u32>,
    /// `[rows, top_k]`, normalised and scaled.
    pub weights: Vec<f32>,
}

/// One layer's experts.
pub struct ExpertLayer<'a> {
    /// Index of the layer, as the source counts.
    pub layer: usize,
    /// Who provides the routed experts.
    pub source: &'a dyn ExpertSource,
    /// Gate and up branch `[width, hidden]` and down `[hidden, width]` of the expert that every token uses.
    pub shared: [&'a Matrix; 3],
    /// Clamp of gate (above) and up (both sides).
    pub limit: f32,
    /// Treatment of the inputs.
    pub treatment: Treatment,
}

/// Reusable buffers of the evaluation.
#[derive(Default)]
pub struct ExpertBuffers {
    /// Per routed pair, ordered by expert, then row.
    pairs: Vec<Pair>,
    /// Where each expert's pairs begin and end.
    groups: Vec<Group>,
    /// Per row its pairs in ascending expert id: `[rows, top_k]`.
    of_row: Vec<u32>,
    rows: Vec<u32>,
    experts: Vec<Arc<Expert>>,
    gathered: Vec<Activations>,
    middle: Vec<Inputs>,
    gate: Vec<f32>,
    up: Vec<f32>,
    activated: Vec<f32>,
    output: Vec<f32>,
    shared: Vec<f32>,
}

#[derive(Clone, Copy)]
struct Pair {
    expert: u32,
    row: u32,
    weight: f32,
}

#[derive(Clone, Copy)]
struct Group {
    expert: u32,
    first: usize,
    count: usize,
}

type Jobs<'a> = SmallVec<[Job<'a>; 2 * BATCH + 2]>;

impl ExpertBuffers {
    /// Adds nothing to, but replaces `out` `[rows, hidden]` by the sum of all experts' results for `inputs`.
    ///
    /// # Errors
    /// If an expert cannot be provided.
    pub fn evaluate(
        &mut self,
        compute: &Compute,
        layer: &ExpertLayer,
        inputs: &Inputs,
        routes: &Routes,
        out: &mut [f32],
    ) -> Result<(), ExpertError> {
        let rows = inputs.plain().tokens();
        let hidden = inputs.plain().cols();
        self.group(routes, rows);
        out.fill(0.0);
        let mut batch = 0;
        while batch < self.groups.len() {
            let end = (batch + BATCH).min(self.groups.len());
            self.run_batch(compute, layer, inputs, batch..end)?;
            self.accumulate(compute, batch..end, routes.top_k, hidden, out);
            batch = end;
        }
        let shared = &self.shared;
        compute.pool().run_pieces(out, hidden, |row, out| {
            out.iter_mut().zip(&shared[row * hidden..]).for_each(|(out, value)| *out += value);
        });
        self.experts.clear();
        Ok(())
    }

    /// Sorts the routed pairs by expert, then row.
    fn group(&mut self, routes: &Routes, rows: usize) {
        let pairs = routes.experts.iter().zip(&routes.weights).enumerate();
        self.pairs.clear();
        self.pairs.extend(pairs.map(|(index, (&expert, &weight))| Pair {
            expert,
            row: (index / routes.top_k) as u32,
            weight,
        }));
        self.pairs.sort_unstable_by_key(|pair| (pair.expert, pair.row));
        self.groups.clear();
        self.rows.clear();
        self.of_row.clear();
        self.of_row.resize(rows * routes.top_k, 0);
        let mut seen: SmallVec<[u32; 64]> = SmallVec::from_elem(0, rows);
        for (index, pair) in self.pairs.iter().enumerate() {
            match self.groups.last_mut() {
                Some(group) if group.expert == pair.expert => group.count += 1,
                _ => self.groups.push(Group { expert: pair.expert, first: index, count: 1 }),
            }
            let row = pair.row as usize;
            self.of_row[row * routes.top_k + seen[row] as usize] = index as u32;
            seen[row] += 1;
            self.rows.push(pair.row);
        }
    }

    /// Computes the experts of `batch` into `output`; with the first batch also the shared expert.
    fn run_batch(
        &mut self,
        compute: &Compute,
        layer: &ExpertLayer,
        inputs: &Inputs,
        batch: std::ops::Range<usize>,
    ) -> Result<(), ExpertError> {
        let groups = &self.groups[batch.clone()];
        let ids: SmallVec<[u32; BATCH]> = groups.iter().map(|group| group.expert).collect();
        layer.source.fetch(layer.layer, &ids, &mut self.experts)?;

        let rows = inputs.plain().tokens();
        let hidden = inputs.plain().cols();
        let width = layer.shared[0].rows();
        let shared_rows = if batch.start == 0 { rows } else { 0 };
        let first = groups.first().map_or(0, |group| group.first);
        let pairs: usize = groups.iter().map(|group| group.count).sum();

        // Every expert's input: all rows as they are, or the rows routed to it.
        self.gathered.resize_with(self.gathered.len().max(groups.len()), Activations::new);
        for (group, gathered) in groups.iter().zip(&mut self.gathered) {
            if group.count != rows {
                gathered.gather(inputs.quantised(), &self.rows[group.first..group.first + group.count]);
            }
        }
        let input = |index: usize| {
            if groups[index].count == rows { inputs.quantised() } else { &self.gathered[index] }
        };

        let counts: SmallVec<[usize; BATCH + 1]> =
            groups.iter().map(|group| group.count).chain([shared_rows]).collect();
        let lengths = |columns: usize| counts.iter().map(move |count| count * columns);
        sized(&mut self.gate, (pairs + shared_rows) * width);
        sized(&mut self.up, (pairs + shared_rows) * width);
        {
            let gates = split_pieces(&mut self.gate, lengths(width));
            let ups = split_pieces(&mut self.up, lengths(width));
            let mut jobs = Jobs::new();
            for (index, (gate, up)) in gates.zip(ups).enumerate() {
                let (w1, w3, input) = match self.experts.get(index) {
                    Some(expert) => (&expert.w1, &expert.w3, input(index)),
                    None => (layer.shared[0], layer.shared[1], inputs.quantised()),
                };
                if !gate.is_empty() {
                    jobs.push(Job::whole(w1, input, gate));
                    jobs.push(Job::whole(w3, input, up));
                }
            }
            matmul(compute, &mut jobs);
        }

        let (gate, up) = (&self.gate, &self.up);
        let weights = &self.pairs[first..first + pairs];
        sized(&mut self.activated, gate.len());
        compute.pool().run_pieces(&mut self.activated, width, |index, out| {
            let weight = weights.get(index).map_or(1.0, |pair| pair.weight);
            let range = index * width..(index + 1) * width;
            swiglu(compute, &gate[range.clone()], &up[range], layer.limit, weight, out);
        });

        self.middle.resize_with(self.middle.len().max(counts.len()), Inputs::default);
        let mut start = 0;
        for (&count, middle) in counts.iter().zip(&mut self.middle) {
            let end = start + count * width;
            middle.set(compute, &self.activated[start..end], width, layer.treatment);
            start = end;
        }
        sized(&mut self.output, pairs * hidden);
        if shared_rows > 0 {
            sized(&mut self.shared, rows * hidden);
        }
        let mut jobs = Jobs::new();
        let outputs = split_pieces(&mut self.output, lengths(hidden).take(groups.len()));
        for ((expert, middle), output) in self.experts.iter().zip(&self.middle).zip(outputs) {
            jobs.push(Job::whole(&expert.w2, middle.quantised(), output));
        }
        if shared_rows > 0 {
            let input = self.middle[groups.len()].quantised();
            jobs.push(Job::whole(layer.shared[2], input, &mut self.shared));
        }
        matmul(compute, &mut jobs);
        Ok(())
    }

    /// Adds the results of `batch` to the rows they belong to.
    fn accumulate(
        &self,
        compute: &Compute,
        batch: std::ops::Range<usize>,
        top_k: usize,
        hidden: usize,
        out: &mut [f32],
    ) {
        let (Some(first), Some(last)) = (self.groups.get(batch.start), self.groups.get(batch.end - 1)) else { return };
        let range = first.first..last.first + last.count;
        compute.pool().run_pieces(out, hidden, |row, out| {
            for &pair in &self.of_row[row * top_k..(row + 1) * top_k] {
                if range.contains(&(pair as usize)) {
                    let start = (pair as usize - range.start) * hidden;
                    out.iter_mut().zip(&self.output[start..]).for_each(|(out, value)| *out += value);
                }
            }
        });
    }
}
