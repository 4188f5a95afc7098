//! Constrained outputs, on random weights and at temperature 2: whatever the model wants, what comes out is valid.

mod calls;
mod campaign;
mod grammars;

use std::path::PathBuf;
use std::sync::Arc;

use cachalot_engine::session::{Event, Finish, Flow, Prefill, Request, Session};
use cachalot_engine::{Constraint, ConstraintError, Engine, EngineOptions, SamplingParams};
use cachalot_model::Arithmetic;
use cachalot_storage::Directory;
use cachalot_text::Conversation;
use cachalot_text::conversation::ToolDefinition;
use cachalot_text::parser::{self, EngineFinish, FinishReason, OfferedTool, OutputParser, ParserOptions, StartState};
use cachalot_text::request::Constraint as Wish;
use jsonschema::ValidationError;
use jsonschema::error::ValidationErrorKind;
use serde::de::IgnoredAny;
use serde_json::Value;

fn repository(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

pub(crate) fn fixture(name: &str) -> PathBuf {
    repository("fixtures/schemas").join(name)
}

/// The lines of a fixture.
pub(crate) fn lines(name: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(fixture(name)).expect("a fixture");
    text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}

pub(crate) fn engine(path: &str) -> Arc<Engine> {
    let path = repository(path);
    let options = EngineOptions { arithmetic: Arithmetic::Exact, threads: Some(1), ..EngineOptions::default() };
    Arc::new(Engine::open(Arc::new(Directory::new(path)), &options, &mut |_| ()).expect("a model"))
}

/// An output, parsed.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) text: String,
    pub(crate) reasoning: String,
    pub(crate) answer: String,
    /// Names and arguments.
    pub(crate) calls: Vec<(String, String)>,
    pub(crate) finish: FinishReason,
    /// Whether the token limit cut it.
    pub(crate) cut: bool,
    pub(crate) tokens: usize,
}

/// Who answers, and how.
pub(crate) struct Answerer {
    pub(crate) session: Session,
    pub(crate) sampling: SamplingParams,
    pub(crate) max_tokens: usize,
}

impl Answerer {
    pub(crate) fn new(path: &str, max_tokens: usize) -> Self {
        let sampling = SamplingParams { temperature: 2.0, ..SamplingParams::default() };
        Self { session: Session::new(engine(path)), sampling, max_tokens }
    }

    pub(crate) fn constraint(
        &self,
        conversation: &Conversation,
        start: StartState,
        wish: Option<&Wish>,
    ) -> Result<Option<Constraint>, ConstraintError> {
        self.session.engine().constraints().for_conversation(conversation, start, wish)
    }

    /// What is said after a short prompt; the constraint does not look at the prompt.
    pub(crate) fn output(
        &mut self,
        conversation: &Conversation,
        start: StartState,
        constraint: Option<Constraint>,
        seed: u64,
    ) -> Output {
        let engine = Arc::clone(self.session.engine());
        let tokenizer = engine.tokenizer();
        let tools = if conversation.offers_tools() { conversation.tools.as_slice() } else { &[] };
        let options = ParserOptions {
            start,
            tools: tools.iter().map(OfferedTool::from).collect(),
            stop: Vec::new(),
            json_output: false,
        };
        let mut parser = OutputParser::new(tokenizer, options);
        let request = Request {
            sampling: SamplingParams { seed, ..self.sampling.clone() },
            max_tokens: self.max_tokens,
            prefill: Prefill::Exact,
            top_logprobs: None,
            prompt_logprobs: None,
            constraint,
        };
        let checked = request.constraint.clone();
        let prompt: Vec<u32> = (0..4).map(|index| 10 + (seed as u32 * 7 + index * 13) % 200).collect();
        let (mut ids, mut events) = (Vec::new(), Vec::new());
        let outcome = self.session.generate(&prompt, &request, &mut |event| {
            let Event::Token { id, .. } = event else { return Flow::Continue };
            ids.push(id);
            events.extend(parser.push(id).expect("an id of the vocabulary"));
            if parser.is_finished() { Flow::Stop } else { Flow::Continue }
        });
        let outcome = outcome.expect("it generates");
        if let Some(constraint) = &checked {
            let accepted = constraint.accepted(tokenizer, &ids).expect("it can be followed");
            assert_eq!(accepted, ids.len(), "an output is what its constraint accepts");
        }
        let cut = outcome.finish == Finish::Length;
        let end = parser.finish(if cut { EngineFinish::Length } else { EngineFinish::Stop });
        events.extend(end.events);
        let text = tokenizer.decode(&ids).expect("ids of the vocabulary");
        let (mut reasoning, mut answer, mut calls) = (String::new(), String::new(), Vec::new());
        for event in events {
            match event {
                parser::Event::Reasoning(text) => reasoning.push_str(&text),
                parser::Event::Answer(text) => answer.push_str(&text),
                parser::Event::CallStart { name, .. } => calls.push((name, String::new())),
                parser::Event::CallArguments { index, text } => calls[index].1.push_str(&text),
                parser::Event::CallEnd { .. } => {}
            }
        }
        Output { text, reasoning, answer, calls, finish: end.reason, cut, tokens: ids.len() }
    }
}

pub(crate) const ANSWER: StartState = StartState::Answer { drop_newlines: true };
pub(crate) const REASONING: StartState = StartState::Reasoning { drop_newlines: true };

pub(crate) fn tool(name: &str, parameters: &Value) -> ToolDefinition {
    ToolDefinition {
        name: name.to_owned(),
        description: None,
        parameters: parameters.into(),
        strict: None,
        deferred: false,
        input: None,
    }
}

/// Whether JSON text fits a schema, formats and numbers included, as far as the validator can tell.
pub(crate) fn check(schema: &Value, text: &str) -> Result<(), String> {
    let value: Value = match serde_json::from_str(text) {
        Ok(value) => value,
        // JSON sets numbers no limits; this reader does.
        Err(error) if error.to_string().starts_with("number out of range") => {
            return serde_json::from_str::<IgnoredAny>(text).map(|_| ()).map_err(|error| format!("no JSON: {error}"));
        }
        Err(error) => return Err(format!("no JSON: {error}")),
    };
    let validator = jsonschema::options().should_validate_formats(true).offline().build(schema).expect("a schema");
    match validator.iter_errors(&value).find(|error| !is_beyond(error)) {
        Some(error) => Err(error.to_string()),
        None => Ok(()),
    }
}

/// What the validator counts otherwise: multiples beyond the integers of a float64, and the lengths of names (63 characters
/// of a label, 64 before an `@`, 253 of a host), which the grammars of formats do not count.
fn is_beyond(error: &ValidationError<'_>) -> bool {
    match error.kind() {
        ValidationErrorKind::MultipleOf { .. } => {
            error.instance().as_f64().is_some_and(|number| number.abs() >= 2f64.powi(53))
        }
        ValidationErrorKind::Format { format } if format == "email" || format == "hostname" => {
            let text = error.instance().as_str().unwrap_or_default();
            text.split(['@', '.']).any(|label| label.len() > 63) || text.len() > 253
        }
        _ => false,
    }
}
