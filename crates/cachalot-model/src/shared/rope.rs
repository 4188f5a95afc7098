//! Rotary position embedding: frequency tables and the angles of a position (spec V4 section 3.4, V4.1
//! section 3.6).
//!
//! Angles are the float32 product of position and frequency, as the models were trained; their sine and cosine are
//! evaluated in float64 by a pure-Rust library, so that every machine gets the same bits.

use cachalot_checkpoint::family::Yarn;

/// One frequency per adjacent pair of the rotary part of a head.
#[derive(Clone, Debug)]
pub struct RopeTable {
    frequencies: Vec<f32>,
}

impl RopeTable {
    /// The table for `rotary_dim` (even) elements with base `theta`, interpolated by `yarn` where given.
    pub fn new(rotary_dim: usize, theta: f64, yarn: Option<&Yarn>) -> Self {
        let dim = rotary_dim as f64;
        let mut frequencies: Vec<f32> =
            (0..rotary_dim / 2).map(|pair| 1.0 / libm::pow(theta, (2 * pair) as f64 / dim) as f32).collect();
        if let Some(yarn) = yarn {
            let correction = |rotations: f64| {
                dim * libm::log(yarn.original_max_position_embeddings as f64 / (rotations * std::f64::consts::TAU))
                    / (2.0 * libm::log(theta))
            };
            let low = libm::floor(correction(yarn.beta_fast)).max(0.0);
            let high = libm::ceil(correction(yarn.beta_slow)).min(dim - 1.0);
            // A table without a transition still needs a slope.
            let width = if low == high { 0.001 } else { high - low };
            for (pair, frequency) in frequencies.iter_mut().enumerate() {
                let ramp = ((pair as f64 - low) as f32 / width as f32).clamp(0.0, 1.0);
                *frequency = (*frequency / yarn.factor as f32) * ramp + *frequency * (1.0 - ramp);
            }
        }
        Self { frequencies }
    }

    /// Pairs that are rotated: half the rotary dimension.
    pub fn pairs(&self) -> usize {
        self.frequencies.len()
    }

    /// Writes cosine and sine of every pair's angle at `position`; both slices hold [`RopeTable::pairs`] values.
    pub fn angles(&self, position: usize, cos: &mut [f32], sin: &mut [f32]) {
        for ((frequency, cos), sin) in self.frequencies.iter().zip(cos).zip(sin) {
            let angle = position as f32 * frequency;
            let (s, c) = libm::sincos(f64::from(angle));
            (*cos, *sin) = (c as f32, s as f32);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn released_yarn_table() {
        let yarn = Yarn { factor: 16.0, beta_fast: 32.0, beta_slow: 1.0, original_max_position_embeddings: 65536 };
        let table = RopeTable::new(64, 160_000.0, Some(&yarn));
        let expected = [
            (0, 1.0),
            (1, 6.87656e-1),
            (8, 5.0e-2),
            (15, 3.635539e-3),
            (16, 2.265625e-3),
            (20, 2.969778e-4),
            (24, 1.953125e-5),
            (25, 5.372313e-6),
            (31, 5.680529e-7),
        ];
        for (pair, value) in expected {
            let got = table.frequencies[pair];
            assert!((got - value).abs() <= value * 3e-7, "pair {pair}: {got} instead of {value}");
        }
    }
}
