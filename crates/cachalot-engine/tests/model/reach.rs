//! What layers leave out because nothing can see it changes nothing that remains.

use cachalot_engine::engine::Engine;
use cachalot_model::{Arithmetic, LogitsOf, ROLLBACK, Segment, Sequence, StepError, Workspace};

use crate::fixture::Fixture;

/// Advances and returns the logits asked for.
fn step(engine: &Engine, sequence: &mut Sequence, tokens: &[u32], logits: LogitsOf) -> Result<Vec<f32>, StepError> {
    let mut segments = [Segment { sequence, tokens, embeddings: None, logits }];
    engine.model().advance(&mut Workspace::new(), &mut segments, None).map(<[f32]>::to_vec)
}

/// The logits of all tokens, computed in chunks.
fn all(engine: &Engine, sequence: &mut Sequence, tokens: &[u32], chunk: usize) -> Vec<f32> {
    tokens.chunks(chunk).flat_map(|tokens| step(engine, sequence, tokens, LogitsOf::All).unwrap()).collect()
}

fn assert_same(ours: &[f32], theirs: &[f32], what: &str) {
    let bits = |logits: &[f32]| logits.iter().map(|logit| logit.to_bits()).collect::<Vec<_>>();
    assert!(bits(ours) == bits(theirs), "{what}");
}

#[test]
fn rows_that_nothing_sees_are_left_out() {
    for name in ["v41-tiny", "v41-ones-first", "v41-pairs", "v4-tiny", "v4-fp8-experts"] {
        let fixture = Fixture::open(name);
        let ids = fixture.tensors().ids(fixture.prompts().last().unwrap());
        let tokens: Vec<u32> = ids.iter().copied().cycle().take(230).collect();
        let (prompt, later) = tokens.split_at(tokens.len() - 30);
        let engine = fixture.engine(Arithmetic::Fast, 2);
        let vocabulary = engine.model().config().vocab_size;
        let asked = || engine.expert_stats().hits + engine.expert_stats().misses;
        let mut whole = engine.model().sequence();
        let before = asked();
        let expected = all(&engine, &mut whole, prompt, 64);
        let whole_asked = asked() - before;
        let mut next = whole.clone();
        let continued = all(&engine, &mut next, later, 3);
        for chunk in [prompt.len(), 64, 7] {
            let what = format!("{name}, chunks of {chunk}");
            let mut sequence = engine.model().sequence();
            let (before, mut done, mut last) = (asked(), 0, Vec::new());
            for tokens in prompt.chunks(chunk) {
                done += tokens.len();
                let following = prompt.len() - done;
                let logits = if following == 0 { LogitsOf::Last } else { LogitsOf::Later(following) };
                last = step(&engine, &mut sequence, tokens, logits).unwrap();
            }
            assert_same(&last, &expected[(prompt.len() - 1) * vocabulary..], &what);
            assert!(sequence == whole, "{what}: the state");
            assert!(chunk != 64 || asked() - before < whole_asked, "{what} saves work");
            // A rollback returns to a complete state as well.
            let [mut rolled, mut complete] = [sequence.clone(), whole.clone()];
            rolled.roll_back(prompt.len() - ROLLBACK).unwrap();
            complete.roll_back(prompt.len() - ROLLBACK).unwrap();
            assert_same(&all(&engine, &mut rolled, later, 5), &all(&engine, &mut complete, later, 5), &what);
            assert_same(&all(&engine, &mut sequence, later, 3), &continued, &what);
            assert!(sequence == next, "{what}: the state afterwards");
        }
    }
}

#[test]
fn a_promise_of_more_tokens_is_kept_to() {
    let fixture = Fixture::open("v41-tiny");
    let engine = fixture.engine(Arithmetic::Fast, 2);
    let tokens = fixture.tensors().ids("p150");
    let vocabulary = engine.model().config().vocab_size;
    let expected = all(&engine, &mut engine.model().sequence(), &tokens, 150);
    let mut sequence = engine.model().sequence();
    let mut step = |range: std::ops::Range<usize>, logits| step(&engine, &mut sequence, &tokens[range], logits);
    assert_eq!(step(0..20, LogitsOf::Later(100)).unwrap(), [0.0f32; 0]);
    for (range, logits) in [(20..119, LogitsOf::Last), (20..130, LogitsOf::All), (20..40, LogitsOf::Later(79))] {
        let error = step(range, logits).unwrap_err();
        assert!(matches!(error, StepError::Owed { owed: 120, .. }), "{error}");
    }
    step(20..60, LogitsOf::Later(60)).unwrap();
    let logits = step(60..125, LogitsOf::Last).unwrap();
    assert_same(&logits, &expected[124 * vocabulary..125 * vocabulary], "more than was promised");
    let logits = step(125..130, LogitsOf::All).unwrap();
    assert_same(&logits, &expected[125 * vocabulary..130 * vocabulary], "afterwards");
}
