//! What a request says of calls and the vendor's conversion does not honour (protocol.md 5.2).
//!
//! Owns a forced call while thinking, which the vendor refuses and which constrained decoding makes possible: the prompt
//! stays as without, and the call comes after the reasoning. Owns `any` of Messages, which the vendor takes for `auto`.
//! Refuses nothing.

use serde_json::{Map, Value, json};

use super::{Api, Constraint, Request};
use crate::conversation::Message;

/// The vendor's refusal of a forced call while thinking.
pub(super) const REFUSAL: &str = "Thinking mode does not support this tool_choice";

/// What is said of calls.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Choice {
    forced: Option<Forced>,
}

#[derive(Debug, Clone, PartialEq)]
enum Forced {
    Any,
    Named(String),
}

impl Choice {
    pub(super) fn of(api: Api, fields: &Map<String, Value>) -> Self {
        let choice = fields.get("tool_choice").unwrap_or(&Value::Null);
        let name = match api {
            Api::Chat => &choice["function"]["name"],
            Api::Messages | Api::Responses => &choice["name"],
        };
        let forced = match (choice.as_str(), choice["type"].as_str(), name.as_str()) {
            (Some("required"), ..) | (None, Some("any"), _) => Some(Forced::Any),
            (None, Some("function" | "custom" | "tool"), Some(name)) => Some(Forced::Named(name.to_owned())),
            _ => None,
        };
        Self { forced }
    }

    /// Whether a refusal of the vendor's can be made good.
    pub(super) fn is_forced(&self) -> bool {
        self.forced.is_some()
    }

    /// The body without the choice.
    pub(super) fn without(api: Api, mut body: Value) -> Value {
        body["tool_choice"] = match api {
            Api::Messages => json!({"type": "auto"}),
            Api::Chat | Api::Responses => "auto".into(),
        };
        body
    }

    /// Makes a converted request honour the choice. `refused` if the vendor did not convert it as it was.
    pub(super) fn apply(&self, refused: bool, one_call: bool, request: &mut Request) {
        let Some(Constraint::ToolCalls { required, parallel }) = &mut request.constraint else { return };
        *parallel = !one_call;
        *required |= self.forced.is_some() && (refused || self.forced == Some(Forced::Any));
        if let (true, Some(Forced::Named(name))) = (refused, &self.forced) {
            let conversation = &mut request.conversation;
            conversation.tools.retain(|tool| tool.name == *name);
            for message in &mut conversation.messages {
                if let Message::System { updated_tools, .. } = message {
                    updated_tools.retain(|tool| tool.name == *name);
                }
            }
        }
    }
}
