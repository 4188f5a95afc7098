//! Experts and rows from the fixture: the right ones, in the order asked, read as seldom as promised.

use cachalot_checkpoint::{Checkpoint, TensorInfo};
use cachalot_experts::{
    Certainty, CheckpointRows, Delivery, Expert, ExpertError, ExpertLayout, ExpertSource, FEWEST_SLOTS, Interrupt,
    RowSource, StreamOptions, StreamedExperts, Wanted,
};
use cachalot_kernels::{Activations, Compute, Matrix, Treatment, matmul_one};
use cachalot_runtime::Pool;
use cachalot_storage::{Directory, Fault, FaultyFiles, Method, Plan, Reader};
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
    let device = checkpoint.file_of(&checkpoint.tensors()[0]).expect("a shard").device();
    let reader = Reader::new(Method::PLAIN, 1 << 16, [device]).expect("a reader");
    CheckpointRows::new(Arc::clone(checkpoint), Arc::new(reader), Interrupt::new(), 1 << 20).expect("the tables")
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

/// All experts of the fixture, as many kept as `budget_bytes` allow, read with `depth` in flight.
fn experts_of(checkpoint: &Arc<Checkpoint>, budget_bytes: u64, interrupt: &Interrupt) -> StreamedExperts {
    let layout = ExpertLayout::new(Arc::clone(checkpoint), 14, 14).expect("a layout");
    let device = layout.targets()[0].file.device();
    let reader = Reader::new(Method { depth: 4, ..Method::PLAIN }, layout.largest_read(), [device]).expect("a reader");
    let options = StreamOptions { budget_bytes, interrupt: interrupt.clone(), ..StreamOptions::default() };
    StreamedExperts::new(layout, Arc::new(reader), options).expect("slots")
}

fn wanted(experts: &[u32]) -> Vec<Wanted> {
    experts.iter().map(|&expert| Wanted { expert, tokens: 1 }).collect()
}

/// Fetches experts one and all, in whatever order they arrive, and hands each to `check`.
fn fetch(
    source: &StreamedExperts,
    layer: usize,
    experts: &[u32],
    mut check: impl FnMut(u32, &Expert),
) -> Result<(), ExpertError> {
    let mut delivery = Delivery::new();
    source.order(layer, &wanted(experts), &mut delivery)?;
    let (all, mut left) = (0..delivery.len(), experts.len());
    while left > 0 {
        if let Err(error) = source.wait(&mut delivery, all.clone()) {
            source.release(&mut delivery, all);
            return Err(error);
        }
        for place in all.clone() {
            let Some(expert) = delivery.arrived(place).map(Arc::clone) else { continue };
            check(experts[place], &expert);
            drop(expert);
            source.release(&mut delivery, place..place + 1);
            left -= 1;
        }
    }
    Ok(())
}

/// The three matrices are those that the checkpoint holds.
fn assert_stored(checkpoint: &Checkpoint, layer: usize, number: u32, expert: &Expert) {
    for (name, matrix) in [("w1", &expert.w1), ("w3", &expert.w3), ("w2", &expert.w2)] {
        let name = format!("layers.{layer}.ffn.experts.{number}.{name}.weight");
        let direct = checkpoint.matrix(&name).expect("reads");
        assert!(fingerprint(matrix) == fingerprint(&direct), "{name}");
    }
}

#[test]
fn experts_are_what_is_stored_and_are_read_once() {
    let (checkpoint, plan) = faulty();
    let experts = experts_of(&checkpoint, u64::MAX, &Interrupt::new());
    let compare = |number: u32, expert: &Expert| assert_stored(&checkpoint, 5, number, expert);
    for asked in [&[0, 3, 11][..], &[0, 3, 12], &[], &[13]] {
        fetch(&experts, 5, asked, compare).expect("reads");
    }
    let stats = experts.stats();
    assert_eq!((stats.hits, stats.misses, stats.kept), (2, 5, 5));
    let before = plan.calls();
    fetch(&experts, 5, &[0, 11, 13], compare).expect("kept");
    let direct = plan.calls();
    fetch(&experts, 5, &[0, 11, 13], |_, _| ()).expect("kept");
    assert_eq!(plan.calls(), direct, "only the comparison has read");
    let reads = ExpertLayout::new(Arc::clone(&checkpoint), 14, 14).expect("a layout").reads(6, 13);
    fetch(&experts, 6, &[13], |_, _| ()).expect("reads");
    assert_eq!(plan.calls(), direct + reads as u64);
    assert!(reads < 6 && before < direct, "tensors that are neighbours are read together: {reads}");
}

#[test]
fn the_fewest_slots_serve_any_number_of_experts() {
    let (checkpoint, _) = faulty();
    let experts = experts_of(&checkpoint, 0, &Interrupt::new());
    let all: Vec<u32> = (0..14).collect();
    for layer in [2, 3, 4, 2] {
        let mut seen = 0;
        experts.prefetch(layer + 1, &mut (0..14), Certainty::Likely);
        fetch(&experts, layer, &all, |number, expert| {
            assert_stored(&checkpoint, layer, number, expert);
            seen += 1;
        })
        .expect("reads");
        assert_eq!(seen, 14);
        assert!(experts.stats().kept <= FEWEST_SLOTS);
    }
}

#[test]
fn what_was_expected_is_used_or_dropped() {
    let (checkpoint, plan) = faulty();
    let experts = experts_of(&checkpoint, u64::MAX, &Interrupt::new());
    plan.on_calls(0..u64::MAX, Fault::Delay(Duration::from_millis(20)));
    experts.prefetch(3, &mut (0..14), Certainty::Certain);
    // Most have not been issued yet: nobody wants them.
    fetch(&experts, 3, &[0, 7], assert_stored_later).expect("reads");
    let stats = experts.stats();
    assert!(stats.prefetch.used >= 1 && stats.prefetch.dropped >= 4, "{stats:?}");
    plan.clear();
    fetch(&experts, 3, &[0, 7, 9], |number, expert| assert_stored(&checkpoint, 3, number, expert)).expect("reads");
}

fn assert_stored_later(_number: u32, expert: &Expert) {
    assert!(expert.bytes() > 0);
}

#[test]
fn a_disk_that_hangs_can_be_left_and_one_that_recovers_is_used_again() {
    let (checkpoint, plan) = faulty();
    let interrupt = Interrupt::new();
    let experts = experts_of(&checkpoint, u64::MAX, &interrupt);
    plan.on_calls(0..u64::MAX, Fault::Delay(Duration::from_millis(1500)));
    let start = std::time::Instant::now();
    let error = std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(50));
            interrupt.set(true);
        });
        fetch(&experts, 5, &[1, 2], |_, _| ()).expect_err("left")
    });
    assert!(matches!(error, ExpertError::Interrupted) && start.elapsed() < Duration::from_secs(1), "{error}");
    interrupt.set(false);
    plan.clear();
    fetch(&experts, 5, &[1, 2, 3], |number, expert| assert_stored(&checkpoint, 5, number, expert)).expect("reads");
}

#[test]
fn memory_given_back_is_not_used_until_it_is_taken_back() {
    let (checkpoint, _) = faulty();
    let experts = experts_of(&checkpoint, u64::MAX, &Interrupt::new());
    let all: Vec<u32> = (0..14).collect();
    (0..4).for_each(|layer| fetch(&experts, layer, &all, |_, _| ()).expect("reads"));
    let slot = experts.stats().slot_bytes;
    assert_eq!(experts.shrink(10 * slot), 10 * slot);
    assert_eq!(experts.stats().slots, 14 * 14 - 10);
    assert!(experts.shrink(u64::MAX) > 0);
    assert_eq!(experts.stats().slots, FEWEST_SLOTS);
    for layer in [0, 9] {
        fetch(&experts, layer, &all, |number, expert| assert_stored(&checkpoint, layer, number, expert))
            .expect("reads");
    }
    // And taken back when there is plenty again: whole slots, and no more than were given.
    let retired = experts.retired_bytes();
    assert_eq!(retired, (14 * 14 - FEWEST_SLOTS as u64) * slot);
    assert_eq!(experts.grow(3 * slot + slot / 2), 3 * slot);
    assert_eq!(experts.grow(u64::MAX), retired - 3 * slot);
    assert_eq!((experts.stats().slots, experts.retired_bytes()), (14 * 14, 0));
    (0..4).for_each(|layer| fetch(&experts, layer, &all, |_, _| ()).expect("reads"));
    assert!(experts.stats().kept >= 4 * 14, "{:?}", experts.stats());
}

#[test]
fn the_hot_ones_of_one_run_are_there_at_the_start_of_the_next() {
    let (checkpoint, _) = faulty();
    let experts = experts_of(&checkpoint, u64::MAX, &Interrupt::new());
    experts.start_trace();
    for _ in 0..3 {
        fetch(&experts, 5, &[4, 7], |_, _| ()).expect("reads");
    }
    fetch(&experts, 6, &[1], |_, _| ()).expect("reads");
    let trace = experts.take_trace();
    assert_eq!((trace.uses(), trace.optimum(9)), (7, 4));
    let hot = experts.hottest();
    assert_eq!((hot.len(), hot[2]), (3, (6, 1)));
    let next = experts_of(&checkpoint, u64::MAX, &Interrupt::new());
    next.warm(&hot);
    next.warm(&[(99, 0), (0, 99)]);
    let start = std::time::Instant::now();
    while next.stats().kept < 3 || start.elapsed() < Duration::from_millis(50) {
        assert!(start.elapsed() < Duration::from_secs(20));
        std::thread::sleep(Duration::from_millis(5));
    }
    fetch(&next, 5, &[4, 7], |number, expert| assert_stored(&checkpoint, 5, number, expert)).expect("kept");
    assert_eq!((next.stats().hits, next.stats().misses), (2, 0));
}

#[test]
fn expert_errors_name_layer_expert_shard_tensor_and_place() {
    let (checkpoint, plan) = faulty();
    let experts = experts_of(&checkpoint, u64::MAX, &Interrupt::new());
    let error = fetch(&experts, 5, &[1, 14], |_, _| ()).expect_err("none").to_string();
    assert_eq!(error, "layer 5 has no expert 14: there are 14 layers with 14 experts each");
    assert!(fetch(&experts, 14, &[0], |_, _| ()).is_err());
    let name = "layers.5.ffn.experts.4.w3.scale";
    plant(&checkpoint, &plan, name, 9, 255);
    let shard = checkpoint.shard_of(checkpoint.tensor(name).expect("there")).name.clone();
    let error = fetch(&experts, 5, &[3, 4, 5], |_, _| ()).expect_err("damaged").to_string();
    let expected = format!(
        "expert 4 of layer 5: {shard}: {name}: scale byte 255 at index 9: the file is damaged, download it again"
    );
    assert_eq!(error, expected);
    plan.clear();
    let offset = checkpoint.file_offset(checkpoint.tensor(name).expect("there"));
    plan.on_bytes(offset..offset + 1, Fault::Eio);
    let error = fetch(&experts, 5, &[3, 4, 5], |_, _| ()).expect_err("unreadable").to_string();
    assert!(error.starts_with("expert 4 of layer 5 (") && error.contains(name), "{error}");
    assert!(error.contains(&format!("{shard}: reading ")) && error.contains(" at offset "), "{error}");
    plan.clear();
    fetch(&experts, 5, &[3, 4, 5], |number, expert| assert_stored(&checkpoint, 5, number, expert))
        .expect("reads again");
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
fn rows_known_beforehand_are_read_once_and_kept_rows_not_again() {
    let (checkpoint, plan) = faulty();
    let source = rows_of(&checkpoint);
    let before = plan.calls();
    plan.on_calls(0..u64::MAX, Fault::Delay(Duration::from_millis(2)));
    let asked: Vec<u64> = (0..24).map(|place| place * 13).collect();
    source.prefetch(0, &asked);
    source.prefetch(0, &[0, 13, 4064, u64::MAX]);
    source.prefetch(9, &[0]);
    let (mut first, mut again) = (vec![0.0; 24 * 32], vec![0.0; 24 * 32]);
    source.fetch(0, &asked, &mut first).expect("reads");
    assert_eq!(plan.calls() - before, 48, "codes and scales of 24 rows");
    source.fetch(0, &asked, &mut again).expect("kept");
    assert_eq!((plan.calls() - before, &first), (48, &again));
    let stats = source.stats();
    assert_eq!((stats.misses, stats.hits, stats.bytes), (24, 48, 24 * 33));
    assert!(stats.waited > Duration::ZERO && source.capacity_bytes() <= 1 << 20);
}

/// Reads that began while the disk failed, and fail when it is well again, concern nobody who asks only now.
#[test]
fn a_row_that_fails_late_is_read_again() {
    let (checkpoint, plan) = faulty();
    let source = rows_of(&checkpoint);
    plan.on_calls(0..u64::MAX, Fault::Delay(Duration::from_millis(150)));
    plan.on_calls(0..u64::MAX, Fault::Eio);
    let before = plan.calls();
    source.prefetch(1, &[5, 6, 7]);
    while plan.calls() < before + 6 {
        std::thread::yield_now();
    }
    plan.clear();
    source.fetch(1, &[5, 6, 7], &mut [0.0; 3 * 32]).expect("the disk is well again");
    // One that fails for whoever waits is told all the same, once and for all of its readers.
    plan.on_calls(0..u64::MAX, Fault::Eio);
    for _ in 0..2 {
        source.fetch(1, &[5, 8, 9], &mut [0.0; 3 * 32]).expect_err("the disk fails");
    }
    plan.clear();
    source.fetch(1, &[5, 8, 9], &mut [0.0; 3 * 32]).expect("the disk is well again");
}

#[test]
fn a_row_that_failed_while_it_was_only_expected_is_read_again() {
    let (checkpoint, plan) = faulty();
    let source = rows_of(&checkpoint);
    plan.on_calls(0..u64::MAX, Fault::Eio);
    source.prefetch(1, &[5, 6, 7]);
    std::thread::sleep(Duration::from_millis(30));
    plan.clear();
    source.fetch(1, &[5, 6, 7], &mut [0.0; 96]).expect("reads");
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
    let (experts, rows) = (experts_of(&checkpoint, 0, &Interrupt::new()), rows_of(&checkpoint));
    std::thread::scope(|scope| {
        for thread in 0..4u32 {
            let (checkpoint, experts, rows) = (&checkpoint, &experts, &rows);
            scope.spawn(move || {
                for step in 0..10 {
                    let mut asked =
                        [(thread + step) % 14, (thread * 5 + step * 3) % 14, (thread + 7 * step) % 14].to_vec();
                    asked.sort_unstable();
                    asked.dedup();
                    let layer = 3 + step as usize % 3;
                    fetch(experts, layer, &asked, |number, expert| assert_stored(checkpoint, layer, number, expert))
                        .expect("reads");
                    rows.fetch(1, &[u64::from(thread), u64::from(step)], &mut [0.0; 64]).expect("reads");
                }
            });
        }
    });
    assert!(experts.stats().kept <= FEWEST_SLOTS);
}
