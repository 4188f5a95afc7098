//! Tools that only a host could carry out, and tools that the vendor's library does not know (protocol.md 5.5, 5.6).
//!
//! Owns dropping the former, and turning custom tools into functions. Refuses a choice that nothing could fulfil.

use serde_json::{Map, Value, json};

use super::choice::Choice;
use super::fields::invalid;
use super::{Api, RequestError};
use crate::conversation::InputFormat;

type Fields = Map<String, Value>;

/// What was made of the tools.
#[derive(Debug, Default)]
pub(super) struct Tools {
    /// Custom tools that were turned into functions.
    pub custom: Vec<String>,
    /// What the free text of custom tools must be.
    pub inputs: Vec<(String, InputFormat)>,
}

/// Keeps the tools that a client carries out.
pub(super) fn take(api: Api, fields: &mut Fields, ignored: &mut Vec<String>) -> Result<Tools, RequestError> {
    let mut found = Tools::default();
    let mut dropped = Vec::new();
    let mut left = 0;
    if let Some(Value::Array(tools)) = fields.get_mut("tools") {
        dropped = keep(api, tools, ignored);
        if api == Api::Responses {
            for (index, tool) in tools.iter_mut().enumerate() {
                if let Value::Object(tool) = tool {
                    custom(index, tool, &mut found)?;
                }
            }
        }
        left = tools.len();
    }
    choice(api, fields, left, &dropped, &found.custom, ignored)?;
    if left == 0 && !dropped.is_empty() {
        fields.shift_remove("tools");
    }
    Ok(found)
}

/// Drops what is not ours; returns the names.
fn keep(api: Api, tools: &mut Vec<Value>, ignored: &mut Vec<String>) -> Vec<String> {
    let ours = |kind: Option<&str>| match api {
        Api::Chat => matches!(kind, None | Some("function")),
        Api::Messages => matches!(kind, None | Some("custom")),
        Api::Responses => matches!(kind, Some("function" | "namespace" | "custom" | "tool_search")),
    };
    let mut dropped = Vec::new();
    let mut index = 0;
    tools.retain(|tool| {
        let kind = tool.get("type").and_then(Value::as_str);
        let keep = !tool.is_object() || ours(kind);
        if !keep {
            ignored.push(format!("tools[{index}]:{}", kind.unwrap_or_default()));
            dropped.push(tool.get("name").and_then(Value::as_str).unwrap_or_default().to_owned());
        }
        index += 1;
        keep
    });
    dropped
}

/// Where a choice is for tools that were dropped, the model decides.
fn choice(
    api: Api,
    fields: &mut Fields,
    left: usize,
    dropped: &[String],
    custom: &[String],
    ignored: &mut Vec<String>,
) -> Result<(), RequestError> {
    let forced = Choice::of(api, fields).is_forced();
    let Some(choice) = fields.get_mut("tool_choice").filter(|choice| !choice.is_null()) else { return Ok(()) };
    let kind = choice.get("type").and_then(Value::as_str).unwrap_or_default();
    if kind == "allowed_tools" {
        let why = "send only the tools that may be called, and auto or required";
        return Err(RequestError::Unsupported { field: "tool_choice".to_owned(), why: why.to_owned() });
    }
    let name = choice.get("name").and_then(Value::as_str).unwrap_or_default();
    let of_a_host = api == Api::Responses && choice.is_object() && !matches!(kind, "function" | "custom");
    if of_a_host || dropped.iter().any(|dropped| dropped == name) || left == 0 && !dropped.is_empty() {
        ignored.push("tool_choice".to_owned());
        fields.shift_remove("tool_choice");
    } else if forced && left == 0 {
        return Err(invalid("tool_choice", "it forces a call, but there are no tools"));
    } else if api == Api::Responses && kind == "custom" && custom.iter().any(|custom| custom == name) {
        choice["type"] = "function".into();
    }
    Ok(())
}

/// The vendor's library knows one custom tool, `apply_patch`. Any other becomes a function that takes its free text in one
/// parameter, as that one does; its calls are reported as custom ones.
fn custom(index: usize, tool: &mut Fields, found: &mut Tools) -> Result<(), RequestError> {
    let Some(name) = tool.get("name").and_then(Value::as_str).map(str::to_owned) else { return Ok(()) };
    if tool.get("type").is_none_or(|kind| kind != "custom") {
        return Ok(());
    }
    let mut description = tool.get("description").and_then(Value::as_str).unwrap_or_default().to_owned();
    if let Some(format) = tool.get("format").filter(|format| !format.is_null() && format["type"] != "text") {
        let text = format["definition"].as_str();
        let input = match (format["type"].as_str(), format["syntax"].as_str(), text) {
            (Some("grammar"), Some("lark"), Some(text)) => InputFormat::Grammar(text.to_owned()),
            (Some("grammar"), Some("regex"), Some(text)) => InputFormat::Regex(text.to_owned()),
            _ => {
                let problem = "expected type text, or type grammar with a syntax, lark or regex, and a definition";
                return Err(invalid(&format!("tools[{index}].format"), problem));
            }
        };
        // The model is not only held to it: it can read it.
        description += &format!("\n\nThe input follows this grammar:\n{}", text.unwrap_or_default());
        found.inputs.push((name.clone(), input));
    }
    if name == "apply_patch" {
        return Ok(());
    }
    let parameters = json!({"type": "object", "properties": {"input": {"type": "string"}}, "required": ["input"]});
    tool.clear();
    tool.insert("type".to_owned(), "function".into());
    tool.insert("name".to_owned(), name.clone().into());
    tool.insert("description".to_owned(), description.into());
    tool.insert("parameters".to_owned(), parameters);
    found.custom.push(name);
    Ok(())
}
