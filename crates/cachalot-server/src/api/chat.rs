//! OpenAI Chat Completions, with DeepSeek's extensions (protocol.md 5.3).

use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::Response;
use cachalot_text::Tokenizer;
use cachalot_text::parser::FinishReason;
use cachalot_text::request::Api;
use serde::Serialize;
use utoipa::ToSchema;

use super::{TokenLogprob, bytes, logprobs, now, with_ignored};
use crate::answer::{Answer, Piece, Usage};
use crate::app::App;
use crate::error::{ApiError, Style};
use crate::gate::{Client, random};
use crate::prepare::{Asked, ignored_header, prepared, receive, turn_ended};
use crate::sse::{Frames, Narrator, tell};

/// A whole answer.
#[derive(Debug, Serialize, ToSchema)]
pub struct ChatCompletion {
    id: String,
    object: &'static str,
    created: u64,
    model: String,
    choices: Vec<Choice>,
    usage: ChatUsage,
    system_fingerprint: &'static str,
}

/// See [`ChatCompletion`].
#[derive(Debug, Serialize, ToSchema)]
pub struct Choice {
    index: u32,
    message: ChatMessage,
    logprobs: Option<ChatLogprobs>,
    finish_reason: &'static str,
}

/// What the model said.
#[derive(Debug, Serialize, ToSchema)]
pub struct ChatMessage {
    role: &'static str,
    content: String,
    /// Only if the model reasons.
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<ChatToolCall>,
}

/// A call, or more of one.
#[derive(Debug, Serialize, ToSchema)]
pub struct ChatToolCall {
    index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    r#type: Option<&'static str>,
    function: ChatFunctionCall,
}

/// See [`ChatToolCall`].
#[derive(Debug, Serialize, ToSchema)]
pub struct ChatFunctionCall {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    arguments: String,
}

/// Log-probabilities, if asked for.
#[derive(Debug, Serialize, ToSchema)]
pub struct ChatLogprobs {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    reasoning_content: Vec<TokenLogprob>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<Vec<TokenLogprob>>,
}

/// Tokens.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ChatUsage {
    prompt_tokens: usize,
    completion_tokens: usize,
    total_tokens: usize,
    prompt_tokens_details: PromptDetails,
    #[serde(skip_serializing_if = "Option::is_none")]
    completion_tokens_details: Option<CompletionDetails>,
    prompt_cache_hit_tokens: usize,
    prompt_cache_miss_tokens: usize,
}

/// See [`ChatUsage`].
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct PromptDetails {
    cached_tokens: usize,
}

/// See [`ChatUsage`].
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct CompletionDetails {
    reasoning_tokens: usize,
}

/// More of an answer.
#[derive(Debug, Serialize, ToSchema)]
pub struct ChatChunk {
    id: String,
    object: &'static str,
    created: u64,
    model: String,
    system_fingerprint: &'static str,
    choices: [ChunkChoice; 1],
    /// On the last chunk always; on the others `null` if usage was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<ChatUsage>>,
}

/// See [`ChatChunk`].
#[derive(Debug, Serialize, ToSchema)]
pub struct ChunkChoice {
    index: u32,
    delta: Delta,
    logprobs: Option<ChatLogprobs>,
    finish_reason: Option<&'static str>,
}

/// What is new.
#[derive(Debug, Default, Serialize, ToSchema)]
pub struct Delta {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<Option<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<Option<String>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<ChatToolCall>,
}

/// Which build of the server answers.
pub const FINGERPRINT: &str = concat!("cachalot-", env!("CARGO_PKG_VERSION"));

/// `POST /v1/chat/completions`.
pub async fn create(
    State(app): State<Arc<App>>,
    Extension(client): Extension<Client>,
    request: Request,
) -> Response<Body> {
    answer(app, client, request).await.unwrap_or_else(|error| error.response(Style::OpenAi))
}

async fn answer(app: Arc<App>, client: Client, request: Request) -> Result<Response<Body>, ApiError> {
    let prepared = receive(&app, request, |app, body| prepared(app, Api::Chat, body)).await?;
    let Asked { request, model, answer, updates, prompt, .. } = prepared.ask(&app, client)?;
    let head = Head { id: random("chatcmpl-"), created: now(), model, tokenizer: Arc::clone(&app.card.tokenizer) };
    let narrator = ChatNarrator { head, include_usage: request.include_usage, logprobs: request.sampling.logprobs };
    let keep_alive = app.options.keep_alive;
    let at_end = Box::new(move |answer: &Answer, done: &_| turn_ended(&app, &prompt, request.one_call, answer, done));
    let told = tell(narrator, request.stream, answer, updates, keep_alive, at_end).await?;
    Ok(with_ignored(told, ignored_header(&request.ignored)))
}

struct Head {
    id: String,
    created: u64,
    model: String,
    tokenizer: Arc<Tokenizer>,
}

impl Head {
    fn whole(&self, answer: &Answer, with_logprobs: bool) -> ChatCompletion {
        let calls = answer.calls.iter().enumerate().map(|(index, call)| ChatToolCall {
            index,
            id: Some(call.id.clone()),
            r#type: Some("function"),
            function: ChatFunctionCall { name: Some(call.name.clone()), arguments: call.arguments.clone() },
        });
        let message = ChatMessage {
            role: "assistant",
            content: answer.content.clone(),
            // A continued answer brings none, although the model reasons.
            reasoning_content: answer.starts_in_reasoning.then(|| answer.reasoning.clone()),
            tool_calls: calls.collect(),
        };
        let logprobs = with_logprobs.then(|| ChatLogprobs {
            reasoning_content: logprobs(&self.tokenizer, &answer.reasoning_logprobs),
            content: Some(logprobs(&self.tokenizer, &answer.content_logprobs)),
        });
        ChatCompletion {
            id: self.id.clone(),
            object: "chat.completion",
            created: self.created,
            model: self.model.clone(),
            choices: vec![Choice { index: 0, message, logprobs, finish_reason: finish_reason(answer) }],
            usage: usage(answer),
            system_fingerprint: FINGERPRINT,
        }
    }
}

fn finish_reason(answer: &Answer) -> &'static str {
    match answer.finish {
        Some(FinishReason::ToolCalls) => "tool_calls",
        Some(FinishReason::Length) => "length",
        _ => "stop",
    }
}

fn usage(answer: &Answer) -> ChatUsage {
    let Usage { prompt, cached, completion, reasoning } = answer.usage;
    ChatUsage {
        prompt_tokens: prompt,
        completion_tokens: completion,
        total_tokens: prompt + completion,
        prompt_tokens_details: PromptDetails { cached_tokens: cached },
        completion_tokens_details: answer.thinking.then_some(CompletionDetails { reasoning_tokens: reasoning }),
        prompt_cache_hit_tokens: cached,
        prompt_cache_miss_tokens: prompt - cached,
    }
}

struct ChatNarrator {
    head: Head,
    include_usage: bool,
    logprobs: bool,
}

impl ChatNarrator {
    fn chunk(&self, delta: Delta, logprobs: Option<ChatLogprobs>) -> ChatChunk {
        ChatChunk {
            id: self.head.id.clone(),
            object: "chat.completion.chunk",
            created: self.head.created,
            model: self.head.model.clone(),
            system_fingerprint: FINGERPRINT,
            choices: [ChunkChoice { index: 0, delta, logprobs, finish_reason: None }],
            usage: self.include_usage.then_some(None),
        }
    }

    fn content(answer: &Answer, text: String) -> Delta {
        Delta { content: Some(Some(text)), reasoning_content: answer.thinking.then_some(None), ..Delta::default() }
    }

    fn call(index: usize, call: ChatFunctionCall, id: Option<String>) -> Delta {
        let r#type = id.is_some().then_some("function");
        Delta { tool_calls: vec![ChatToolCall { index, id, r#type, function: call }], ..Delta::default() }
    }
}

impl Narrator for ChatNarrator {
    const STYLE: Style = Style::OpenAi;

    fn whole(&self, answer: &Answer) -> Vec<u8> {
        bytes(&self.head.whole(answer, self.logprobs))
    }

    fn start(&mut self, answer: &Answer, out: &mut Frames) {
        let delta = match answer.starts_in_reasoning {
            true => Delta { content: Some(None), reasoning_content: Some(Some(String::new())), ..Delta::default() },
            false => Self::content(answer, String::new()),
        };
        out.data(&self.chunk(Delta { role: Some("assistant"), ..delta }, None));
    }

    fn piece(&mut self, answer: &Answer, piece: Piece, out: &mut Frames) {
        let (delta, logprobs) = match piece {
            Piece::Reasoning(text, tokens) => {
                let tokens = logprobs(&self.head.tokenizer, &tokens);
                let delta = Delta { content: Some(None), reasoning_content: Some(Some(text)), ..Delta::default() };
                (delta, (!tokens.is_empty()).then_some(ChatLogprobs { reasoning_content: tokens, content: None }))
            }
            Piece::Content(text, tokens) => {
                let tokens = logprobs(&self.head.tokenizer, &tokens);
                let logprobs = ChatLogprobs { reasoning_content: Vec::new(), content: Some(tokens) };
                let some = logprobs.content.as_ref().is_some_and(|tokens| !tokens.is_empty());
                (Self::content(answer, text), some.then_some(logprobs))
            }
            Piece::CallStart(index) => {
                let call = &answer.calls[index];
                let function = ChatFunctionCall { name: Some(call.name.clone()), arguments: String::new() };
                (Self::call(index, function, Some(call.id.clone())), None)
            }
            Piece::CallArguments(index, arguments) => {
                (Self::call(index, ChatFunctionCall { name: None, arguments }, None), None)
            }
            Piece::CallEnd => return,
        };
        out.data(&self.chunk(delta, logprobs));
    }

    fn end(&mut self, answer: &Answer, out: &mut Frames) {
        let mut chunk = self.chunk(Self::content(answer, String::new()), None);
        chunk.choices[0].finish_reason = Some(finish_reason(answer));
        chunk.usage = Some(Some(usage(answer)));
        out.data(&chunk);
        out.end_mark();
    }

    fn fail(&mut self, error: &ApiError, out: &mut Frames) {
        out.data(&error.openai());
    }
}
