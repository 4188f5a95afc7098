//! The input of linear layers, prepared once and read by many matrices.

use cachalot_numerics::records;

use crate::compute::Compute;
use crate::matrix::GROUP;

/// Values are kept times 2^64, which FP8's decoding (codes times 2^-120) and the scales make up for. It is exact: only
/// inputs beyond 2^63 would overflow, and products below 2^-190 be lost.
pub(crate) const PRESCALE: f32 = 18_446_744_073_709_551_616.0;

/// How the inputs of quantised weights are treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Treatment {
    /// As they are: exact.
    Float32,
    /// FP4 weights read them as integers of 14 bits that share a scale per 32; all others as they are.
    Int16,
    /// Rounded to FP8 in groups of 32, as the vendor's kernels do (`AQ8`).
    Fp8,
}

/// `[tokens, cols]` inputs in a buffer that is reused.
#[derive(Default)]
pub struct Activations {
    tokens: usize,
    cols: usize,
    /// `[tokens, groups * 32]`, times [`PRESCALE`], zeros behind the last column.
    values: Vec<f32>,
    /// Digits of the integers (base 128, low and high, each -64..=63): `[tokens, groups, 4 blocks, 16]` bytes. A block is
    /// 8 columns: low digits of the even ones and of the odd ones, then the high digits likewise.
    digits: Vec<i8>,
    /// Per group: half the integers' unit (FP4 codes are read doubled), `[tokens, groups]`.
    units: Vec<f32>,
    /// Per group: 12 times the sum of the integers (FP4 codes are read with 12 added), `[tokens, groups]`.
    offsets: Vec<i32>,
    integers: bool,
}

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
    /// If `x` is not whole rows of `cols` values.
    pub fn set(&mut self, compute: &Compute, x: &[f32], cols: usize, treatment: Treatment) {
        assert!(cols > 0 && x.len().is_multiple_of(cols), "whole rows of {cols} values");
        self.tokens = x.len() / cols;
        self.cols = cols;
        self.integers = treatment == Treatment::Int16;
        let padded = self.padded();
        self.values.resize(self.tokens * padded, 0.0);
        compute.pool().run_pieces(&mut self.values, padded, |token, out| {
            let (values, padding) = out.split_at_mut(cols);
            values.copy_from_slice(&x[token * cols..(token + 1) * cols]);
            padding.fill(0.0);
            if treatment == Treatment::Fp8 {
                records::round_fp8(out);
            }
            out.iter_mut().for_each(|value| *value *= PRESCALE);
        });
        if self.integers {
            self.set_integers(x);
        }
    }

    /// Takes over the tokens `tokens` of `from`, in that order.
    pub fn gather(&mut self, from: &Self, tokens: &[u32]) {
        self.tokens = tokens.len();
        self.cols = from.cols;
        self.integers = from.integers;
        let groups = from.groups();
        gather_rows(&mut self.values, &from.values, tokens, groups * GROUP);
        if self.integers {
            gather_rows(&mut self.digits, &from.digits, tokens, groups * 64);
            gather_rows(&mut self.units, &from.units, tokens, groups);
            gather_rows(&mut self.offsets, &from.offsets, tokens, groups);
        }
    }

    fn set_integers(&mut self, x: &[f32]) {
        let groups = self.groups();
        self.digits.resize(self.tokens * groups * 64, 0);
        self.units.resize(self.tokens * groups, 0.0);
        self.offsets.resize(self.tokens * groups, 0);
        for (token, x) in x.chunks_exact(self.cols).enumerate() {
            for (group, values) in x.chunks(GROUP).enumerate() {
                let index = token * groups + group;
                let digits = &mut self.digits[index * 64..(index + 1) * 64];
                (self.units[index], self.offsets[index]) = split_group(values, digits);
            }
        }
    }

    pub(crate) fn groups(&self) -> usize {
        self.cols.div_ceil(GROUP)
    }

    fn padded(&self) -> usize {
        self.groups() * GROUP
    }

    /// Whether FP4 weights are to read integers.
    pub(crate) fn integers(&self) -> bool {
        self.integers
    }

    /// The prescaled values of one token.
    pub(crate) fn values(&self, token: usize) -> &[f32] {
        &self.values[token * self.padded()..(token + 1) * self.padded()]
    }

    /// Digits, units and offsets of one token.
    pub(crate) fn digits(&self, token: usize) -> (&[i8], &[f32], &[i32]) {
        let groups = token * self.groups()..(token + 1) * self.groups();
        (&self.digits[groups.start * 64..groups.end * 64], &self.units[groups.clone()], &self.offsets[groups])
    }
}

fn gather_rows<T: Copy>(out: &mut Vec<T>, from: &[T], rows: &[u32], width: usize) {
    out.clear();
    for &row in rows {
        out.extend_from_slice(&from[row as usize * width..(row as usize + 1) * width]);
    }
}

/// Splits up to 32 values into digits; returns half the unit and 12 times the sum of the integers.
fn split_group(values: &[f32], digits: &mut [i8]) -> (f32, i32) {
    let largest = values.iter().fold(0f32, |max, value| max.max(value.abs()));
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
    }
}
