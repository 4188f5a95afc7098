//! Opening: what an engine takes from its options and from the model, and what it refuses

use std::sync::Arc;

use cachalot_engine::planner::MemoryRequest;
use cachalot_engine::{Engine, EngineOptions, Loading, OpenError};
use cachalot_experts::FEWEST_SLOTS;
use cachalot_storage::{Directory, Embedded, FaultyFiles, Files, Plan};
use cachalot_text::TokenizerError;

use crate::{options, repository};

fn open(options: &EngineOptions) -> Result<Engine, OpenError> {
    Engine::open(Arc::new(Directory::new(repository("fixtures/v41-tiny"))), options, &mut |_| ())
}

/// The files of a fixture, some of them replaced.
fn files(replace: &[(&str, Vec<u8>)]) -> Arc<dyn Files> {
    let mut files = Embedded::new("in memory");
    for entry in std::fs::read_dir(repository("fixtures/v41-tiny")).expect("a fixture") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().and_then(|name| name.to_str()).expect("a name").to_owned();
        files = files.with(&name, std::fs::read(&path).expect("readable"));
    }
    Arc::new(replace.iter().fold(files, |files, (name, bytes)| files.with(name, bytes.clone())))
}

fn text(name: &str) -> String {
    std::fs::read_to_string(repository("fixtures/v41-tiny").join(name)).expect("readable")
}

fn refuse(replace: &[(&str, Vec<u8>)]) -> OpenError {
    Engine::open(files(replace), &options(), &mut |_| ()).expect_err("refused")
}

#[test]
fn the_context_is_what_is_asked_for_or_what_the_model_goes_up_to() {
    for (asked, context) in [(None, 4096), (Some(100), 100), (Some(4096), 4096)] {
        let engine =
            open(&EngineOptions { memory: MemoryRequest { context: asked, ..Default::default() }, ..options() })
                .expect("a model");
        assert_eq!((engine.context(), engine.context_limit()), (context, 4096));
    }
    let error = open(&EngineOptions { memory: MemoryRequest { context: Some(1), ..Default::default() }, ..options() })
        .expect_err("refused");
    assert!(matches!(error, OpenError::Context { context: 1 }), "{error}");
    let longer = MemoryRequest { context: Some(1 << 40), ..Default::default() };
    let error = open(&EngineOptions { memory: longer, ..options() }).expect_err("refused");
    assert!(error.to_string().contains("the model goes up to 4096"), "{error}");
}

#[test]
fn loading_is_reported_to_the_last_byte() {
    let mut seen: Vec<Loading> = Vec::new();
    let engine = Engine::open(files(&[]), &options(), &mut |loading| seen.push(loading)).expect("a model");
    assert_eq!((engine.label(), engine.threads()), ("in memory", 2));
    assert!(engine.abilities().vision && engine.abilities().draft);
    assert!(seen.is_sorted_by_key(|loading| loading.done));
    let last = seen.last().expect("reports");
    assert!(last.done <= last.total && last.done * 10 > last.total * 9, "{last:?}");
}

#[test]
fn an_expert_budget_changes_nothing_but_what_is_kept() {
    let run = |experts| {
        let memory = MemoryRequest { experts: Some(experts), ..Default::default() };
        let engine = Arc::new(open(&EngineOptions { memory, ..options() }).expect("a model"));
        let mut session = cachalot_engine::Session::new(Arc::clone(&engine));
        let request = crate::greedy(8, cachalot_engine::Prefill::Exact);
        (crate::generate(&mut session, &crate::ids(30, 0), &request).0, engine.expert_stats())
    };
    let ((all, plenty), (same, nothing)) = (run(1 << 30), run(0));
    assert_eq!(all, same);
    assert!(
        plenty.kept > nothing.kept && nothing.kept == FEWEST_SLOTS && nothing.misses > plenty.misses,
        "{plenty:?} {nothing:?}"
    );
}

#[test]
fn a_budget_is_obeyed_or_refused_with_the_numbers() {
    let open_with = |memory| open(&EngineOptions { memory, ..options() });
    let engine = open_with(MemoryRequest { memory: Some(400_000_000), context: Some(64), experts: None });
    let engine = engine.expect("a small model fits");
    let plan = engine.plan();
    assert!(plan.total <= 400_000_000 && plan.experts_fit && engine.experts_fit(), "{plan:?}");
    assert_eq!((engine.context(), engine.prefill_chunk()), (64, 64));
    let planned = plan.lines.iter().find(|line| line.what.starts_with("reads in flight")).expect("a line");
    assert!(engine.reading_bytes() as u64 <= planned.bytes, "{} of {planned:?}", engine.reading_bytes());
    for (memory, words) in [(1 << 60, "leaves"), (1_000_000, "the model needs")] {
        let error = open_with(MemoryRequest { memory: Some(memory), ..Default::default() }).expect_err("refused");
        assert!(matches!(error, OpenError::Memory(_)) && error.to_string().contains(words), "{error}");
    }
}

/// Each disk has buffers of its own, and the plan counts them.
#[test]
fn a_model_on_several_disks_is_planned_for() {
    let line = |files: Arc<dyn Files>| {
        let engine = Engine::open(files, &options(), &mut |_| ()).expect("a model");
        let line =
            engine.plan().lines.iter().find(|line| line.what.starts_with("reads in flight")).map(|line| line.bytes);
        let bytes = line.expect("a line");
        assert!(engine.reading_bytes() as u64 <= bytes, "{} of {bytes}", engine.reading_bytes());
        bytes
    };
    let disk: Arc<dyn Files> = Arc::new(Directory::new(repository("fixtures/v41-tiny")));
    let one = line(Arc::clone(&disk));
    // A shard without a device of the system counts as one of its own.
    let two = line(Arc::new(FaultyFiles::new(disk, Plan::new()).only("model-00002-of-00003.safetensors")));
    let rows = cachalot_engine::engine::ROW_CACHE_BYTES as u64;
    assert_eq!(two - rows, 2 * (one - rows));
}

#[test]
fn what_does_not_fit_together_is_named() {
    let config = |from: &str, to: &str| vec![("config.json", text("config.json").replace(from, to).into_bytes())];
    let error = refuse(&config("\"deepseek_v41\"", "\"mammoth\""));
    assert!(matches!(error, OpenError::Checkpoint(_)) && error.to_string().contains("mammoth"), "{error}");
    let error = refuse(&config("\"engram_compressed_vocab_size\": 617", "\"engram_compressed_vocab_size\": 610"));
    let OpenError::Tokenizer(TokenizerError::EngramClasses { found: 617, expected: 610 }) = error else {
        panic!("{error}")
    };
    let error = refuse(&config("\"image_token_id\": 762", "\"image_token_id\": 5"));
    assert!(error.to_string().contains("image_token_id"), "{error}");
    let error = refuse(&config("\"dspark_noise_token_id\": 763", "\"dspark_noise_token_id\": 6"));
    assert!(error.to_string().contains("dspark_noise_token_id"), "{error}");
    let error = refuse(&[("tokenizer.json", text("tokenizer.json").replace("｜DSML｜", "｜DSMM｜").into_bytes())]);
    assert!(error.to_string().contains("DSML"), "{error}");
    let error = refuse(&[("tokenizer.json", vec![b' '; (64 << 20) + 1])]);
    assert!(matches!(error, OpenError::Storage(_)) && error.to_string().contains("tokenizer.json"), "{error}");
}

/// Previews of V4 come with an MTP block; without one, it is a later build.
#[test]
fn the_build_decides_the_texts_of_efforts() {
    use cachalot_text::conversation::EffortTexts;
    let texts = |path: &str| {
        let files = Arc::new(Directory::new(repository(path)));
        Engine::open(files, &options(), &mut |_| ()).expect("a model").effort_texts()
    };
    assert_eq!(texts("fixtures/v4-tiny"), EffortTexts::Preview);
    assert_eq!(texts("fixtures/v41-tiny"), EffortTexts::Release);
}
