//! Many answers at once: each is what it would be alone, and nobody waits for ever.

use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cachalot_engine::scheduler::{Job, JobError, JobEvent, Scheduler, SchedulerOptions, SubmitError};
use cachalot_engine::session::{Finish, Flow, Outcome, Prefill, Request, Session};
use cachalot_engine::{Engine, EngineOptions};
use cachalot_storage::{Directory, Fault, FaultyFiles, Plan};
use cachalot_text::Conversation;
use cachalot_text::conversation::ResponseFormat;
use cachalot_text::parser::StartState;

use crate::{engine, generate, greedy, ids, options, repository};

type Tokens = Vec<(u32, Vec<u64>)>;
type Ended = (Tokens, Result<Outcome, JobError>);

/// Submits a job; `flow` is asked for every event. What came of it is received at its end.
fn submit(
    scheduler: &Scheduler,
    client: u64,
    prompt: &[u32],
    request: &Request,
    mut flow: impl FnMut(&JobEvent<'_>) -> Flow + Send + 'static,
) -> Result<Receiver<Ended>, SubmitError> {
    let (sender, receiver) = channel();
    let mut tokens = Tokens::new();
    let sink = Box::new(move |event: JobEvent<'_>| {
        let flow = flow(&event);
        match event {
            JobEvent::Token { id, logprobs } => {
                let (chosen, top) = logprobs.expect("they were asked for");
                tokens.push((id, top.iter().chain([&chosen]).map(|entry| entry.logprob.to_bits()).collect()));
            }
            JobEvent::End(outcome) => sender.send((std::mem::take(&mut tokens), outcome)).expect("somebody listens"),
            _ => {}
        }
        flow
    });
    let job = Job { prompt: prompt.to_vec(), request: request.clone(), client, deadline: None, sink };
    scheduler.submit(job).map(|()| receiver)
}

fn scheduler(engine: &Arc<Engine>, change: impl FnOnce(&mut SchedulerOptions)) -> Scheduler {
    let mut options = SchedulerOptions::default();
    change(&mut options);
    Scheduler::start(Arc::clone(engine), options).expect("a thread")
}

fn ended(receiver: &Receiver<Ended>) -> Ended {
    receiver.recv_timeout(Duration::from_secs(120)).expect("every job ends")
}

#[test]
fn an_answer_does_not_depend_on_what_else_runs() {
    for fixture in ["fixtures/v41-tiny", "fixtures/v4-tiny", "fixtures/v41-pairs"] {
        let engine = engine(fixture);
        let scheduler = scheduler(&engine, |options| {
            options.sequences = 5;
            options.prompt_tokens_beside = 7;
        });
        // Of all lengths, some with a common beginning, sampled and greedy, more than run at once.
        let requests: Vec<(Vec<u32>, Request)> = (0..14)
            .map(|index| {
                let prompt = [&ids(20 + 5 * (index % 3), 0)[..], &ids(1 + 23 * (index % 5), index)].concat();
                let mut request = greedy(3 + index, Prefill::Exact);
                request.sampling.temperature = if index % 2 == 0 { 0.0 } else { 1.0 };
                request.sampling.seed = index as u64;
                if index % 3 == 0 {
                    let response_format = ResponseFormat::JsonObject;
                    let conversation = Conversation { response_format, ..Conversation::default() };
                    let start = StartState::Answer { drop_newlines: true };
                    let constraint = engine.constraints().for_conversation(&conversation, start, None);
                    request.constraint = constraint.expect("a constraint");
                }
                (prompt, request)
            })
            .collect();
        let receivers: Vec<_> = requests
            .iter()
            .enumerate()
            .map(|(index, (prompt, request))| {
                submit(&scheduler, index as u64 % 3, prompt, request, |_| Flow::Continue).expect("there is room")
            })
            .collect();
        for (index, (receiver, (prompt, request))) in receivers.iter().zip(&requests).enumerate() {
            let (tokens, outcome) = ended(receiver);
            let (alone, expected) = generate(&mut Session::new(Arc::clone(&engine)), prompt, request);
            assert_eq!(tokens, alone, "{fixture}: job {index}");
            let outcome = outcome.expect("it is answered");
            assert_eq!((outcome.finish, outcome.generated_tokens), (expected.finish, expected.generated_tokens));
        }
        let status = scheduler.status();
        assert_eq!((status.finished, status.cancelled, status.failed), (14, 0, 0));
    }
}

#[test]
fn what_was_kept_of_one_serves_another() {
    let engine = engine("models/nano");
    let scheduler = scheduler(&engine, |_| ());
    let user = engine.tokenizer().markers().user;
    let instructions = ids(300, 1);
    let prompt = |question: usize| [&instructions[..], &[user], &ids(12, question)].concat();
    let run = |prompt: &[u32], max_tokens| {
        let request = greedy(max_tokens, Prefill::Exact);
        let receiver = submit(&scheduler, 0, prompt, &request, |_| Flow::Continue).expect("there is room");
        let (tokens, outcome) = ended(&receiver);
        let (alone, _) = generate(&mut Session::new(Arc::clone(&engine)), prompt, &request);
        assert_eq!(tokens, alone);
        (tokens, outcome.expect("it is answered"))
    };
    let (answer, first) = run(&prompt(2), 8);
    assert_eq!(first.cached_tokens, 0);
    // Another question behind the same instructions.
    assert_eq!(run(&prompt(3), 8).1.cached_tokens, instructions.len());
    // The same question again.
    assert_eq!(run(&prompt(2), 8).1.cached_tokens, prompt(2).len() - 1);
    // The conversation goes on.
    let said: Vec<u32> = answer.iter().map(|(id, _)| *id).collect();
    let next = [&prompt(2)[..], &said, &[user], &ids(5, 4)].concat();
    assert!(run(&next, 4).1.cached_tokens + 1 >= prompt(2).len() + said.len());
}

#[test]
fn who_leaves_makes_room_and_the_others_stay() {
    let engine = engine("fixtures/v41-tiny");
    let scheduler = scheduler(&engine, |options| {
        options.sequences = 2;
        options.waiting = 6;
    });
    let request = greedy(40, Prefill::Exact);
    // Two run and are left after three tokens, or while their prompt is read; others wait, one of which leaves.
    let mut count = 0;
    let leaver = submit(&scheduler, 1, &ids(30, 0), &request, move |event| {
        count += usize::from(matches!(event, JobEvent::Token { .. }));
        if count == 3 { Flow::Cancel } else { Flow::Continue }
    });
    let reader = submit(&scheduler, 2, &ids(900, 1), &request, |event| match event {
        JobEvent::Prefill { .. } => Flow::Cancel,
        _ => Flow::Continue,
    });
    let stays: Vec<_> = (0..4)
        .map(|index| submit(&scheduler, 3, &ids(25, index), &request, |_| Flow::Continue).expect("there is room"))
        .collect();
    for receiver in [leaver, reader] {
        let (tokens, outcome) = ended(&receiver.expect("there is room"));
        assert_eq!(outcome.expect("no failure").finish, Finish::Cancelled);
        assert!(tokens.len() <= 3);
    }
    for (index, receiver) in stays.iter().enumerate() {
        let (tokens, _) = ended(receiver);
        assert_eq!(tokens, generate(&mut Session::new(Arc::clone(&engine)), &ids(25, index), &request).0);
    }
    assert_eq!(scheduler.status().cancelled, 2);
}

#[test]
fn a_full_queue_a_passed_deadline_and_a_bad_request_are_refused() {
    let engine = engine("fixtures/v41-tiny");
    let scheduler = scheduler(&engine, |options| {
        options.sequences = 1;
        options.waiting = 2;
    });
    let gate = Arc::new(Mutex::new(()));
    let closed = gate.lock().expect("nobody panicked");
    let long = greedy(60, Prefill::Exact);
    // The first one is held up at its first event; it runs, and two more may wait.
    let waits = Arc::clone(&gate);
    let (started, runs) = channel();
    let first = submit(&scheduler, 1, &ids(9, 0), &long, move |_| {
        let _ = started.send(());
        let _open = waits.lock();
        Flow::Continue
    });
    runs.recv().expect("it runs");
    let second = submit(&scheduler, 1, &ids(9, 1), &long, |_| Flow::Continue).expect("there is room");
    let (sender, late) = channel();
    let job = Job {
        prompt: ids(9, 2),
        request: long.clone(),
        client: 1,
        deadline: Some(Instant::now()),
        sink: Box::new(move |event| {
            if let JobEvent::End(outcome) = event {
                sender.send(outcome).expect("somebody listens");
            }
            Flow::Continue
        }),
    };
    scheduler.submit(job).expect("there is room");
    let full = submit(&scheduler, 1, &ids(9, 3), &long, |_| Flow::Continue).expect_err("it is full");
    assert!(matches!(full, SubmitError::QueueFull { waiting: 2 }), "{full}");
    assert!(matches!(submit(&scheduler, 1, &ids(5000, 3), &long, |_| Flow::Continue), Err(SubmitError::Generate(_))));
    drop(closed);
    assert!(ended(&first.expect("it was taken")).1.is_ok());
    assert!(ended(&second).1.is_ok());
    let late = late.recv_timeout(Duration::from_secs(60)).expect("it ends");
    assert!(matches!(late, Err(JobError::TimedOut)), "{late:?}");
}

#[test]
fn without_a_queue_whoever_can_be_answered_at_once_is_taken() {
    let engine = engine("fixtures/v41-tiny");
    let scheduler = scheduler(&engine, |options| {
        options.sequences = 2;
        options.waiting = 0;
    });
    let request = greedy(4, Prefill::Exact);
    let gate = Arc::new(Mutex::new(()));
    for round in 0..3 {
        let closed = gate.lock().expect("nobody panicked");
        let held = [0, 1].map(|salt| {
            let waits = Arc::clone(&gate);
            submit(&scheduler, salt, &ids(9, salt as usize), &request, move |_| {
                let _open = waits.lock();
                Flow::Continue
            })
            .unwrap_or_else(|error| panic!("round {round}: {error}"))
        });
        let full = submit(&scheduler, 1, &ids(9, 3), &request, |_| Flow::Continue).expect_err("it is full");
        assert!(matches!(full, SubmitError::QueueFull { .. }), "{full}");
        drop(closed);
        // Who hears that an answer has ended may ask at once.
        held.iter().for_each(|receiver| assert!(ended(receiver).1.is_ok()));
    }
}

#[test]
fn stopping_lets_answers_finish_or_cuts_them() {
    let engine = engine("fixtures/v41-tiny");
    let request = greedy(30, Prefill::Exact);
    let finishing = scheduler(&engine, |_| ());
    let runs = submit(&finishing, 1, &ids(9, 0), &request, |_| Flow::Continue).expect("there is room");
    // Once it runs it may finish.
    while finishing.status().running == 0 && finishing.status().finished == 0 {
        std::thread::yield_now();
    }
    finishing.stop(Duration::MAX);
    let (tokens, outcome) = ended(&runs);
    assert!(outcome.is_ok(), "{outcome:?}");
    assert_eq!(tokens, generate(&mut Session::new(Arc::clone(&engine)), &ids(9, 0), &request).0);
    let refused = submit(&finishing, 1, &ids(9, 0), &request, |_| Flow::Continue);
    assert!(matches!(refused, Err(SubmitError::Stopping)));

    let cut = scheduler(&engine, |options| options.sequences = 1);
    let endless = greedy(4000, Prefill::Exact);
    let receivers: Vec<_> = (0..3)
        .map(|salt| submit(&cut, 1, &ids(9, salt), &endless, |_| Flow::Continue).expect("there is room"))
        .collect();
    drop(cut);
    for receiver in &receivers {
        let (_, outcome) = ended(receiver);
        // The one that ran may have been in a step that was interrupted.
        let cut = match &outcome {
            Ok(outcome) => outcome.finish == Finish::Cancelled,
            Err(error) => matches!(error, JobError::Stopping),
        };
        assert!(cut, "{outcome:?}");
    }
    // The engine is free for others.
    generate(&mut Session::new(engine), &ids(9, 0), &request);
}

#[test]
fn tokens_kept_are_counted_once() {
    let scheduler = scheduler(&engine("fixtures/v41-tiny"), |_| ());
    let shared = ids(40, 0);
    for (more, salt) in [(10, 1), (20, 2)] {
        let prompt = [&shared[..], &ids(more, salt)].concat();
        let receiver = submit(&scheduler, 0, &prompt, &greedy(1, Prefill::Exact), |_| Flow::Continue);
        assert!(ended(&receiver.expect("room")).1.is_ok());
    }
    // The one token of each answer has not been seen.
    assert_eq!((scheduler.status().kept_states, scheduler.status().kept_tokens), (2, 40 + 10 + 20));
}

#[test]
fn one_that_fails_takes_nobody_with_it() {
    let plan = Plan::new();
    let files = FaultyFiles::new(Arc::new(Directory::new(repository("fixtures/v41-tiny"))), Arc::clone(&plan));
    let mut few = EngineOptions { guess: false, ..options() };
    // No more experts than a layer needs at once: nearly every step reads some.
    few.memory.experts = Some(0);
    let engine = Arc::new(Engine::open(Arc::new(files), &few, &mut |_| ()).expect("a model"));
    let scheduler = scheduler(&engine, |_| ());
    let request = greedy(12, Prefill::Exact);
    // A read fails now and then: steps are taken again one by one, and some answers end with the error.
    let calls = plan.calls();
    (0..40).for_each(|nth| plan.on_calls(calls + 97 * nth..calls + 97 * nth + 1, Fault::Eio));
    let receivers: Vec<_> = (0..6)
        .map(|salt| submit(&scheduler, salt, &ids(20, salt as usize), &request, |_| Flow::Continue).expect("room"))
        .collect();
    let mut answered = 0;
    for (salt, receiver) in receivers.iter().enumerate() {
        let (tokens, outcome) = ended(receiver);
        let right = generate(&mut Session::new(crate::engine("fixtures/v41-tiny")), &ids(20, salt), &request).0;
        assert!(right.starts_with(&tokens), "no wrong token, whatever failed");
        match outcome {
            Ok(_) => answered += usize::from(tokens == right),
            Err(error) => assert!(error.to_string().contains("model-"), "{error}"),
        }
    }
    plan.clear();
    let receiver = submit(&scheduler, 0, &ids(20, 0), &request, |_| Flow::Continue).expect("room");
    assert!(ended(&receiver).1.is_ok(), "{answered} were answered while the disk failed");
}
