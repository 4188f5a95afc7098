//! Spellings that clients use and the vendor's library does not know (protocol.md 2.3, 2.8, 5.2, 5.3, 5.6, section 6).
//!
//! Owns edits of the JSON body before the vendor's conversion. Refuses a numeric effort out of range, and switches that
//! are neither on nor off.

use serde_json::{Map, Value, json};

use super::fields::{flag, invalid, rename};
use super::{Api, RequestError};
use crate::conversation::Effort;

type Fields = Map<String, Value>;

/// Edit a body; returns the effort if it is a number.
pub(super) fn apply(api: Api, fields: &mut Fields) -> Result<Option<Effort>, RequestError> {
    match api {
        Api::Chat => {
            thinking(fields)?;
            continue_final_message(fields)?;
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
            // As a beta had it.
            if let Some(format) = fields.shift_remove("output_format").filter(|format| !format.is_null()) {
                let config = fields.entry("output_config").or_insert_with(|| json!({}));
                if config.is_null() {
                    *config = json!({});
                }
                if let Value::Object(config) = config {
                    config.entry("format").or_insert(format);
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

/// Other servers' switches of thinking and efforts; the vendor's own come first.
fn thinking(fields: &mut Fields) -> Result<(), RequestError> {
    let is_said = |fields: &Fields, name: &str| fields.get(name).is_some_and(|value| !value.is_null());
    let object = |value: Option<Value>| match value {
        Some(Value::Object(object)) => object,
        _ => Fields::new(),
    };
    let mut arguments = object(fields.shift_remove("chat_template_kwargs"));
    let mut reasoning = object(fields.shift_remove("reasoning"));
    let switches = [
        ("enable_thinking", fields.shift_remove("enable_thinking")),
        ("reasoning.enabled", reasoning.shift_remove("enabled")),
        ("chat_template_kwargs.thinking", arguments.shift_remove("thinking")),
        ("chat_template_kwargs.enable_thinking", arguments.shift_remove("enable_thinking")),
    ];
    let decided = is_said(fields, "thinking") || is_said(fields, "reasoning_effort");
    for (name, switch) in switches {
        match switch {
            None | Some(Value::Null) => {}
            Some(Value::Bool(on)) => {
                if !decided && !is_said(fields, "thinking") {
                    let kind = if on { "enabled" } else { "disabled" };
                    fields.insert("thinking".to_owned(), json!({"type": kind}));
                }
            }
            Some(_) => return Err(invalid(name, "expected true or false")),
        }
    }
    let efforts = [reasoning.shift_remove("effort"), arguments.shift_remove("reasoning_effort")];
    if let Some(effort) = efforts.into_iter().flatten().find(|effort| !effort.is_null())
        && !is_said(fields, "reasoning_effort")
    {
        fields.insert("reasoning_effort".to_owned(), effort);
    }
    Ok(())
}

/// What other servers call the vendor's `prefix` (5.3).
fn continue_final_message(fields: &mut Fields) -> Result<(), RequestError> {
    if !flag(fields, "continue_final_message", false)? {
        return Ok(());
    }
    let last = fields.get_mut("messages").and_then(Value::as_array_mut).and_then(|messages| messages.last_mut());
    match last.and_then(Value::as_object_mut).filter(|last| last.get("role").is_some_and(|role| role == "assistant")) {
        Some(last) => {
            last.insert("prefix".to_owned(), true.into());
            Ok(())
        }
        None => Err(invalid("continue_final_message", "the last message must be the assistant's")),
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
