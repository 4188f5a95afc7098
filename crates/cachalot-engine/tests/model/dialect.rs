//! V4 as Transformers saves it computes what the released files compute.

use std::sync::Arc;

use cachalot_checkpoint::{CONFIG_FILE, Dtype};
use cachalot_engine::engine::{CacheChoice, Engine, EngineOptions, TOKENIZER_FILE};
use cachalot_engine::forward::{ForwardMode, ForwardReport};
use cachalot_model::Arithmetic;
use cachalot_storage::Files;

use crate::fixture::distance;
use crate::saved::{fixture, plain, saved, single};

/// Logits and chosen experts of 160 tokens: windows, CSA and HCA entries are all reached.
fn computed(files: Arc<dyn Files>) -> (Vec<f32>, Vec<Vec<i32>>, usize) {
    let options = EngineOptions {
        arithmetic: Arithmetic::Exact,
        cache: CacheChoice::Reference,
        threads: Some(2),
        ..EngineOptions::default()
    };
    let engine = Engine::open(files, &options, &mut |_| ()).expect("a model");
    let ids: Vec<u32> = (0..160).map(|place| place * 7919 % 700 + 3).collect();
    let report = ForwardReport::run(engine.model(), &ids, ForwardMode::Chunk(64), false, &mut |_| ()).expect("runs");
    (report.logits().to_vec(), report.trace().experts.clone(), engine.model().config().vocab_size)
}

/// Every value is the same; only sums of unscaled products are rounded otherwise than those of scaled ones.
#[test]
fn stacked_experts_and_other_names_compute_the_same() {
    let (expected, experts, vocabulary) = computed(fixture());
    let read = |name: &str| fixture().read_all(name, 1 << 20).expect("there");
    let files = single(&saved(&plain(Dtype::F32))).with(TOKENIZER_FILE, read(TOKENIZER_FILE));
    let (logits, chosen, _) = computed(Arc::new(files.with(CONFIG_FILE, read(CONFIG_FILE))));
    assert_eq!(chosen, experts);
    let distance = distance(&logits, &expected, vocabulary);
    assert!(distance.max_abs < 2e-5, "{distance:?}");
}
