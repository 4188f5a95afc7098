//! The input of linear layers, prepared once and read by many matrices.

use cachalot_numerics::records;

use crate::compute::Compute;
use crate::matrix::GROUP;

/// Values are kept times 2^48, which FP8's decoding (codes times 2^-120), FP4's (codes times up to 2^25) and the scales
/// make up for. It is exact: only inputs beyond 2^50 would overflow, and sums of a group below 2^-54 lose bits.
pub(crate) const PRESCALE: f32 = 281_474_976_710_656.0;

/// How the inputs of quantised weights are treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Treatment {
    /// As they are: exact.
    Float32,
    /// FP4 weights read them as integers of 14 bits that share a scale per 32; all others as they are.
    Int16,
    /// Rounded to FP8 with a scale per so many values, 32 times a power of two, as the vendor's kernels do (`AQ8`).
    Fp8 {
        /// Values that share a scale: 32 in V4.1, 128 in V4.
        block: usize,
    },
}

/// `[tokens, cols]` inputs in a buffer that is reused.
#[derive(Default)]
pub struct Activations {
    tokens: usize,
    cols: usize,
    /// `[groups, tokens, 32]`, times [`PRESCALE`], zeros behind the last column. Tokens of a group are neighbours: rows of
    /// a whole input would lie a multiple of 4 KiB apart, and evict each other from the first-level cache.
    values: Vec<f32>,
    /// Digits of the integers (base 128, low and high, each -64..=63): `[groups, tokens, 4 blocks, 16]` bytes. A block is
    /// 8 columns: low digits of the even ones and of the odd ones, then the high digits likewise.
    digits: Vec<i8>,
    /// Per group: half the integers' unit (FP4 codes are read doubled), `[groups, tokens]`.
    units: Vec<f32>,
    /// Per group: 12 times the sum of the integers (FP4 codes are read with 12 added), `[groups, tokens]`.
    offsets: Vec<i32>,
    integers: bool,
}

/// From this many values on, all threads prepare them.
const PARALLEL: usize = 1 << 16;

/// Largest integer that two digits hold with either sign.
const LARGEST: f32 = 8127.0;

impl Activations {
    /// No tokens.
    pub fn new() -> Self {
        Self::default()
    }

    /// Number of tokens.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Values per token.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Takes over `x` `[tokens, cols]`.
    ///
    /// # Panics
    /// If `x` is not whole rows of `cols` values, or `treatment` has a block that is not 32 times a power of two.
    pub fn set(&mut self, compute: &Compute, x: &[f32], cols: usize, treatment: Treatment) {
        assert!(cols > 0 && x.len().is_multiple_of(cols), "whole rows of {cols} values");
        if let Treatment::Fp8 { block } = treatment {
            assert!(block >= GROUP && block.is_power_of_two(), "blocks of {block} values");
        }
        self.tokens = x.len() / cols;
        self.cols = cols;
        self.integers = treatment == Treatment::Int16;
        let tokens = self.tokens;
        self.values.resize(tokens * self.groups() * GROUP, 0.0);
        let fill = |group: usize, out: &mut [f32]| {
            for (out, row) in out.as_chunks_mut::<GROUP>().0.iter_mut().zip(x.chunks_exact(cols)) {
                let values = &row[group * GROUP..cols.min((group + 1) * GROUP)];
                out[..values.len()].copy_from_slice(values);
                out[values.len()..].fill(0.0);
                if let Treatment::Fp8 { block } = treatment {
                    let first = group * GROUP / block * block;
                    records::round_fp8(out, records::fp8_scale(&row[first..cols.min(first + block)]));
                }
                out.iter_mut().for_each(|value| *value *= PRESCALE);
            }
        };
        if x.len() < PARALLEL {
            let groups = self.values.chunks_exact_mut((tokens * GROUP).max(1));
            groups.enumerate().for_each(|(group, out)| fill(group, out));
        } else {
            compute.pool().run_pieces(&mut self.values, tokens * GROUP, fill);
        }
        if self.integers {
            self.set_integers(x);
        }
    }

    /// Takes over the tokens `tokens` of `from`, in that order.
    pub fn gather(&mut self, from: &Self, tokens: &[u32]) {
        self.tokens = tokens.len();
        self.cols = from.cols;
        self.integers = from.integers;
        gather_rows(&mut self.values, &from.values, from.tokens, tokens, GROUP);
        if self.integers {
            gather_rows(&mut self.digits, &from.digits, from.tokens, tokens, 2 * GROUP);
            gather_rows(&mut self.units, &from.units, from.tokens, tokens, 1);
            gather_rows(&mut self.offsets, &from.offsets, from.tokens, tokens, 1);
        }
    }

    fn set_integers(&mut self, x: &[f32]) {
        let groups = self.groups();
        self.digits.resize(self.tokens * groups * 64, 0);
        self.units.resize(self.tokens * groups, 0.0);
        self.offsets.resize(self.tokens * groups, 0);
        for (token, x) in x.chunks_exact(self.cols).enumerate() {
            for (group, values) in x.chunks(GROUP).enumerate() {
                let index = group * self.tokens + token;
                let digits = &mut self.digits[index * 64..(index + 1) * 64];
                (self.units[index], self.offsets[index]) = split_group(values, digits);
            }
        }
    }

    pub(crate) fn groups(&self) -> usize {
        self.cols.div_ceil(GROUP)
    }

    /// Whether FP4 weights are to read integers.
    pub(crate) fn integers(&self) -> bool {
        self.integers
    }

    /// The prescaled values of one group, token by token.
    pub(crate) fn group(&self, group: usize) -> &[[f32; GROUP]] {
        let (values, _) = self.values.as_chunks::<GROUP>();
        &values[group * self.tokens..(group + 1) * self.tokens]
    }

    /// Digits, units and offsets of one group, token by token.
    pub(crate) fn digits(&self, group: usize) -> (&[[i8; 2 * GROUP]], &[f32], &[i32]) {
        let range = group * self.tokens..(group + 1) * self.tokens;
        (&self.digits.as_chunks().0[range.clone()], &self.units[range.clone()], &self.offsets[range])
    }
}

/// Copies the tokens `chosen` of each group.
fn gather_rows<T: Copy>(out: &mut Vec<T>, from: &[T], tokens: usize, chosen: &[u32], width: usize) {
    out.clear();
    for group in from.chunks_exact((tokens * width).max(1)) {
        for &token in chosen {
            out.extend_from_slice(&group[token as usize * width..(token as usize + 1) * width]);
        }
    }
}

/// Splits up to 32 values into digits; returns half the unit and 12 times the sum of the integers.
fn split_group(values: &[f32], digits: &mut [i8]) -> (f32, i32) {
    // Magnitudes order as their bits do, and NaN above all: it must reach the result.
    let largest = f32::from_bits(values.iter().fold(0, |max, value| max.max(value.to_bits() & 0x7fff_ffff)));
    let unit = largest / LARGEST;
    if unit < f32::MIN_POSITIVE {
        // All zero, or too small to matter beside anything.
        digits.fill(0);
        return (0.0, 0);
    }
    let mut sum = 0;
    for column in 0..GROUP {
        let value = values.get(column).copied().unwrap_or(0.0);
        // Added and subtracted, this rounds to an integer, ties to even.
        let integer = ((value / unit + 12_582_912.0) - 12_582_912.0) as i32;
        sum += integer;
        let high = (integer + 64) >> 7;
        let place = column / 8 * 16 + column % 2 * 4 + column % 8 / 2;
        digits[place] = (integer - high * 128) as i8;
        digits[place + 8] = high as i8;
    }
    (unit * 0.5, 12 * sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_give_back_the_values() {
        let values: Vec<f32> =
            (0..32).map(|index| (index as f32 - 15.5) * if index % 3 == 0 { 1.0 } else { 0.01 }).collect();
        let mut digits = [0; 64];
        let (half_unit, offset) = split_group(&values, &mut digits);
        let mut sum = 0;
        for (column, value) in values.iter().enumerate() {
            let place = column / 8 * 16 + column % 2 * 4 + column % 8 / 2;
            let integer = i32::from(digits[place]) + 128 * i32::from(digits[place + 8]);
            assert!(digits[place] >= -64 && digits[place] <= 63 && digits[place + 8] >= -64 && digits[place + 8] <= 63);
            sum += integer;
            assert!((integer as f32 * 2.0 * half_unit - value).abs() <= half_unit * 1.01, "column {column}");
        }
        assert_eq!(offset, 12 * sum);
        assert_eq!(split_group(&[0.0; 5], &mut digits), (0.0, 0));
        assert!(split_group(&[1.0, f32::NAN], &mut digits).0.is_nan());
    }
}
