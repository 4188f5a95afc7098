//! The response object and its items (protocol.md 5.5).

use std::collections::HashMap;
use std::sync::Arc;

use cachalot_engine::SamplingParams;
use cachalot_text::Tokenizer;
use cachalot_text::parser::FinishReason;
use cachalot_text::request::Request;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::custom::CustomInput;
use crate::answer::{Answer, Call};
use crate::api::{TokenLogprob, logprobs, now};
use crate::error::ApiError;

/// What a response repeats of its request.
#[derive(Clone, Debug, Default, Deserialize, Serialize, ToSchema)]
#[serde(default)]
pub struct Echo {
    /// Set by the server.
    #[serde(skip_deserializing)]
    pub previous_response_id: Option<String>,
    /// Set by the server.
    #[serde(skip_deserializing)]
    pub store: bool,
    instructions: Value,
    max_output_tokens: Value,
    metadata: Value,
    prompt_cache_key: Value,
    safety_identifier: Value,
    reasoning: Value,
    text: Value,
    tool_choice: Value,
    tools: Value,
    top_logprobs: Value,
    user: Value,
}

impl Echo {
    /// With what holds where the request says nothing.
    fn complete(mut self) -> Self {
        let or = |value: &mut Value, default: Value| {
            if value.is_null() {
                *value = default;
            }
        };
        or(&mut self.metadata, json!({}));
        or(&mut self.reasoning, json!({}));
        or(&mut self.text, json!({}));
        or(&mut self.tool_choice, "auto".into());
        or(&mut self.tools, json!([]));
        or(&mut self.top_logprobs, 0.into());
        add(&mut self.reasoning, &[("effort", Value::Null), ("summary", Value::Null)]);
        add(&mut self.text, &[("format", json!({"type": "text"})), ("verbosity", Value::Null)]);
        for tool in self.tools.as_array_mut().into_iter().flatten() {
            complete_tool(tool);
        }
        self
    }
}

/// Tools are repeated with all of their fields: strict clients read them back.
fn complete_tool(tool: &mut Value) {
    match tool["type"].as_str() {
        Some("function") => {
            add(tool, &[("description", Value::Null), ("parameters", Value::Null), ("strict", Value::Null)]);
        }
        Some("namespace") => {
            add(tool, &[("description", Value::Null)]);
            tool["tools"].as_array_mut().into_iter().flatten().for_each(complete_tool);
        }
        _ => {}
    }
}

fn add(value: &mut Value, fields: &[(&str, Value)]) {
    if let Value::Object(object) = value {
        for (name, default) in fields {
            object.entry(*name).or_insert_with(|| default.clone());
        }
    }
}

/// A response, as it stands.
#[derive(Debug, Serialize, ToSchema)]
pub struct ResponseBody<'a> {
    id: &'a str,
    object: &'static str,
    created_at: u64,
    completed_at: Option<u64>,
    status: &'static str,
    background: bool,
    content_filters: Value,
    error: Value,
    incomplete_details: Value,
    frequency_penalty: f64,
    presence_penalty: f64,
    max_tool_calls: Value,
    model: &'a str,
    moderation: Value,
    output: Vec<Value>,
    parallel_tool_calls: bool,
    prompt_cache_retention: Value,
    service_tier: &'static str,
    temperature: f64,
    top_p: f64,
    truncation: &'static str,
    usage: Option<ResponsesUsage>,
    #[serde(flatten)]
    echo: &'a Echo,
}

/// Tokens.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
pub struct ResponsesUsage {
    input_tokens: usize,
    input_tokens_details: CachedTokens,
    output_tokens: usize,
    output_tokens_details: ReasoningTokens,
    total_tokens: usize,
}

/// See [`ResponsesUsage`].
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
pub struct CachedTokens {
    cached_tokens: usize,
}

/// See [`ResponsesUsage`].
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
pub struct ReasoningTokens {
    reasoning_tokens: usize,
}

/// Everything that a response tells at any time.
pub struct ResponseObject {
    /// Its items.
    pub items: Items,
    model: String,
    created: u64,
    echo: Echo,
    sampling: SamplingParams,
    one_call: bool,
}

impl ResponseObject {
    /// For one answer.
    pub fn new(items: Items, model: String, created: u64, echo: Echo, sampling: SamplingParams) -> Self {
        let one_call = items.one_call;
        Self { items, model, created, echo: echo.complete(), sampling, one_call }
    }

    /// Its id.
    pub fn id(&self) -> &str {
        &self.items.id
    }

    /// At the start.
    pub fn started(&self) -> ResponseBody<'_> {
        ResponseBody {
            id: self.id(),
            object: "response",
            created_at: self.created,
            completed_at: None,
            status: "in_progress",
            background: false,
            content_filters: Value::Null,
            error: Value::Null,
            incomplete_details: Value::Null,
            frequency_penalty: self.sampling.frequency_penalty,
            presence_penalty: self.sampling.presence_penalty,
            max_tool_calls: Value::Null,
            model: &self.model,
            moderation: Value::Null,
            output: Vec::new(),
            parallel_tool_calls: !self.one_call,
            prompt_cache_retention: Value::Null,
            service_tier: "default",
            temperature: self.sampling.temperature,
            top_p: self.sampling.top_p,
            truncation: "disabled",
            usage: None,
            echo: &self.echo,
        }
    }

    /// At the end.
    pub fn ended(&self, answer: &Answer) -> ResponseBody<'_> {
        let incomplete = answer.finish == Some(FinishReason::Length);
        let usage = answer.usage;
        ResponseBody {
            completed_at: Some(now()),
            status: if incomplete { "incomplete" } else { "completed" },
            incomplete_details: if incomplete { json!({"reason": "max_output_tokens"}) } else { Value::Null },
            output: self.items.all(answer),
            usage: Some(ResponsesUsage {
                input_tokens: usage.prompt,
                input_tokens_details: CachedTokens { cached_tokens: usage.cached },
                output_tokens: usage.completion,
                output_tokens_details: ReasoningTokens { reasoning_tokens: usage.reasoning },
                total_tokens: usage.prompt + usage.completion,
            }),
            ..self.started()
        }
    }

    /// When it fails.
    pub fn failed(&self, error: &ApiError) -> ResponseBody<'_> {
        let error = json!({"code": error.code(), "message": error.message()});
        ResponseBody { status: "failed", error, ..self.started() }
    }
}

/// Items of one response, made from its answer.
pub struct Items {
    id: String,
    tokenizer: Arc<Tokenizer>,
    custom_tools: Vec<String>,
    /// Namespace and name of flattened tools.
    namespaced: HashMap<String, (String, String)>,
    client_tool_search: bool,
    one_call: bool,
}

/// What an item tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    /// The reasoning.
    Reasoning,
    /// The answer proper.
    Message,
    /// The call of this index.
    Call(usize),
}

/// What a call is to the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallKind {
    /// A function.
    Function,
    /// A tool that takes free text.
    Custom,
    /// A search for tools that the client carries out.
    ToolSearch,
}

impl Items {
    /// For the answer to `request`.
    pub fn new(id: String, request: Request, tokenizer: Arc<Tokenizer>) -> Self {
        let Request { custom_tools, namespaced_tools, client_tool_search, one_call, .. } = request;
        let namespaced = namespaced_tools.into_iter().map(|(flat, namespace, name)| (flat, (namespace, name)));
        Self { id, tokenizer, custom_tools, namespaced: namespaced.collect(), client_tool_search, one_call }
    }

    /// What `call` is.
    pub fn kind(&self, call: &Call) -> CallKind {
        if self.custom_tools.contains(&call.name) {
            CallKind::Custom
        } else if self.client_tool_search && call.name == "tool_search" {
            CallKind::ToolSearch
        } else {
            CallKind::Function
        }
    }

    /// The id of the item at `index`.
    pub fn item_id(&self, answer: &Answer, slot: Slot, index: usize) -> String {
        let prefix = match slot {
            Slot::Reasoning => "rs",
            Slot::Message => "msg",
            Slot::Call(call) => match self.kind(&answer.calls[call]) {
                CallKind::Function => "fc",
                CallKind::Custom => "ctc",
                CallKind::ToolSearch => "tsc",
            },
        };
        format!("{prefix}_{}_{index}", self.id)
    }

    /// The log-probabilities of the answer proper, or of some of its tokens.
    pub fn logprobs(&self, tokens: &[cachalot_engine::chat::TokenLogProbs]) -> Vec<TokenLogprob> {
        logprobs(&self.tokenizer, tokens)
    }

    /// The content part of the item.
    pub fn part(&self, answer: &Answer, slot: Slot) -> Value {
        match slot {
            Slot::Reasoning => json!({"type": "reasoning_text", "text": answer.reasoning}),
            _ => json!({
                "type": "output_text",
                "annotations": [],
                "logprobs": self.logprobs(&answer.content_logprobs),
                "text": answer.content,
            }),
        }
    }

    /// The item at `index`; empty where `status` says that it has only begun.
    pub fn item(&self, answer: &Answer, slot: Slot, index: usize, status: &str) -> Value {
        let begun = status == "in_progress";
        let id = self.item_id(answer, slot, index);
        let content = || if begun { json!([]) } else { json!([self.part(answer, slot)]) };
        match slot {
            Slot::Reasoning => json!({
                "type": "reasoning",
                "id": id,
                "status": status,
                "content": content(),
                "summary": [],
                "encrypted_content": format!("{}-{index}", self.id),
            }),
            Slot::Message => {
                let phase = if begun || answer.calls.is_empty() { "final_answer" } else { "commentary" };
                json!({
                    "type": "message",
                    "id": id,
                    "status": status,
                    "role": "assistant",
                    "phase": phase,
                    "content": content(),
                })
            }
            Slot::Call(call) => self.call(&answer.calls[call], &id, status),
        }
    }

    fn call(&self, call: &Call, id: &str, status: &str) -> Value {
        let arguments = if status == "in_progress" { "" } else { call.arguments.as_str() };
        match self.kind(call) {
            CallKind::Custom => json!({
                "type": "custom_tool_call",
                "id": id,
                "status": status,
                "call_id": call.id,
                "name": call.name,
                "input": CustomInput::whole(arguments),
            }),
            CallKind::ToolSearch => json!({
                "type": "tool_search_call",
                "id": id,
                "status": status,
                "call_id": call.id,
                "execution": "client",
                "arguments": serde_json::from_str::<Map<String, Value>>(arguments).unwrap_or_default(),
            }),
            CallKind::Function => {
                let mut item = json!({"type": "function_call", "id": id, "status": status, "call_id": call.id});
                let (namespace, name) = match self.namespaced.get(&call.name) {
                    Some((namespace, name)) => (Some(namespace), name),
                    None => (None, &call.name),
                };
                item["name"] = name.as_str().into();
                if let Some(namespace) = namespace {
                    item["namespace"] = namespace.as_str().into();
                }
                item["arguments"] = arguments.into();
                item
            }
        }
    }

    /// How the item ended.
    pub fn status(&self, answer: &Answer, slot: Slot) -> &'static str {
        let last = match slot {
            Slot::Reasoning => answer.content.is_empty() && answer.calls.is_empty(),
            Slot::Message => answer.calls.is_empty(),
            Slot::Call(call) => call + 1 == answer.calls.len() && !answer.calls[call].complete,
        };
        if last && answer.finish == Some(FinishReason::Length) { "incomplete" } else { "completed" }
    }

    /// All items at the end.
    pub fn all(&self, answer: &Answer) -> Vec<Value> {
        let mut slots = Vec::new();
        slots.extend((!answer.reasoning.is_empty()).then_some(Slot::Reasoning));
        slots.extend((!answer.content.is_empty()).then_some(Slot::Message));
        slots.extend((0..answer.calls.len()).map(Slot::Call));
        let item = |(index, slot): (usize, Slot)| self.item(answer, slot, index, self.status(answer, slot));
        slots.into_iter().enumerate().map(item).collect()
    }
}
