//! Experts and rows from the fixture: the right ones, in the order asked, read as seldom as promised.

use cachalot_checkpoint::{Checkpoint, TensorInfo};
use cachalot_experts::{CheckpointRows, ExpertSource, LazyExperts, RowSource};
use cachalot_kernels::{Activations, Compute, Matrix, Treatment, matmul_one};
use cachalot_runtime::Pool;
use cachalot_storage::{Directory, Fault, FaultyFiles, Plan};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// The fixture, and a plan of faults that begins to act once it is open.
fn faulty() -> (Arc<Checkpoint>, Arc<Plan>) {
    let plan = Plan::new();
    let directory = Directory::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/v41-tiny"));
    let files = FaultyFiles::new(Arc::new(directory), Arc::clone(&plan));
    (Arc::new(Checkpoint::open(Arc::new(files)).expect("the fixture")), plan)
}

fn rows_of(checkpoint: &Arc<Checkpoint>) -> CheckpointRows {
    CheckpointRows::new(Arc::clone(checkpoint)).expect("the tables")
}

fn bytes_of(checkpoint: &Checkpoint, tensor: &TensorInfo) -> Vec<u8> {
    let mut bytes = vec![0; tensor.bytes as usize];
    checkpoint.read(tensor, 0, &mut bytes).expect("reads");
    bytes
}

/// Makes the byte `at` of a tensor read as `code`.
fn plant(checkpoint: &Checkpoint, plan: &Plan, name: &str, at: u64, code: u8) {
    let tensor = checkpoint.tensor(name).expect("there");
    let byte = bytes_of(checkpoint, tensor)[at as usize];
    let offset = checkpoint.file_offset(tensor) + at;
    for bit in (0..8).filter(|bit| (byte ^ code) >> bit & 1 == 1) {
        plan.on_bytes(offset..offset + 1, Fault::Flip { offset, bit });
    }
}

/// What a matrix does to a vector of different numbers.
fn fingerprint(matrix: &Matrix) -> Vec<f32> {
    let compute = Compute::new(Arc::new(Pool::new(1)));
    let values: Vec<f32> = (0..matrix.cols()).map(|place| place as f32 - 20.5).collect();
    let mut input = Activations::new();
    input.set(&compute, &values, matrix.cols(), Treatment::Float32);
    let mut output = vec![0.0; matrix.rows()];
    matmul_one(&compute, matrix, &input, &mut output);
    output
}

#[test]
fn experts_come_in_the_order_asked_and_are_read_once() {
    let (checkpoint, plan) = faulty();
    let experts = LazyExperts::new(Arc::clone(&checkpoint), 14, 14, u64::MAX);
    let mut out = Vec::new();
    for asked in [&[3, 11, 0][..], &[0, 3, 12, 3], &[], &[13]] {
        experts.fetch(5, asked, &mut out).expect("reads");
        assert_eq!(out.len(), asked.len());
        for (expert, number) in out.iter().zip(asked) {
            let parts = [("w1", &expert.w1), ("w3", &expert.w3), ("w2", &expert.w2)];
            for (name, matrix) in parts {
                let name = format!("layers.5.ffn.experts.{number}.{name}.weight");
                let direct = checkpoint.matrix(&name).expect("reads");
                assert!(fingerprint(matrix) == fingerprint(&direct), "{name}");
            }
        }
    }
    let stats = experts.stats();
    assert_eq!((stats.hits, stats.misses, stats.kept), (3, 5, 5));
    let before = plan.calls();
    experts.fetch(5, &[13, 0, 11], &mut out).expect("kept");
    assert_eq!(plan.calls(), before);
    experts.fetch(6, &[13], &mut out).expect("reads");
    assert_eq!(plan.calls(), before + 6, "an expert has six tensors");
}

#[test]
fn the_budget_is_kept_and_the_oldest_goes() {
    let (checkpoint, _) = faulty();
    let all = LazyExperts::new(Arc::clone(&checkpoint), 14, 14, u64::MAX);
    let mut out = Vec::new();
    all.fetch(2, &[0], &mut out).expect("reads");
    let one = out[0].bytes() as u64;
    let experts = LazyExperts::new(checkpoint, 14, 14, 2 * one);
    for expert in [0, 1, 0, 2, 0, 1] {
        experts.fetch(2, &[expert], &mut out).expect("reads");
        assert!(experts.stats().kept_bytes <= 2 * one);
    }
    let stats = experts.stats();
    assert_eq!((stats.hits, stats.misses, stats.kept), (2, 4, 2));
    // More than fit are handed out all the same.
    experts.fetch(2, &[5, 6, 7, 8, 9], &mut out).expect("reads");
    assert_eq!((out.len(), experts.stats().kept), (5, 2));
}

#[test]
fn expert_errors_name_layer_expert_shard_tensor_and_index() {
    let (checkpoint, plan) = faulty();
    let experts = LazyExperts::new(Arc::clone(&checkpoint), 14, 14, u64::MAX);
    let mut out = Vec::new();
    let error = experts.fetch(5, &[1, 14], &mut out).expect_err("none").to_string();
    assert_eq!(error, "layer 5 has no expert 14: there are 14 layers with 14 experts each");
    assert!(experts.fetch(14, &[0], &mut out).is_err());
    let name = "layers.5.ffn.experts.4.w3.scale";
    plant(&checkpoint, &plan, name, 9, 255);
    let shard = &checkpoint.shard_of(checkpoint.tensor(name).expect("there")).name;
    let error = experts.fetch(5, &[3, 4, 5], &mut out).expect_err("damaged").to_string();
    let expected = format!(
        "expert 4 of layer 5: {shard}: {name}: scale byte 255 at index 9: the file is damaged, download it again"
    );
    assert_eq!((error, out.len()), (expected, 0));
    plan.clear();
    experts.fetch(5, &[3, 4, 5], &mut out).expect("reads again");
}

/// E4M3 by its definition (spec section 2.2).
fn e4m3(code: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(code >> 3 & 15), f32::from(code & 7));
    let size = if exponent == 0 { mantissa * 2f32.powi(-9) } else { (8.0 + mantissa) * 2f32.powi(exponent - 10) };
    if code >> 7 == 1 { -size } else { size }
}

#[test]
fn rows_are_the_stored_ones_in_the_order_asked() {
    let (checkpoint, _) = faulty();
    let source = rows_of(&checkpoint);
    assert_eq!(
        (source.tables(), source.width(0), source.width(1), source.width(2), source.width(3)),
        (3, 32, 32, 128, 0)
    );
    for (table, layer, rows) in [(0, 1, 4064), (1, 5, 4944)] {
        let tensor = |part: &str| checkpoint.tensor(&format!("layers.{layer}.engram.embed.{part}")).expect("there");
        let (codes, scales) = (bytes_of(&checkpoint, tensor("weight")), bytes_of(&checkpoint, tensor("scale")));
        let asked = [0, rows - 1, 7, 7, 1000, 0, 7, 2033];
        let mut out = vec![f32::NAN; asked.len() * 32];
        source.fetch(table, &asked, &mut out).expect("reads");
        for (row, out) in asked.iter().zip(out.chunks(32)) {
            let scale = 2f32.powi(i32::from(scales[*row as usize]) - 127);
            let expected: Vec<f32> = codes[*row as usize * 32..][..32].iter().map(|code| e4m3(*code) * scale).collect();
            assert_eq!(out, expected, "row {row} of table {table}");
        }
    }
    let whole = checkpoint.vector("embed.weight").expect("the embedding");
    let mut out = vec![f32::NAN; 3 * 128];
    source.fetch(2, &[767, 0, 5], &mut out).expect("reads");
    for (row, out) in [767, 0, 5].into_iter().zip(out.chunks(128)) {
        assert_eq!(out, &whole[row * 128..][..128]);
    }
    source.fetch(0, &[], &mut []).expect("no rows");
}

#[test]
fn rows_asked_twice_are_read_once_and_slow_rows_in_parallel() {
    let (checkpoint, plan) = faulty();
    let source = rows_of(&checkpoint);
    let before = plan.calls();
    source.fetch(0, &[9, 9, 9, 4, 9], &mut [0.0; 160]).expect("reads");
    assert_eq!(plan.calls() - before, 4, "codes and scales of two rows");
    let asked: Vec<u64> = (0..64).map(|place| place * 61 % 4064).collect();
    let (mut fast, mut slow) = (vec![0.0; 64 * 32], vec![0.0; 64 * 32]);
    source.fetch(0, &asked, &mut fast).expect("reads");
    plan.on_calls(0..u64::MAX, Fault::Delay(Duration::from_millis(2)));
    let start = std::time::Instant::now();
    source.fetch(0, &asked, &mut slow).expect("reads");
    let serial = Duration::from_millis(2 * 2 * 64);
    assert!(start.elapsed() < serial / 2, "{:?}", start.elapsed());
    assert_eq!(fast, slow);
}

#[test]
fn row_errors_name_shard_tensor_and_index() {
    let (checkpoint, plan) = faulty();
    let source = rows_of(&checkpoint);
    let error = |source: &CheckpointRows, table, rows: &[u64]| {
        let mut out = vec![0.0; rows.len() * 32];
        source.fetch(table, rows, &mut out).expect_err("refused").to_string()
    };
    assert_eq!(error(&source, 9, &[0]), "there is no table 9: there are 3");
    assert_eq!(error(&source, 0, &[1, 4064]), "layers.1.engram.embed.weight has no row 4064: it has 4064");
    let short = source.fetch(0, &[1, 2], &mut [0.0; 63]).expect_err("short").to_string();
    assert_eq!(short, "layers.1.engram.embed.weight: 2 rows of 32 values do not fill an output of 63");
    for (name, at, code, what) in [
        ("layers.1.engram.embed.scale", 3000, 255, "scale byte 255"),
        ("layers.1.engram.embed.weight", 3000 * 32 + 31, 0x7f, "an FP8 code that is not a number"),
    ] {
        plan.clear();
        plant(&checkpoint, &plan, name, at, code);
        let shard = &checkpoint.shard_of(checkpoint.tensor(name).expect("there")).name;
        let expected = format!("{shard}: {name}: {what} at index {at}: the file is damaged, download it again");
        assert_eq!(error(&source, 0, &[5, 3000, 6]), expected);
        source.fetch(0, &[2999, 3001], &mut [0.0; 64]).expect("other rows are good");
    }
    plan.clear();
    let embedding = checkpoint.tensor("embed.weight").expect("there");
    let offset = checkpoint.file_offset(embedding) + 256 * 700;
    plan.on_bytes(offset..offset + 1, Fault::Eio);
    let broken = source.fetch(2, &[700], &mut [0.0; 128]).expect_err("unreadable").to_string();
    assert!(broken.contains(&format!("reading 256 bytes at offset {offset} failed")), "{broken}");
}

#[test]
fn sources_are_shared_between_threads() {
    let (checkpoint, _) = faulty();
    let (experts, rows) = (LazyExperts::new(Arc::clone(&checkpoint), 14, 14, 20_000), rows_of(&checkpoint));
    std::thread::scope(|scope| {
        for thread in 0..4u32 {
            let (experts, rows) = (&experts, &rows);
            scope.spawn(move || {
                let mut out = Vec::new();
                for step in 0..10 {
                    let asked = [(thread + step) % 14, (thread * 5 + step * 3) % 14];
                    experts.fetch(3, &asked, &mut out).expect("reads");
                    assert_eq!(out.len(), 2);
                    rows.fetch(1, &[u64::from(thread), u64::from(step)], &mut [0.0; 64]).expect("reads");
                }
            });
        }
    });
    assert!(experts.stats().kept_bytes <= 20_000);
}
