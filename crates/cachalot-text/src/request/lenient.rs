//! Spellings that clients use and the vendor's library does not know (protocol.md 2.3, 2.8, 5.2, 5.3, 5.6, section 6).
//!
//! Owns edits of the JSON body before the vendor's conversion. Refuses a numeric effort out of range.

use serde_json::{Map, Value};

use super::{Api, RequestError};
use crate::conversation::Effort;

type Fields = Map<String, Value>;

/// Edit a body; returns the effort if it is a number.
pub(super) fn apply(api: Api, fields: &mut Fields) -> Result<Option<Effort>, RequestError> {
    match api {
        Api::Chat => {
            template_arguments(fields);
            rename(fields, "max_completion_tokens", "max_tokens");
            for message in list(fields, "messages") {
                if message.get("role").is_some_and(|role| role == "developer") {
                    message.insert("role".to_owned(), "system".into());
                }
                rename(message, "reasoning", "reasoning_content");
            }
            numeric_effort(fields, "reasoning_effort")
        }
        Api::Messages => {
            if let Some(Value::String(system)) = fields.get_mut("system") {
                strip_billing_line(system);
            }
            for message in list(fields, "messages") {
                if let Some(Value::Array(blocks)) = message.get_mut("content") {
                    blocks.retain(|block| block.get("type").is_none_or(|kind| kind != "redacted_thinking"));
                }
            }
            for tool in list(fields, "tools") {
                if tool.get("type").is_some_and(|kind| kind == "custom") {
                    tool.shift_remove("type");
                }
            }
            nested_effort(fields, "output_config")
        }
        Api::Responses => {
            if let Some(Value::String(instructions)) = fields.get_mut("instructions") {
                strip_billing_line(instructions);
            }
            nested_effort(fields, "reasoning")
        }
    }
}

/// The objects of a list field.
fn list<'f>(fields: &'f mut Fields, name: &str) -> impl Iterator<Item = &'f mut Fields> {
    fields.get_mut(name).and_then(Value::as_array_mut).into_iter().flatten().filter_map(Value::as_object_mut)
}

/// Give `to` the value of `from` unless it has one.
fn rename(fields: &mut Fields, from: &str, to: &str) {
    if let Some(value) = fields.shift_remove(from)
        && fields.get(to).is_none_or(Value::is_null)
    {
        fields.insert(to.to_owned(), value);
    }
}

/// `chat_template_kwargs` of other servers, as a fallback.
fn template_arguments(fields: &mut Fields) {
    let Some(Value::Object(mut arguments)) = fields.shift_remove("chat_template_kwargs") else { return };
    rename(&mut arguments, "enable_thinking", "thinking");
    if let Some(Value::Bool(thinking)) = arguments.get("thinking")
        && fields.get("thinking").is_none_or(Value::is_null)
        && fields.get("reasoning_effort").is_none_or(Value::is_null)
    {
        let kind = if *thinking { "enabled" } else { "disabled" };
        fields.insert("thinking".to_owned(), serde_json::json!({"type": kind}));
    }
    if let Some(effort) = arguments.shift_remove("reasoning_effort")
        && fields.get("reasoning_effort").is_none_or(Value::is_null)
    {
        fields.insert("reasoning_effort".to_owned(), effort);
    }
}

fn nested_effort(fields: &mut Fields, name: &str) -> Result<Option<Effort>, RequestError> {
    match fields.get_mut(name) {
        Some(Value::Object(fields)) => numeric_effort(fields, "effort"),
        _ => Ok(None),
    }
}

/// A numeric effort: 1 to 100, or a fraction below 1. The vendor's conversion then sees a name, which it needs to know
/// that thinking is on.
fn numeric_effort(fields: &mut Fields, name: &str) -> Result<Option<Effort>, RequestError> {
    let Some(Value::Number(number)) = fields.get(name) else { return Ok(None) };
    let level = match (number.as_u64(), number.as_f64()) {
        (Some(level @ 1..=100), _) => level as u8,
        (None, Some(fraction)) if (0.0..=0.99).contains(&fraction) => (fraction * 100.0).round().max(1.0) as u8,
        _ => return Err(RequestError::Invalid(format!("Invalid {name} value, the valid range of {name} is [1, 100]"))),
    };
    fields.insert(name.to_owned(), "high".into());
    Ok(Some(Effort::Level(level)))
}

/// Some clients put a line that changes with every request before their instructions, which defeats every cache.
fn strip_billing_line(text: &mut String) {
    const HEADER: &str = "x-anthropic-billing-header";
    if text.get(..HEADER.len()).is_some_and(|start| start.eq_ignore_ascii_case(HEADER)) {
        *text = text.split_once('\n').map_or(String::new(), |(_, rest)| rest.to_owned());
    }
}
