//! Completions: raw text in, raw text out (protocol.md 5.4), and filling in the middle.
//!
//! Owns its own request, which the vendor's library does not know. Refuses what would change the answer and is not carried
//! out. With `echo` log-probabilities cover the prompt, too, as programs that score texts want it (with `max_tokens` 0).

use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::Response;
use cachalot_engine::chat::TokenLogProbs;
use cachalot_text::Tokenizer;
use cachalot_text::parser::{FinishReason, ParserOptions, StartState};
use serde::Serialize;
use serde_json::{Map, Value};
use tokio::sync::mpsc::Receiver;
use utoipa::ToSchema;

use super::{bytes, finite, now, spell, with_ignored};
use crate::answer::{Answer, Usage};
use crate::app::App;
use crate::error::{ApiError, Style};
use crate::gate::{Client, random};
use crate::generation::Update;
use crate::prepare::{ignored_header, log, receive, submit};
use crate::sse::patiently;

mod events;
mod request;

pub use request::CompletionRequest;
use request::{Ask, Echo, ready};

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

/// Per token; null where nothing stands before it.
#[derive(Debug, Default, Serialize, ToSchema)]
pub struct CompletionLogprobs {
    tokens: Vec<String>,
    token_logprobs: Vec<Option<f64>>,
    #[schema(value_type = Vec<Option<Object>>)]
    top_logprobs: Vec<Option<Map<String, Value>>>,
    /// In characters of the choice's text.
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
    let ready = receive(&app, request, ready).await?;
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
    let keep_alive = app.options.keep_alive;
    let response = match ready.stream {
        true => events::stream(keep_alive, head, choices, ready.include_usage),
        false => patiently(whole(head, choices), Style::OpenAi, keep_alive).await?,
    };
    Ok(with_ignored(response, ignored))
}

/// The answers to all prompts, when the last one has ended.
async fn whole(head: Head, choices: Vec<Choosing>) -> Result<Vec<u8>, ApiError> {
    let mut whole = Vec::with_capacity(choices.len());
    let mut usage = CompletionUsage::default();
    for (index, choosing) in choices.into_iter().enumerate() {
        let Choosing { echo, mut answer, mut updates } = choosing;
        let done = answer.whole(&mut updates).await?;
        log(&answer, &done);
        usage.add(&answer.usage);
        let logprobs = head.logprobs.then(|| {
            let (mut logprobs, mut offset) = (CompletionLogprobs::default(), 0);
            if let Some(echo) = &echo {
                logprobs.echo(&head.tokenizer, &echo.ids, &answer.prompt_logprobs);
                offset = echo.text.chars().count();
            }
            let offset = logprobs.extend(&head.tokenizer, &answer.content_logprobs, offset);
            logprobs.extend(&head.tokenizer, &done.unsaid, offset);
            logprobs
        });
        let finish_reason = Some(finish_reason(&answer));
        let text = echo.map_or_else(String::new, |echo| echo.text) + &answer.content;
        whole.push(CompletionChoice { text, index, logprobs, finish_reason });
    }
    Ok(bytes(&head.completion(whole, Some(usage))))
}

/// The answer to one prompt as it comes.
struct Choosing {
    echo: Option<Echo>,
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
    /// Adds the tokens `ids` of a prompt, the start of the text; `scores` are those of its last tokens, in their order.
    fn echo(&mut self, tokenizer: &Tokenizer, ids: &[u32], scores: &[TokenLogProbs]) {
        let mut offset = 0;
        // Of the first one nothing is told, as nothing that was asked for stands before it.
        for (index, id) in ids.iter().enumerate() {
            let at = (scores.len() + index).checked_sub(ids.len()).filter(|_| index > 0);
            let score = at.and_then(|at| scores.get(at));
            offset = self.push(tokenizer, *id, score, offset);
        }
    }

    /// Adds tokens of an answer, the one that ended it included, as OpenAI's API has it; the first one stands `offset`
    /// characters behind the start of the text. Returns where the next stands.
    fn extend(&mut self, tokenizer: &Tokenizer, tokens: &[TokenLogProbs], mut offset: usize) -> usize {
        for token in tokens {
            offset = self.push(tokenizer, token.chosen.id, Some(token), offset);
        }
        offset
    }

    /// Returns where the next token stands.
    fn push(&mut self, tokenizer: &Tokenizer, id: u32, score: Option<&TokenLogProbs>, offset: usize) -> usize {
        let (text, bytes) = spell(tokenizer, id);
        self.text_offset.push(offset);
        self.token_logprobs.push(score.map(|score| finite(score.chosen.logprob)));
        // The most likely ones and, as OpenAI's API has it, the token itself.
        self.top_logprobs.push(score.map(|score| {
            let all = score.top.iter().chain([&score.chosen]);
            all.map(|token| (spell(tokenizer, token.id).0, finite(token.logprob).into())).collect()
        }));
        self.tokens.push(text);
        // Bytes that continue a character add none.
        offset + bytes.iter().filter(|byte| (**byte & 0xC0) != 0x80).count()
    }
}
