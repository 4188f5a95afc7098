//! From a body to a job: conversion, limits, prompt, sampling (protocol.md sections 2, 4 and 5.2).
//!
//! Owns what the three conversation APIs have in common before generation starts. Refuses what cannot be carried out, and
//! names the field. The work is done on threads of its own, few at a time: a prompt of a million tokens takes seconds.

use std::sync::{Arc, PoisonError};
use std::time::Instant;

use axum::body::Body;
use axum::http::{self, HeaderValue};
use cachalot_engine::scheduler::Job;
use cachalot_engine::session::{Prefill, Request as EngineRequest};
use cachalot_engine::{Constraint, SamplingChoice};
use cachalot_text::conversation::{Content, Conversation, Image, ImageSource, Message, Span};
use cachalot_text::parser::{ParserOptions, StartState};
use cachalot_text::prompt::{self, Prompt, SampledTurn};
use cachalot_text::request::{self, Api, Request, RequestedSampling};
use cachalot_text::sampling::{MAX_OUTPUT, Mode, defaults, output_limit};
use tokio::sync::mpsc::Receiver;

use crate::answer::Answer;
use crate::api::{Envelope, model_name, parse};
use crate::app::App;
use crate::body;
use crate::error::{ApiError, Kind};
use crate::gate::Client;
use crate::generation::{Done, Listening, Update, listen};

/// A request that is ready to be answered.
pub struct Prepared {
    /// What was asked.
    pub request: Request,
    /// The name under which the model answers.
    pub model: String,
    /// The prompt.
    pub prompt: Prompt,
    /// What the answer must be.
    pub constraint: Option<Constraint>,
}

/// A request that is being answered.
pub struct Asked {
    /// What was asked; its messages are gone.
    pub request: Request,
    /// The name under which the model answers.
    pub model: String,
    /// The sampling parameters that are used.
    pub sampling: cachalot_engine::SamplingParams,
    /// The answer, still empty.
    pub answer: Answer,
    /// What the model says.
    pub updates: Receiver<Update>,
    /// Ids of the prompt, where its turn may come back.
    pub prompt: Vec<u32>,
}

/// Reads the body of `request` and has `work` make something of it, on a thread where it may take its time, when it is its
/// turn.
///
/// # Errors
/// If the body cannot be read, those of `work`, or if it panicked.
pub async fn receive<T: Send + 'static>(
    app: &Arc<App>,
    request: http::Request<Body>,
    work: impl FnOnce(&App, &str) -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let (parts, body) = request.into_parts();
    let body = body::read(app, &parts.headers, body).await?;
    let _turn = app.preparing.acquire().await;
    let app = Arc::clone(app);
    let failed = |_| ApiError::new(Kind::Internal, "the request could not be converted: this is a bug of the server");
    tokio::task::spawn_blocking(move || work(&app, &body.text)).await.map_err(failed)?
}

/// Converts `body` and writes its prompt.
///
/// # Errors
/// If the body is no request of `api` that this server carries out, or exceeds a limit.
pub fn prepared(app: &App, api: Api, body: &str) -> Result<Prepared, ApiError> {
    let card = &app.card;
    let envelope: Envelope = parse(body)?;
    let model = model_name(app, envelope.model)?;
    let mut request = request::convert_for(api, card.family(), card.thinks, body)?;
    if app.options.log_prompts {
        tracing::info!(body, "a prompt");
    }
    check_limits(app, api, &request)?;
    check_images(app, &request.conversation)?;
    request.conversation.effort_texts = card.effort_texts;
    let sampled = {
        let mut replays = app.replays.lock().unwrap_or_else(PoisonError::into_inner);
        replays.of(&request.conversation)
    };
    let prompt = prompt::encode_replaying(&card.tokenizer, &request.conversation, &sampled)?;
    let constraint = constraint(app, api, &request, prompt.start)?;
    Ok(Prepared { request, model, prompt, constraint })
}

/// What the engine is asked for.
fn engine_request(
    app: &App,
    request: &Request,
    prompt: usize,
    constraint: Option<Constraint>,
) -> Result<EngineRequest, ApiError> {
    let conversation = &request.conversation;
    let mode =
        Mode { thinking: conversation.thinking, tools: conversation.offers_tools(), effort: conversation.effort };
    let default = defaults(app.card.family(), mode).max_tokens;
    let sampling = &request.sampling;
    let (requested, default) = match sampling.longest {
        true => (None, MAX_OUTPUT),
        false => (sampling.max_tokens.map(|tokens| tokens as usize), default),
    };
    Ok(EngineRequest {
        sampling: choice(sampling).resolve(app.card.family(), mode),
        max_tokens: output_limit(requested, default, prompt, app.card.context)?,
        prefill: Prefill::Exact,
        top_logprobs: sampling.logprobs.then(|| sampling.top_logprobs.unwrap_or(0).into()),
        prompt_logprobs: None,
        constraint,
    })
}

/// Sampling parameters as they were given.
pub fn choice(given: &RequestedSampling) -> SamplingChoice {
    // By way of its shortest decimal form: 0.7 is meant, not the float32 next to it.
    let wide = |value: Option<f32>| value.map(|value| value.to_string().parse().unwrap_or(f64::from(value)));
    SamplingChoice {
        temperature: wide(given.temperature),
        top_k: given.top_k.map(|value| value as usize),
        top_p: wide(given.top_p),
        min_p: wide(given.min_p),
        repetition_penalty: wide(given.repetition_penalty),
        presence_penalty: wide(given.presence_penalty),
        frequency_penalty: wide(given.frequency_penalty),
        seed: given.seed,
        max_tokens: given.max_tokens.map(|tokens| tokens as usize),
    }
}

/// How large a schema may be is the grammars' affair.
fn check_limits(app: &App, api: Api, request: &Request) -> Result<(), ApiError> {
    let limits = &app.options.limits;
    let (messages, tools) = (request.conversation.messages.len(), request.conversation.tools.len());
    let too_many = |field: &str, what: &str, found: usize, most: usize| {
        Err(ApiError::field(field, format!("{found} {what}; this server takes at most {most}")))
    };
    if messages > limits.messages {
        return match api {
            Api::Chat => too_many("messages", "messages", messages, limits.messages),
            Api::Messages => too_many("messages", "messages and blocks of messages", messages, limits.messages),
            Api::Responses => too_many("input", "input items", messages, limits.messages),
        };
    }
    if tools > limits.tools {
        return too_many("tools", "tools", tools, limits.tools);
    }
    Ok(())
}

/// What the answer must be. What cannot be ensured is refused by its place in the request.
fn constraint(app: &App, api: Api, request: &Request, start: StartState) -> Result<Option<Constraint>, ApiError> {
    let format = match api {
        Api::Chat => "response_format",
        Api::Messages => "output_config.format",
        Api::Responses => "text.format",
    };
    let made = app.card.constraints.for_conversation(&request.conversation, start, request.constraint.as_ref());
    let constraint = made.map_err(|error| {
        let message = error.to_string().replacen("response_format", format, 1);
        // What is said of a tool begins with its place.
        let place = message.split([' ', ':']).next().filter(|place| place.starts_with("tools"));
        ApiError::field(place.unwrap_or(format).to_owned(), message).with_code("unsupported_parameter")
    })?;
    for note in constraint.iter().flat_map(Constraint::notes) {
        tracing::debug!(note, "not enforced");
    }
    Ok(constraint)
}

/// Images are refused by where they stand in the request.
fn check_images(app: &App, conversation: &Conversation) -> Result<(), ApiError> {
    let limits = &app.options.limits;
    let contents = conversation.messages.iter().filter_map(|message| match message {
        Message::System { content, .. }
        | Message::Developer { content }
        | Message::User { content, .. }
        | Message::Tool { content, .. } => Some(content),
        Message::Assistant { .. } | Message::LatestReminder { .. } => None,
    });
    let images = contents.flat_map(|Content { spans }| spans).filter_map(|span| match span {
        Span::Image(image) => Some(image),
        Span::Text(_) => None,
    });
    let images: Vec<&Image> = images.collect();
    let refused = |image: &Image, code: &'static str, problem: String| {
        let path = image.path.trim_start_matches('.');
        Err(ApiError::field(path, format!("{path}: {problem}")).with_code(code))
    };
    if let Some(image) = images.get(limits.images) {
        let problem = format!("{} images; this server takes at most {}", images.len(), limits.images);
        return refused(image, "too_many_images", problem);
    }
    if let Some(image) = images.iter().find(|image| size(image) > limits.image_bytes) {
        let problem = format!("an image of {} bytes; this server takes at most {}", size(image), limits.image_bytes);
        return refused(image, "image_too_large", problem);
    }
    match images.first().filter(|_| !app.card.images) {
        Some(image) => {
            refused(image, "image_not_supported", "this server cannot look at images; send text only".to_owned())
        }
        None => Ok(()),
    }
}

/// Bytes of an image that a request brings.
fn size(image: &Image) -> usize {
    match &image.source {
        ImageSource::Bytes(data) => data.len(),
        // Base64 has four characters for three bytes.
        ImageSource::DataUrl(url) => url.split_once(',').map_or(0, |(_, data)| data.len() / 4 * 3),
        ImageSource::Url(_) => 0,
    }
}

impl Prepared {
    /// Hands the job to the backend.
    ///
    /// # Errors
    /// If it does not fit the context, or the backend does not take it.
    pub fn ask(self, app: &App, client: Client) -> Result<Asked, ApiError> {
        let Self { mut request, model, prompt, constraint } = self;
        let engine = engine_request(app, &request, prompt.ids.len(), constraint)?;
        let mut parser = ParserOptions::new(&request.conversation, &prompt);
        parser.stop.clone_from(&request.stop);
        parser.json_output = request.json_output;
        let tools = request.conversation.offers_tools();
        let starts_in_reasoning = matches!(prompt.start, StartState::Reasoning { .. });
        let answer = Answer::new(request.conversation.thinking, starts_in_reasoning);
        // The conversation is in the prompt now, and may be large.
        request.conversation.messages = Vec::new();
        let sampling = engine.sampling.clone();
        let kept = if tools { prompt.ids.clone() } else { Vec::new() };
        let updates = submit(app, client, prompt.ids, engine, parser, request.one_call, tools)?;
        Ok(Asked { request, model, sampling, answer, updates, prompt: kept })
    }
}

/// Hands a job to the backend.
///
/// # Errors
/// If the backend does not take it.
pub fn submit(
    app: &App,
    client: Client,
    prompt: Vec<u32>,
    request: EngineRequest,
    parser: ParserOptions,
    one_call: bool,
    keep_sampled: bool,
) -> Result<Receiver<Update>, ApiError> {
    let (sink, updates) = listen(Listening {
        tokenizer: Arc::clone(&app.card.tokenizer),
        parser,
        one_call,
        keep_sampled,
        scores: request.prompt_logprobs.is_some(),
        unread: app.options.limits.unread_events,
        metrics: Arc::clone(&app.metrics),
    });
    let deadline = app.options.request_timeout.and_then(|time| Instant::now().checked_add(time));
    app.backend.submit(Job { prompt, request, client: client.0, deadline, sink })?;
    Ok(updates)
}

/// What is done at the end of every turn of a conversation: a line in the log, and the turn is kept for replay.
pub fn turn_ended(app: &App, prompt: &[u32], one_call: bool, answer: &Answer, done: &Done) {
    log(answer, done);
    // A turn that was cut short behind its first call is not what the model would have written.
    if answer.calls.is_empty() || one_call {
        return;
    }
    if let Some(turn) = SampledTurn::new(&app.card.tokenizer, prompt, &done.sampled) {
        app.replays.lock().unwrap_or_else(PoisonError::into_inner).keep(answer, turn);
    }
}

/// A line about an answer.
pub fn log(answer: &Answer, done: &Done) {
    let outcome = &done.outcome;
    tracing::info!(
        prompt_tokens = outcome.prompt_tokens,
        cached_tokens = outcome.cached_tokens,
        completion_tokens = done.completion_tokens,
        calls = answer.calls.len(),
        first_token_ms = outcome.time_to_first_token.as_millis() as u64,
        tokens_per_second = (outcome.decode_rate() * 10.0).round() / 10.0,
        finish = ?done.finish,
        "an answer ended"
    );
}

/// The value of the header that names what was dropped.
pub fn ignored_header(ignored: &[String]) -> Option<HeaderValue> {
    const MOST: usize = 1024;
    let mut text = ignored.join(", ");
    text.retain(|character| matches!(character, ' '..='~'));
    text.truncate(MOST);
    (!text.is_empty()).then(|| HeaderValue::from_str(&text).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_of_what_was_dropped_is_printable_and_short() {
        assert_eq!(ignored_header(&[]), None);
        let names = ["a".to_owned(), "tools[0]:web\r\nx-evil: 1\u{fc}".to_owned()];
        assert_eq!(ignored_header(&names).unwrap(), "a, tools[0]:webx-evil: 1");
        assert!(ignored_header(&vec!["x".repeat(100); 100]).unwrap().len() <= 1024);
    }
}
