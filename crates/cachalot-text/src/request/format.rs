//! Formats of an answer that other servers take and the vendor's library does not know (protocol.md 5.2, 5.3).
//!
//! Owns grammars, regular expressions in Responses, the formats of Messages, and the field of vLLM. Refuses several formats
//! at once, and forms that it does not know.

use serde_json::{Map, Value};

use super::fields::invalid;
use super::{Api, RequestError};
use crate::conversation::ResponseFormat;
use crate::json::{BigIntegers, Json};

/// Takes such a format out of a body.
///
/// # Errors
/// A form that is not known.
pub(super) fn take(
    api: Api,
    fields: &mut Map<String, Value>,
    integers: &BigIntegers,
) -> Result<Option<ResponseFormat>, RequestError> {
    let formats = Formats { integers };
    match api {
        Api::Chat => match formats.grammar(fields, "response_format", "response_format")? {
            Some(format) => Ok(Some(format)),
            None => formats.structured_outputs(fields),
        },
        Api::Messages => formats.schema(fields),
        Api::Responses => match fields.get_mut("text") {
            Some(Value::Object(text)) => formats.grammar(text, "format", "text.format"),
            _ => Ok(None),
        },
    }
}

struct Formats<'i> {
    integers: &'i BigIntegers,
}

impl Formats<'_> {
    fn text(&self, value: &Value) -> Option<String> {
        value.as_str().map(|text| self.integers.restore(text.to_owned()))
    }

    fn json(&self, value: &Value) -> ResponseFormat {
        ResponseFormat::JsonSchema(Json::from_rendered(self.integers.restore(value.to_string())))
    }

    /// A grammar or a regular expression in the field `name`.
    fn grammar(
        &self,
        fields: &mut Map<String, Value>,
        name: &str,
        place: &str,
    ) -> Result<Option<ResponseFormat>, RequestError> {
        let Some(format) = fields.get(name) else { return Ok(None) };
        let made = match format["type"].as_str() {
            Some("grammar") => self
                .text(&format["grammar"])
                .map(ResponseFormat::Grammar)
                .ok_or_else(|| invalid(place, "type grammar needs the grammar (Lark or EBNF) as a string"))?,
            Some("regex") => self
                .text(&format["regex"])
                .map(ResponseFormat::Regex)
                .ok_or_else(|| invalid(place, "type regex needs the regex as a string"))?,
            _ => return Ok(None),
        };
        fields.shift_remove(name);
        Ok(Some(made))
    }

    fn structured_outputs(&self, fields: &mut Map<String, Value>) -> Result<Option<ResponseFormat>, RequestError> {
        let outputs = match fields.shift_remove("structured_outputs") {
            None | Some(Value::Null) => return Ok(None),
            Some(Value::Object(outputs)) => outputs,
            Some(_) => return Err(invalid("structured_outputs", "expected an object")),
        };
        if fields.get("response_format").is_some_and(|format| !format.is_null()) {
            return Err(invalid("structured_outputs", "response_format and structured_outputs exclude each other"));
        }
        let given: Vec<(&String, &Value)> = outputs.iter().filter(|(_, value)| !value.is_null()).collect();
        let [(kind, value)] = given.as_slice() else {
            return Err(invalid("structured_outputs", "expected one of json, regex, choice, grammar"));
        };
        let format = match kind.as_str() {
            "json" if value.is_string() => {
                self.text(value).and_then(|text| Json::new(text).ok()).map(ResponseFormat::JsonSchema)
            }
            "json" => Some(self.json(value)),
            "regex" => self.text(value).map(ResponseFormat::Regex),
            "grammar" => self.text(value).map(ResponseFormat::Grammar),
            "choice" => {
                let choices = value.as_array().filter(|choices| !choices.is_empty());
                let choices: Option<Vec<String>> =
                    choices.and_then(|choices| choices.iter().map(|choice| self.text(choice)).collect());
                choices.map(|choices| {
                    let choices: Vec<String> = choices.iter().map(|choice| regex_syntax::escape(choice)).collect();
                    ResponseFormat::Regex(choices.join("|"))
                })
            }
            _ => None,
        };
        let refused = || invalid(&format!("structured_outputs.{kind}"), &format!("it cannot be used: {value}"));
        format.map(Some).ok_or_else(refused)
    }

    /// The format of Messages, which is a schema.
    fn schema(&self, fields: &mut Map<String, Value>) -> Result<Option<ResponseFormat>, RequestError> {
        let Some(Value::Object(config)) = fields.get_mut("output_config") else { return Ok(None) };
        let format = config.shift_remove("format").unwrap_or_default();
        match (format["type"].as_str(), format.get("schema")) {
            _ if format.is_null() => Ok(None),
            (Some("json_schema"), Some(schema)) => Ok(Some(self.json(schema))),
            _ => Err(invalid("output_config.format", "expected type json_schema and a schema")),
        }
    }
}
