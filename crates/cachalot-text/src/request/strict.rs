//! Definitions of strict schemas (protocol.md 5.2).
//!
//! The vendor's normalisation drops `$defs` and `definitions` and keeps the references to them. Owns putting them back,
//! as they were written, so that a schema can be kept to.

use std::collections::HashMap;

use serde_json::Value;

use super::{Api, Constraint, Request};
use crate::json::{BigIntegers, Json};

const KEYWORDS: [&str; 2] = ["$defs", "definitions"];

/// The definitions of a body's strict schemas, each as the end of an object's text.
#[derive(Debug, Default)]
pub(super) struct Definitions {
    tools: HashMap<String, String>,
    format: Option<String>,
}

impl Definitions {
    pub(super) fn of(api: Api, body: &Value) -> Self {
        let (format, function) = match api {
            Api::Chat => (&body["response_format"]["json_schema"], "function"),
            Api::Responses => (&body["text"]["format"], ""),
            Api::Messages => return Self::default(),
        };
        let mut found = Self { tools: HashMap::new(), format: end(format, "schema") };
        for tool in body["tools"].as_array().into_iter().flatten() {
            let tool = tool.get(function).unwrap_or(tool);
            if let (Some(name), Some(end)) = (tool["name"].as_str(), end(tool, "parameters")) {
                found.tools.insert(name.to_owned(), end);
            }
        }
        found
    }

    pub(super) fn restore(&self, request: &mut Request, integers: &BigIntegers) {
        let put = |schema: &mut Json, end: &String| {
            if let Some(start) = schema.as_str().strip_suffix('}') {
                *schema = Json::from_rendered(integers.restore(format!("{start}{end}}}")));
            }
        };
        for tool in &mut request.conversation.tools {
            if let (Some(true), Some(end)) = (tool.strict, self.tools.get(&tool.name)) {
                put(&mut tool.parameters, end);
            }
        }
        if let (Some(Constraint::Json(Some(schema))), Some(end)) = (&mut request.constraint, &self.format) {
            put(schema, end);
        }
    }
}

fn end(holder: &Value, field: &str) -> Option<String> {
    if holder["strict"] != Value::Bool(true) {
        return None;
    }
    let schema = &holder[field];
    let definitions = KEYWORDS.iter().filter_map(|keyword| Some((keyword, schema.get(keyword)?)));
    let text: String = definitions.map(|(keyword, value)| format!(",\"{keyword}\":{value}")).collect();
    (!text.is_empty()).then_some(text)
}
