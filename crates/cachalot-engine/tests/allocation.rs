//! Once warm, decoding allocates nothing, in none of the threads: not for the model's arithmetic, not for experts, rows or
//! layers that come from the disk. Alone in its file: whatever else runs in a process is counted too.

use std::alloc::System;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use cachalot_engine::planner::MemoryRequest;
use cachalot_engine::{Engine, EngineOptions};
use cachalot_model::{LogitsOf, Segment, Sequence, Workspace};
use cachalot_storage::Directory;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Tokens that are counted. V4's begin behind its first group of 128; pages of caches have 256 records, none begins here.
const MODELS: [(&str, Range<usize>); 2] = [("v41-tiny", 40..60), ("v4-tiny", 130..150)];

fn open(name: &str, memory: MemoryRequest) -> Arc<Engine> {
    let directory = Directory::new(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(name));
    // The watch over the machine's memory allocates, on a thread of its own.
    let options = EngineOptions { threads: Some(2), memory, memory_floor: 0, ..EngineOptions::default() };
    Arc::new(Engine::open(Arc::new(directory), &options, &mut |_| ()).expect("a model"))
}

/// Allocations while single tokens are decoded, with buffers that have seen a context of this length.
fn count(engine: &Engine, counted: &Range<usize>) -> usize {
    let mut work = Workspace::new();
    let mut decode = |sequence: &mut Sequence, tokens: Range<usize>| {
        for index in tokens {
            let token = [((index * 37 + 11) % 600) as u32];
            let mut segments = [Segment { sequence, tokens: &token, embeddings: None, logits: LogitsOf::Last }];
            engine.model().advance(&mut work, &mut segments, None).expect("a step");
        }
    };
    decode(&mut engine.model().sequence(), 0..counted.end);
    let mut sequence = engine.model().sequence();
    decode(&mut sequence, 0..counted.start);
    let region = Region::new(ALLOCATOR);
    decode(&mut sequence, counted.clone());
    let change = region.change();
    change.allocations + change.reallocations
}

#[test]
fn steady_decoding_allocates_nothing() {
    for (name, counted) in MODELS {
        let request = |memory, experts| MemoryRequest { memory, context: Some(256), experts };
        let resident = open(name, request(None, None));
        assert!(resident.experts_fit());
        assert_eq!(count(&resident, &counted), 0, "{name}, all in memory");
        let streamed = open(name, request(None, Some(0)));
        assert_eq!(count(&streamed, &counted), 0, "{name}, experts from the disk");
        let stats = streamed.stats();
        assert!(stats.experts.misses > 500 && stats.rows.misses > 0, "{stats:?}");
        // Less and less, until layers have to be read in every step.
        let mut layers = streamed;
        while layers.plan().streamed_layers.is_empty() {
            layers = open(name, request(Some(layers.plan().total - 200_000), Some(0)));
        }
        assert_eq!(count(&layers, &counted), 0, "{name}, layers from the disk");
        assert!(layers.stats().layers.bytes > 0);
    }
}
