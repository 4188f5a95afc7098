//! What the bytes of each tensor are: finite, and scaled so that activations keep their size from layer to layer.
//!
//! Matrices are normal with a variance of one over their inputs, norms are one, the streams' mixers gentle. Routers score
//! normally; their biases make some experts popular, see [`popularity`].

use crate::layout::Tensor;
use crate::random::{below, fill, key, normal_quantile, normal_table, word};
use cachalot_checkpoint::family::Weights;
use cachalot_checkpoint::{Architecture, Dtype};
use cachalot_numerics::{bf16, e4m3};

/// Standard deviation of FP8 codes: the largest of 256 equally likely values stays below 448.
const FP8_DEVIATION: f64 = 64.0;
/// Root mean square of equally likely E2M1 codes.
const FP4_DEVIATION: f64 = 2.926;
/// Root mean square of the factors 1 and 1/2, between which scales vary.
const SCALE_VARIATION: f64 = 0.79;

/// How a tensor is filled.
pub enum Kind {
    /// Any bytes: FP4 codes.
    Bytes,
    /// A byte looked up: FP8 codes.
    Codes(Box<[u8; 256]>),
    /// A scale's exponent, or one less.
    Scales(u8),
    /// One BF16 value or another, by a random byte.
    Bf16(Box<[[u8; 2]; 256]>),
    /// One F32 value or another, by a random byte.
    F32(Box<[[u8; 4]; 256]>),
    /// These F32 values.
    Values(Vec<f32>),
    /// Rows of different ids below a bound.
    Ids {
        /// Ids of a row.
        columns: usize,
        /// Ids are below it.
        bound: u64,
    },
}

/// Fills the tensors of one model.
pub struct Fill {
    seed: u64,
    skew: f64,
    experts: Weights,
    block: [usize; 2],
    chosen: usize,
    expert_count: u64,
    normal: [f64; 256],
}

impl Fill {
    pub fn new(architecture: &Architecture, seed: u64, skew: f64) -> Self {
        let trunk = architecture.trunk();
        Self {
            seed,
            skew,
            experts: architecture.deepseek_v4().map_or(Weights::Fp4, |config| config.build.experts),
            block: architecture.fp8_block(),
            chosen: trunk.num_experts_per_tok,
            expert_count: trunk.n_routed_experts as u64,
            normal: normal_table(),
        }
    }

    /// The stream of random bytes of a tensor.
    pub fn key(&self, tensor: &Tensor) -> u64 {
        key(self.seed, &tensor.name)
    }

    /// How `tensor` is filled.
    pub fn kind(&self, tensor: &Tensor) -> Kind {
        let columns = tensor.shape.last().copied().unwrap_or(1) as f64;
        let name = tensor.name.as_str();
        match tensor.dtype {
            Dtype::I8 => Kind::Bytes,
            Dtype::F8_E4M3 => {
                Kind::Codes(Box::new(self.normal.map(|value| e4m3::encode((value * FP8_DEVIATION) as f32))))
            }
            Dtype::F8_E8M0 => Kind::Scales(self.scale(name, columns)),
            Dtype::BF16 => {
                let deviation =
                    if name.starts_with("image_") || name.starts_with("embed.") { 1.0 } else { columns.sqrt().recip() };
                let gain = name.contains("norm") || name.ends_with(".q_weight") || name.ends_with(".k_weight");
                let value = |normal: f64| match (gain, name.ends_with(".bias")) {
                    (true, _) => 1.0,
                    (_, true) => 0.0,
                    _ => normal * deviation,
                };
                Kind::Bf16(Box::new(self.normal.map(|normal| bf16::encode(value(normal) as f32).to_le_bytes())))
            }
            Dtype::F32 if name.contains("ffn.gate.bias") => Kind::Values(self.biases(tensor)),
            Dtype::F32 => {
                let value = |normal: f64| match name.rsplit(['.', '_']).next() {
                    Some("fn") => normal / columns.sqrt(),
                    Some("ape") => normal / 8.0,
                    Some("scale") => 0.5,
                    // Sinks, and the bases of mixers.
                    _ => 0.0,
                };
                Kind::F32(Box::new(self.normal.map(|normal| (value(normal) as f32).to_le_bytes())))
            }
            Dtype::I64 => Kind::Ids { columns: columns as usize, bound: self.expert_count },
        }
    }

    /// The larger exponent of the scales of a matrix that has `columns` of them a row.
    fn scale(&self, name: &str, columns: f64) -> u8 {
        let weights = if name.contains(".ffn.experts.") { self.experts } else { Weights::Fp8 { block: self.block } };
        // Engram rows are added up like embeddings, and have scales of their own.
        let (inputs, deviation) = match weights {
            _ if name.contains("engram.embed") => (1.0, FP8_DEVIATION),
            Weights::Fp4 => (32.0 * columns, FP4_DEVIATION),
            Weights::Fp8 { block: [_, wide] } => (wide as f64 * columns, FP8_DEVIATION),
            Weights::Plain => (1.0, 1.0),
        };
        let exponent = (inputs.sqrt() * deviation * SCALE_VARIATION).recip().log2().round();
        (127.0 + exponent).clamp(1.0, 254.0) as u8
    }

    /// Biases that make experts as popular as [`popularity`] says, in an order of their own for each router.
    fn biases(&self, tensor: &Tensor) -> Vec<f32> {
        let count = tensor.elements() as usize;
        let key = self.key(tensor);
        let mut order: Vec<usize> = (0..count).collect();
        order.sort_by_key(|expert| word(key, *expert as u64));
        // Scores are the square root of a softplus of what is nearly normal; the best are chosen after the bias.
        let scores = self.normal.map(|normal| normal.exp().ln_1p().sqrt());
        let mean = scores.iter().sum::<f64>() / 256.0;
        let deviation = (scores.iter().map(|score| (score - mean).powi(2)).sum::<f64>() / 256.0).sqrt();
        let mut biases = vec![0.0; count];
        for (expert, popularity) in order.into_iter().zip(popularity(count, self.chosen.min(count), self.skew)) {
            biases[expert] = (deviation * normal_quantile(popularity)) as f32;
        }
        biases
    }
}

/// With which probability each of `count` experts is among the `chosen` ones, by rank: in proportion to `rank^-skew`,
/// but never certain.
pub fn popularity(count: usize, chosen: usize, skew: f64) -> Vec<f64> {
    const MOST: f64 = 0.98;
    let at = |factor: f64, rank: usize| (factor * ((rank + 1) as f64).powf(-skew)).clamp(1e-9, MOST);
    let sum = |factor: f64| (0..count).map(|rank| at(factor, rank)).sum::<f64>();
    let wanted = (chosen as f64).min(MOST * count as f64);
    let (mut low, mut high) = (0.0, 1e12);
    for _ in 0..200 {
        let middle = (low + high) / 2.0;
        if sum(middle) < wanted { low = middle } else { high = middle }
    }
    (0..count).map(|rank| at(high, rank)).collect()
}

impl Kind {
    /// Bytes of which a piece of the tensor must be a multiple, so that no element, row or random word is cut.
    pub fn granule(&self) -> usize {
        match self {
            Self::Ids { columns, .. } => 8 * columns.max(&1),
            _ => 64,
        }
    }

    /// Fills `buffer` with the tensor's bytes from `offset` on, a multiple of [`Kind::granule`].
    pub fn fill(&self, key: u64, offset: u64, buffer: &mut [u8]) {
        match self {
            Self::Bytes => fill(key, offset, buffer),
            Self::Codes(codes) => {
                fill(key, offset, buffer);
                buffer.iter_mut().for_each(|byte| *byte = codes[usize::from(*byte)]);
            }
            Self::Scales(exponent) => {
                fill(key, offset, buffer);
                buffer.iter_mut().for_each(|byte| *byte = exponent - (*byte & 1));
            }
            Self::Bf16(values) => look_up(key, offset, buffer, values),
            Self::F32(values) => look_up(key, offset, buffer, values),
            Self::Values(values) => {
                let (words, _) = buffer.as_chunks_mut();
                words
                    .iter_mut()
                    .zip(&values[offset as usize / 4..])
                    .for_each(|(word, value)| *word = value.to_le_bytes());
            }
            Self::Ids { columns, bound } => {
                let (words, _) = buffer.as_chunks_mut();
                let first = offset / (8 * (*columns).max(1) as u64);
                for (row, words) in (first..).zip(words.chunks_exact_mut((*columns).max(1))) {
                    ids(key, row, *bound, words);
                }
            }
        }
    }
}

/// Values of `N` bytes, chosen by the bytes of a stream.
fn look_up<const N: usize>(key: u64, offset: u64, buffer: &mut [u8], values: &[[u8; N]; 256]) {
    let (elements, _) = buffer.as_chunks_mut::<N>();
    let first = offset / (8 * N) as u64;
    for (index, elements) in (first..).zip(elements.chunks_mut(8)) {
        let bytes = word(key, index).to_le_bytes();
        elements.iter_mut().zip(bytes).for_each(|(element, byte)| *element = values[usize::from(byte)]);
    }
}

/// Different numbers below `bound`: Floyd's choice of a subset, one draw each.
fn ids(key: u64, row: u64, bound: u64, out: &mut [[u8; 8]]) {
    let columns = out.len() as u64;
    for place in 0..out.len() {
        let last = bound.saturating_sub(columns) + place as u64;
        let drawn = below(key, row * columns + place as u64, last + 1).to_le_bytes();
        out[place] = if out[..place].contains(&drawn) { last.to_le_bytes() } else { drawn };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn popularity_is_as_skewed_as_asked() {
        for (count, chosen, skew) in [(384, 6, 0.6), (256, 6, 0.0), (8, 2, 1.0), (6, 6, 0.5)] {
            let popularity = popularity(count, chosen, skew);
            let sum: f64 = popularity.iter().sum();
            assert!((sum - (chosen as f64).min(0.98 * count as f64)).abs() < 1e-6, "{sum}");
            assert!(popularity.is_sorted_by(|a, b| a >= b));
        }
        // The documentation of the default.
        let popularity = popularity(384, 6, crate::DEFAULT_SKEW);
        let fifth: f64 = popularity[..77].iter().sum::<f64>() / 6.0;
        assert!((0.48..0.55).contains(&fifth), "{fifth}");
    }

    #[test]
    fn ids_of_a_row_differ() {
        for bound in [6, 7, 256] {
            let mut counts = vec![0; bound as usize];
            for row in 0..2000 {
                let mut out = [[0; 8]; 6];
                ids(11, row, bound, &mut out);
                let ids = out.map(u64::from_le_bytes);
                assert!(ids.iter().enumerate().all(|(place, id)| *id < bound && !ids[..place].contains(id)));
                ids.iter().for_each(|id| counts[*id as usize] += 1);
            }
            let even = 12_000 / bound;
            assert!(counts.iter().all(|count| (even / 2..=2 * even).contains(count)), "{counts:?}");
        }
    }
}
