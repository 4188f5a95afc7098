//! Evaluation of routed and shared experts for a chunk of tokens (spec V4.1 section 3.11, V4 likewise).
//!
//! Every expert runs once per chunk, over all tokens routed to it. All are ordered at once; those at hand and the shared
//! expert compute while the others are read, and each computes when it has arrived. A token's results are summed in
//! ascending expert id, the shared expert last, so that neither batching nor the order of arrival changes a bit.

use std::ops::Range;

use cachalot_experts::{Certainty, Delivery, ExpertError, ExpertSource, Wanted};
use cachalot_kernels::{Activations, Compute, Job, Matrix, Treatment, matmul, swiglu};
use smallvec::SmallVec;

use super::buffer::{sized, split_pieces};
use super::inputs::Inputs;

/// Experts whose results are held until their turn to be added: enough to keep every core busy, few enough to bound the
/// memory.
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
    /// Routed experts of a layer.
    pub experts: usize,
    /// Whether the next layer will compute so many rows that nearly all of its experts are needed.
    pub next_needs_all: bool,
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
    wanted: Vec<Wanted>,
    delivery: Delivery,
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
    /// `foresee` is called when all experts have been ordered, if guesses are welcome, and may say which ones the next
    /// layer will want.
    ///
    /// # Errors
    /// If an expert cannot be provided.
    pub fn evaluate(
        &mut self,
        compute: &Compute,
        layer: &ExpertLayer,
        inputs: &Inputs,
        routes: &Routes,
        foresee: &mut dyn FnMut(&dyn ExpertSource),
        out: &mut [f32],
    ) -> Result<(), ExpertError> {
        let rows = inputs.plain().tokens();
        self.group(routes, rows);
        out.fill(0.0);
        self.wanted.clear();
        self.wanted.extend(self.groups.iter().map(|group| Wanted { expert: group.expert, tokens: group.count as u32 }));
        let mut delivery = std::mem::take(&mut self.delivery);
        let outcome = self.run(compute, layer, inputs, routes.top_k, &mut delivery, foresee, out);
        if outcome.is_err() {
            let all = 0..delivery.len();
            layer.source.release(&mut delivery, all);
        }
        self.delivery = delivery;
        outcome
    }

    #[allow(clippy::too_many_arguments, reason = "`evaluate`, between order and release")]
    fn run(
        &mut self,
        compute: &Compute,
        layer: &ExpertLayer,
        inputs: &Inputs,
        top_k: usize,
        delivery: &mut Delivery,
        foresee: &mut dyn FnMut(&dyn ExpertSource),
        out: &mut [f32],
    ) -> Result<(), ExpertError> {
        let (rows, hidden, source) = (inputs.plain().tokens(), inputs.plain().cols(), layer.source);
        source.order(layer.layer, &self.wanted, delivery)?;
        if layer.next_needs_all {
            // Read as room becomes free, while this layer computes.
            source.prefetch(layer.layer + 1, &mut (0..layer.experts as u32), Certainty::Likely);
        } else if rows == 1 && source.guesses() {
            foresee(source);
        }
        let mut shared = true;
        for start in (0..self.groups.len()).step_by(BATCH) {
            let batch = start..(start + BATCH).min(self.groups.len());
            let mut left = batch.len();
            let pairs = self.pairs_of(batch.clone()).len();
            sized(&mut self.output, pairs * hidden);
            while left > 0 {
                let here: SmallVec<[usize; BATCH]> =
                    batch.clone().filter(|place| delivery.arrived(*place).is_some()).collect();
                if here.is_empty() && !shared {
                    source.wait(delivery, batch.clone())?;
                    continue;
                }
                self.compute(compute, layer, inputs, delivery, batch.clone(), &here, std::mem::take(&mut shared));
                for place in &here {
                    source.release(delivery, *place..place + 1);
                }
                left -= here.len();
            }
            self.accumulate(compute, batch, top_k, hidden, out);
        }
        let shared = &self.shared[..rows * hidden];
        compute.pool().run_pieces(out, hidden, |row, out| {
            out.iter_mut().zip(&shared[row * hidden..]).for_each(|(out, value)| *out += value);
        });
        Ok(())
    }

    /// The pairs of neighbouring groups.
    fn pairs_of(&self, groups: Range<usize>) -> Range<usize> {
        match self.groups.get(groups).and_then(|groups| groups.first().zip(groups.last())) {
            Some((first, last)) => first.first..last.first + last.count,
            None => 0..0,
        }
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

    /// Computes the experts `here` of `batch` into their places of `output`; if `shared`, the shared expert too.
    #[allow(clippy::too_many_arguments, reason = "one step of `run`, cut out")]
    fn compute(
        &mut self,
        compute: &Compute,
        layer: &ExpertLayer,
        inputs: &Inputs,
        delivery: &Delivery,
        batch: Range<usize>,
        here: &[usize],
        shared: bool,
    ) {
        let all = self.pairs_of(batch.clone());
        let groups: SmallVec<[Group; BATCH]> = here.iter().map(|place| self.groups[*place]).collect();
        let experts: SmallVec<[_; BATCH]> = here.iter().filter_map(|place| delivery.arrived(*place)).collect();
        let rows = inputs.plain().tokens();
        let hidden = inputs.plain().cols();
        let width = layer.shared[0].rows();
        let shared_rows = if shared { rows } else { 0 };
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
        sized(&mut self.gate, (pairs + shared_rows) * width);
        sized(&mut self.up, (pairs + shared_rows) * width);
        {
            let lengths = || counts.iter().map(|count| count * width);
            let gates = split_pieces(&mut self.gate, lengths());
            let ups = split_pieces(&mut self.up, lengths());
            let mut jobs = Jobs::new();
            for (index, (gate, up)) in gates.zip(ups).enumerate() {
                let (w1, w3, input) = match experts.get(index) {
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
        let weights: SmallVec<[f32; 128]> = groups
            .iter()
            .flat_map(|group| &self.pairs[group.first..group.first + group.count])
            .map(|pair| pair.weight)
            .collect();
        sized(&mut self.activated, gate.len());
        compute.pool().run_pieces(&mut self.activated, width, |index, out| {
            let weight = weights.get(index).copied().unwrap_or(1.0);
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
        if shared_rows > 0 {
            sized(&mut self.shared, rows * hidden);
        }
        let mut jobs = Jobs::new();
        // The whole batch's places, of which those of the experts that are here are filled.
        let lengths = self.groups[batch.clone()].iter().map(|group| group.count * hidden);
        let outputs = split_pieces(&mut self.output[..all.len() * hidden], lengths);
        let mut computed = experts.iter().zip(&self.middle);
        for (place, output) in batch.zip(outputs) {
            if here.contains(&place)
                && let Some((expert, middle)) = computed.next()
            {
                jobs.push(Job::whole(&expert.w2, middle.quantised(), output));
            }
        }
        if shared_rows > 0 {
            let input = self.middle[groups.len()].quantised();
            jobs.push(Job::whole(layer.shared[2], input, &mut self.shared));
        }
        matmul(compute, &mut jobs);
    }

    /// Adds the results of `batch` to the rows they belong to.
    fn accumulate(&self, compute: &Compute, batch: Range<usize>, top_k: usize, hidden: usize, out: &mut [f32]) {
        let range = self.pairs_of(batch);
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
