//! Layers that are read in every step: the right matrices, in whatever order they are asked for, read no more often than
//! need be; and what becomes of reads that fail or hang.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cachalot_checkpoint::Checkpoint;
use cachalot_experts::{Interrupt, LayerError, LayerLayout, LayerSource, StreamedLayers};
use cachalot_kernels::{Activations, Compute, Matrix, Treatment, matmul_one};
use cachalot_runtime::Pool;
use cachalot_storage::{Directory, Fault, FaultyFiles, Method, Plan, Reader};

/// A fixture, its layers, and faults that act from now on.
struct Fixture {
    checkpoint: Arc<Checkpoint>,
    layers: usize,
    plan: Arc<Plan>,
    interrupt: Interrupt,
}

impl Fixture {
    fn open(name: &str) -> Self {
        let plan = Plan::new();
        let directory = Directory::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(name));
        let files = FaultyFiles::new(Arc::new(directory), Arc::clone(&plan));
        let checkpoint = Arc::new(Checkpoint::open(Arc::new(files)).expect("the fixture"));
        let layers = checkpoint.architecture().trunk().num_hidden_layers;
        Self { checkpoint, layers, plan, interrupt: Interrupt::new() }
    }

    fn source(&self, streamed: &[usize]) -> StreamedLayers {
        let layout = LayerLayout::new(Arc::clone(&self.checkpoint), self.layers).expect("a layout");
        let device = layout.targets()[0].file.device();
        let method = Method { depth: 3, ..Method::PLAIN };
        let reader = Arc::new(Reader::new(method, layout.largest_read(), [device]).expect("a reader"));
        StreamedLayers::new(layout, streamed, reader, self.interrupt.clone()).expect("buffers")
    }

    /// Takes a layer, compares it with what is stored, and gives it back.
    fn check(&self, source: &StreamedLayers, layer: usize, end: usize) -> Result<(), LayerError> {
        let matrices = source.take(layer, end)?;
        assert_eq!(matrices.len(), source.names(layer).len());
        for (name, matrix) in source.names(layer).iter().zip(&matrices) {
            let stored = self.checkpoint.matrix(name).expect("reads");
            assert!(fingerprint(matrix) == fingerprint(&stored), "{name}");
        }
        source.give_back(layer, matrices);
        Ok(())
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
fn layers_are_what_is_stored_however_many_there_are() {
    for name in ["v41-tiny", "v4-tiny"] {
        let fixture = Fixture::open(name);
        let layout = LayerLayout::new(Arc::clone(&fixture.checkpoint), fixture.layers).expect("a layout");
        for set in layout.choices() {
            let source = fixture.source(&set.layers);
            for _ in 0..2 {
                for layer in &set.layers {
                    fixture.check(&source, *layer, fixture.layers).expect("it can be read");
                }
            }
            let stats = source.stats();
            assert_eq!(stats.streamed, set.layers.len());
            if set.layers.len() <= 2 {
                assert_eq!(stats.bytes, set.bytes, "what has room is read once");
            } else {
                assert!(stats.bytes >= 2 * set.bytes, "{stats:?} {set:?}");
            }
            assert!(source.names(fixture.layers).is_empty());
        }
    }
}

#[test]
fn any_order_and_steps_that_end_early_get_the_right_ones() {
    let fixture = Fixture::open("v41-tiny");
    let all: Vec<usize> = (0..fixture.layers).collect();
    let source = fixture.source(&all);
    for layer in [0, 1, 2, 0, 1, 13, 5, 5, 0, 12, 13] {
        fixture.check(&source, layer, fixture.layers).expect("it can be read");
    }
    // Whoever says that a step ends finds the next one's first layers, and nothing was read in vain.
    let source = fixture.source(&all);
    for _ in 0..3 {
        (0..4).for_each(|layer| fixture.check(&source, layer, 4).expect("it can be read"));
    }
    let layout = LayerLayout::new(Arc::clone(&fixture.checkpoint), fixture.layers).expect("a layout");
    let step: u64 = (0..4).map(|layer| layout.bytes(layer)).sum();
    assert!(source.stats().bytes <= 3 * step + layout.bytes(0) + layout.bytes(1), "{:?}", source.stats());
    assert!(matches!(fixture.source(&[1, 2, 3]).take(5, 14), Err(LayerError::Kept { layer: 5 })));
}

#[test]
fn several_steps_at_once_share_the_buffers() {
    let fixture = Fixture::open("v4-tiny");
    let all: Vec<usize> = (0..fixture.layers).collect();
    let source = fixture.source(&all);
    // The model lets nobody ask for a layer that another step has: so do we.
    let locks: Vec<std::sync::Mutex<()>> = all.iter().map(|_| std::sync::Mutex::new(())).collect();
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for layer in all.iter().chain(&all) {
                    let _mine = locks[*layer].lock().expect("sound");
                    fixture.check(&source, *layer, fixture.layers).expect("it can be read");
                }
            });
        }
    });
}

#[test]
fn a_read_that_fails_is_named_and_tried_again() {
    let fixture = Fixture::open("v41-tiny");
    let tensor = fixture.checkpoint.tensor("layers.6.attn.wo_b.weight").expect("a tensor");
    let offset = fixture.checkpoint.file_offset(tensor);
    fixture.plan.on_bytes(offset..offset + tensor.bytes, Fault::Eio);
    let source = fixture.source(&[2, 4, 6, 8]);
    [2, 4].into_iter().for_each(|layer| fixture.check(&source, layer, 14).expect("it can be read"));
    for _ in 0..2 {
        let error = source.take(6, 14).expect_err("it cannot be read").to_string();
        let shard = &fixture.checkpoint.shard_of(tensor).name;
        for part in ["layer 6", "layers.6.attn.wo_b.weight", shard, " at offset "] {
            assert!(error.contains(part), "no {part:?} in {error}");
        }
        // Other layers are not concerned.
        fixture.check(&source, 2, 14).expect("it can be read");
    }
    fixture.plan.clear();
    fixture.check(&source, 6, 14).expect("the disk is well again");
    // A code that is no number is refused with its place.
    let tensor = fixture.checkpoint.tensor("layers.8.attn.wo_b.weight").expect("a tensor");
    let at = fixture.checkpoint.file_offset(tensor) + 5;
    let mut byte = [0; 6];
    fixture.checkpoint.read(tensor, 0, &mut byte).expect("reads");
    for bit in (0..7).filter(|bit| byte[5] >> bit & 1 == 0) {
        fixture.plan.on_bytes(at..at + 1, Fault::Flip { offset: at, bit });
    }
    source.take(4, 14).map(|matrices| source.give_back(4, matrices)).expect("it can be read");
    // It may have been read ahead before the bits flipped.
    let outcome = (0..3).find_map(|_| {
        [2, 4, 6].into_iter().for_each(|layer| fixture.check(&source, layer, 14).expect("it can be read"));
        source.take(8, 14).map(|matrices| source.give_back(8, matrices)).err()
    });
    let error = outcome.expect("refused").to_string();
    assert!(error.contains("layers.8.attn.wo_b.weight") && error.contains("index 5"), "{error}");
}

#[test]
fn a_disk_that_hangs_can_be_left_and_comes_back() {
    let fixture = Fixture::open("v41-tiny");
    let all: Vec<usize> = (0..fixture.layers).collect();
    let source = fixture.source(&all);
    fixture.check(&source, 0, 14).expect("it can be read");
    fixture.plan.on_calls(0..u64::MAX, Fault::Delay(Duration::from_secs(2)));
    fixture.interrupt.set(true);
    let start = Instant::now();
    let outcome = (1..14).find_map(|layer| source.take(layer, 14).map(|all| source.give_back(layer, all)).err());
    assert!(matches!(outcome, Some(LayerError::Interrupted)) && start.elapsed() < Duration::from_secs(2));
    fixture.plan.clear();
    fixture.interrupt.set(false);
    all.iter().for_each(|layer| fixture.check(&source, *layer, 14).expect("it can be read"));
}
