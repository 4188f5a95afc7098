//! Larger than memory: where experts are and how they are read changes no bit, and a disk that fails loses no conversation.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cachalot_engine::planner::MemoryRequest;
use cachalot_engine::session::{Event, Finish, Flow, GenerateError, Prefill, Session};
use cachalot_engine::{Engine, EngineOptions, Interrupt};
use cachalot_experts::{FEWEST_SLOTS, Policy};
use cachalot_model::{LogitsOf, Segment, Workspace};
use cachalot_storage::{Directory, Fault, FaultyFiles, Files, Interface, Method, Plan};

use crate::{generate, greedy, ids, options, repository};

/// A budget for experts, in bytes.
fn experts(bytes: u64) -> MemoryRequest {
    MemoryRequest { experts: Some(bytes), ..MemoryRequest::default() }
}

fn open(files: Arc<dyn Files>, options: &EngineOptions) -> Arc<Engine> {
    Arc::new(Engine::open(files, options, &mut |_| ()).expect("a model"))
}

fn fixture(name: &str) -> Arc<dyn Files> {
    Arc::new(Directory::new(repository("fixtures").join(name)))
}

fn faulty(options: &EngineOptions) -> (Arc<Engine>, Arc<Plan>) {
    let plan = Plan::new();
    (open(Arc::new(FaultyFiles::new(fixture("v41-tiny"), Arc::clone(&plan))), options), plan)
}

#[test]
fn no_cache_method_or_policy_changes_a_bit() {
    for name in ["v41-tiny", "v4-tiny"] {
        let request = greedy(12, Prefill::Exact);
        let run = |options: &EngineOptions| {
            let engine = open(fixture(name), options);
            let mut session = Session::new(Arc::clone(&engine));
            (generate(&mut session, &ids(60, 0), &request).0, engine.stats())
        };
        let (expected, plenty) = run(&options());
        assert!(plenty.experts.hits > 0 && plenty.disk.bytes > 0);
        let method = |interface, direct, depth| Some(Method { interface, direct, depth });
        for changed in [
            EngineOptions { memory: experts(0), ..options() },
            EngineOptions { memory: experts(0), guess: false, policy: Policy::Lru, ..options() },
            EngineOptions { memory: experts(400_000), policy: Policy::Lfu, ..options() },
            EngineOptions { memory: experts(0), method: method(Interface::Pread, true, 1), ..options() },
            EngineOptions { memory: experts(0), method: method(Interface::IoUring, true, 7), ..options() },
            EngineOptions { method: method(Interface::IoUring, false, 3), threads: Some(1), ..options() },
            EngineOptions { memory_floor: u64::MAX, ..options() },
        ] {
            let (tokens, stats) = run(&changed);
            assert_eq!(tokens, expected, "{name}: {changed:?}");
            if changed.memory == experts(0) {
                assert!(stats.experts.slots == FEWEST_SLOTS && stats.disk.bytes > plenty.disk.bytes);
            }
        }
    }
}

#[test]
fn a_disk_that_fails_ends_an_answer_and_not_the_conversation() {
    let (engine, plan) = faulty(&EngineOptions { memory: experts(0), ..options() });
    let mut session = Session::new(Arc::clone(&engine));
    let request = greedy(10, Prefill::Exact);
    let (expected, _) = generate(&mut Session::new(open(fixture("v41-tiny"), &options())), &ids(50, 0), &request);
    for nth in [0, 7, 200, 900] {
        let calls = plan.calls();
        plan.on_calls(calls + nth..u64::MAX, Fault::Eio);
        let error = session.generate(&ids(50, 0), &request, &mut |_| Flow::Continue).expect_err("the disk fails");
        let text = error.to_string();
        assert!(matches!(error, GenerateError::Step(_)), "{text}");
        // The shard, the tensor and the offset: of a row as of an expert.
        let tensor = text.contains("layers.") || text.contains("embed.weight");
        let parts = ["model-0000", ".safetensors", "reading ", " at offset "];
        assert!(tensor && parts.iter().all(|part| text.contains(part)), "{text}");
        assert!(nth > 0 || text.contains("embed.weight"), "the first read is that of a row: {text}");
        plan.clear();
        let (tokens, _) = generate(&mut session, &ids(50, 0), &request);
        assert_eq!(tokens, expected, "after a failure at read {nth}");
        session.clear();
    }
}

#[test]
fn a_disk_that_hangs_can_be_left_at_any_time() {
    let interrupt = Interrupt::new();
    let options = EngineOptions { memory: experts(0), interrupt: interrupt.clone(), ..options() };
    let (engine, plan) = faulty(&options);
    let mut session = Session::new(Arc::clone(&engine));
    let request = greedy(400, Prefill::Exact);
    let mut seen = 0;
    let start = Instant::now();
    let outcome = std::thread::scope(|scope| {
        let outcome = session.generate(&ids(50, 0), &request, &mut |event| {
            if let Event::Token { .. } = event {
                seen += 1;
                if seen == 3 {
                    plan.on_calls(0..u64::MAX, Fault::Delay(Duration::from_secs(3)));
                    let interrupt = interrupt.clone();
                    scope.spawn(move || {
                        std::thread::sleep(Duration::from_millis(100));
                        interrupt.set(true);
                    });
                }
            }
            Flow::Continue
        });
        outcome.expect("it ends without an error")
    });
    assert_eq!((outcome.finish, seen >= 3), (Finish::Cancelled, true));
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    assert_eq!(session.sequence().position(), session.tokens().len());
    plan.clear();
    interrupt.set(false);
    let request = greedy(6, Prefill::Exact);
    let (expected, _) =
        generate(&mut Session::new(open(fixture("v41-tiny"), &crate::options())), &ids(50, 0), &request);
    assert_eq!(generate(&mut session, &ids(50, 0), &request).0, expected);
}

#[test]
fn a_shard_that_is_cut_or_written_to_never_gives_a_wrong_token() {
    for damage in [0, 1] {
        let folder = tempfile::tempdir().expect("a folder");
        for entry in std::fs::read_dir(repository("fixtures/v41-tiny")).expect("readable") {
            let entry = entry.expect("an entry");
            std::fs::copy(entry.path(), folder.path().join(entry.file_name())).expect("copied");
        }
        let engine = open(Arc::new(Directory::new(folder.path())), &EngineOptions { memory: experts(0), ..options() });
        let mut session = Session::new(Arc::clone(&engine));
        let request = greedy(3, Prefill::Exact);
        generate(&mut session, &ids(20, 0), &request);
        let shard = folder.path().join("model-00002-of-00003.safetensors");
        let bytes = std::fs::read(&shard).expect("readable");
        if damage == 0 {
            std::fs::write(&shard, &bytes[..bytes.len() / 8]).expect("cut");
        } else {
            // The same length, other bytes: only the time of the change tells.
            std::thread::sleep(Duration::from_millis(20));
            std::fs::write(&shard, vec![0; bytes.len()]).expect("written");
        }
        let error = session.generate(&ids(40, 1), &request, &mut |_| Flow::Continue).expect_err("refused").to_string();
        assert!(error.contains("model-00002-of-00003.safetensors"), "{error}");
        assert!(error.contains("the file ends after") || error.contains("written to while it was in use"), "{error}");
        assert!(error.contains(" at offset ") && (error.contains("layers.") || error.contains("embed")), "{error}");
    }
}

#[test]
fn when_memory_runs_short_experts_are_given_up() {
    let engine = open(fixture("v41-tiny"), &EngineOptions { memory_floor: u64::MAX, ..options() });
    let mut session = Session::new(Arc::clone(&engine));
    generate(&mut session, &ids(20, 0), &greedy(2, Prefill::Exact));
    // Without anybody asking: a server may be idle while another program starts.
    let start = Instant::now();
    while engine.stats().experts.slots > FEWEST_SLOTS {
        assert!(start.elapsed() < Duration::from_secs(20), "{:?}", engine.stats().experts);
        std::thread::sleep(Duration::from_millis(5));
    }
    let (tokens, _) = generate(&mut session, &ids(20, 1), &greedy(2, Prefill::Exact));
    let plenty = open(fixture("v41-tiny"), &options());
    assert_eq!(tokens, generate(&mut Session::new(plenty), &ids(20, 1), &greedy(2, Prefill::Exact)).0);
}

#[test]
fn what_was_hot_is_there_at_the_next_start() {
    let directory = tempfile::tempdir().expect("a folder");
    let options = EngineOptions { cache_directory: Some(directory.path().join("cache")), ..options() };
    let engine = open(fixture("v41-tiny"), &options);
    let request = greedy(3, Prefill::Exact);
    let (expected, _) = generate(&mut Session::new(Arc::clone(&engine)), &ids(20, 0), &request);
    let hot = engine.experts().hottest().len();
    assert!(hot > 30);
    engine.remember().expect("written");
    let next = open(fixture("v41-tiny"), &options);
    let start = Instant::now();
    while next.stats().experts.kept < hot {
        assert!(start.elapsed() < Duration::from_secs(20), "{:?}", next.stats().experts);
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(generate(&mut Session::new(Arc::clone(&next)), &ids(20, 0), &request).0, expected);
    // No place to write is an error that says so, and nothing else.
    let file = directory.path().join("file");
    std::fs::write(&file, "").expect("a file");
    let blocked = open(fixture("v41-tiny"), &EngineOptions { cache_directory: Some(file), ..options });
    assert!(blocked.remember().is_err());
}

#[test]
fn rows_of_a_whole_prompt_are_read_beforehand_and_once() {
    for name in ["v41-tiny", "v4-tiny"] {
        let engine = open(fixture(name), &options());
        let (prompt, model) = (ids(230, 0), engine.model());
        let run = |ahead: bool| {
            let (mut work, mut sequence, mut logits) = (Workspace::new(), model.sequence(), Vec::new());
            let before = engine.stats().rows;
            let mut expected = if ahead { model.expect(&mut work, &sequence, &prompt[..150], 0) } else { 0 };
            assert!(!ahead || expected == 150, "{expected}");
            for (chunk, tokens) in prompt.chunks(50).enumerate() {
                if ahead && chunk == 1 {
                    // The rest, when the first chunk is done: what has been expected is not expected again.
                    expected = 50 + model.expect(&mut work, &sequence, &prompt[50..], expected - 50);
                    assert_eq!(expected, prompt.len());
                }
                let logits_of = LogitsOf::Last;
                let mut segments = [Segment { sequence: &mut sequence, tokens, embeddings: None, logits: logits_of }];
                logits = model.advance(&mut work, &mut segments, None).expect("a step").to_vec();
            }
            (logits, engine.stats().rows.misses - before.misses)
        };
        let (expected, first) = run(true);
        assert!(first > 0);
        // All that a prompt needs is known beforehand: nothing is left to be missed.
        let (again, second) = run(false);
        assert_eq!((again, second), (expected, 0), "{name}");
    }
}
