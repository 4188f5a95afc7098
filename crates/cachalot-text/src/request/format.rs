//! Formats of an answer that other servers take and the vendor's library does not know (protocol.md 5.2, 5.3).
//!
//! Owns grammars, the formats of Messages, and the field of vLLM. Refuses several formats at once, and forms that it does
//! not know.

use serde_json::{Map, Value};

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
    match api {
        Api::Chat => {}
        Api::Messages => return messages(fields, integers),
        Api::Responses => return Ok(None),
    }
    let grammar = fields.get("response_format").filter(|format| format["type"] == "grammar");
    if let Some(format) = grammar {
        let text = format["grammar"].as_str().ok_or_else(|| {
            RequestError::Invalid("response_format of type grammar needs the grammar (Lark) as a string".to_owned())
        })?;
        let format = ResponseFormat::Grammar(integers.restore(text.to_owned()));
        fields.shift_remove("response_format");
        return Ok(Some(format));
    }
    let Some(Value::Object(outputs)) = fields.shift_remove("structured_outputs") else { return Ok(None) };
    if fields.get("response_format").is_some_and(|format| !format.is_null()) {
        return Err(RequestError::Invalid("response_format and structured_outputs exclude each other".to_owned()));
    }
    let given: Vec<(&String, &Value)> = outputs.iter().filter(|(_, value)| !value.is_null()).collect();
    let [(kind, value)] = given.as_slice() else {
        return Err(RequestError::Invalid(
            "structured_outputs must hold one of json, regex, choice, grammar".to_owned(),
        ));
    };
    let text = |value: &Value| value.as_str().map(|text| integers.restore(text.to_owned()));
    let format = match kind.as_str() {
        "json" if value.is_string() => {
            text(value).and_then(|text| Json::new(text).ok()).map(ResponseFormat::JsonSchema)
        }
        "json" => Some(ResponseFormat::JsonSchema(Json::from_rendered(integers.restore(value.to_string())))),
        "regex" => text(value).map(ResponseFormat::Regex),
        "grammar" => text(value).map(ResponseFormat::Grammar),
        "choice" => {
            let choices: Option<Vec<String>> = value.as_array().and_then(|choices| choices.iter().map(text).collect());
            choices.filter(|choices| !choices.is_empty()).map(|choices| {
                let choices: Vec<String> = choices.iter().map(|choice| regex_syntax::escape(choice)).collect();
                ResponseFormat::Regex(choices.join("|"))
            })
        }
        _ => None,
    };
    format.map(Some).ok_or_else(|| RequestError::Invalid(format!("structured_outputs.{kind} cannot be used: {value}")))
}

/// The format of Messages, which is a schema.
fn messages(fields: &mut Map<String, Value>, integers: &BigIntegers) -> Result<Option<ResponseFormat>, RequestError> {
    let Some(Value::Object(config)) = fields.get_mut("output_config") else { return Ok(None) };
    let format = config.shift_remove("format").unwrap_or_default();
    match (format["type"].as_str(), format.get("schema")) {
        _ if format.is_null() => Ok(None),
        (Some("json_schema"), Some(schema)) => {
            Ok(Some(ResponseFormat::JsonSchema(Json::from_rendered(integers.restore(schema.to_string())))))
        }
        _ => {
            Err(RequestError::Invalid("output_config.format must be of type json_schema and hold a schema".to_owned()))
        }
    }
}
