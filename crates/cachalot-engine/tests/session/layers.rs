//! Layers that do not fit and are read in every step: the same bits however many stay, and a disk that fails or hangs
//! loses no conversation.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cachalot_checkpoint::{Checkpoint, Inspection};
use cachalot_engine::planner::{Available, MemoryPlan, MemoryRequest, PlanError, sizes};
use cachalot_engine::session::{Event, Finish, Flow, Prefill, Session};
use cachalot_engine::{Engine, EngineOptions, Interrupt};
use cachalot_experts::{ExpertLayout, LayerLayout};
use cachalot_storage::{Directory, Fault, FaultyFiles, Files, Plan};

use crate::{generate, greedy, ids, options, repository};

const CONTEXT: usize = 256;

fn fixture(name: &str) -> Arc<dyn Files> {
    Arc::new(Directory::new(repository("fixtures").join(name)))
}

/// For each number of streamed layers that a budget leads to, the largest such budget; the error of one below them all.
fn budgets(files: Arc<dyn Files>) -> (Vec<(usize, u64)>, PlanError) {
    let checkpoint = Arc::new(Checkpoint::open(files).expect("a checkpoint"));
    let trunk = checkpoint.architecture().trunk();
    let (layers, experts) = (trunk.num_hidden_layers, trunk.n_routed_experts);
    let layout = ExpertLayout::new(Arc::clone(&checkpoint), layers, experts).expect("experts");
    let layers = LayerLayout::new(Arc::clone(&checkpoint), layers).expect("layers");
    let sizes = sizes(&checkpoint, &Inspection::of(&checkpoint), &layout, &layers).expect("sizes");
    let plan = |memory| {
        let free = Some(Available { bytes: u64::MAX - 1, by: "the test".to_owned() });
        MemoryPlan::new(&sizes, &MemoryRequest { memory, context: Some(CONTEXT), experts: Some(0) }, free)
    };
    let (mut memory, mut found) = (plan(Some(1 << 40)).expect("it fits").total + (1 << 20), Vec::<(usize, u64)>::new());
    loop {
        match plan(Some(memory)) {
            Ok(plan) if found.last().is_none_or(|(count, _)| *count != plan.streamed_layers.len()) => {
                found.push((plan.streamed_layers.len(), memory));
            }
            Ok(_) => {}
            Err(error) => return (found, error),
        }
        memory -= 4096;
    }
}

fn with(memory: u64, options: EngineOptions) -> EngineOptions {
    EngineOptions {
        memory: MemoryRequest { memory: Some(memory), context: Some(CONTEXT), experts: Some(0) },
        ..options
    }
}

fn open(files: Arc<dyn Files>, options: &EngineOptions) -> Arc<Engine> {
    Arc::new(Engine::open(files, options, &mut |_| ()).expect("a model"))
}

#[test]
fn however_few_layers_stay_the_bits_are_the_same() {
    for (name, layers) in [("v41-tiny", 14), ("v4-tiny", 8)] {
        let (budgets, error) = budgets(fixture(name));
        let counts: Vec<usize> = budgets.iter().map(|(count, _)| *count).collect();
        assert!(counts.is_sorted() && counts[..3] == [0, 3, 4] && counts.ends_with(&[layers]), "{name}: {counts:?}");
        assert!(matches!(error, PlanError::TooSmall { .. }), "{error}");
        let request = greedy(6, Prefill::Exact);
        let run = |memory| {
            let engine = open(fixture(name), &with(memory, options()));
            let mut session = Session::new(Arc::clone(&engine));
            // The second prompt goes on from the first.
            let first = generate(&mut session, &ids(150, 0), &request).0;
            let second = generate(&mut session, &ids(170, 0), &request).0;
            (first, second, engine)
        };
        let (first, second, _) = run(budgets[0].1);
        for (count, memory) in budgets {
            let (tokens, more, engine) = run(memory);
            assert_eq!((&tokens, &more), (&first, &second), "{name}, {count} layers");
            let (stats, plan) = (engine.stats(), engine.plan());
            assert_eq!((stats.layers.streamed, plan.streamed_layers.len()), (count, count));
            // Two chunks and five tokens each, at least; of a prompt's first chunks V4.1 leaves late layers out.
            assert!(stats.layers.bytes >= plan.streamed_bytes * 6, "{name}: {stats:?} {plan:?}");
            let note = format!("{} of {layers} layers stay", layers - count);
            assert_eq!(engine.notes().iter().any(|said| said.starts_with(&note)), count > 0, "{:?}", engine.notes());
        }
    }
}

#[test]
fn a_layer_that_cannot_be_read_is_named_and_the_conversation_goes_on() {
    for (name, tensor) in
        [("v41-tiny", "layers.5.attn.wq_b.weight"), ("v4-tiny", "layers.3.ffn.shared_experts.w2.weight")]
    {
        let checkpoint = Checkpoint::open(fixture(name)).expect("a checkpoint");
        let found = checkpoint.tensor(tensor).expect("a tensor");
        let (offset, shard) = (checkpoint.file_offset(found), checkpoint.shard_of(found).name.clone());
        let plan = Plan::new();
        let files = Arc::new(FaultyFiles::new(fixture(name), Arc::clone(&plan)).only(&shard));
        let (budgets, _) = budgets(Arc::clone(&files) as _);
        let engine = open(files, &with(budgets.last().expect("a budget").1, options()));
        let request = greedy(5, Prefill::Exact);
        let expected = generate(&mut Session::new(open(fixture(name), &options())), &ids(40, 0), &request).0;
        let mut session = Session::new(Arc::clone(&engine));
        for _ in 0..2 {
            plan.on_bytes(offset..offset + found.bytes, Fault::Eio);
            let before = session.tokens().len();
            let error = session.generate(&ids(40, 0), &request, &mut |_| Flow::Continue).expect_err("the disk fails");
            let text = error.to_string();
            for part in [tensor, &shard, "reading ", " at offset "] {
                assert!(text.contains(part), "no {part:?} in {text}");
            }
            assert_eq!((session.sequence().position(), session.tokens().len()), (before, before));
            plan.clear();
            assert_eq!(generate(&mut session, &ids(40, 0), &request).0, expected, "{name}");
            session.clear();
        }
        // In the middle of an answer, too: what had been said stays.
        let mut seen = 0;
        let error = session.generate(&ids(40, 0), &request, &mut |event| {
            if let Event::Token { .. } = event {
                seen += 1;
                if seen == 2 {
                    plan.on_bytes(offset..offset + found.bytes, Fault::Eio);
                }
            }
            Flow::Continue
        });
        assert!(error.is_err() && seen >= 2);
        assert_eq!(session.sequence().position(), session.tokens().len());
        plan.clear();
        assert_eq!(generate(&mut session, &ids(40, 0), &request).0, expected, "{name}");
    }
}

#[test]
fn a_disk_that_hangs_in_a_layer_can_be_left() {
    let (budgets, _) = budgets(fixture("v4-tiny"));
    let interrupt = Interrupt::new();
    let options = EngineOptions { interrupt: interrupt.clone(), ..options() };
    let plan = Plan::new();
    let files = FaultyFiles::new(fixture("v4-tiny"), Arc::clone(&plan));
    let engine = open(Arc::new(files), &with(budgets.last().expect("a budget").1, options));
    let mut session = Session::new(engine);
    let (request, start) = (greedy(6, Prefill::Exact), Instant::now());
    plan.on_calls(0..u64::MAX, Fault::Delay(Duration::from_secs(3)));
    let outcome = std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(100));
            interrupt.set(true);
        });
        session.generate(&ids(30, 0), &request, &mut |_| Flow::Continue).expect("it ends without an error")
    });
    assert_eq!(outcome.finish, Finish::Cancelled);
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    plan.clear();
    interrupt.set(false);
    let expected = generate(&mut Session::new(open(fixture("v4-tiny"), &crate::options())), &ids(30, 0), &request).0;
    assert_eq!(generate(&mut session, &ids(30, 0), &request).0, expected);
}
