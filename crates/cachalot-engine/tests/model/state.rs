//! Every way of arriving at a position gives the same bits.

use std::sync::Arc;

use cachalot_checkpoint::Checkpoint;
use cachalot_checkpoint::deepseek_v4::Role;
use cachalot_engine::engine::{CacheChoice, Engine, EngineOptions};
use cachalot_engine::planner::MemoryRequest;
use cachalot_model::{Arithmetic, LogitsOf, ROLLBACK, Segment, Sequence, StepError, Workspace};
use cachalot_storage::{Directory, Fault, FaultyFiles, Plan};

use crate::fixture::Fixture;

/// Advances and returns the logits of all tokens given.
fn advance(engine: &Engine, sequence: &mut Sequence, tokens: &[u32]) -> Vec<f32> {
    let mut segments = [Segment { sequence, tokens, embeddings: None, logits: LogitsOf::All }];
    engine.model().advance(&mut Workspace::new(), &mut segments, None).unwrap().to_vec()
}

/// Advances in chunks of the sizes given, over and over.
fn in_chunks(engine: &Engine, sequence: &mut Sequence, mut tokens: &[u32], sizes: &[usize]) -> Vec<f32> {
    let mut logits = Vec::new();
    for size in sizes.iter().cycle() {
        let (chunk, rest) = tokens.split_at((*size).min(tokens.len()));
        if chunk.is_empty() {
            return logits;
        }
        logits.extend(advance(engine, sequence, chunk));
        tokens = rest;
    }
    logits
}

fn assert_same(ours: &[f32], theirs: &[f32], what: &str) {
    assert_eq!(ours.len(), theirs.len(), "{what}");
    let differs = ours.iter().zip(theirs).position(|(a, b)| a.to_bits() != b.to_bits());
    assert_eq!(differs, None, "{what}");
}

/// A model and a prompt, in one way of computing.
struct Case {
    fixture: &'static str,
    arithmetic: Arithmetic,
    cache: CacheChoice,
    /// Tokens of the prompt that are used.
    tokens: usize,
}

/// Both arithmetics that users meet, and both caches. V4's prompt goes beyond two groups of 128.
const CASES: [Case; 4] = [
    Case { fixture: "v41-tiny", arithmetic: Arithmetic::Exact, cache: CacheChoice::Vendor, tokens: 150 },
    Case { fixture: "v41-tiny", arithmetic: Arithmetic::Fast, cache: CacheChoice::Vendor, tokens: 150 },
    Case { fixture: "v4-tiny", arithmetic: Arithmetic::Exact, cache: CacheChoice::Float32, tokens: 270 },
    Case { fixture: "v4-tiny", arithmetic: Arithmetic::Fast, cache: CacheChoice::Vendor, tokens: 270 },
];

impl Case {
    fn name(&self) -> String {
        format!("{}, {:?}, {:?} cache", self.fixture, self.arithmetic, self.cache)
    }

    fn engine(&self, threads: usize) -> Arc<Engine> {
        Fixture::open(self.fixture).engine_with(self.arithmetic, self.cache, threads)
    }

    /// Engine, tokens and the logits of one prefill.
    fn prepare(&self) -> (Arc<Engine>, Vec<u32>, Vec<f32>) {
        let engine = self.engine(2);
        let tokens = Fixture::open(self.fixture).tensors().ids("p400")[..self.tokens].to_vec();
        let logits = advance(&engine, &mut engine.model().sequence(), &tokens);
        (engine, tokens, logits)
    }
}

#[test]
fn chunks_and_threads_change_no_bit() {
    for case in &CASES {
        let (engine, tokens, expected) = case.prepare();
        for sizes in [&[1][..], &[7], &[2, 3, 17, 1], &[127, 1, 4], &[128], &[131, 5], &[149]] {
            let logits = in_chunks(&engine, &mut engine.model().sequence(), &tokens, sizes);
            assert_same(&logits, &expected, &format!("{}, chunks of {sizes:?}", case.name()));
        }
        for threads in [1, 3] {
            let engine = case.engine(threads);
            let logits = in_chunks(&engine, &mut engine.model().sequence(), &tokens, &[50]);
            assert_same(&logits, &expected, &format!("{}, {threads} threads", case.name()));
        }
    }
}

#[test]
fn sequences_in_one_step_do_not_see_each_other() {
    for case in [&CASES[1], &CASES[3]] {
        let (engine, tokens, expected) = case.prepare();
        let vocabulary = engine.model().config().vocab_size;
        let (mut first, mut second) = (engine.model().sequence(), engine.model().sequence());
        advance(&engine, &mut second, &tokens[..126]);
        let mut segments = [
            Segment { sequence: &mut first, tokens: &tokens[..31], embeddings: None, logits: LogitsOf::Last },
            Segment { sequence: &mut second, tokens: &tokens[126..131], embeddings: None, logits: LogitsOf::All },
        ];
        let mut work = Workspace::new();
        let logits = engine.model().advance(&mut work, &mut segments, None).unwrap();
        assert_same(&logits[..vocabulary], &expected[30 * vocabulary..31 * vocabulary], "the first");
        assert_same(&logits[vocabulary..], &expected[126 * vocabulary..131 * vocabulary], "the second");
        assert_eq!((first.position(), second.position()), (31, 131));
        let next = advance(&engine, &mut second, &tokens[131..140]);
        assert_same(&next, &expected[131 * vocabulary..140 * vocabulary], "the second, later");
    }
}

/// Back to both sides of every kind of boundary: groups of 2, 4 and 128, the window, the index's limit.
#[test]
fn rolling_back_leaves_no_trace() {
    for case in [&CASES[1], &CASES[3]] {
        let (engine, tokens, expected) = case.prepare();
        let vocabulary = engine.model().config().vocab_size;
        let wrong: Vec<u32> = tokens.iter().rev().copied().collect();
        let mut trunk = engine.model().sequence();
        for start in [15, 21, 34, 97, 123, 128] {
            let position = trunk.position();
            advance(&engine, &mut trunk, &tokens[position..start]);
            for back in 0..=ROLLBACK {
                let mut sequence = trunk.clone();
                // What is rolled back was another text, in one chunk or token by token.
                in_chunks(&engine, &mut sequence, &wrong[..back], if back % 2 == 0 { &[1] } else { &[8] });
                sequence.roll_back(start).unwrap();
                let logits = in_chunks(&engine, &mut sequence, &tokens[start..start + 6], &[3, 1]);
                let range = start * vocabulary..(start + 6) * vocabulary;
                assert_same(&logits, &expected[range], &format!("{}, back by {back} to {start}", case.name()));
            }
        }
        let mut sequence = engine.model().sequence();
        advance(&engine, &mut sequence, &tokens);
        assert_eq!(sequence.floor(), tokens.len() - ROLLBACK);
        sequence.roll_back(tokens.len() - 5).unwrap();
        assert!(sequence.roll_back(tokens.len() - 4).is_err(), "not forward");
        let error = sequence.roll_back(tokens.len() - ROLLBACK - 1).unwrap_err();
        assert!(error.to_string().contains("keep a fork"), "{error}");
    }
}

#[test]
fn forks_go_their_own_ways() {
    for case in [&CASES[0], &CASES[3]] {
        let (engine, tokens, expected) = case.prepare();
        let vocabulary = engine.model().config().vocab_size;
        let mut trunk = engine.model().sequence();
        advance(&engine, &mut trunk, &tokens[..61]);
        let mut fork = trunk.clone();
        let wrong: Vec<u32> = tokens.iter().rev().copied().collect();
        advance(&engine, &mut fork, &wrong[..90]);
        let logits = advance(&engine, &mut trunk, &tokens[61..]);
        assert_same(&logits, &expected[61 * vocabulary..], &case.name());
    }
}

/// What grows with a sequence takes the bytes of the config's formula, which is tested against the spec at the releases'
/// dimensions; what does not is there from the start.
#[test]
fn state_takes_the_bytes_that_the_spec_says() {
    for case in [&CASES[1], &CASES[3]] {
        let (engine, tokens, _) = case.prepare();
        let config = engine.model().config();
        let architecture = Checkpoint::open(Arc::new(Directory::new(&Fixture::open(case.fixture).directory))).unwrap();
        let architecture = architecture.architecture();
        let mut sequence = engine.model().sequence();
        let fixed = sequence.bytes();
        assert_eq!((fixed.entries, fixed.index_keys), (0, 0));
        advance(&engine, &mut sequence, &tokens);
        let bytes = sequence.bytes();
        let entries = architecture.entry_cache_bytes(tokens.len() as u64);
        assert_eq!((bytes.entries + bytes.index_keys) as u64, entries, "{}", case.name());
        assert_eq!((bytes.windows, bytes.other), (fixed.windows, fixed.other));
        // Rings have a few slots more, to roll back to.
        if let Some(v4) = architecture.deepseek_v4() {
            let window = v4.window_cache_bytes() as usize / config.sliding_window;
            assert_eq!(bytes.windows, window * (config.sliding_window + ROLLBACK));
            let slots = v4.layers.iter().map(|plan| match plan.role {
                Role::Sliding => 0,
                Role::Csa => 4 * (config.head_dim + config.index_head_dim),
                Role::Hca => 2 * config.head_dim,
            });
            let more = slots.sum::<usize>() * ROLLBACK * size_of::<f32>();
            assert_eq!(bytes.other, v4.rolling_cache_bytes() as usize + more + ROLLBACK * size_of::<u32>());
        }
    }
}

#[test]
fn a_failed_step_moves_nothing() {
    for case in [&CASES[1], &CASES[3]] {
        let (_, tokens, expected) = case.prepare();
        let plan = Plan::new();
        let directory = Directory::new(&Fixture::open(case.fixture).directory);
        let files = FaultyFiles::new(Arc::new(directory), Arc::clone(&plan));
        // No room to keep an expert: every step reads.
        let options = EngineOptions {
            arithmetic: case.arithmetic,
            cache: case.cache,
            memory: MemoryRequest { experts: Some(0), ..MemoryRequest::default() },
            threads: Some(2),
            ..EngineOptions::default()
        };
        let engine = Engine::open(Arc::new(files), &options, &mut |_| ()).unwrap();
        let vocabulary = engine.model().config().vocab_size;
        let mut sequence = engine.model().sequence();
        advance(&engine, &mut sequence, &tokens[..51]);
        for skip in [0, 3, 40, 80] {
            let calls = plan.calls();
            plan.on_calls(calls + skip..u64::MAX, Fault::Eio);
            let mut segments = [Segment {
                sequence: &mut sequence,
                tokens: &tokens[51..140],
                embeddings: None,
                logits: LogitsOf::Last,
            }];
            let error = engine.model().advance(&mut Workspace::new(), &mut segments, None).unwrap_err();
            assert!(matches!(error, StepError::Expert(_) | StepError::Row(_)), "{error}");
            assert_eq!(sequence.position(), 51);
            plan.clear();
        }
        let logits = advance(&engine, &mut sequence, &tokens[51..135]);
        assert_same(&logits, &expected[51 * vocabulary..135 * vocabulary], "after the failures");
    }
}

#[test]
fn replay_is_exact_within_the_window_and_an_approximation_beyond() {
    let (engine, tokens, expected) = CASES[0].prepare();
    let config = engine.model().config();
    let (vocabulary, window) = (config.vocab_size, config.sliding_window);
    let replay = |sequence: &mut Sequence, tokens: &[u32]| {
        let mut work = Workspace::new();
        engine.model().prefill_replay(&mut work, sequence, tokens, 24, &mut |_| true).map(<[f32]>::to_vec)
    };
    let mut sequence = engine.model().sequence();
    let logits = replay(&mut sequence, &tokens[..window]).unwrap();
    assert_same(&logits, &expected[(window - 1) * vocabulary..window * vocabulary], "within the window");

    let mut sequence = engine.model().sequence();
    let logits = replay(&mut sequence, &tokens[..100]).unwrap();
    assert!(logits.iter().all(|logit| logit.is_finite()));
    assert_ne!(logits, expected[99 * vocabulary..100 * vocabulary]);
    assert_eq!(sequence.position(), 100);
    assert!(sequence.roll_back(99).is_err(), "windows before the tail are incomplete");
    // Chunks do not matter here either, and the sequence goes on.
    let mut other = engine.model().sequence();
    let mut work = Workspace::new();
    let again = engine.model().prefill_replay(&mut work, &mut other, &tokens[..100], 9, &mut |_| true).unwrap();
    assert_same(again, &logits, "chunks of 9");
    let next = advance(&engine, &mut sequence, &tokens[100..110]);
    assert_same(&advance(&engine, &mut other, &tokens[100..110]), &next, "after replay");
    // The encoder's half is exact, so entries and keys are those of the exact prefill.
    let mut exact = engine.model().sequence();
    advance(&engine, &mut exact, &tokens[..110]);
    assert_eq!(exact.bytes(), sequence.bytes());

    let mut work = Workspace::new();
    let mut stopped = engine.model().sequence();
    let outcome = engine.model().prefill_replay(&mut work, &mut stopped, &tokens[..100], 9, &mut |done| done < 30);
    assert!(matches!(outcome, Err(StepError::Cancelled)));
    assert_eq!(stopped.position(), 0);
}

#[test]
fn what_the_model_does_not_have_is_refused() {
    let (engine, tokens, _) = CASES[3].prepare();
    let limit = engine.model().config().max_position_embeddings;
    let try_step = |tokens: &[u32]| {
        let mut sequence = engine.model().sequence();
        let mut segments = [Segment { sequence: &mut sequence, tokens, embeddings: None, logits: LogitsOf::Last }];
        engine.model().advance(&mut Workspace::new(), &mut segments, None).map(<[f32]>::len)
    };
    let error = try_step(&[tokens[0], 768]).unwrap_err();
    assert!(error.to_string().contains("token 768 at index 1"), "{error}");
    let error = try_step(&vec![5; limit + 1]).unwrap_err();
    assert!(error.to_string().contains(&limit.to_string()), "{error}");
    let mut work = Workspace::new();
    let replay = engine.model().prefill_replay(&mut work, &mut engine.model().sequence(), &tokens, 9, &mut |_| true);
    assert!(matches!(replay, Err(StepError::ReplayUnknown)));
}
