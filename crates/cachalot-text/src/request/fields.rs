//! The fields of a body: which decide the answer, which are for hosts, and which nobody here knows (protocol.md section 5).
//!
//! Owns the lists, our own sampling fields, and the tools that only a host could carry out. Refuses fields that would
//! change the answer and are not carried out: an answer to another question than was asked is worse than none. What is
//! dropped is reported, so that a client can be told.

use serde_json::{Map, Value, json};

use super::{Api, RequestError};

type Fields = Map<String, Value>;

/// What the fields say besides what the vendor's library reads.
#[derive(Debug, Default)]
pub(super) struct Extras {
    /// Names of what was dropped.
    pub ignored: Vec<String>,
    /// Only this many of the most likely tokens; 0 for all.
    pub top_k: Option<u32>,
    /// Least probability relative to the best token's.
    pub min_p: Option<f32>,
    /// Divides the logits of tokens seen.
    pub repetition_penalty: Option<f32>,
    /// At most one call.
    pub one_call: bool,
    /// Custom tools that were turned into functions.
    pub custom_tools: Vec<String>,
}

/// Fields that decide the answer and are carried out, by the vendor's library, by `lenient`, here or by the server.
fn carried_out(api: Api) -> &'static [&'static str] {
    match api {
        Api::Chat => &[
            "add_generation_prompt",
            "chat_template_kwargs",
            "continue_final_message",
            "frequency_penalty",
            "logprobs",
            "max_completion_tokens",
            "max_tokens",
            "messages",
            "min_p",
            "model",
            "n",
            "parallel_tool_calls",
            "presence_penalty",
            "reasoning_effort",
            "repetition_penalty",
            "response_format",
            "seed",
            "stop",
            "stream",
            "stream_options",
            "structured_outputs",
            "temperature",
            "thinking",
            "tool_choice",
            "tools",
            "top_k",
            "top_logprobs",
            "top_p",
        ],
        Api::Messages => &[
            "max_tokens",
            "messages",
            "min_p",
            "model",
            "output_config",
            "repetition_penalty",
            "seed",
            "stop_sequences",
            "stream",
            "system",
            "temperature",
            "thinking",
            "tool_choice",
            "tools",
            "top_k",
            "top_p",
        ],
        Api::Responses => &[
            "include",
            "input",
            "instructions",
            "max_output_tokens",
            "min_p",
            "model",
            "parallel_tool_calls",
            "previous_response_id",
            "reasoning",
            "repetition_penalty",
            "seed",
            "store",
            "stream",
            "temperature",
            "text",
            "tool_choice",
            "tools",
            "top_k",
            "top_logprobs",
            "top_p",
        ],
    }
}

/// Fields for hosts, which say nothing about the answer.
const HOSTING: [&str; 16] = [
    "anthropic_beta",
    "betas",
    "cache_control",
    "client_metadata",
    "context_management",
    "metadata",
    "prediction",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "safety_identifier",
    "service_tier",
    "store",
    "stream_options",
    "truncation",
    "user",
];

/// Fields that would change the answer and are not carried out. Absent, null, false, 0 and empty values ask for nothing.
const REFUSED: [&str; 32] = [
    "allowed_token_ids",
    "audio",
    "background",
    "bad_words",
    "best_of",
    "conversation",
    "dry_multiplier",
    "function_call",
    "functions",
    "grammar",
    "guided_choice",
    "guided_grammar",
    "guided_json",
    "guided_regex",
    "ignore_eos",
    "include_stop_str_in_output",
    "json_schema",
    "length_penalty",
    "logit_bias",
    "logits_processors",
    "max_tool_calls",
    "min_tokens",
    "mirostat",
    "output_format",
    "prompt",
    "prompt_logprobs",
    "stop_token_ids",
    "suffix",
    "tfs_z",
    "typical_p",
    "use_beam_search",
    "xtc_probability",
];

/// Read and strip what the vendor's library does not know.
pub(super) fn take(api: Api, fields: &mut Fields) -> Result<Extras, RequestError> {
    let mut extras = Extras::default();
    for (name, value) in fields.iter() {
        let name = name.as_str();
        if carried_out(api).contains(&name) || HOSTING.contains(&name) || value.is_null() {
            continue;
        }
        if name == "modalities" && *value == json!(["text"]) || name == "best_of" && *value == 1 {
            continue;
        }
        if name == "modalities" || REFUSED.contains(&name) {
            if !asks_nothing(value) {
                return Err(unsupported(name, "this server does not carry it out; leave it out"));
            }
            continue;
        }
        extras.ignored.push(name.to_owned());
    }
    sampling(fields, &mut extras)?;
    match api {
        Api::Chat => {
            extras.one_call = fields.get("parallel_tool_calls") == Some(&Value::Bool(false));
            continue_final_message(fields);
            if let Some(Value::Array(tools)) = fields.get_mut("tools") {
                keep_tools(tools, &mut extras.ignored, |kind| matches!(kind, None | Some("function")));
            }
        }
        Api::Messages => messages(fields, &mut extras),
        Api::Responses => {
            extras.one_call = fields.get("parallel_tool_calls") == Some(&Value::Bool(false));
            responses(fields, &mut extras);
        }
    }
    Ok(extras)
}

fn unsupported(field: &str, why: &str) -> RequestError {
    RequestError::Unsupported { field: field.to_owned(), why: why.to_owned() }
}

fn asks_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty() || text == "none",
        Value::Array(values) => values.is_empty(),
        Value::Object(values) => values.is_empty(),
        Value::Bool(true) => false,
    }
}

/// Our own sampling fields, which other local servers have, too.
fn sampling(fields: &mut Fields, extras: &mut Extras) -> Result<(), RequestError> {
    let invalid = |name: &str, range: &str| {
        RequestError::Invalid(format!("Invalid {name} value, the valid range of {name} is {range}"))
    };
    let number = |name: &str, range: &str, valid: &dyn Fn(f64) -> bool| match fields.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_f64().filter(|value| valid(*value)) {
            Some(value) => Ok(Some(value)),
            None => Err(invalid(name, range)),
        },
    };
    // -1 is how some servers spell "all of them".
    let top_k = number("top_k", "an integer from 0, or -1", &|value| {
        value.fract() == 0.0 && (-1.0..=f64::from(i32::MAX)).contains(&value)
    })?;
    extras.top_k = top_k.map(|value| value.max(0.0) as u32);
    extras.min_p = number("min_p", "[0, 1]", &|value| (0.0..=1.0).contains(&value))?.map(|value| value as f32);
    let penalty = number("repetition_penalty", "(0, 10]", &|value| value > 0.0 && value <= 10.0)?;
    extras.repetition_penalty = penalty.map(|value| value as f32);
    Ok(())
}

/// What other servers call the vendor's `prefix` (5.3).
fn continue_final_message(fields: &mut Fields) {
    if fields.get("continue_final_message") == Some(&Value::Bool(true))
        && let Some(Value::Array(messages)) = fields.get_mut("messages")
        && let Some(Value::Object(last)) = messages.last_mut()
        && last.get("role").is_some_and(|role| role == "assistant")
    {
        last.insert("prefix".to_owned(), true.into());
    }
}

/// Keep the tools whose `type` is among ours, and note the others.
fn keep_tools(tools: &mut Vec<Value>, ignored: &mut Vec<String>, ours: impl Fn(Option<&str>) -> bool) -> Vec<String> {
    let mut dropped = Vec::new();
    let mut index = 0;
    tools.retain(|tool| {
        let kind = tool.get("type").and_then(Value::as_str);
        let keep = !tool.is_object() || ours(kind);
        if !keep {
            ignored.push(format!("tools[{index}]:{}", kind.unwrap_or_default()));
            dropped.extend(tool.get("name").and_then(Value::as_str).map(str::to_owned));
        }
        index += 1;
        keep
    });
    dropped
}

fn messages(fields: &mut Fields, extras: &mut Extras) {
    if let Some(choice) = fields.get("tool_choice") {
        extras.one_call = choice.get("disable_parallel_tool_use") == Some(&Value::Bool(true));
    }
    if let Some(Value::Array(tools)) = fields.get_mut("tools") {
        let dropped = keep_tools(tools, &mut extras.ignored, |kind| matches!(kind, None | Some("custom")));
        let none_left = tools.is_empty() && !dropped.is_empty();
        let chosen = fields.get("tool_choice").and_then(|choice| choice.get("name")).and_then(Value::as_str);
        // A choice of what is not on offer: the model decides.
        if none_left || chosen.is_some_and(|name| dropped.iter().any(|dropped| dropped == name)) {
            fields.shift_remove("tool_choice");
        }
        if none_left {
            fields.shift_remove("tools");
        }
    }
    // What a host's tools left behind in the history: nothing here can have asked for it.
    for message in fields.get_mut("messages").and_then(Value::as_array_mut).into_iter().flatten() {
        let Some(Value::Array(blocks)) = message.get_mut("content") else { continue };
        let ours = |block: &Value| match block.get("type").and_then(Value::as_str) {
            Some("tool_result") => true,
            Some(kind) => !(matches!(kind, "server_tool_use" | "mcp_tool_use") || kind.ends_with("_tool_result")),
            None => true,
        };
        let all = blocks.len();
        blocks.retain(ours);
        if blocks.is_empty() && all > 0 {
            blocks.push(json!({"type": "text", "text": ""}));
        }
    }
}

fn responses(fields: &mut Fields, extras: &mut Extras) {
    if fields.get("text").and_then(|text| text.get("verbosity")).is_some_and(|verbosity| !verbosity.is_null()) {
        extras.ignored.push("text.verbosity".to_owned());
    }
    let Some(Value::Array(tools)) = fields.get_mut("tools") else { return };
    keep_tools(tools, &mut extras.ignored, |kind| {
        matches!(kind, Some("function" | "namespace" | "custom" | "tool_search"))
    });
    for tool in tools.iter_mut().filter_map(Value::as_object_mut) {
        if let Some(name) = custom_tool(tool) {
            extras.custom_tools.push(name);
        }
    }
    let none_left = tools.is_empty();
    if let Some(Value::Object(choice)) = fields.get_mut("tool_choice") {
        let kind = choice.get("type").and_then(Value::as_str).unwrap_or_default();
        let ours = choice
            .get("name")
            .and_then(Value::as_str)
            .is_some_and(|name| extras.custom_tools.iter().any(|custom| custom == name));
        if kind == "custom" && ours {
            choice.insert("type".to_owned(), "function".into());
        } else if none_left || !matches!(kind, "function" | "custom" | "allowed_tools") {
            extras.ignored.push("tool_choice".to_owned());
            fields.shift_remove("tool_choice");
        }
    }
}

/// The vendor's library knows one custom tool, `apply_patch`. Any other becomes a function that takes its free text in one
/// parameter, as that one does; its calls are reported as custom ones. Returns its name.
fn custom_tool(tool: &mut Fields) -> Option<String> {
    let name = tool.get("name").and_then(Value::as_str)?.to_owned();
    if tool.get("type").is_none_or(|kind| kind != "custom") || name == "apply_patch" {
        return None;
    }
    let mut description = tool.get("description").and_then(Value::as_str).unwrap_or_default().to_owned();
    // The form of the text is not enforced; the model can at least read it.
    if let Some(definition) = tool.get("format").and_then(|format| format.get("definition")).and_then(Value::as_str) {
        description += &format!("\n\nThe input follows this grammar:\n{definition}");
    }
    let parameters = json!({"type": "object", "properties": {"input": {"type": "string"}}, "required": ["input"]});
    tool.clear();
    tool.insert("type".to_owned(), "function".into());
    tool.insert("name".to_owned(), name.clone().into());
    tool.insert("description".to_owned(), description.into());
    tool.insert("parameters".to_owned(), parameters);
    Some(name)
}
