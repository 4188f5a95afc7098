//! The arguments of one tool call, as JSON text that grows (protocol.md 3.2, 3.6 M1 to M5, M14, M19).
//!
//! Owns what is known of the call's arguments. String values stream, escaped, as they come; other values wait until they
//! are complete, because one that is not JSON becomes a string. Refuses nothing: whatever the model wrote ends as JSON
//! unless it was cut short.

use serde::de::IgnoredAny;
use serde_json::{Map, Value};

/// How a value is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ValueKind {
    /// `string="true"`: text.
    Text,
    /// `string="false"`, or no attribute: JSON if it is JSON, else text (M1, M2).
    Json,
}

/// The arguments of one call.
#[derive(Debug)]
pub(super) struct Arguments {
    /// Properties that the called tool declares; `None` for a tool that is not on offer.
    declared: Option<Vec<String>>,
    parameters: usize,
    /// Text of the body before the first parameter, which may be the whole object (M3).
    body: String,
    /// The first parameter, while it may turn out to hold all arguments (M4).
    wrapper: Option<String>,
    /// The value that is being read.
    value: Option<ValueKind>,
    /// Its text, if it waits until it is complete.
    waiting: String,
}

impl Arguments {
    pub(super) fn new(declared: Option<Vec<String>>) -> Self {
        Self { declared, parameters: 0, body: String::new(), wrapper: None, value: None, waiting: String::new() }
    }

    /// Text outside of parameters.
    pub(super) fn body(&mut self, text: &str) {
        if self.parameters == 0 {
            self.body.push_str(text);
        }
    }

    /// A parameter's name is complete; its value comes next.
    pub(super) fn key(&mut self, key: &str, out: &mut String) {
        self.unwrap_no_more(out);
        self.parameters += 1;
        let undeclared = self.declared.as_ref().is_some_and(|declared| !declared.iter().any(|name| name == key));
        if self.parameters == 1 && undeclared && matches!(key, "arguments" | "input") {
            self.wrapper = Some(key.to_owned());
            return;
        }
        self.write_key(key, self.parameters == 1, out);
    }

    fn write_key(&self, key: &str, first: bool, out: &mut String) {
        out.push_str(if first { "{\"" } else { ", \"" });
        escape(key, out);
        out.push_str("\": ");
    }

    /// A value begins.
    pub(super) fn value_start(&mut self, kind: ValueKind, out: &mut String) {
        self.value = Some(kind);
        self.waiting.clear();
        if kind == ValueKind::Text && self.wrapper.is_none() {
            out.push('"');
        }
    }

    /// More text of the value.
    pub(super) fn value_text(&mut self, text: &str, out: &mut String) {
        if self.value == Some(ValueKind::Text) && self.wrapper.is_none() {
            escape(text, out);
        } else {
            self.waiting.push_str(text);
        }
    }

    /// The value is complete.
    pub(super) fn value_end(&mut self, out: &mut String) {
        if self.wrapper.is_none() {
            self.write_value_end(out);
            self.value = None;
        }
    }

    fn write_value_end(&self, out: &mut String) {
        match self.value {
            Some(ValueKind::Text) => out.push('"'),
            _ if is_json(&self.waiting) => out.push_str(&self.waiting),
            _ => write_string(&self.waiting, out),
        }
    }

    /// Another parameter follows, so the first one is an ordinary one.
    fn unwrap_no_more(&mut self, out: &mut String) {
        let Some(key) = self.wrapper.take() else { return };
        self.write_key(&key, true, out);
        match self.value.take() {
            Some(ValueKind::Text) => write_string(&self.waiting, out),
            _ => self.write_value_end(out),
        }
        self.waiting.clear();
    }

    /// The call is complete.
    pub(super) fn close(&mut self, out: &mut String) {
        if self.parameters == 0 {
            let body = self.body.trim();
            out.push_str(if object_keys(body).is_some() { body } else { "{}" });
        } else if let Some(object) = self.wrapped_object() {
            out.push_str(&object);
        } else {
            self.unwrap_no_more(out);
            out.push('}');
        }
    }

    /// The object inside the only parameter, if it holds declared properties and nothing else (M4).
    fn wrapped_object(&self) -> Option<String> {
        let (Some(_), Some(declared)) = (&self.wrapper, &self.declared) else { return None };
        let inner: Option<String> = serde_json::from_str(&self.waiting).ok();
        let text = inner.as_deref().unwrap_or(&self.waiting).trim();
        object_keys(text)?.iter().all(|key| declared.contains(key)).then(|| text.to_owned())
    }

    /// Generation ended where it must not: what there is, unfinished (M14).
    pub(super) fn cut(&mut self, out: &mut String) {
        if let Some(key) = self.wrapper.take() {
            self.write_key(&key, true, out);
            if self.value == Some(ValueKind::Text) {
                out.push('"');
                escape(&self.waiting, out);
                return;
            }
        }
        if self.parameters == 0 && self.body.trim_start().starts_with('{') {
            out.push_str(self.body.trim_start());
        }
        if self.value == Some(ValueKind::Json) {
            out.push_str(&self.waiting);
        }
    }
}

fn is_json(text: &str) -> bool {
    serde_json::from_str::<IgnoredAny>(text).is_ok()
}

/// The keys of a JSON object.
fn object_keys(text: &str) -> Option<Vec<String>> {
    if !text.starts_with('{') {
        return None;
    }
    // Numbers may be beyond the range of floats: only the keys are looked at.
    if let Ok(object) = serde_json::from_str::<Map<String, Value>>(text) {
        return Some(object.into_iter().map(|(key, _)| key).collect());
    }
    let object: std::collections::HashMap<String, IgnoredAny> = serde_json::from_str(text).ok()?;
    Some(object.into_keys().collect())
}

fn write_string(text: &str, out: &mut String) {
    out.push('"');
    escape(text, out);
    out.push('"');
}

/// JSON escapes, without the quotes.
fn escape(text: &str, out: &mut String) {
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            control if control < ' ' => out.push_str(&format!("\\u{:04x}", u32::from(control))),
            other => out.push(other),
        }
    }
}
