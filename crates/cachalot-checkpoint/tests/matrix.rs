//! Matrices hold the values that the released encoding stands for, whatever order the kernels keep them in.

use cachalot_checkpoint::{Checkpoint, Dtype, TensorInfo};
use cachalot_kernels::{Activations, Compute, Matrix, Treatment, matmul_one};
use cachalot_runtime::Pool;
use cachalot_storage::{Directory, Fault, FaultyFiles, Files, Plan};
use std::path::Path;
use std::sync::Arc;

fn files(path: &str) -> Arc<dyn Files> {
    Arc::new(Directory::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)))
}

fn bytes_of(checkpoint: &Checkpoint, tensor: &TensorInfo) -> Vec<u8> {
    let mut bytes = vec![0; tensor.bytes as usize];
    checkpoint.read(tensor, 0, &mut bytes).expect("reads");
    bytes
}

/// E4M3 by its definition (spec section 2.2).
fn e4m3(code: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(code >> 3 & 15), f32::from(code & 7));
    let size = if exponent == 0 { mantissa * 2f32.powi(-9) } else { (8.0 + mantissa) * 2f32.powi(exponent - 10) };
    if code >> 7 == 1 { -size } else { size }
}

fn e2m1(code: u8) -> f32 {
    let size = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0][usize::from(code & 7)];
    if code & 8 == 8 { -size } else { size }
}

fn e8m0(code: u8) -> f32 {
    2f32.powi(i32::from(code) - 127)
}

/// The values of a matrix `[rows, columns]`, decoded one by one from the stored bytes.
fn decoded(checkpoint: &Checkpoint, name: &str) -> (usize, usize, Vec<f32>) {
    let tensor = checkpoint.tensor(name).expect("there");
    let bytes = bytes_of(checkpoint, tensor);
    let [rows, stored] = [0, 1].map(|axis| tensor.shape[axis] as usize);
    let scales = name.strip_suffix(".weight").and_then(|stem| checkpoint.find(&format!("{stem}.scale")));
    let scales = scales.map(|scales| bytes_of(checkpoint, scales)).unwrap_or_default();
    let columns = if tensor.dtype == Dtype::I8 { 2 * stored } else { stored };
    let value = |row: usize, column: usize| match tensor.dtype {
        Dtype::F8_E4M3 => {
            e4m3(bytes[row * stored + column]) * e8m0(scales[row / 32 * columns.div_ceil(32) + column / 32])
        }
        Dtype::I8 => {
            let byte = bytes[row * stored + column / 2];
            let code = if column.is_multiple_of(2) { byte & 15 } else { byte >> 4 };
            e2m1(code) * e8m0(scales[row * columns / 32 + column / 32])
        }
        Dtype::BF16 => {
            let at = 2 * (row * columns + column);
            f32::from_le_bytes([0, 0, bytes[at], bytes[at + 1]])
        }
        _ => f32::from_le_bytes(std::array::from_fn(|place| bytes[4 * (row * columns + column) + place])),
    };
    let values = (0..rows * columns).map(|place| value(place / columns, place % columns)).collect();
    (rows, columns, values)
}

/// The values that the kernels see: products with every unit vector.
fn seen(matrix: &Matrix, columns: usize) -> Vec<f32> {
    let compute = Compute::new(Arc::new(Pool::new(1)));
    let unit: Vec<f32> = (0..columns * columns).map(|place| f32::from(u8::from(place % (columns + 1) == 0))).collect();
    let mut input = Activations::new();
    input.set(&compute, &unit, columns, Treatment::Float32);
    let rows = matrix.rows();
    let mut output = vec![0.0; columns * rows];
    matmul_one(&compute, matrix, &input, &mut output);
    (0..rows * columns).map(|place| output[place % columns * rows + place / columns]).collect()
}

#[test]
fn every_format_is_read_as_it_was_written() {
    let tiny = Checkpoint::open(files("fixtures/v41-tiny")).expect("the fixture");
    let nano = Checkpoint::open(files("models/nano")).expect("the small model");
    let rows = [
        (&tiny, "layers.0.attn.wq_b.weight"),
        (&tiny, "layers.0.attn.wo_b.weight"),
        (&tiny, "layers.3.ffn.experts.7.w1.weight"),
        (&tiny, "layers.3.ffn.experts.7.w2.weight"),
        (&tiny, "layers.0.ffn.gate.weight"),
        (&tiny, "layers.0.hc_attn_fn"),
        (&tiny, "head.weight"),
        (&nano, "head.weight"),
        (&nano, "layers.1.ffn.experts.15.w2.weight"),
        (&nano, "layers.2.attn.compressor.wkv.weight"),
    ];
    for (checkpoint, name) in rows {
        let matrix = checkpoint.matrix(name).expect(name);
        let (rows, columns, values) = decoded(checkpoint, name);
        assert_eq!((matrix.rows(), matrix.cols()), (rows, columns), "{name}");
        assert!(values.iter().any(|value| *value != values[0]), "{name}");
        assert!(seen(&matrix, columns) == values, "{name}");
    }
}

#[test]
fn what_is_no_matrix_is_refused() {
    let tiny = Checkpoint::open(files("fixtures/v41-tiny")).expect("the fixture");
    let error = |name: &str| tiny.matrix(name).expect_err("refused").to_string();
    assert_eq!(error("norm.weight"), "norm.weight (BF16 [128]) cannot be read as a matrix");
    assert_eq!(error("layers.0.attn.wkv.scale"), "layers.0.attn.wkv.scale (F8_E8M0 [2, 4]) cannot be read as a matrix");
    assert_eq!(error("nothing.weight"), "the checkpoint holds no tensor nothing.weight");
    let table = "layers.1.engram.embed.scale (F8_E8M0 [4064, 1]) cannot be read as the scales of its matrix";
    assert_eq!(error("layers.1.engram.embed.weight"), table);
}

#[test]
fn damage_is_refused_while_loading() {
    let rows = [
        ("layers.3.ffn.experts.7.w1.weight", "layers.3.ffn.experts.7.w1.scale", 255),
        ("layers.0.attn.wq_b.weight", "layers.0.attn.wq_b.scale", 255),
        ("layers.0.attn.wq_b.weight", "layers.0.attn.wq_b.weight", 0x7f),
    ];
    for (matrix, damaged, code) in rows {
        let plan = Plan::new();
        let faulty = FaultyFiles::new(files("fixtures/v41-tiny"), Arc::clone(&plan));
        let checkpoint = Checkpoint::open(Arc::new(faulty)).expect("the fixture");
        let tensor = checkpoint.tensor(damaged).expect("there");
        let byte = bytes_of(&checkpoint, tensor)[3];
        let offset = checkpoint.file_offset(tensor) + 3;
        for bit in (0..8).filter(|bit| (byte ^ code) >> bit & 1 == 1) {
            plan.on_bytes(offset..offset + 1, Fault::Flip { offset, bit });
        }
        let error = checkpoint.matrix(matrix).expect_err("refused").to_string();
        let shard = &checkpoint.shard_of(tensor).name;
        assert!(error.starts_with(&format!("{shard}: {damaged}: ")) && error.contains(" at index 3: "), "{error}");
        plan.clear();
        plan.on_bytes(offset..offset + 1, Fault::Eio);
        let error = checkpoint.matrix(matrix).expect_err("unreadable").to_string();
        assert!(error.starts_with(&format!("{shard}: reading ")), "{error}");
    }
}
