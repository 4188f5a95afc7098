//! Matrices hold the values that the released encoding stands for, whatever order the kernels keep them in.

#[path = "support/decode.rs"]
mod decode;
#[path = "support/seen.rs"]
mod seen;

use cachalot_checkpoint::Checkpoint;
use cachalot_storage::{Directory, Fault, FaultyFiles, Files, Plan};
use decode::{bytes_of, decoded};
use seen::seen;
use std::path::Path;
use std::sync::Arc;

fn files(path: &str) -> Arc<dyn Files> {
    Arc::new(Directory::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)))
}

#[test]
fn every_format_is_read_as_it_was_written() {
    let tiny = Checkpoint::open(files("fixtures/v41-tiny")).expect("the fixture");
    let nano = Checkpoint::open(files("models/nano")).expect("the small model");
    let v4 = Checkpoint::open(files("fixtures/v4-tiny")).expect("the V4 fixture");
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
        // Blocks of 128 x 128, ragged at both edges: 256 x 160, 160 x 256, 96 x 256.
        (&v4, "layers.0.attn.wq_b.weight"),
        (&v4, "layers.0.attn.wq_a.weight"),
        (&v4, "layers.0.ffn.shared_experts.w1.weight"),
        (&v4, "layers.2.attn.indexer.wq_b.weight"),
        (&v4, "layers.3.ffn.experts.7.w1.weight"),
        (&v4, "layers.3.attn.compressor.ape"),
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
