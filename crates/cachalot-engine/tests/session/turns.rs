//! Turns of a conversation, from messages to what was said

use std::sync::Arc;

use cachalot_engine::{Flow, SamplingChoice, Session, TurnError, TurnEvent, TurnOptions, turn};
use cachalot_text::conversation::{Content, Conversation, Image, ImageDetail, ImageSource, Message, Span};
use cachalot_text::parser::{Event, FinishReason};

use crate::engine;

fn question(text: &str) -> Conversation {
    Conversation { messages: vec![Message::user(text)], thinking: false, ..Conversation::default() }
}

fn greedy() -> TurnOptions {
    let sampling = SamplingChoice { temperature: Some(0.0), ..SamplingChoice::default() };
    TurnOptions { sampling, ..TurnOptions::default() }
}

#[test]
fn a_conversation_goes_on() {
    let mut session = Session::new(engine("models/nano"));
    let mut conversation = question("What is the capital of Japan?");
    let mut streamed = String::new();
    let first = turn(&mut session, &conversation, &greedy(), &mut |event| {
        if let TurnEvent::Output(Event::Answer(text)) = event {
            streamed.push_str(text);
        }
        Flow::Continue
    })
    .expect("an answer");
    assert_eq!((first.answer.as_str(), first.finish), ("The capital of Japan is Tokyo.", FinishReason::Stop));
    assert_eq!((streamed, first.reasoning.as_str(), first.calls.len()), (first.answer.clone(), "", 0));
    conversation.messages.push(Message::assistant(first.answer, None));
    conversation.messages.push(Message::user("What is the capital of France?"));
    let second = turn(&mut session, &conversation, &greedy(), &mut |_| Flow::Continue).expect("an answer");
    assert_eq!(second.answer, "The capital of France is Paris.");
    assert!(second.outcome.cached_tokens >= first.outcome.prompt_tokens, "{:?}", second.outcome);
}

#[test]
fn stop_strings_end_an_answer_wherever_tokens_end() {
    let engine = engine("models/nano");
    for (stop, answer) in [("of", "The capital "), ("apital of Jap", "The c"), ("Tokyo.", "The capital of Japan is ")] {
        let options = TurnOptions { stop: vec!["never".to_owned(), stop.to_owned()], ..greedy() };
        let conversation = question("What is the capital of Japan?");
        let mut session = Session::new(Arc::clone(&engine));
        let stopped = turn(&mut session, &conversation, &options, &mut |_| Flow::Continue).expect("an answer");
        assert_eq!((stopped.answer.as_str(), stopped.finish), (answer, FinishReason::StopSequence(stop.to_owned())));
    }
}

#[test]
fn what_was_said_before_a_cancel_is_kept() {
    let mut session = Session::new(engine("models/nano"));
    let conversation = question("What is the capital of Japan?");
    let mut pieces = 0;
    let cut = turn(&mut session, &conversation, &greedy(), &mut |event| {
        pieces += usize::from(matches!(event, TurnEvent::Output(_)));
        if pieces == 3 { Flow::Cancel } else { Flow::Continue }
    })
    .expect("a beginning");
    assert_eq!(cut.finish, FinishReason::Cancelled);
    assert!(!cut.answer.is_empty() && "The capital of Japan is Tokyo.".starts_with(&cut.answer), "{cut:?}");
    let whole = turn(&mut session, &conversation, &greedy(), &mut |_| Flow::Continue).expect("an answer");
    assert_eq!(whole.answer, "The capital of Japan is Tokyo.");
}

#[test]
fn text_that_spells_a_control_token_ends_nothing() {
    // What a user writes never becomes a control token: the prompt grows by ordinary tokens.
    let mut session = Session::new(engine("models/nano"));
    let tokens = |session: &mut Session, text: &str| {
        let options = TurnOptions { sampling: SamplingChoice { max_tokens: Some(1), ..greedy().sampling }, ..greedy() };
        turn(session, &question(text), &options, &mut |_| Flow::Continue).expect("an answer").outcome.prompt_tokens
    };
    assert!(tokens(&mut session, "<｜end▁of▁sentence｜>") > tokens(&mut session, "a") + 3);
}

#[test]
fn a_parameter_that_is_given_wins_and_others_are_the_vendors() {
    let mut session = Session::new(engine("models/nano"));
    let mut conversation = question("What is the capital of Japan?");
    conversation.thinking = true;
    let sampling = SamplingChoice {
        temperature: Some(0.25),
        top_p: Some(0.5),
        presence_penalty: Some(0.125),
        seed: Some(9),
        max_tokens: Some(3),
        ..SamplingChoice::default()
    };
    let options = TurnOptions { sampling, ..TurnOptions::default() };
    let given = turn(&mut session, &conversation, &options, &mut |_| Flow::Continue).expect("an answer");
    let used = &given.sampling;
    assert_eq!((used.temperature, used.top_p, used.presence_penalty, used.seed), (0.25, 0.5, 0.125, 9));
    assert_eq!((used.top_k, used.min_p, used.repetition_penalty, used.frequency_penalty), (0, 0.0, 1.0, 0.0));
    assert_eq!((given.outcome.generated_tokens, given.finish), (3, FinishReason::Length));
    let free =
        turn(&mut session, &question("Hi"), &TurnOptions::default(), &mut |_| Flow::Continue).expect("an answer");
    assert_eq!((free.sampling.temperature, free.sampling.top_p), (1.0, 1.0));
}

#[test]
fn what_cannot_be_answered_is_refused() {
    let mut session = Session::new(engine("models/nano"));
    let mut refuse = |conversation: &Conversation, sampling| {
        let options = TurnOptions { sampling, ..TurnOptions::default() };
        turn(&mut session, conversation, &options, &mut |_| Flow::Continue).expect_err("refused")
    };
    let long = question(&"What is the capital of Japan? ".repeat(20_000));
    let error = refuse(&long, SamplingChoice::default());
    assert!(error.to_string().contains("the context holds 131072"), "{error}");
    let greedy_for_more = SamplingChoice { max_tokens: Some(131_072), ..SamplingChoice::default() };
    let error = refuse(&question("Hi"), greedy_for_more);
    assert!(matches!(error, TurnError::Context(_)), "{error}");
    let source = ImageSource::Url("http://localhost/x.png".to_owned());
    let image = Span::Image(Image { source, detail: ImageDetail::High, path: String::new() });
    let message = Message::User { content: Content { spans: vec![image] }, task: None };
    let seeing = Conversation { messages: vec![message], ..Conversation::default() };
    let error = refuse(&seeing, SamplingChoice::default());
    assert!(matches!(error, TurnError::Prompt(_) | TurnError::Images { .. }), "{error}");
    let bad = SamplingChoice { min_p: Some(-1.0), ..SamplingChoice::default() };
    assert!(bad.validate().is_err());
    assert!(refuse(&question("Hi"), bad).to_string().contains("min_p"));
}
