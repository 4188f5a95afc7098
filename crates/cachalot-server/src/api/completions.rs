//! Completions: raw text in, raw text out (protocol.md 5.4), and filling in the middle.
//!
//! Owns its own request, which the vendor's library does not know. Refuses what would change the answer and is not carried
//! out. Log-probabilities of the prompt itself are not there yet: the engine computes those of generated tokens only.

use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::Response;
use cachalot_text::Tokenizer;
use cachalot_text::parser::{FinishReason, ParserOptions, StartState};
use serde::Serialize;
use serde_json::{Map, Value};
use tokio::sync::mpsc::Receiver;
use utoipa::ToSchema;

use super::{finite, json, now, spell, with_ignored};
use crate::answer::{Answer, Usage};
use crate::app::App;
use crate::body;
use crate::error::{ApiError, Style};
use crate::gate::{Client, random};
use crate::generation::Update;
use crate::prepare::{ignored_header, log, on_a_thread, submit};

mod events;
mod request;

pub use request::CompletionRequest;
use request::{Ask, ready};

/// An answer, or more of one.
#[derive(Debug, Serialize, ToSchema)]
pub struct Completion {
    id: String,
    object: &'static str,
    created: u64,
    model: String,
    choices: Vec<CompletionChoice>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<CompletionUsage>,
    system_fingerprint: &'static str,
}

/// The answer to one prompt.
#[derive(Debug, Serialize, ToSchema)]
pub struct CompletionChoice {
    text: String,
    index: usize,
    logprobs: Option<CompletionLogprobs>,
    finish_reason: Option<&'static str>,
}

/// Per token.
#[derive(Debug, Default, Serialize, ToSchema)]
pub struct CompletionLogprobs {
    tokens: Vec<String>,
    token_logprobs: Vec<f64>,
    #[schema(value_type = Vec<Object>)]
    top_logprobs: Vec<Map<String, Value>>,
    text_offset: Vec<usize>,
}

/// Tokens.
#[derive(Clone, Copy, Debug, Default, Serialize, ToSchema)]
pub struct CompletionUsage {
    prompt_tokens: usize,
    completion_tokens: usize,
    total_tokens: usize,
    prompt_tokens_details: CompletionPromptDetails,
}

/// See [`CompletionUsage`].
#[derive(Clone, Copy, Debug, Default, Serialize, ToSchema)]
pub struct CompletionPromptDetails {
    cached_tokens: usize,
}

/// `POST /v1/completions`.
pub async fn create(
    State(app): State<Arc<App>>,
    Extension(client): Extension<Client>,
    request: Request,
) -> Response<Body> {
    answer(app, client, request).await.unwrap_or_else(|error| error.response(Style::OpenAi))
}

async fn answer(app: Arc<App>, client: Client, request: Request) -> Result<Response<Body>, ApiError> {
    let (parts, body) = request.into_parts();
    let body = body::read(&app, &parts.headers, body).await?;
    let work = {
        let app = Arc::clone(&app);
        move || ready(&app, &body.text)
    };
    let ready = on_a_thread(&app, work).await?;
    let head = Head {
        id: random("cmpl-"),
        created: now(),
        model: ready.model,
        tokenizer: Arc::clone(&app.card.tokenizer),
        logprobs: ready.logprobs,
    };
    let ignored = ignored_header(&ready.ignored);
    let mut choices = Vec::with_capacity(ready.prompts.len());
    for Ask { ids, engine, echo } in ready.prompts {
        let parser =
            ParserOptions { start: StartState::Raw, tools: Vec::new(), stop: ready.stop.clone(), json_output: false };
        let updates = submit(&app, client, ids, engine, parser, false, false)?;
        choices.push(Choosing { echo, answer: Answer::new(false, false), updates });
    }
    if ready.stream {
        return Ok(with_ignored(events::stream(&app, head, choices, ready.include_usage), ignored));
    }
    let mut whole = Vec::with_capacity(choices.len());
    let mut usage = CompletionUsage::default();
    for (index, choosing) in choices.into_iter().enumerate() {
        let Choosing { echo, mut answer, mut updates } = choosing;
        let done = answer.whole(&mut updates).await?;
        log(&answer, &done);
        usage.add(&answer.usage);
        let logprobs = head.logprobs.then(|| {
            let mut logprobs = CompletionLogprobs::default();
            logprobs.extend(&head.tokenizer, &answer.content_logprobs, echo.chars().count());
            logprobs
        });
        let finish_reason = Some(finish_reason(&answer));
        whole.push(CompletionChoice { text: echo + &answer.content, index, logprobs, finish_reason });
    }
    Ok(with_ignored(json(&head.completion(whole, Some(usage))), ignored))
}

/// The answer to one prompt as it comes.
struct Choosing {
    echo: String,
    answer: Answer,
    updates: Receiver<Update>,
}

struct Head {
    id: String,
    created: u64,
    model: String,
    tokenizer: Arc<Tokenizer>,
    logprobs: bool,
}

impl Head {
    fn completion(&self, choices: Vec<CompletionChoice>, usage: Option<CompletionUsage>) -> Completion {
        Completion {
            id: self.id.clone(),
            object: "text_completion",
            created: self.created,
            model: self.model.clone(),
            choices,
            usage,
            system_fingerprint: super::chat::FINGERPRINT,
        }
    }
}

fn finish_reason(answer: &Answer) -> &'static str {
    if answer.finish == Some(FinishReason::Length) { "length" } else { "stop" }
}

impl CompletionUsage {
    fn add(&mut self, usage: &Usage) {
        self.prompt_tokens += usage.prompt;
        self.completion_tokens += usage.completion;
        self.total_tokens += usage.prompt + usage.completion;
        self.prompt_tokens_details.cached_tokens += usage.cached;
    }
}

impl CompletionLogprobs {
    /// Adds tokens; the first one stands `offset` characters behind the start of the text. Returns where the next stands.
    fn extend(
        &mut self,
        tokenizer: &Tokenizer,
        tokens: &[cachalot_engine::chat::TokenLogProbs],
        mut offset: usize,
    ) -> usize {
        for token in tokens {
            let (text, bytes) = spell(tokenizer, token.chosen.id);
            self.text_offset.push(offset);
            // Bytes that continue a character add none.
            offset += bytes.iter().filter(|byte| (**byte & 0xC0) != 0x80).count();
            self.tokens.push(text);
            self.token_logprobs.push(finite(token.chosen.logprob));
            let top = token.top.iter().map(|top| (spell(tokenizer, top.id).0, finite(top.logprob).into()));
            self.top_logprobs.push(top.collect());
        }
        offset
    }
}
