//! The fields of a body: which decide the answer, which are for hosts, and which nobody here knows (protocol.md section 5).
//!
//! Owns the one list of them for all APIs, and our own sampling fields. Refuses a field that would change the answer and is
//! not carried out: an answer to another question than was asked is worse than none. What is dropped is reported, so that
//! a client can be told.

use serde_json::{Map, Value, json};

use super::{Api, RequestError};

type Fields = Map<String, Value>;

const CHAT: u8 = 1;
const MESSAGES: u8 = 2;
const RESPONSES: u8 = 4;
const COMPLETIONS: u8 = 8;
const CONVERSATIONS: u8 = CHAT | MESSAGES | RESPONSES;
const ALL: u8 = CONVERSATIONS | COMPLETIONS;
const NONE: u8 = 0;

/// Fields that decide the answer, with the APIs that carry them out. Any other API refuses them, unless they ask for
/// nothing (see [`asks_nothing`]).
const FIELDS: [(&str, u8); 83] = [
    ("add_generation_prompt", NONE),
    ("allowed_token_ids", NONE),
    ("audio", NONE),
    ("background", NONE),
    ("bad_words", NONE),
    ("best_of", NONE),
    ("chat_template", NONE),
    ("chat_template_kwargs", CHAT),
    ("continue_final_message", CHAT),
    ("conversation", NONE),
    ("documents", NONE),
    ("dry_multiplier", NONE),
    ("echo", COMPLETIONS),
    ("enable_thinking", CHAT),
    ("frequency_penalty", ALL),
    ("function_call", NONE),
    ("functions", NONE),
    ("grammar", NONE),
    ("guided_choice", NONE),
    ("guided_grammar", NONE),
    ("guided_json", NONE),
    ("guided_regex", NONE),
    ("ignore_eos", NONE),
    ("include", RESPONSES),
    ("include_stop_str_in_output", NONE),
    ("input", RESPONSES),
    ("instructions", RESPONSES),
    ("json_schema", NONE),
    ("length_penalty", NONE),
    ("logit_bias", NONE),
    ("logits_processors", NONE),
    ("logprobs", CHAT | COMPLETIONS),
    ("max_completion_tokens", CHAT),
    ("max_output_tokens", RESPONSES),
    ("max_tokens", CHAT | MESSAGES | COMPLETIONS),
    ("max_tool_calls", NONE),
    ("messages", CHAT | MESSAGES),
    ("min_p", ALL),
    ("min_tokens", NONE),
    ("mirostat", NONE),
    ("modalities", NONE),
    ("model", ALL),
    ("n", CHAT | COMPLETIONS),
    ("output_config", MESSAGES),
    ("output_format", MESSAGES),
    ("parallel_tool_calls", CHAT | RESPONSES),
    ("presence_penalty", ALL),
    ("previous_response_id", RESPONSES),
    ("prompt", COMPLETIONS),
    ("prompt_logprobs", NONE),
    ("reasoning", CHAT | RESPONSES),
    ("reasoning_effort", CHAT),
    ("repeat_penalty", ALL),
    ("repetition_penalty", ALL),
    ("response_format", CHAT),
    ("seed", ALL),
    ("skip_special_tokens", NONE),
    ("stop", CHAT | COMPLETIONS),
    ("stop_sequences", MESSAGES),
    ("stop_token_ids", NONE),
    ("store", RESPONSES),
    ("stream", ALL),
    ("stream_options", CHAT | COMPLETIONS),
    ("structured_outputs", CHAT),
    ("suffix", COMPLETIONS),
    ("system", MESSAGES),
    ("temperature", ALL),
    ("text", RESPONSES),
    ("tfs_z", NONE),
    ("thinking", CHAT | MESSAGES),
    ("tool_choice", CONVERSATIONS),
    ("tools", CONVERSATIONS),
    ("top_a", NONE),
    ("top_k", ALL),
    ("top_logprobs", CHAT | RESPONSES),
    ("top_n_sigma", NONE),
    ("top_p", ALL),
    ("truncate_prompt_tokens", NONE),
    ("typical", NONE),
    ("typical_p", NONE),
    ("use_beam_search", NONE),
    ("xtc_probability", NONE),
    ("xtc_threshold", NONE),
];

/// Fields for hosts, which say nothing about the answer.
const HOSTING: [&str; 16] = [
    "anthropic_beta",
    "betas",
    "cache_control",
    "client_metadata",
    "context_management",
    "metadata",
    "prediction",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "safety_identifier",
    "service_tier",
    "store",
    "stream_options",
    "truncation",
    "user",
];

/// Fields that are objects, with what is carried out of them; the rest is dropped.
const OBJECTS: [(&str, u8, &[&str]); 6] = [
    ("chat_template_kwargs", CHAT, &["enable_thinking", "reasoning_effort", "thinking"]),
    ("output_config", MESSAGES, &["effort", "format"]),
    ("reasoning", CHAT, &["effort", "enabled"]),
    ("reasoning", RESPONSES, &["effort", "generate_summary", "summary"]),
    ("text", RESPONSES, &["format"]),
    ("thinking", CHAT | MESSAGES, &["budget_tokens", "type"]),
];

impl Api {
    fn bit(self) -> u8 {
        match self {
            Self::Chat => CHAT,
            Self::Messages => MESSAGES,
            Self::Responses => RESPONSES,
        }
    }

    /// Names of the fields that decide the answer and are carried out.
    pub fn fields(self) -> impl Iterator<Item = &'static str> {
        FIELDS.iter().filter(move |(_, apis)| apis & self.bit() != 0).map(|(name, _)| *name)
    }
}

/// Sampling fields that every API has and the vendor's library does not know, or knows in Chat only.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sampling {
    pub top_k: Option<u32>,
    pub min_p: Option<f32>,
    pub repetition_penalty: Option<f32>,
    pub seed: Option<u64>,
}

/// Checks the fields of a conversation; names what is dropped.
pub(super) fn conversation(api: Api, fields: &mut Fields, ignored: &mut Vec<String>) -> Result<Sampling, RequestError> {
    let sampling = common(api.bit(), fields, ignored)?;
    // The vendor's library knows these only in Chat, where the words are its own.
    if api != Api::Chat {
        for name in ["frequency_penalty", "presence_penalty"] {
            number(fields, name, "[-2, 2]", |value| (-2.0..=2.0).contains(&value))?;
        }
    }
    for (name, apis, known) in OBJECTS {
        if apis & api.bit() == 0 {
            continue;
        }
        match fields.get(name) {
            None | Some(Value::Null) => {}
            Some(Value::Object(given)) => {
                let unknown = given.iter().filter(|(key, value)| !value.is_null() && !known.contains(&key.as_str()));
                ignored.extend(unknown.map(|(key, _)| format!("{name}.{key}")));
            }
            Some(_) => return Err(invalid(name, "expected an object")),
        }
    }
    Ok(sampling)
}

/// Checks the fields of a request for raw completions; returns the names of those that are dropped.
///
/// # Errors
/// A field that is not carried out or out of range.
pub fn check_completion(fields: &mut Fields) -> Result<Vec<String>, RequestError> {
    let mut ignored = Vec::new();
    common(COMPLETIONS, fields, &mut ignored)?;
    Ok(ignored)
}

fn common(api: u8, fields: &mut Fields, ignored: &mut Vec<String>) -> Result<Sampling, RequestError> {
    for (name, value) in fields.iter() {
        let apis = FIELDS.iter().find(|(known, _)| known == name).map(|(_, apis)| apis & api);
        match apis {
            _ if value.is_null() || HOSTING.contains(&name.as_str()) => {}
            None => ignored.push(name.clone()),
            Some(NONE) if !asks_nothing(name, value, fields) => {
                let why = "this server does not carry it out here; leave it out".to_owned();
                return Err(RequestError::Unsupported { field: name.clone(), why });
            }
            Some(_) => {}
        }
    }
    rename(fields, "repeat_penalty", "repetition_penalty");
    // -1 is how some servers spell "all of them".
    let top_k = number(fields, "top_k", "an integer from 0, or -1", |value| {
        value.fract() == 0.0 && (-1.0..=f64::from(i32::MAX)).contains(&value)
    })?;
    let min_p = number(fields, "min_p", "[0, 1]", |value| (0.0..=1.0).contains(&value))?;
    let penalty = number(fields, "repetition_penalty", "(0, 10]", |value| value > 0.0 && value <= 10.0)?;
    let seed = match fields.get("seed") {
        None | Some(Value::Null) => None,
        Some(seed) => match seed.as_u64().filter(|seed| *seed < 1 << 63) {
            Some(seed) => Some(seed),
            None => return Err(out_of_range("seed", "[0, 2^63)")),
        },
    };
    Ok(Sampling {
        top_k: top_k.map(|value| value.max(0.0) as u32),
        min_p: min_p.map(|value| value as f32),
        repetition_penalty: penalty.map(|value| value as f32),
        seed,
    })
}

/// Whether a field that is not carried out may be there all the same: it says what holds without it.
fn asks_nothing(name: &str, value: &Value, fields: &Fields) -> bool {
    match name {
        "best_of" | "length_penalty" | "n" | "tfs_z" | "typical" | "typical_p" => value.as_f64() == Some(1.0),
        "top_n_sigma" => value.as_f64().is_some_and(|value| value <= 0.0),
        // Only together with a probability.
        "xtc_threshold" => true,
        "logit_bias" => value.as_object().is_some_and(|biases| biases.values().all(|bias| bias.as_f64() == Some(0.0))),
        "modalities" => *value == json!(["text"]),
        "response_format" => value["type"] == "text",
        "skip_special_tokens" | "parallel_tool_calls" => *value == true,
        // An assistant's turn begins, unless the last one goes on.
        "add_generation_prompt" => *value == (fields.get("continue_final_message") != Some(&true.into())),
        "function_call" => value == "none" || value == "auto",
        "enable_thinking" | "reasoning_effort" => false,
        _ => match value {
            Value::Null | Value::Bool(false) => true,
            Value::Number(number) => number.as_f64() == Some(0.0),
            Value::String(text) => text.is_empty(),
            Value::Array(values) => values.is_empty(),
            Value::Object(values) => values.is_empty(),
            Value::Bool(true) => false,
        },
    }
}

/// What is wrong with a field.
pub(super) fn invalid(field: &str, problem: &str) -> RequestError {
    RequestError::Field { field: field.to_owned(), message: format!("Invalid {field}: {problem}") }
}

/// In the words of the vendor's library.
fn out_of_range(field: &str, range: &str) -> RequestError {
    let message = format!("Invalid {field} value, the valid range of {field} is {range}");
    RequestError::Field { field: field.to_owned(), message }
}

fn number(fields: &Fields, name: &str, range: &str, valid: impl Fn(f64) -> bool) -> Result<Option<f64>, RequestError> {
    match fields.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_f64().filter(|value| valid(*value)) {
            Some(value) => Ok(Some(value)),
            None => Err(out_of_range(name, range)),
        },
    }
}

/// A field that is true or false; `absent` if it is not there.
pub(super) fn flag(fields: &Fields, name: &str, absent: bool) -> Result<bool, RequestError> {
    match fields.get(name) {
        None | Some(Value::Null) => Ok(absent),
        Some(value) => value.as_bool().ok_or_else(|| invalid(name, "expected true or false")),
    }
}

/// Gives `to` the value of `from` unless it has one.
pub(super) fn rename(fields: &mut Fields, from: &str, to: &str) {
    if let Some(value) = fields.shift_remove(from)
        && fields.get(to).is_none_or(Value::is_null)
    {
        fields.insert(to.to_owned(), value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_in_order_and_no_field_is_in_two_roles() {
        assert!(FIELDS.is_sorted_by_key(|(name, _)| *name) && HOSTING.is_sorted());
        for (name, apis) in FIELDS {
            // What one API carries out may be a host's business in another.
            assert!(apis != NONE || !HOSTING.contains(&name), "{name}");
        }
        for (name, apis, _) in OBJECTS {
            assert!(FIELDS.iter().any(|(known, carried_out)| *known == name && carried_out & apis == apis), "{name}");
        }
    }
}
