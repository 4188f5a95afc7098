//! Log-probabilities of prompts: those of a forward pass that computes all logits, however the prompt is cut.

use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use cachalot_engine::Engine;
use cachalot_engine::forward::{ForwardMode, ForwardReport};
use cachalot_engine::scheduler::{Job, JobEvent, Scheduler, SchedulerOptions};
use cachalot_engine::session::{Event, Finish, Flow, GenerateError, Prefill, Request, Session};

use cachalot_text::Json;
use cachalot_text::conversation::{Conversation, ResponseFormat};
use cachalot_text::parser::StartState;

use crate::{engine, generate, greedy, ids};

/// Of a token: itself, its log-probability, the most likely tokens and theirs, in bits.
type Score = (u32, u64, Vec<(u32, u64)>);

fn scoring(max_tokens: usize) -> Request {
    Request { prompt_logprobs: Some(2), ..greedy(max_tokens, Prefill::Exact) }
}

fn scores(session: &mut Session, prompt: &[u32], request: &Request) -> Vec<Score> {
    let mut scores = Vec::new();
    let outcome = session.generate(prompt, request, &mut |event| {
        if let Event::PromptToken { logprob, top } = event {
            let top = top.iter().map(|entry| (entry.id, entry.logprob.to_bits()));
            scores.push((logprob.id, logprob.logprob.to_bits(), top.collect()));
        }
        Flow::Continue
    });
    assert_eq!(outcome.expect("it generates").cached_tokens, 0, "no logits are missing");
    scores
}

fn check(engine: &Engine, prompt: &[u32], scores: &[Score]) {
    let forward =
        ForwardReport::run(engine.model(), prompt, ForwardMode::Chunk(100), false, &mut |_| ()).expect("it runs");
    assert_eq!(scores.len(), prompt.len() - 1);
    let rows = forward.logits().chunks_exact(engine.model().config().vocab_size);
    for ((row, next), (id, bits, top)) in rows.zip(&prompt[1..]).zip(scores) {
        assert_eq!(id, next);
        let sum: f64 = row.iter().map(|logit| f64::from(*logit).exp()).sum();
        let expected = |id: u32| f64::from(row[id as usize]) - sum.ln();
        let near = |id: u32, bits: u64| (f64::from_bits(bits) - expected(id)).abs() < 1e-6;
        assert!(near(*id, *bits), "{} is not {}", f64::from_bits(*bits), expected(*id));
        assert!(top.len() == 2 && top.iter().all(|(id, bits)| near(*id, *bits)));
        let better = row.iter().filter(|logit| **logit > row[top[1].0 as usize]).count();
        assert!(row[top[0].0 as usize] >= row[top[1].0 as usize] && better <= 1, "the two most likely");
    }
}

#[test]
fn scores_are_those_of_all_logits_however_the_prompt_is_cut() {
    // Longer than the reach of the layers behind V4.1's last source, and than a step.
    for (fixture, tokens) in [("fixtures/v41-tiny", 90), ("fixtures/v4-tiny", 90), ("fixtures/v41-pairs", 600)] {
        let engine = engine(fixture);
        let prompt = ids(tokens, 0);
        let mut session = Session::new(Arc::clone(&engine));
        let scored = scores(&mut session, &prompt, &scoring(0));
        check(&engine, &prompt, &scored);
        // What has been kept by now spares nothing, and changes nothing.
        assert_eq!(scores(&mut session, &prompt, &scoring(3)), scored);

        // In steps that others share, a few tokens at a time.
        let options = SchedulerOptions { prompt_tokens_beside: 23, ..SchedulerOptions::default() };
        let scheduler = Scheduler::start(Arc::clone(&engine), options).expect("a thread");
        let ask = |prompt: Vec<u32>, request: Request| {
            let (sender, receiver) = channel();
            let (mut scores, mut tokens) = (Vec::new(), Vec::new());
            let sink = Box::new(move |event: JobEvent<'_>| {
                match event {
                    JobEvent::PromptToken { logprob, top } => {
                        let top = top.iter().map(|entry| (entry.id, entry.logprob.to_bits()));
                        scores.push((logprob.id, logprob.logprob.to_bits(), top.collect()));
                    }
                    JobEvent::Token { id, .. } => tokens.push(id),
                    JobEvent::End(outcome) => {
                        let ended = (std::mem::take(&mut scores), std::mem::take(&mut tokens), outcome);
                        sender.send(ended).expect("somebody listens");
                    }
                    _ => {}
                }
                Flow::Continue
            });
            scheduler.submit(Job { prompt, request, client: 0, deadline: None, sink }).expect("there is room");
            receiver
        };
        let jobs = [
            (ids(9, 3), greedy(60, Prefill::Exact)),
            (prompt.clone(), scoring(5)),
            (ids(40, 4), greedy(9, Prefill::Exact)),
            (ids(70, 5), scoring(0)),
        ];
        let receivers: Vec<_> = jobs.iter().map(|(prompt, request)| ask(prompt.clone(), request.clone())).collect();
        for ((prompt, request), receiver) in jobs.iter().zip(receivers) {
            let (scored, tokens, outcome) = receiver.recv_timeout(Duration::from_secs(120)).expect("every job ends");
            assert!(outcome.is_ok(), "{outcome:?}");
            let (alone, _) = generate(&mut Session::new(Arc::clone(&engine)), prompt, request);
            assert_eq!(tokens, alone.iter().map(|(id, _)| *id).collect::<Vec<_>>());
            let alone = match request.prompt_logprobs {
                Some(_) => scores(&mut Session::new(Arc::clone(&engine)), prompt, request),
                None => Vec::new(),
            };
            assert_eq!(scored, alone);
        }
    }
}

#[test]
fn the_token_that_ends_an_answer_has_a_log_probability_too() {
    let engine = engine("fixtures/v41-tiny");
    let response_format = ResponseFormat::JsonSchema(Json::from(&serde_json::json!({"const": 1})));
    let conversation = Conversation { response_format, ..Conversation::default() };
    let start = StartState::Answer { drop_newlines: true };
    let constraint = engine.constraints().for_conversation(&conversation, start, None).expect("it compiles");
    let request = Request { constraint, ..greedy(20, Prefill::Exact) };
    let mut heard = Vec::new();
    let outcome = Session::new(Arc::clone(&engine)).generate(&ids(9, 0), &request, &mut |event| {
        match event {
            Event::Token { id, logprobs } => heard.push((id, logprobs.expect("they were asked for").0.logprob)),
            Event::EndToken { logprob, top } => {
                assert!(engine.tokenizer().is_stop(logprob.id) && top.len() == 3);
                heard.push((logprob.id, logprob.logprob));
            }
            _ => {}
        }
        Flow::Continue
    });
    assert_eq!(outcome.expect("it generates").finish, Finish::EndOfAnswer);
    let (last, rest) = heard.split_last().expect("it said something");
    assert!(engine.tokenizer().is_stop(last.0) && !rest.is_empty(), "{heard:?}");
    assert!(heard.iter().all(|(_, logprob)| logprob.is_finite() && *logprob < 0.0), "{heard:?}");
}

#[test]
fn a_prompt_is_not_scored_any_further_than_is_listened_to() {
    let engine = engine("fixtures/v41-tiny");
    let mut session = Session::new(Arc::clone(&engine));
    let (prompt, mut heard) = (ids(90, 0), 0);
    let outcome = session.generate(&prompt, &scoring(4), &mut |event| {
        heard += usize::from(matches!(event, Event::PromptToken { .. }));
        if heard == 20 { Flow::Cancel } else { Flow::Continue }
    });
    let outcome = outcome.expect("it stops");
    assert_eq!((outcome.finish, outcome.generated_tokens, heard), (Finish::Cancelled, 0, 20));
    let (after, _) = generate(&mut session, &prompt, &greedy(4, Prefill::Exact));
    assert_eq!(after, generate(&mut Session::new(engine), &prompt, &greedy(4, Prefill::Exact)).0);

    let replayed = Request { prefill: Prefill::Replay, ..scoring(4) };
    let refused = session.generate(&prompt, &replayed, &mut |_| Flow::Continue).expect_err("it is an approximation");
    assert!(matches!(refused, GenerateError::InexactLogprobs), "{refused}");
    // One token has none before it.
    assert_eq!(scores(&mut session, &prompt[..1], &scoring(0)), []);
}
