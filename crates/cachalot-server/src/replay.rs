//! Turns with tool calls, as they were sampled, for the requests that bring them back (protocol.md 5.9).
//!
//! Owns the map from call id to turn, bounded in tokens, oldest dropped first. Refuses a turn whose content, reasoning or
//! calls a client changed: then what the client says counts, and is rendered anew.

use std::num::NonZeroUsize;
use std::sync::Arc;

use cachalot_text::conversation::{Conversation, Message, ToolCall};
use cachalot_text::prompt::{SampledTurn, SampledTurns};
use lru::LruCache;
use serde_json::Value;

use crate::answer::Answer;

/// Most turns kept, however short.
const MOST_TURNS: NonZeroUsize = NonZeroUsize::new(65_536).unwrap();

/// Turns that may come back.
pub struct Replays {
    /// By the id of their first call.
    turns: LruCache<String, Arc<Turn>>,
    tokens: usize,
    most_tokens: usize,
}

struct Turn {
    sampled: SampledTurn,
    content: String,
    reasoning: String,
    calls: Vec<(String, String, Value)>,
}

impl Replays {
    /// Keeps turns of `most_tokens` tokens together.
    pub fn new(most_tokens: usize) -> Self {
        Self { turns: LruCache::new(MOST_TURNS), tokens: 0, most_tokens }
    }

    /// Keeps the turn that `answer` tells and `sampled` holds.
    pub fn keep(&mut self, answer: &Answer, sampled: SampledTurn) {
        let Some(first) = answer.calls.first() else { return };
        let calls = answer.calls.iter().map(|call| {
            let arguments = serde_json::from_str(&call.arguments).ok()?;
            Some((call.id.clone(), call.name.clone(), arguments))
        });
        // A call that is no JSON comes back as whatever the client makes of it.
        let Some(calls) = calls.collect::<Option<Vec<_>>>() else { return };
        let (content, reasoning) = (answer.content.clone(), answer.reasoning.clone());
        self.tokens += sampled.tokens();
        let turn = Arc::new(Turn { sampled, content, reasoning, calls });
        if let Some((_, displaced)) = self.turns.push(first.id.clone(), turn) {
            self.tokens -= displaced.sampled.tokens();
        }
        while self.tokens > self.most_tokens
            && let Some((_, oldest)) = self.turns.pop_lru()
        {
            self.tokens -= oldest.sampled.tokens();
        }
    }

    /// The sampled turns of `conversation`.
    pub fn of(&mut self, conversation: &Conversation) -> SampledTurns {
        let mut sampled = SampledTurns::new();
        for (index, message) in conversation.messages.iter().enumerate() {
            let Message::Assistant { content, reasoning, tool_calls, prefix: false, .. } = message else { continue };
            let known = |call: &ToolCall| self.turns.get(&call.id).map(Arc::clone);
            let Some(turn) = tool_calls.iter().min_by_key(|call| &call.id).and_then(known) else { continue };
            // Reasoning that a client left out is no change.
            let same_reasoning = reasoning.as_ref().is_none_or(|text| text.is_empty() || *text == turn.reasoning);
            if same_reasoning && *content == turn.content && turn.has_calls(tool_calls) {
                sampled.insert(index, turn.sampled.clone());
            }
        }
        sampled
    }
}

impl Turn {
    /// Whether these are its calls, in any order and spelling.
    fn has_calls(&self, calls: &[ToolCall]) -> bool {
        let is = |call: &ToolCall| {
            let arguments: Option<Value> = serde_json::from_str(&call.arguments).ok();
            self.calls.iter().any(|(id, name, own)| {
                *id == call.id && *name == call.name && arguments.as_ref().is_some_and(|arguments| same(own, arguments))
            })
        };
        self.calls.len() == calls.len() && calls.iter().all(is)
    }
}

/// Whether two JSON values mean the same: the order of keys does not matter, nor does `1.50` beside `1.5`.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, value)| b.get(key).is_some_and(|other| same(value, other)))
        }
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Value::Number(a), Value::Number(b)) => a == b || a.as_f64() == b.as_f64(),
        _ => a == b,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_are_compared_by_what_they_mean() {
        assert!(same(&json!({"a": 1.5, "b": [1, {"c": "x"}]}), &json!({"b": [1.0, {"c": "x"}], "a": 1.50})));
        assert!(!same(&json!({"a": 1}), &json!({"a": 1, "b": 2})));
        assert!(!same(&json!([1, 2]), &json!([2, 1])));
        assert!(!same(&json!("1"), &json!(1)));
    }
}
