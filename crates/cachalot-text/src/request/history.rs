//! What hosts and their tools left behind in a history (protocol.md 5.5, 5.6).
//!
//! Owns dropping it: nothing here can have asked for it. Each piece is named, so that a client can be told. Refuses
//! references to items that nobody has resolved: what they stand for is part of the conversation.

use serde_json::{Map, Value, json};

use super::{Api, RequestError};

/// Items of Responses that the vendor's library reads.
const ITEMS: [&str; 8] = [
    "custom_tool_call",
    "custom_tool_call_output",
    "function_call",
    "function_call_output",
    "message",
    "reasoning",
    "tool_search_call",
    "tool_search_output",
];

/// Drops or names it.
pub(super) fn take(api: Api, fields: &mut Map<String, Value>, ignored: &mut Vec<String>) -> Result<(), RequestError> {
    match api {
        Api::Chat => Ok(()),
        Api::Messages => {
            messages(fields, ignored);
            Ok(())
        }
        Api::Responses => items(fields, ignored),
    }
}

fn messages(fields: &mut Map<String, Value>, ignored: &mut Vec<String>) {
    let messages = fields.get_mut("messages").and_then(Value::as_array_mut);
    for (index, message) in messages.into_iter().flatten().enumerate() {
        let Some(Value::Array(blocks)) = message.get_mut("content") else { continue };
        let (mut place, all) = (0, blocks.len());
        blocks.retain(|block| {
            let kind = block.get("type").and_then(Value::as_str).unwrap_or_default();
            let of_a_host = matches!(kind, "server_tool_use" | "mcp_tool_use")
                || kind.ends_with("_tool_result") && kind != "tool_result";
            if of_a_host {
                ignored.push(format!("messages[{index}].content[{place}]:{kind}"));
            }
            place += 1;
            !of_a_host
        });
        if blocks.is_empty() && all > 0 {
            blocks.push(json!({"type": "text", "text": ""}));
        }
    }
}

/// The vendor's library drops items that it does not know.
fn items(fields: &Map<String, Value>, ignored: &mut Vec<String>) -> Result<(), RequestError> {
    let items = fields.get("input").and_then(Value::as_array);
    for (index, item) in items.into_iter().flatten().enumerate() {
        match item.get("type").and_then(Value::as_str) {
            Some("item_reference") => {
                let message =
                    format!("Invalid input[{index}]: no item {} is stored here; send the item itself", item["id"]);
                return Err(RequestError::Field { field: format!("input[{index}]"), message });
            }
            Some(kind) if !ITEMS.contains(&kind) => ignored.push(format!("input[{index}]:{kind}")),
            _ => {}
        }
    }
    Ok(())
}
