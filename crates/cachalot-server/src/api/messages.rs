//! Anthropic Messages (protocol.md 5.6).
//!
//! Blocks never overlap and their indices rise by one: thinking, text, tool use.

use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::Response;
use cachalot_text::parser::FinishReason;
use cachalot_text::request::Api;
use serde::Serialize;
use serde_json::{Map, Value, json as value};
use utoipa::ToSchema;

use super::{bytes, json, with_ignored};
use crate::answer::{Answer, Call, Piece};
use crate::app::App;
use crate::error::{ApiError, Style};
use crate::gate::{Client, random};
use crate::prepare::{Asked, ignored_header, prepared, receive, turn_ended};
use crate::sse::{Frames, Narrator, tell};

/// A whole answer.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Message {
    id: String,
    r#type: &'static str,
    role: &'static str,
    model: String,
    content: Vec<Block>,
    stop_reason: Option<&'static str>,
    stop_sequence: Option<String>,
    usage: MessagesUsage,
}

/// A block of an answer.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Block {
    /// Reasoning.
    Thinking {
        /// The text.
        thinking: String,
        /// Opaque; never checked when it comes back.
        signature: String,
    },
    /// Answer.
    Text {
        /// The text.
        text: String,
    },
    /// A call.
    ToolUse {
        /// Its id.
        id: String,
        /// The tool.
        name: String,
        /// Its arguments; empty if the model did not finish them.
        #[schema(value_type = Object)]
        input: Map<String, Value>,
    },
}

/// Tokens.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
pub struct MessagesUsage {
    input_tokens: usize,
    cache_creation_input_tokens: usize,
    cache_read_input_tokens: usize,
    output_tokens: usize,
    service_tier: &'static str,
}

/// The length of a prompt.
#[derive(Debug, Serialize, ToSchema)]
pub struct TokenCount {
    input_tokens: usize,
}

/// `POST /v1/messages`.
pub async fn create(
    State(app): State<Arc<App>>,
    Extension(client): Extension<Client>,
    request: Request,
) -> Response<Body> {
    answer(app, client, request).await.unwrap_or_else(|error| error.response(Style::Anthropic))
}

/// `POST /v1/messages/count_tokens`.
pub async fn count_tokens(State(app): State<Arc<App>>, request: Request) -> Response<Body> {
    count(app, request).await.unwrap_or_else(|error| error.response(Style::Anthropic))
}

async fn count(app: Arc<App>, request: Request) -> Result<Response<Body>, ApiError> {
    let prepared = receive(&app, request, |app, body| prepared(app, Api::Messages, body)).await?;
    let ignored = ignored_header(&prepared.request.ignored);
    Ok(with_ignored(json(&TokenCount { input_tokens: prepared.prompt.ids.len() }), ignored))
}

async fn answer(app: Arc<App>, client: Client, request: Request) -> Result<Response<Body>, ApiError> {
    let prepared = receive(&app, request, |app, body| prepared(app, Api::Messages, body)).await?;
    let Asked { request, model, answer, updates, prompt, .. } = prepared.ask(&app, client)?;
    let narrator = MessagesNarrator { id: random("msg_"), model, blocks: 0, open: None };
    let keep_alive = app.options.keep_alive;
    let at_end = Box::new(move |answer: &Answer, done: &_| turn_ended(&app, &prompt, request.one_call, answer, done));
    let told = tell(narrator, request.stream, answer, updates, keep_alive, at_end).await?;
    Ok(with_ignored(told, ignored_header(&request.ignored)))
}

fn whole(id: &str, model: &str, answer: &Answer) -> Message {
    let mut content = Vec::new();
    if answer.starts_in_reasoning {
        content.push(Block::Thinking { thinking: answer.reasoning.clone(), signature: id.to_owned() });
    }
    if !answer.content.is_empty() {
        content.push(Block::Text { text: answer.content.clone() });
    }
    content.extend(answer.calls.iter().map(tool_use));
    let (stop_reason, stop_sequence) = stop(answer);
    Message {
        id: id.to_owned(),
        r#type: "message",
        role: "assistant",
        model: model.to_owned(),
        content,
        stop_reason: Some(stop_reason),
        stop_sequence,
        usage: usage(answer),
    }
}

fn tool_use(call: &Call) -> Block {
    let input = serde_json::from_str(&call.arguments).unwrap_or_default();
    Block::ToolUse { id: call.id.clone(), name: call.name.clone(), input }
}

fn stop(answer: &Answer) -> (&'static str, Option<String>) {
    match &answer.finish {
        Some(FinishReason::ToolCalls) => ("tool_use", None),
        Some(FinishReason::Length) => ("max_tokens", None),
        Some(FinishReason::StopSequence(text)) => ("stop_sequence", Some(text.clone())),
        _ => ("end_turn", None),
    }
}

fn usage(answer: &Answer) -> MessagesUsage {
    MessagesUsage {
        input_tokens: answer.usage.prompt - answer.usage.cached,
        cache_creation_input_tokens: 0,
        cache_read_input_tokens: answer.usage.cached,
        output_tokens: answer.usage.completion,
        service_tier: "standard",
    }
}

struct MessagesNarrator {
    id: String,
    model: String,
    /// Blocks opened.
    blocks: usize,
    open: Option<Kind>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Thinking,
    Text,
    ToolUse,
}

impl MessagesNarrator {
    fn open(&mut self, kind: Kind, block: &Block, out: &mut Frames) {
        self.close(out);
        let start = value!({"type": "content_block_start", "index": self.blocks, "content_block": block});
        out.event("content_block_start", &start);
        if self.blocks == 0 {
            self.wait(out);
        }
        self.blocks += 1;
        self.open = Some(kind);
    }

    fn delta(&self, delta: &Value, out: &mut Frames) {
        let index = self.blocks.saturating_sub(1);
        out.event("content_block_delta", &value!({"type": "content_block_delta", "index": index, "delta": delta}));
    }

    fn close(&mut self, out: &mut Frames) {
        let Some(kind) = self.open.take() else { return };
        if kind == Kind::Thinking {
            self.delta(&value!({"type": "signature_delta", "signature": self.id}), out);
        }
        let index = self.blocks - 1;
        out.event("content_block_stop", &value!({"type": "content_block_stop", "index": index}));
    }
}

impl Narrator for MessagesNarrator {
    const STYLE: Style = Style::Anthropic;

    fn whole(&self, answer: &Answer) -> Vec<u8> {
        bytes(&whole(&self.id, &self.model, answer))
    }

    fn start(&mut self, answer: &Answer, out: &mut Frames) {
        let message = Message {
            id: self.id.clone(),
            r#type: "message",
            role: "assistant",
            model: self.model.clone(),
            content: Vec::new(),
            stop_reason: None,
            stop_sequence: None,
            usage: usage(answer),
        };
        out.event("message_start", &value!({"type": "message_start", "message": message}));
        // Clients expect the block of a model that reasons even if it stays empty.
        if answer.starts_in_reasoning {
            let block = Block::Thinking { thinking: String::new(), signature: String::new() };
            self.open(Kind::Thinking, &block, out);
        }
    }

    fn piece(&mut self, answer: &Answer, piece: Piece, out: &mut Frames) {
        match piece {
            Piece::Reasoning(text, _) => self.delta(&value!({"type": "thinking_delta", "thinking": text}), out),
            Piece::Content(text, _) => {
                if self.open != Some(Kind::Text) {
                    self.open(Kind::Text, &Block::Text { text: String::new() }, out);
                }
                self.delta(&value!({"type": "text_delta", "text": text}), out);
            }
            Piece::CallStart(index) => {
                let Call { id, name, .. } = answer.calls[index].clone();
                self.open(Kind::ToolUse, &Block::ToolUse { id, name, input: Map::new() }, out);
            }
            Piece::CallArguments(_, text) => {
                self.delta(&value!({"type": "input_json_delta", "partial_json": text}), out);
            }
            Piece::CallEnd => self.close(out),
        }
    }

    fn end(&mut self, answer: &Answer, out: &mut Frames) {
        self.close(out);
        let (stop_reason, stop_sequence) = stop(answer);
        let delta = value!({"stop_reason": stop_reason, "stop_sequence": stop_sequence});
        out.event("message_delta", &value!({"type": "message_delta", "delta": delta, "usage": usage(answer)}));
        out.event("message_stop", &value!({"type": "message_stop"}));
    }

    fn fail(&mut self, error: &ApiError, out: &mut Frames) {
        out.event("error", &error.anthropic());
    }

    fn wait(&mut self, out: &mut Frames) {
        out.event("ping", &value!({"type": "ping"}));
    }
}
