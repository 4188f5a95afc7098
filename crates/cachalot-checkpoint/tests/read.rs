//! Reads of vectors and rows, and what is refused while reading.

use cachalot_checkpoint::{Checkpoint, CheckpointError, Dtype, TensorInfo};
use cachalot_storage::{Directory, Fault, FaultyFiles, Files, Plan};
use std::path::Path;
use std::sync::Arc;

fn fixture() -> Arc<dyn Files> {
    Arc::new(Directory::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/v41-tiny")))
}

/// The fixture, and a plan of faults that begins to act once it is open.
fn faulty() -> (Checkpoint, Arc<Plan>) {
    let plan = Plan::new();
    let files = FaultyFiles::new(fixture(), Arc::clone(&plan));
    (Checkpoint::open(Arc::new(files)).expect("the fixture"), plan)
}

fn whole(checkpoint: &Checkpoint, tensor: &TensorInfo) -> Vec<u8> {
    let mut bytes = vec![0; tensor.bytes as usize];
    checkpoint.read(tensor, 0, &mut bytes).expect("reads");
    bytes
}

/// Makes the byte `at` of a tensor read as `code`.
fn plant(checkpoint: &Checkpoint, plan: &Plan, name: &str, at: u64, code: u8) {
    let tensor = checkpoint.tensor(name).expect("there");
    let byte = whole(checkpoint, tensor)[at as usize];
    let offset = checkpoint.file_offset(tensor) + at;
    for bit in (0..8).filter(|bit| (byte ^ code) >> bit & 1 == 1) {
        plan.on_bytes(offset..offset + 1, Fault::Flip { offset, bit });
    }
}

#[test]
fn vectors_are_the_stored_values() {
    let checkpoint = Checkpoint::open(fixture()).expect("the fixture");
    let norm = checkpoint.vector("norm.weight").expect("a vector");
    let stored = whole(&checkpoint, checkpoint.tensor("norm.weight").expect("there"));
    let expected: Vec<f32> =
        stored.chunks(2).map(|pair| f32::from_bits(u32::from_le_bytes([0, 0, pair[0], pair[1]]))).collect();
    assert_eq!(norm, expected);
    assert!(norm.len() == 128 && norm.iter().any(|value| *value != norm[0]));
    // A matrix is read row by row, a large one in several pieces.
    let embedding = checkpoint.vector("embed.weight").expect("a vector");
    assert_eq!(embedding.len(), 768 * 128);
    assert_eq!(checkpoint.vector("layers.0.attn.attn_sink").expect("a vector").len(), 4);
    let error = checkpoint.vector("layers.0.attn.wkv.weight").expect_err("codes").to_string();
    assert_eq!(error, "layers.0.attn.wkv.weight (F8_E4M3 [64, 128]) cannot be read as a vector");
}

#[test]
fn strips_are_the_rows_in_order() {
    let checkpoint = Checkpoint::open(fixture()).expect("the fixture");
    for (name, multiple) in [("embed.weight", 16), ("layers.5.engram.embed.weight", 7), ("norm.weight", 16)] {
        let tensor = checkpoint.tensor(name).expect("there");
        let (rows, width) = tensor.rows().expect("a matrix");
        let (mut next, mut bytes) = (0, Vec::new());
        checkpoint
            .for_each_strip(tensor, multiple, |first, strip| {
                assert_eq!((first, first % multiple), (next, 0));
                next += strip.len() / width as usize;
                bytes.extend_from_slice(strip);
                Ok(())
            })
            .expect("reads");
        assert_eq!(next as u64, rows);
        assert_eq!(bytes, whole(&checkpoint, tensor));
    }
}

#[test]
fn rows_outside_are_refused() {
    let checkpoint = Checkpoint::open(fixture()).expect("the fixture");
    let tensor = checkpoint.tensor("layers.1.engram.embed.weight").expect("there");
    assert_eq!(tensor.rows().expect("a matrix"), (4064, 32));
    checkpoint.read_rows(tensor, 4063..4064, &mut [0; 32]).expect("the last row");
    #[allow(clippy::reversed_empty_ranges)]
    let ranges = [(4064..4065, 32), (4063..4065, 64), (3..2, 32), (0..1, 31), (u64::MAX - 1..u64::MAX, 32)];
    for (rows, length) in ranges {
        let error = checkpoint.read_rows(tensor, rows.clone(), &mut vec![0; length]).expect_err("outside");
        assert!(matches!(error, CheckpointError::Range { .. }), "{rows:?}: {error}");
    }
}

#[test]
fn codes_that_are_no_numbers_are_named_with_shard_tensor_and_index() {
    let rows = [
        ("layers.1.engram.embed.scale", 1234, 255, "scale byte 255"),
        ("layers.3.ffn.experts.7.w2.scale", 5, 255, "scale byte 255"),
        ("layers.3.attn.wkv.weight", 4000, 0x7f, "an FP8 code that is not a number"),
        ("layers.1.engram.embed.weight", 100_000, 0xff, "an FP8 code that is not a number"),
    ];
    for (name, at, code, what) in rows {
        let (checkpoint, plan) = faulty();
        let tensor = checkpoint.tensor(name).expect("there");
        plant(&checkpoint, &plan, name, at, code);
        let shard = &checkpoint.shard_of(tensor).name;
        let expected = format!("{shard}: {name}: {what} at index {at}: the file is damaged, download it again");
        let error = checkpoint.for_each_strip(tensor, 16, |_, _| Ok(())).expect_err("refused").to_string();
        assert_eq!(error, expected);
        let (_, width) = tensor.rows().expect("a matrix");
        let row = at / width;
        let mut buffer = vec![0; width as usize];
        assert_eq!(checkpoint.read_rows(tensor, row..row + 1, &mut buffer).expect_err("refused").to_string(), expected);
        checkpoint.read_rows(tensor, row + 1..row + 2, &mut buffer).expect("the next row is good");
    }
    let (checkpoint, plan) = faulty();
    plant(&checkpoint, &plan, "norm.weight", 10, 0xff);
    plant(&checkpoint, &plan, "norm.weight", 11, 0x7f);
    let error = checkpoint.vector("norm.weight").expect_err("refused").to_string();
    assert!(
        error.ends_with("norm.weight: a value that is not a number at index 5: the file is damaged, download it again"),
        "{error}"
    );
    // What stands for a number in one type may be none in another: opaque FP4 bytes are all numbers.
    let (checkpoint, plan) = faulty();
    plant(&checkpoint, &plan, "layers.0.ffn.experts.0.w1.weight", 3, 255);
    let tensor = checkpoint.tensor("layers.0.ffn.experts.0.w1.weight").expect("there");
    assert_eq!(tensor.dtype, Dtype::I8);
    checkpoint.for_each_strip(tensor, 16, |_, _| Ok(())).expect("reads");
}

#[test]
fn a_bad_sector_is_an_error_of_this_tensor_only() {
    let (checkpoint, plan) = faulty();
    let tensor = checkpoint.tensor("layers.3.attn.wkv.weight").expect("there");
    let offset = checkpoint.file_offset(tensor) + 77;
    plan.on_bytes(offset..offset + 1, Fault::Eio);
    let error = checkpoint.for_each_strip(tensor, 16, |_, _| Ok(())).expect_err("unreadable").to_string();
    assert!(error.contains("reading 8192 bytes at offset") && error.starts_with("model-0000"), "{error}");
    plan.clear();
    checkpoint.for_each_strip(tensor, 16, |_, _| Ok(())).expect("reads again");
}
