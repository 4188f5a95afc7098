//! Operations on one vector: norms, dot products, rotations, the experts' activation.

use cachalot_numerics::math;

use crate::compute::Compute;
use crate::simd::{Kernel, LANES, Simd};

/// `sum of a[i] * b[i]`: 16 sums of every 16th product by fused multiply-adds, then these in halves.
///
/// # Panics
/// If the lengths differ.
pub fn dot(compute: &Compute, a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    compute.isa().run(Dot { a, b })
}

/// Mean of the squares, summed as in [`dot`].
pub fn mean_square(compute: &Compute, x: &[f32]) -> f32 {
    dot(compute, x, x) / x.len() as f32
}

/// `out = weight * (x / rms(x))` (spec V4.1 section 3.1).
///
/// # Panics
/// If the lengths differ.
pub fn rms_norm(compute: &Compute, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    assert!(x.len() == weight.len() && x.len() == out.len());
    let reciprocal = 1.0 / (mean_square(compute, x) + eps).sqrt();
    for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
        *out = weight * (x * reciprocal);
    }
}

/// Rotates adjacent pairs of `x` by the angles of `cos` and `sin`, or back (spec V4 section 3.4, V4.1 section 3.6).
///
/// # Panics
/// If there are not two values per angle.
pub fn rope(x: &mut [f32], cos: &[f32], sin: &[f32], inverse: bool) {
    assert!(x.len() == 2 * cos.len() && x.len() == 2 * sin.len());
    for ((pair, cos), sin) in x.chunks_exact_mut(2).zip(cos).zip(sin) {
        let sin = if inverse { -sin } else { *sin };
        let (re, im) = (pair[0], pair[1]);
        pair[0] = re * cos - im * sin;
        pair[1] = re * sin + im * cos;
    }
}

/// The normalised Walsh-Hadamard transform of `x` in place, in Sylvester's order (spec V4 section 3.8).
///
/// # Panics
/// If the length is no power of two.
pub fn hadamard(x: &mut [f32]) {
    assert!(x.len().is_power_of_two(), "{} values", x.len());
    let mut half = 1;
    while half < x.len() {
        for block in x.chunks_exact_mut(2 * half) {
            let (low, high) = block.split_at_mut(half);
            for (a, b) in low.iter_mut().zip(high) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
        half *= 2;
    }
    let scale = 1.0 / (x.len() as f32).sqrt();
    x.iter_mut().for_each(|value| *value *= scale);
}

/// `out = silu(min(gate, limit)) * clamp(up, -limit, limit) * weight` (spec V4.1 section 3.11).
///
/// # Panics
/// If the lengths differ.
pub fn swiglu(compute: &Compute, gate: &[f32], up: &[f32], limit: f32, weight: f32, out: &mut [f32]) {
    assert!(gate.len() == up.len() && gate.len() == out.len());
    compute.isa().run(SwiGlu { gate, up, limit, weight, out });
}

struct Dot<'a> {
    a: &'a [f32],
    b: &'a [f32],
}

impl Kernel for Dot<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> f32 {
        dot_lanes(simd, self.a, self.b)
    }
}

/// [`dot`] inside a kernel.
#[inline(always)]
pub(crate) fn dot_lanes<S: Simd>(simd: S, a: &[f32], b: &[f32]) -> f32 {
    let (a, a_rest) = a.as_chunks::<LANES>();
    let (b, b_rest) = b.as_chunks::<LANES>();
    let mut sums = simd.splat(0.0);
    for (a, b) in a.iter().zip(b) {
        sums = simd.fma(simd.load(a), simd.load(b), sums);
    }
    if !a_rest.is_empty() {
        let (mut last_a, mut last_b) = ([0.0; LANES], [0.0; LANES]);
        last_a[..a_rest.len()].copy_from_slice(a_rest);
        last_b[..b_rest.len()].copy_from_slice(b_rest);
        sums = simd.fma(simd.load(&last_a), simd.load(&last_b), sums);
    }
    simd.sum(sums)
}

struct SwiGlu<'a> {
    gate: &'a [f32],
    up: &'a [f32],
    limit: f32,
    weight: f32,
    out: &'a mut [f32],
}

impl Kernel for SwiGlu<'_> {
    type Output = ();

    /// Plain Rust: the compiler makes vectors of it, with the instructions at hand.
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let Self { gate, up, limit, weight, out } = self;
        for ((out, &gate), &up) in out.iter_mut().zip(gate).zip(up) {
            let gate = if gate > limit { limit } else { gate };
            let up = if up > limit { limit } else { up };
            let up = if up < -limit { -limit } else { up };
            *out = math::silu(gate) * up * weight;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hadamard_is_the_matrix_of_signs_and_its_own_inverse() {
        let values: Vec<f32> = (0..128).map(|index| (index as f32 * 1.7).sin()).collect();
        let mut transformed = values.clone();
        hadamard(&mut transformed);
        for (row, got) in transformed.iter().enumerate() {
            let sign = |column: usize| if (row & column).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 };
            let sum: f64 = values.iter().enumerate().map(|(column, x)| sign(column) * f64::from(*x)).sum();
            assert!((f64::from(*got) - sum / 128f64.sqrt()).abs() < 1e-6, "row {row}");
        }
        hadamard(&mut transformed);
        assert!(transformed.iter().zip(&values).all(|(a, b)| (a - b).abs() < 1e-6));
    }
}
