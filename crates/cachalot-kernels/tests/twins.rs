//! Every kernel on every instruction set of this machine against a plain twin, to the bit.

use std::io::Write;
use std::sync::Arc;

use cachalot_kernels::{
    Activations, AttentionScratch, Compute, Format, IndexQueries, Isa, Job, Matrix, Slot, Treatment, attend, dot,
    matmul, matmul_one, pool, rms_norm, swiglu,
};
use cachalot_numerics::{bf16, e2m1, e4m3, e8m0, math, records};
use cachalot_runtime::Pool;
use proptest::prelude::*;

/// Every path of this machine, with one thread and with three.
fn computes() -> Vec<Compute> {
    let pools = [Arc::new(Pool::new(1)), Arc::new(Pool::new(3))];
    Isa::available().iter().flat_map(|&isa| pools.clone().map(|pool| Compute::with_isa(pool, isa))).collect()
}

/// Machines differ: the test run says which paths it exercised, past the harness's capture.
#[test]
fn the_run_says_which_paths_it_exercised() {
    let names: Vec<_> = Isa::available().iter().map(|isa| isa.name()).collect();
    writeln!(std::io::stderr(), "kernel paths exercised on this machine: {}", names.join(", ")).unwrap();
    assert!(names.contains(&"portable"));
}

/// A stream of numbers that looks random.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    fn byte(&mut self) -> u8 {
        self.next() as u8
    }

    fn value(&mut self) -> f32 {
        (self.next() as f32 / (1u64 << 30) as f32 - 1.0) * [1.0, 3.0, 0.01][(self.next() % 3) as usize]
    }

    fn values(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.value()).collect()
    }
}

/// A random matrix in the released layout, and what its elements and scales decode to.
struct Weights {
    matrix: Matrix,
    /// `[rows, cols]` without scale.
    numbers: Vec<f32>,
    /// `[rows, groups]`
    scales: Vec<f32>,
}

fn weights(noise: &mut Noise, format: Format, rows: usize, cols: usize) -> Weights {
    let mut matrix = Matrix::zeroed(format, rows, cols).unwrap();
    let raw: Vec<u8> = (0..rows * matrix.row_bytes())
        .map(|_| noise.byte())
        .map(|byte| if matches!(format, Format::Fp8 { .. }) && e4m3::is_nan(byte) { 0x38 } else { byte })
        .collect();
    let raw: Vec<u8> = match format {
        Format::Bf16 => noise.values(rows * cols).iter().flat_map(|&x| bf16::encode(x).to_le_bytes()).collect(),
        Format::F32 => noise.values(rows * cols).iter().flat_map(|x| x.to_le_bytes()).collect(),
        _ => raw,
    };
    let codes: Vec<u8> = (0..matrix.released_scales()).map(|_| 120 + noise.byte() % 12).collect();
    // Loaded in two parts, the second beginning at a strip.
    let cut = rows / 2 / 16 * 16;
    matrix.load_rows(0, &raw[..cut * matrix.row_bytes()]).unwrap();
    matrix.load_rows(cut, &raw[cut * matrix.row_bytes()..]).unwrap();
    matrix.load_scales(&codes).unwrap();
    let groups = cols.div_ceil(32);
    let element = |row: usize, col: usize| match format {
        Format::Fp4 => e2m1::decode(raw[row * matrix.row_bytes() + col / 2] >> (4 * (col % 2))),
        Format::Fp8 { .. } => e4m3::decode(raw[row * cols + col]),
        Format::Bf16 => bf16::decode(u16::from_le_bytes(raw[2 * (row * cols + col)..][..2].try_into().unwrap())),
        Format::F32 => f32::from_le_bytes(raw[4 * (row * cols + col)..][..4].try_into().unwrap()),
    };
    let scale = |row: usize, group: usize| match format {
        Format::Fp4 => e8m0::decode(codes[row * groups + group]),
        Format::Fp8 { block: [r, c] } => e8m0::decode(codes[row / r * cols.div_ceil(c) + group * 32 / c]),
        _ => 1.0,
    };
    let numbers = (0..rows * cols).map(|index| element(index / cols, index % cols)).collect();
    let scales = (0..rows * groups).map(|index| scale(index / groups, index % groups)).collect();
    Weights { matrix, numbers, scales }
}

/// The one order, in plain words.
fn twin(weights: &Weights, x: &[f32], integers: bool) -> Vec<f32> {
    let (rows, cols) = (weights.matrix.rows(), weights.matrix.cols());
    let groups = cols.div_ceil(32);
    let product = |x: &[f32], row: usize| {
        let numbers = &weights.numbers[row * cols..(row + 1) * cols];
        let mut result = 0f32;
        for (group, (numbers, x)) in numbers.chunks(32).zip(x.chunks(32)).enumerate() {
            let scale = weights.scales[row * groups + group];
            if integers && weights.matrix.format() == Format::Fp4 {
                let unit = x.iter().fold(0f32, |max, x| max.max(x.abs())) / 8127.0;
                let integer = |x: f32| if unit < f32::MIN_POSITIVE { 0.0 } else { libm::rint(f64::from(x / unit)) };
                let sum: f64 = numbers.iter().zip(x).map(|(w, &x)| f64::from(2.0 * w) * integer(x)).sum();
                result = (sum as f32).mul_add(scale * (unit * 0.5), result);
            } else {
                let sum = numbers.iter().zip(x).fold(0f32, |sum, (w, x)| w.mul_add(*x, sum));
                result = sum.mul_add(scale, result);
            }
        }
        result
    };
    x.chunks(cols).flat_map(|x| (0..rows).map(move |row| product(x, row))).collect()
}

fn same(ours: &[f32], theirs: &[f32]) -> Result<(), String> {
    match ours.iter().zip(theirs).position(|(a, b)| a.to_bits() != b.to_bits() && (*a != 0.0 || *b != 0.0)) {
        Some(index) => Err(format!("element {index}: {} instead of {}", ours[index], theirs[index])),
        None => Ok(()),
    }
}

const FORMATS: [Format; 5] =
    [Format::Fp4, Format::Fp8 { block: [32, 32] }, Format::Fp8 { block: [128, 128] }, Format::Bf16, Format::F32];

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn products_equal_their_twin(
        seed in any::<u64>(), format in 0usize..5, rows in 1usize..150, groups in 1usize..9, ragged in 0usize..31,
        tokens in 1usize..71, integers in any::<bool>(),
    ) {
        let mut noise = Noise(seed);
        let format = FORMATS[format];
        // FP4 rows are whole groups; the others may be ragged.
        let cols = if format == Format::Fp4 { groups * 32 } else { groups * 32 - ragged };
        let weights = weights(&mut noise, format, rows, cols);
        let x = noise.values(tokens * cols);
        let expected = twin(&weights, &x, integers);
        let treatment = if integers { Treatment::Int16 } else { Treatment::Float32 };
        for compute in computes() {
            let mut input = Activations::new();
            input.set(&compute, &x, cols, treatment);
            let mut output = vec![f32::NAN; tokens * rows];
            matmul_one(&compute, &weights.matrix, &input, &mut output);
            let name = compute.isa().name();
            prop_assert!(same(&output, &expected).is_ok(), "{name} {format:?} {rows}x{cols}, {tokens} tokens: {:?}", same(&output, &expected));

            // One token by itself, taken out of the batch, gives the same bits.
            let mut alone = Activations::new();
            alone.gather(&input, &[tokens as u32 - 1]);
            let mut single = vec![f32::NAN; rows];
            matmul_one(&compute, &weights.matrix, &alone, &mut single);
            prop_assert!(same(&single, &expected[(tokens - 1) * rows..]).is_ok(), "{name}: one token alone");
        }
    }

    #[test]
    fn attention_equals_its_twin(
        seed in any::<u64>(), heads in 1usize..10, lanes in 1usize..13, keys in 1usize..40,
    ) {
        let (mut noise, dim) = (Noise(seed), lanes * 16);
        let (q, k, sinks) = (noise.values(heads * dim), noise.values(keys * dim), noise.values(heads));
        let scale = 0.125;
        let portable = Compute::with_isa(Arc::new(Pool::new(1)), Isa::PORTABLE);
        let mut expected = Vec::new();
        for (q, &sink) in q.chunks(dim).zip(&sinks) {
            let scores: Vec<f32> = k.chunks(dim).map(|k| dot(&portable, q, k) * scale).collect();
            let max = scores.iter().copied().fold(f32::MIN, f32::max);
            let weights: Vec<f32> = scores.iter().map(|score| math::exp(score - max)).collect();
            let mut sums = [0f32; 16];
            weights.iter().enumerate().for_each(|(index, weight)| sums[index % 16] += weight);
            let mut width = 8;
            while width > 0 {
                (0..width).for_each(|lane| sums[lane] += sums[lane + width]);
                width /= 2;
            }
            let sum = sums[0] + math::exp(sink - max);
            for column in 0..dim {
                let pairs = weights.iter().zip(k.chunks(dim));
                expected.push(pairs.fold(0f32, |out, (weight, k)| (weight / sum).mul_add(k[column], out)));
            }
        }
        for compute in computes() {
            let mut out = vec![f32::NAN; heads * dim];
            attend(&compute, &q, &k, scale, &sinks, &mut AttentionScratch::default(), &mut out);
            prop_assert!(same(&out, &expected).is_ok(), "{}: {:?}", compute.isa().name(), same(&out, &expected));
        }
    }

    #[test]
    fn index_scores_equal_their_twin(
        seed in any::<u64>(), heads in 1usize..40, groups in 1usize..5, keys in 1usize..30,
    ) {
        let (mut noise, dim) = (Noise(seed), groups * 32);
        let record = records::mxfp4_bytes(dim);
        let mut pack = |count: usize| {
            let mut bytes = vec![0; count * record];
            bytes.chunks_mut(record).for_each(|out| records::encode_mxfp4(&noise.values(dim), out));
            bytes
        };
        let (queries, packed) = (pack(heads), pack(keys));
        let weights = noise.values(heads);
        let decode = |bytes: &[u8]| {
            let mut values = vec![0.0; dim];
            records::decode_mxfp4(bytes, &mut values);
            values
        };
        let expected: Vec<f32> = packed.chunks(record).map(|key| {
            let key = decode(key);
            let mut lanes = [0f32; 16];
            for (head, (query, weight)) in queries.chunks(record).zip(&weights).enumerate() {
                let query = decode(query);
                // Inside a group the products are exact in float64; groups are added rounded once each.
                let dot = query.chunks(32).zip(key.chunks(32)).fold(0f32, |dot, (q, k)| {
                    let sum: f64 = q.iter().zip(k).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum();
                    (f64::from(dot) + sum) as f32
                });
                lanes[head % 16] = dot.max(0.0).mul_add(*weight, lanes[head % 16]);
            }
            let mut width = 8;
            while width > 0 {
                (0..width).for_each(|lane| lanes[lane] += lanes[lane + width]);
                width /= 2;
            }
            lanes[0]
        }).collect();
        let mut prepared = IndexQueries::default();
        prepared.set(&queries, &weights, dim);
        for compute in computes() {
            let mut out = vec![f32::NAN; keys];
            prepared.score(&compute, &packed, &mut out);
            prop_assert!(same(&out, &expected).is_ok(), "{}: {:?}", compute.isa().name(), same(&out, &expected));
        }
    }

    /// Channel by channel, slot by slot; a gate of minus infinity counts for nothing.
    #[test]
    fn pooling_equals_its_twin(seed in any::<u64>(), slots in 1usize..20, channels in 1usize..70) {
        let mut noise = Noise(seed);
        let (values, mut gates) = (noise.values(slots * channels), noise.values(slots * channels));
        gates[..channels * (slots / 2)].fill(f32::NEG_INFINITY);
        let expected: Vec<f32> = (0..channels).map(|channel| {
            let of = |all: &[f32]| all.iter().skip(channel).step_by(channels).copied().collect::<Vec<_>>();
            let (values, gates) = (of(&values), of(&gates));
            let max = gates.iter().copied().fold(f32::MIN, f32::max);
            let weights: Vec<f32> = gates.iter().map(|gate| math::exp(gate - max)).collect();
            let sum: f32 = weights.iter().fold(0.0, |sum, weight| sum + weight);
            values.iter().zip(&weights).fold(0.0, |sum, (value, weight)| sum + weight * value) / sum
        }).collect();
        let slots: Vec<_> = values.chunks(channels).zip(gates.chunks(channels))
            .map(|(values, gates)| Slot { values, gates }).collect();
        for compute in computes() {
            let mut out = vec![f32::NAN; channels];
            pool(&compute, &slots, &mut out);
            prop_assert!(same(&out, &expected).is_ok(), "{}: {:?}", compute.isa().name(), same(&out, &expected));
        }
    }

    /// Inputs as the vendor rounds them, in blocks of 32 (V4.1) and 128 (V4), a ragged one at the end.
    #[test]
    fn rounded_inputs_equal_their_twin(seed in any::<u64>(), columns in 1usize..300, wide in any::<bool>()) {
        let (mut noise, block) = (Noise(seed), if wide { 128 } else { 32 });
        let weights = weights(&mut noise, Format::F32, 16, columns);
        let x = noise.values(3 * columns);
        let mut rounded = x.clone();
        for block in rounded.chunks_mut(columns).flat_map(|row| row.chunks_mut(block)) {
            let scale = records::fp8_scale(block);
            records::round_fp8(block, scale);
        }
        let expected = twin(&weights, &rounded, false);
        for compute in computes() {
            let mut input = Activations::new();
            input.set(&compute, &x, columns, Treatment::Fp8 { block });
            let mut output = vec![f32::NAN; 3 * 16];
            matmul_one(&compute, &weights.matrix, &input, &mut output);
            prop_assert!(same(&output, &expected).is_ok(), "{}: {:?}", compute.isa().name(), same(&output, &expected));
        }
    }

    #[test]
    fn vector_operations_are_the_same_everywhere(seed in any::<u64>(), length in 1usize..200) {
        let mut noise = Noise(seed);
        let (a, b) = (noise.values(length), noise.values(length));
        let all: Vec<_> = computes().iter().map(|compute| {
            let (mut norm, mut product) = (vec![0.0; length], vec![0.0; length]);
            rms_norm(compute, &a, &b, 1e-20, &mut norm);
            swiglu(compute, &a, &b, 0.7, 1.3, &mut product);
            (dot(compute, &a, &b).to_bits(), norm.iter().map(|x| x.to_bits()).collect::<Vec<_>>(), product)
        }).collect();
        prop_assert!(all.iter().all(|other| *other == all[0]));
        let twin: Vec<f32> = a.iter().zip(&b)
            .map(|(g, u)| math::silu(g.min(0.7)) * u.clamp(-0.7, 0.7) * 1.3).collect();
        prop_assert!(same(&all[0].2, &twin).is_ok());
    }
}

/// Several jobs of different shapes as one list of work, parts of a matrix among them.
#[test]
fn a_list_of_jobs_equals_its_products() {
    let mut noise = Noise(7);
    let (first, second) = (weights(&mut noise, Format::Fp4, 100, 64), weights(&mut noise, Format::Bf16, 48, 96));
    let (x, y) = (noise.values(3 * 64), noise.values(96));
    for compute in computes() {
        let (mut inputs, mut other) = (Activations::new(), Activations::new());
        inputs.set(&compute, &x, 64, Treatment::Float32);
        other.set(&compute, &y, 96, Treatment::Float32);
        let (mut a, mut b, mut c) = (vec![0.0; 300], vec![0.0; 32], vec![0.0; 16]);
        matmul(
            &compute,
            &mut [
                Job::whole(&first.matrix, &inputs, &mut a),
                Job::new(&second.matrix, 0..32, &other, &mut b),
                Job::new(&second.matrix, 32..48, &other, &mut c),
            ],
        );
        same(&a, &twin(&first, &x, false)).unwrap();
        same(&[b, c].concat(), &twin(&second, &y, false)).unwrap();
    }
}

/// Scales at both ends of their range keep their meaning.
#[test]
fn subnormal_codes_and_extreme_scales() {
    for compute in computes() {
        for (code, x) in [(0x01u8, 3.0f32), (0x81, -1e-6), (0x7e, 1e4), (0x07, 1e-3)] {
            for scale in [64u8, 100, 127, 150] {
                let mut matrix = Matrix::zeroed(Format::Fp8 { block: [32, 32] }, 16, 32).unwrap();
                let mut raw = vec![0; 16 * 32];
                raw[5] = code;
                matrix.load_rows(0, &raw).unwrap();
                matrix.load_scales(&[scale]).unwrap();
                let mut input = Activations::new();
                let mut values = [0.0; 32];
                values[5] = x;
                input.set(&compute, &values, 32, Treatment::Float32);
                let mut out = vec![0.0; 16];
                matmul_one(&compute, &matrix, &input, &mut out);
                assert_eq!(out[0], e4m3::decode(code) * x * e8m0::decode(scale), "code {code:#x}, scale {scale}");
                assert!(out[1..].iter().all(|&value| value == 0.0));
            }
        }
    }
}
