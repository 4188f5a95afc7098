//! Manifold-constrained hyper-connections: how a sublayer reads from and writes to the parallel residual streams
//! (spec V4 section 3.3, V4.1 section 3.5).
//!
//! This file owns the arithmetic on one token; which site's mix is used where is the architecture's business.

use cachalot_numerics::math;

/// Most streams a config may ask for; the release has 4.
pub const MAX_STREAMS: usize = 16;

/// The coefficients of one site for one token.
#[derive(Clone, Copy, Debug)]
pub struct Mix {
    /// Weights that collapse the streams to a sublayer's input.
    pub pre: [f32; MAX_STREAMS],
    /// Weights that spread a sublayer's output over the streams.
    pub post: [f32; MAX_STREAMS],
    /// `comb[j][k]`: how much of stream `j` goes on in stream `k`.
    pub comb: [[f32; MAX_STREAMS]; MAX_STREAMS],
}

/// Parameters of the coefficient predictor that all tokens share.
#[derive(Clone, Copy, Debug)]
pub struct Site<'a> {
    /// Residual streams.
    pub streams: usize,
    /// Scales of the three groups pre, post, comb: `[3]`.
    pub scale: &'a [f32],
    /// Offsets: `[2 * streams + streams^2]`.
    pub base: &'a [f32],
    /// Rounds of the Sinkhorn projection.
    pub sinkhorn_iterations: usize,
    /// Added where a division or a gate must not reach zero.
    pub eps: f32,
}

impl Site<'_> {
    /// Coefficients of one token from `projected` (`hc_fn` times the flattened streams, `[2 * streams + streams^2]`)
    /// and `reciprocal_rms` of those streams (steps 3 to 7).
    pub fn mix(&self, projected: &[f32], reciprocal_rms: f32) -> Mix {
        let s = self.streams;
        let value =
            |index: usize, group: usize| projected[index] * reciprocal_rms * self.scale[group] + self.base[index];
        let mut mix =
            Mix { pre: [0.0; MAX_STREAMS], post: [0.0; MAX_STREAMS], comb: [[0.0; MAX_STREAMS]; MAX_STREAMS] };
        self.pre(projected, reciprocal_rms, &mut mix.pre[..s]);
        for stream in 0..s {
            mix.post[stream] = 2.0 * math::sigmoid(value(s + stream, 1));
        }
        for j in 0..s {
            for k in 0..s {
                mix.comb[j][k] = value(2 * s + j * s + k, 2);
            }
        }
        self.project(&mut mix.comb);
        mix
    }

    /// The first group alone: weights that collapse the streams, of one token.
    pub fn pre(&self, projected: &[f32], reciprocal_rms: f32, pre: &mut [f32]) {
        for ((pre, projected), base) in pre.iter_mut().zip(projected).zip(self.base) {
            *pre = math::sigmoid(projected * reciprocal_rms * self.scale[0] + base) + self.eps;
        }
    }

    /// Row softmax, then Sinkhorn rounds that begin and end with the columns (steps 6 and 7).
    fn project(&self, comb: &mut [[f32; MAX_STREAMS]; MAX_STREAMS]) {
        let s = self.streams;
        for row in comb.iter_mut().take(s) {
            let row = &mut row[..s];
            let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            row.iter_mut().for_each(|value| *value = math::exp(*value - max));
            let sum: f32 = row.iter().sum();
            row.iter_mut().for_each(|value| *value = *value / sum + self.eps);
        }
        for round in 0..self.sinkhorn_iterations {
            if round > 0 {
                for row in comb.iter_mut().take(s) {
                    let sum: f32 = row[..s].iter().sum::<f32>() + self.eps;
                    row[..s].iter_mut().for_each(|value| *value /= sum);
                }
            }
            (0..s).for_each(|k| {
                let sum: f32 = comb[..s].iter().map(|row| row[k]).sum::<f32>() + self.eps;
                comb[..s].iter_mut().for_each(|row| row[k] /= sum);
            });
        }
    }
}

/// `out[d] = sum over s of pre[s] * streams[s][d]`; `streams` is `[S, D]`, `out` `[D]`.
pub fn collapse(streams: &[f32], pre: &[f32], out: &mut [f32]) {
    let dim = out.len();
    out.iter_mut().zip(&streams[..dim]).for_each(|(out, value)| *out = pre[0] * value);
    for (weight, stream) in pre.iter().zip(streams.chunks_exact(dim)).skip(1) {
        out.iter_mut().zip(stream).for_each(|(out, value)| *out += weight * value);
    }
}

/// Columns that [`expand`] treats together: whole vectors, and little enough for the nearest cache.
const COLUMNS: usize = 16;

/// Replaces the streams `[S, D]` by `post[k] * output + sum over j of comb[j][k] * streams[j]` (for each `k`).
pub fn expand(streams: &mut [f32], output: &[f32], mix: &Mix) {
    let dim = output.len();
    let count = streams.len() / dim;
    let mut old = [[0.0; COLUMNS]; MAX_STREAMS];
    for (block, y) in output.chunks(COLUMNS).enumerate() {
        let start = block * COLUMNS;
        for (old, stream) in old.iter_mut().zip(streams.chunks_exact(dim)) {
            old[..y.len()].copy_from_slice(&stream[start..start + y.len()]);
        }
        for (k, stream) in streams.chunks_exact_mut(dim).enumerate() {
            let mut sums = old[0].map(|value| mix.comb[0][k] * value);
            for (old, comb) in old[1..count].iter().zip(&mix.comb[1..]) {
                sums.iter_mut().zip(old).for_each(|(sum, value)| *sum += comb[k] * value);
            }
            let out = &mut stream[start..start + y.len()];
            out.iter_mut().zip(y).zip(sums).for_each(|((out, y), sum)| *out = mix.post[k] * y + sum);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn site<'a>(scale: &'a [f32], base: &'a [f32]) -> Site<'a> {
        Site { streams: 4, scale, base, sinkhorn_iterations: 20, eps: 1e-6 }
    }

    #[test]
    fn columns_of_the_mixing_matrix_sum_to_one() {
        let projected: Vec<f32> = (0..24).map(|index| (index as f32 * 0.37).sin() * 3.0).collect();
        let base: Vec<f32> = (0..24).map(|index| index as f32 * 0.1 - 1.0).collect();
        let mix = site(&[0.5, 0.7, 1.1], &base).mix(&projected, 0.9);
        for k in 0..4 {
            let column: f32 = (0..4).map(|j| mix.comb[j][k]).sum();
            assert!((column - 1.0).abs() < 1e-5, "column {k} sums to {column}");
            let row: f32 = mix.comb[k][..4].iter().sum();
            assert!((row - 1.0).abs() < 1e-3, "row {k} sums to {row}");
        }
        assert!(mix.pre[..4].iter().all(|&pre| pre > 0.0 && pre < 1.1));
    }

    #[test]
    fn rows_are_input_streams_and_columns_output_streams() {
        let mut mix =
            Mix { pre: [0.0; MAX_STREAMS], post: [0.0; MAX_STREAMS], comb: [[0.0; MAX_STREAMS]; MAX_STREAMS] };
        mix.comb[1][3] = 2.0;
        mix.post[0] = 10.0;
        let mut streams = vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0];
        expand(&mut streams, &[0.5, 0.25], &mix);
        assert_eq!(streams, [5.0, 2.5, 0.0, 0.0, 0.0, 0.0, 6.0, 8.0]);
        let mut out = vec![0.0; 2];
        collapse(&streams, &[1.0, 0.0, 0.0, 0.5], &mut out);
        assert_eq!(out, [8.0, 6.5]);
    }
}
