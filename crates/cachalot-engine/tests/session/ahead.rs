//! Reads ahead of need: what a step knows or guesses is read before it is asked for, and a chunk reads each expert once.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cachalot_engine::planner::MemoryRequest;
use cachalot_engine::{Engine, EngineOptions};
use cachalot_experts::{ExpertStats, FEWEST_SLOTS};
use cachalot_model::{LogitsOf, Segment, Sequence, Workspace};
use cachalot_storage::{Directory, Fault, FaultyFiles, Interface, Method, Plan};

use crate::{ids, options, repository};

/// So few slots that a layer displaces the one before, and reads of which eight are in flight.
fn few_slots(guess: bool) -> EngineOptions {
    let memory = MemoryRequest { experts: Some(0), ..MemoryRequest::default() };
    let method = Method { interface: Interface::Pread, direct: false, depth: 8 };
    EngineOptions { memory, guess, method: Some(method), ..options() }
}

struct Model {
    engine: Engine,
    plan: Arc<Plan>,
    work: Workspace,
    sequence: Sequence,
}

impl Model {
    fn open(name: &str, options: &EngineOptions) -> Self {
        let (plan, files) = (Plan::new(), Directory::new(repository("fixtures").join(name)));
        let files = FaultyFiles::new(Arc::new(files), Arc::clone(&plan));
        let engine = Engine::open(Arc::new(files), options, &mut |_| ()).expect("a model");
        let sequence = engine.model().sequence();
        Self { engine, plan, work: Workspace::new(), sequence }
    }

    /// A step; returns what became of experts in it.
    fn step(&mut self, tokens: &[u32]) -> ExpertStats {
        let before = self.engine.stats();
        let mut segments = [Segment { sequence: &mut self.sequence, tokens, embeddings: None, logits: LogitsOf::Last }];
        self.engine.model().advance(&mut self.work, &mut segments, None).expect("a step");
        self.engine.stats().since(&before).experts
    }
}

#[test]
fn experts_that_the_token_alone_decides_are_read_when_the_step_begins() {
    let mut hash_routed = Model::open("v4-tiny", &few_slots(false));
    let stats = hash_routed.step(&ids(1, 0));
    assert!(stats.prefetch.issued > 0 && stats.prefetch.used == stats.prefetch.issued, "{stats:?}");
    let mut routed = Model::open("v41-tiny", &few_slots(false));
    let stats = routed.step(&ids(1, 0));
    assert_eq!((stats.prefetch.issued, stats.prefetch.guessed), (0, 0), "nothing is known: {stats:?}");
}

#[test]
fn decoding_guesses_and_a_prompt_does_not() {
    let mut model = Model::open("v41-tiny", &few_slots(true));
    assert_eq!(model.step(&ids(40, 0)).prefetch.guessed, 0);
    let (mut guessed, mut right) = (0, 0);
    for token in ids(30, 1) {
        let stats = model.step(&[token]);
        guessed += stats.prefetch.guessed;
        right += stats.prefetch.guessed_right;
    }
    assert!(guessed > 0 && right > 0 && right <= guessed, "{right} of {guessed}");
}

#[test]
fn a_chunk_reads_each_expert_once_and_the_next_layer_while_this_one_computes() {
    for name in ["v41-tiny", "v4-tiny"] {
        let mut model = Model::open(name, &few_slots(false));
        let stats = model.step(&ids(100, 0));
        assert!(stats.slots == FEWEST_SLOTS && stats.prefetch.used > 0, "{name}: {stats:?}");
        let trunk = model.engine.model().config();
        let all = trunk.num_hidden_layers * trunk.n_routed_experts * model.engine.experts().record_bytes();
        let read = stats.demand_bytes + stats.prefetch_bytes;
        assert!(read > 0 && read <= all as u64, "{name}: {read} bytes of {all}");
    }
}

#[test]
fn reads_are_in_flight_together() {
    let mut model = Model::open("v41-tiny", &few_slots(false));
    model.step(&ids(40, 0));
    let (each, calls) = (Duration::from_millis(20), model.plan.calls());
    model.plan.on_calls(0..u64::MAX, Fault::Delay(each));
    let start = Instant::now();
    model.step(&ids(40, 1));
    let reads = (model.plan.calls() - calls) as u32;
    assert!(reads > 50, "{reads}");
    assert!(start.elapsed() < each * reads / 2, "{reads} reads in {:?}", start.elapsed());
}
