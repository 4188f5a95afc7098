//! What a session keeps changes how long an answer takes, never the answer

use std::sync::Arc;

use cachalot_engine::Engine;
use cachalot_engine::session::{Event, Finish, Flow, GenerateError, Prefill, Session};

use crate::{engine, generate, greedy, ids};

#[test]
fn going_on_equals_starting_anew() {
    for fixture in ["fixtures/v41-tiny", "fixtures/v4-tiny"] {
        goes_on(&engine(fixture));
    }
}

fn goes_on(engine: &Arc<Engine>) {
    let mut session = Session::new(Arc::clone(engine));
    let request = greedy(6, Prefill::Exact);
    let mut prompt = ids(40, 0);
    // Every prompt shares a beginning with one before it, in each way that matters.
    let mut prompts = vec![prompt.clone()];
    prompt.extend(ids(30, 1));
    prompts.push(prompt.clone());
    // Cut within reach of a rollback, and far behind it.
    prompts.push([&prompt[..67], &ids(9, 2)].concat());
    prompts.push([&prompt[..45], &ids(9, 3)].concat());
    prompts.push([&prompt[..39], &ids(1, 4)].concat());
    prompts.push(prompts[0].clone());
    prompts.push(ids(3, 5));
    prompts.push(prompt);
    for (index, prompt) in prompts.iter().enumerate() {
        let (kept, outcome) = generate(&mut session, prompt, &request);
        let (fresh, anew) = generate(&mut Session::new(Arc::clone(engine)), prompt, &request);
        assert_eq!(kept, fresh, "prompt {index}: {outcome:?}");
        assert_eq!((anew.cached_tokens, anew.prompt_tokens), (0, prompt.len()));
        let expected_least = [0, 40, 62, 40, 39, 0, 0, 0][index];
        assert!(outcome.cached_tokens >= expected_least, "prompt {index}: {outcome:?}");
        assert!(outcome.cached_tokens < prompt.len());
        assert_eq!(session.sequence().position(), session.tokens().len());
    }
}

#[test]
fn an_answer_that_follows_is_kept_too() {
    let mut session = Session::new(engine("fixtures/v41-tiny"));
    let first = ids(30, 0);
    let (answer, _) = generate(&mut session, &first, &greedy(12, Prefill::Exact));
    let answer: Vec<u32> = answer.into_iter().map(|(id, _)| id).collect();
    let next = [&first[..], &answer, &ids(5, 1)].concat();
    let (_, outcome) = generate(&mut session, &next, &greedy(2, Prefill::Exact));
    assert_eq!(outcome.cached_tokens, first.len() + answer.len() - 1, "all but the last token, which nothing followed");
}

#[test]
fn the_same_prompt_is_not_read_again() {
    let mut session = Session::new(engine("fixtures/v41-tiny"));
    let prompt = ids(60, 0);
    let (first, _) = generate(&mut session, &prompt, &greedy(20, Prefill::Exact));
    let (second, outcome) = generate(&mut session, &prompt, &greedy(20, Prefill::Exact));
    assert_eq!((first, outcome.cached_tokens), (second, 59));
}

#[test]
fn a_session_survives_being_stopped_while_it_reads() {
    let engine = engine("fixtures/v41-pairs");
    // Longer than one prefill step.
    let prompt = ids(600, 0);
    for prefill in [Prefill::Exact, Prefill::Replay] {
        let mut session = Session::new(Arc::clone(&engine));
        let mut seen = Vec::new();
        let outcome = session.generate(&prompt, &greedy(4, prefill), &mut |event| match event {
            Event::Prefill { done, total } => {
                seen.push((done, total));
                if done == 0 { Flow::Continue } else { Flow::Cancel }
            }
            _ => panic!("it goes on"),
        });
        let outcome = outcome.expect("it stops");
        assert_eq!((outcome.finish, outcome.generated_tokens), (Finish::Cancelled, 0));
        assert_eq!(seen.len(), 2, "{seen:?}");
        let (after, _) = generate(&mut session, &prompt, &greedy(4, prefill));
        let (fresh, _) = generate(&mut Session::new(Arc::clone(&engine)), &prompt, &greedy(4, prefill));
        assert_eq!(after, fresh, "{prefill:?}");
    }
}

#[test]
fn another_prompt_than_the_one_that_was_stopped_is_answered_right() {
    let engine = engine("fixtures/v41-pairs");
    let prompt = ids(600, 0);
    let others =
        [prompt[..300].to_vec(), [&prompt[..500], &ids(9, 3)].concat(), [&prompt[..400], &ids(300, 2)].concat()];
    for other in others {
        let mut session = Session::new(Arc::clone(&engine));
        let stop = &mut |event: Event<'_>| match event {
            Event::Prefill { done: 0, .. } => Flow::Continue,
            _ => Flow::Cancel,
        };
        session.generate(&prompt, &greedy(4, Prefill::Exact), stop).expect("it stops");
        let (after, _) = generate(&mut session, &other, &greedy(4, Prefill::Exact));
        let (fresh, _) = generate(&mut Session::new(Arc::clone(&engine)), &other, &greedy(4, Prefill::Exact));
        assert_eq!(after, fresh, "{} tokens", other.len());
    }
}

#[test]
fn a_session_survives_being_stopped_while_it_answers() {
    let engine = engine("fixtures/v41-tiny");
    let mut session = Session::new(Arc::clone(&engine));
    let prompt = ids(20, 0);
    for (flow, finish) in [(Flow::Cancel, Finish::Cancelled), (Flow::Stop, Finish::Stopped)] {
        let mut count = 0;
        let outcome = session.generate(&prompt, &greedy(20, Prefill::Exact), &mut |event| {
            count += usize::from(matches!(event, Event::Token { .. }));
            if count == 3 { flow } else { Flow::Continue }
        });
        let outcome = outcome.expect("it stops");
        assert_eq!((outcome.finish, outcome.generated_tokens, count), (finish, 3, 3));
    }
    let (after, _) = generate(&mut session, &prompt, &greedy(9, Prefill::Exact));
    let (fresh, _) = generate(&mut Session::new(engine), &prompt, &greedy(9, Prefill::Exact));
    assert_eq!(after, fresh);
}

#[test]
fn replay_is_exact_within_the_window_and_an_approximation_beyond() {
    let engine = engine("fixtures/v41-tiny");
    let answer = |prompt: &[u32], prefill| {
        let (tokens, outcome) = generate(&mut Session::new(Arc::clone(&engine)), prompt, &greedy(5, prefill));
        assert_eq!(outcome.cached_tokens, 0);
        tokens
    };
    let short = ids(engine.model().config().sliding_window, 0);
    assert_eq!(answer(&short, Prefill::Exact), answer(&short, Prefill::Replay));
    let long = ids(90, 0);
    let (exact, replayed) = (answer(&long, Prefill::Exact), answer(&long, Prefill::Replay));
    assert_ne!(exact, replayed);
    for (_, bits) in replayed {
        assert!(bits.iter().all(|bits| f64::from_bits(*bits).is_finite()));
    }
}

#[test]
fn one_prefill_does_not_leak_into_the_other() {
    let engine = engine("fixtures/v41-tiny");
    let mut session = Session::new(Arc::clone(&engine));
    let prompt = ids(90, 0);
    for prefill in [Prefill::Replay, Prefill::Exact, Prefill::Replay] {
        let (tokens, outcome) = generate(&mut session, &prompt, &greedy(5, prefill));
        let (fresh, _) = generate(&mut Session::new(Arc::clone(&engine)), &prompt, &greedy(5, prefill));
        assert_eq!((tokens, outcome.cached_tokens), (fresh, 0), "{prefill:?}");
    }
}

#[test]
fn clearing_forgets() {
    let mut session = Session::new(engine("fixtures/v41-tiny"));
    generate(&mut session, &ids(20, 0), &greedy(2, Prefill::Exact));
    session.clear();
    assert_eq!((session.tokens().len(), session.sequence().position()), (0, 0));
    let (_, outcome) = generate(&mut session, &ids(20, 0), &greedy(2, Prefill::Exact));
    assert_eq!(outcome.cached_tokens, 0);
}

#[test]
fn what_cannot_be_generated_is_refused_and_the_session_stays() {
    let mut session = Session::new(engine("fixtures/v41-tiny"));
    let request = greedy(3, Prefill::Exact);
    let (first, _) = generate(&mut session, &ids(10, 0), &request);
    let mut refuse = |prompt: &[u32], request| session.generate(prompt, request, &mut |_| Flow::Continue).unwrap_err();
    assert!(matches!(refuse(&[], &request), GenerateError::EmptyPrompt));
    let error = refuse(&ids(4096, 0), &request);
    assert!(matches!(error, GenerateError::PromptTooLong { prompt: 4096, context: 4096, limit: 4096 }), "{error}");
    let error = refuse(&[1, 768], &request).to_string();
    assert!(error.contains("token 768 at index 1"), "{error}");
    let mut hot = request.clone();
    hot.sampling.temperature = 9.0;
    assert!(matches!(refuse(&[1], &hot), GenerateError::Sampling(_)));
    assert_eq!(generate(&mut session, &ids(10, 0), &request).0, first);
}

#[test]
fn nothing_to_generate_is_no_failure() {
    let mut session = Session::new(engine("fixtures/v41-tiny"));
    let (tokens, outcome) = generate(&mut session, &ids(10, 0), &greedy(0, Prefill::Exact));
    assert_eq!((tokens.len(), outcome.finish), (0, Finish::Length));
}
