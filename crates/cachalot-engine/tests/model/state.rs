//! Every way of arriving at a position gives the same bits.

use std::sync::Arc;

use cachalot_engine::engine::{Engine, EngineOptions};
use cachalot_model::{Arithmetic, LogitsOf, Model, ROLLBACK, Segment, Sequence, StepError, Workspace};
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

/// Engine, tokens and the logits of one prefill; both arithmetics that users meet.
fn prepared(arithmetic: Arithmetic) -> (Arc<Engine>, Vec<u32>, Vec<f32>) {
    let fixture = Fixture::open("v41-tiny");
    let engine = fixture.engine(arithmetic, 2);
    let tokens = fixture.tensors().ids("p150");
    let logits = advance(&engine, &mut engine.model().sequence(), &tokens);
    (engine, tokens, logits)
}

#[test]
fn chunks_and_threads_change_no_bit() {
    for arithmetic in [Arithmetic::Exact, Arithmetic::Fast] {
        let (engine, tokens, expected) = prepared(arithmetic);
        for sizes in [&[1][..], &[7], &[2, 3, 17, 1], &[149]] {
            let logits = in_chunks(&engine, &mut engine.model().sequence(), &tokens, sizes);
            assert_same(&logits, &expected, &format!("{arithmetic:?}, chunks of {sizes:?}"));
        }
        for threads in [1, 3] {
            let engine = Fixture::open("v41-tiny").engine(arithmetic, threads);
            let logits = in_chunks(&engine, &mut engine.model().sequence(), &tokens, &[50]);
            assert_same(&logits, &expected, &format!("{arithmetic:?}, {threads} threads"));
        }
    }
}

#[test]
fn sequences_in_one_step_do_not_see_each_other() {
    let (engine, tokens, expected) = prepared(Arithmetic::Fast);
    let vocabulary = engine.model().config().vocab_size;
    let (mut first, mut second) = (engine.model().sequence(), engine.model().sequence());
    advance(&engine, &mut second, &tokens[..40]);
    let mut segments = [
        Segment { sequence: &mut first, tokens: &tokens[..31], embeddings: None, logits: LogitsOf::Last },
        Segment { sequence: &mut second, tokens: &tokens[40..45], embeddings: None, logits: LogitsOf::All },
    ];
    let mut work = Workspace::new();
    let logits = engine.model().advance(&mut work, &mut segments, None).unwrap();
    assert_same(&logits[..vocabulary], &expected[30 * vocabulary..31 * vocabulary], "the first");
    assert_same(&logits[vocabulary..], &expected[40 * vocabulary..45 * vocabulary], "the second");
    assert_eq!((first.position(), second.position()), (31, 45));
}

#[test]
fn rolling_back_leaves_no_trace() {
    let (engine, tokens, expected) = prepared(Arithmetic::Fast);
    let vocabulary = engine.model().config().vocab_size;
    let wrong: Vec<u32> = tokens.iter().rev().copied().collect();
    for start in [20, 21, 97] {
        for back in 0..=ROLLBACK {
            let mut sequence = engine.model().sequence();
            advance(&engine, &mut sequence, &tokens[..start]);
            // What is rolled back was another text, in one chunk or token by token.
            in_chunks(&engine, &mut sequence, &wrong[..back], if back % 2 == 0 { &[1] } else { &[8] });
            sequence.roll_back(start).unwrap();
            let logits = in_chunks(&engine, &mut sequence, &tokens[start..start + 12], &[3, 1]);
            let range = start * vocabulary..(start + 12) * vocabulary;
            assert_same(&logits, &expected[range], &format!("back by {back} to {start}"));
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

#[test]
fn forks_go_their_own_ways() {
    let (engine, tokens, expected) = prepared(Arithmetic::Exact);
    let vocabulary = engine.model().config().vocab_size;
    let mut trunk = engine.model().sequence();
    advance(&engine, &mut trunk, &tokens[..61]);
    let mut fork = trunk.clone();
    let wrong: Vec<u32> = tokens.iter().rev().copied().collect();
    advance(&engine, &mut fork, &wrong[..50]);
    let logits = advance(&engine, &mut trunk, &tokens[61..]);
    assert_same(&logits, &expected[61 * vocabulary..], "the trunk");
}

/// 890 bytes a token at the release's dimensions, the same formula at these; and no more than the fixed part else.
#[test]
fn state_takes_the_bytes_that_the_spec_says() {
    let (engine, tokens, _) = prepared(Arithmetic::Fast);
    let config = engine.model().config();
    let mut sequence = engine.model().sequence();
    let fixed = sequence.bytes();
    assert_eq!((fixed.entries, fixed.index_keys), (0, 0));
    advance(&engine, &mut sequence, &tokens);
    let bytes = sequence.bytes();
    assert_eq!((bytes.entries + bytes.index_keys) as u64, config.entry_cache_bytes(tokens.len() as u64));
    assert_eq!((bytes.windows, bytes.other), (fixed.windows, fixed.other));
    let slot = config.head_dim + config.head_dim / 32;
    assert_eq!(bytes.windows, config.num_hidden_layers * (config.sliding_window + ROLLBACK) * slot);

    // The release: three sources of ratio 2 and one of ratio 1, heads of 512, index keys of 128.
    let mut release = config.clone();
    (release.head_dim, release.index_head_dim) = (512, 128);
    let sources = release.kv_sources().map(|(_, plan)| plan.ratio).collect::<Vec<_>>();
    assert_eq!(sources, [2, 2, 1], "the fixture has one source of ratio 2 less");
    assert_eq!(release.entry_cache_bytes(2) + 356, 2 * 890);
}

#[test]
fn a_failed_step_moves_nothing() {
    let fixture = Fixture::open("v41-tiny");
    let tokens = fixture.tensors().ids("p150");
    let expected = prepared(Arithmetic::Fast).2;
    let plan = Plan::new();
    let files = FaultyFiles::new(Arc::new(Directory::new(&fixture.directory)), Arc::clone(&plan));
    // No room to keep an expert: every step reads.
    let options = EngineOptions { expert_cache: 0, threads: Some(2), ..EngineOptions::default() };
    let engine = Engine::open(Arc::new(files), &options, &mut |_| ()).unwrap();
    let vocabulary = engine.model().config().vocab_size;
    let mut sequence = engine.model().sequence();
    advance(&engine, &mut sequence, &tokens[..51]);
    for skip in [0, 3, 40, 150] {
        let calls = plan.calls();
        plan.on_calls(calls + skip..u64::MAX, Fault::Eio);
        let mut segments =
            [Segment { sequence: &mut sequence, tokens: &tokens[51..120], embeddings: None, logits: LogitsOf::Last }];
        let error = engine.model().advance(&mut Workspace::new(), &mut segments, None).unwrap_err();
        assert!(matches!(error, StepError::Expert(_) | StepError::Row(_)), "{error}");
        assert_eq!(sequence.position(), 51);
        plan.clear();
    }
    let logits = advance(&engine, &mut sequence, &tokens[51..90]);
    assert_same(&logits, &expected[51 * vocabulary..90 * vocabulary], "after the failures");
}

#[test]
fn replay_is_exact_within_the_window_and_an_approximation_beyond() {
    let (engine, tokens, expected) = prepared(Arithmetic::Exact);
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
    let (engine, tokens, _) = prepared(Arithmetic::Fast);
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
}
