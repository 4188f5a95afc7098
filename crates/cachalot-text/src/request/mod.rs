//! Requests of the three HTTP APIs to a [`Conversation`] (protocol.md 5.2 to 5.6).
//!
//! Owns the conversion of a JSON body; the vendor's library `deepseek-recipe` validates and converts, this module knows
//! which fields are carried out (`fields.rs`), accepts the common spellings that the library does not know (`lenient.rs`),
//! tools, formats and forced calls that constrained decoding makes possible (`tools.rs`, `format.rs`, `choice.rs`), keeps
//! integers of any size (2.4), and reports parameters as they were given: the vendor's forced values are only defaults here
//! (section 4). Refuses what else the vendor refuses, with the vendor's words. It knows nothing of HTTP, model names or
//! events.

mod choice;
mod fields;
mod format;
mod history;
mod lenient;
mod shape;
mod strict;
mod tools;
mod translate;

use deepseek_recipe::anthropic::messages::request::MessagesRequest;
use deepseek_recipe::openai::chat_completion::request::ChatCompletionRequest;
use deepseek_recipe::openai::responses::request::ResponsesRequest;
use deepseek_recipe::request::{
    ConversationRequest, ConversionError, ConversionOptions, ModelVersion, ProtocolRequest,
};
use serde_json::Value;

use crate::Family;
use crate::conversation::{Conversation, Effort, ResponseFormat};
use crate::json::{BigIntegers, Json};
use crate::sampling::MAX_OUTPUT;
use choice::Choice;
use fields::Sampling;
pub use fields::check_completion;
pub use shape::{parse, typed};
use tools::Tools;

/// Largest request body, in bytes: room for the images of a request (2.10) and a full context of text.
pub const MAX_BODY_BYTES: usize = 256 << 20;

/// Which API a body belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Api {
    /// OpenAI Chat Completions.
    Chat,
    /// Anthropic Messages.
    Messages,
    /// OpenAI Responses.
    Responses,
}

/// A request, converted.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// What to encode.
    pub conversation: Conversation,
    /// Sampling parameters as given; absent ones take the model's defaults.
    pub sampling: RequestedSampling,
    /// Stop strings.
    pub stop: Vec<String>,
    /// Whether the answer is one JSON object and everything around it is blanked out (3.5).
    pub json_output: bool,
    /// What decoding should be constrained to.
    pub constraint: Option<Constraint>,
    /// Whether events are wanted.
    pub stream: bool,
    /// Whether every chunk names `usage` (Chat).
    pub include_usage: bool,
    /// Tools whose calls are reported as custom tool calls (Responses).
    pub custom_tools: Vec<String>,
    /// Flattened tools: name in the prompt, namespace, name in it (Responses).
    pub namespaced_tools: Vec<(String, String, String)>,
    /// Whether the client carries out `tool_search` (Responses).
    pub client_tool_search: bool,
    /// Whether the answer ends with its first call: the client asked for no more than one.
    pub one_call: bool,
    /// What was dropped: fields that nobody here knows, and tools that only a host could carry out.
    pub ignored: Vec<String>,
}

/// Sampling parameters that a request names. Ranges are checked.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct RequestedSampling {
    /// Most tokens of output, reasoning included.
    pub max_tokens: Option<u32>,
    /// Whether as many tokens are wanted as there is room for: Messages asked for more than any model gives.
    pub longest: bool,
    /// 0 to 2.
    pub temperature: Option<f32>,
    /// Above 0, at most 1.
    pub top_p: Option<f32>,
    /// -2 to 2.
    pub presence_penalty: Option<f32>,
    /// -2 to 2.
    pub frequency_penalty: Option<f32>,
    /// Only this many of the most likely tokens; 0 for all.
    pub top_k: Option<u32>,
    /// 0 to 1.
    pub min_p: Option<f32>,
    /// Above 0, at most 10.
    pub repetition_penalty: Option<f32>,
    /// Below 2^63.
    pub seed: Option<u64>,
    /// Whether log-probabilities are wanted.
    pub logprobs: bool,
    /// How many alternatives each has, at most 20.
    pub top_logprobs: Option<u8>,
}

/// What decoding should be constrained to. Constraints begin after the reasoning (3.5, 3.7).
#[derive(Debug, Clone, PartialEq)]
pub enum Constraint {
    /// JSON, of a schema if there is one.
    Json(Option<Json>),
    /// Text of this regular expression.
    Regex(String),
    /// Text of this grammar, in llguidance's variant of Lark or in EBNF.
    Grammar(String),
    /// Tool calls must fit the tools.
    ToolCalls {
        /// Whether a call must be made. The prompt opens the block where the conversation's tool choice is `Required`;
        /// elsewhere the answer must begin with it.
        required: bool,
        /// Whether there may be several.
        parallel: bool,
    },
}

/// Why a body was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// Not JSON, or nothing of the API's shape.
    #[error("{0}")]
    Shape(String),
    /// A field that is not of its shape, or out of range.
    #[error("{message}")]
    Field {
        /// The field.
        field: String,
        /// What is wrong with it.
        message: String,
    },
    /// A rule of the API is violated; the text is meant for the client.
    #[error("{0}")]
    Invalid(String),
    /// A field that would change the answer and is not carried out.
    #[error("{field} is not supported: {why}")]
    Unsupported {
        /// The field.
        field: String,
        /// What to do about it.
        why: String,
    },
    /// The conversion failed by itself.
    #[error("internal error: {0}")]
    Internal(String),
}

/// Convert the JSON body of a request for a model of `family`. The body's `model` is ignored.
///
/// # Errors
/// [`RequestError`], whose text goes to the client.
pub fn convert(api: Api, family: Family, body: &str) -> Result<Request, RequestError> {
    convert_for(api, family, true, body)
}

/// As [`convert`], for a model that reasons only if `thinks` where the body does not say.
///
/// # Errors
/// As [`convert`].
pub fn convert_for(api: Api, family: Family, thinks: bool, body: &str) -> Result<Request, RequestError> {
    if body.len() > MAX_BODY_BYTES {
        return Err(RequestError::Shape(format!("body of {} bytes; at most {MAX_BODY_BYTES}", body.len())));
    }
    let mut integers = BigIntegers::default();
    let hidden = integers.hide(body, &|digits| body.contains(digits));
    let mut body: Value = parse(&hidden)?;
    let Value::Object(fields) = &mut body else {
        return Err(RequestError::Shape("the body must be a JSON object".to_owned()));
    };
    let mut ignored = Vec::new();
    let common = fields::conversation(api, fields, &mut ignored)?;
    let tools = tools::take(api, fields, &mut ignored)?;
    history::take(api, fields, &mut ignored)?;
    let effort = lenient::apply(api, fields)?;
    let one_call = match api {
        Api::Messages => fields.get("tool_choice").is_some_and(|choice| choice["disable_parallel_tool_use"] == true),
        Api::Chat | Api::Responses => !fields::flag(fields, "parallel_tool_calls", true)?,
    };
    let given = Given {
        temperature: number(fields, "temperature"),
        top_p: number(fields, "top_p"),
        presence_penalty: number(fields, "presence_penalty"),
        frequency_penalty: number(fields, "frequency_penalty"),
        longest: api == Api::Messages && number(fields, "max_tokens").is_some_and(|most| most > MAX_OUTPUT as f32),
        common,
        effort,
        thinks,
        tools,
        one_call,
        ignored,
        format: format::take(api, fields, &integers)?,
        choice: Choice::of(api, fields),
    };
    fields.insert("model".to_owned(), MODEL.into());
    match api {
        Api::Chat => converted::<ChatCompletionRequest>(api, family, body, given, &integers),
        Api::Messages => converted::<MessagesRequest>(api, family, body, given, &integers),
        Api::Responses => converted::<ResponsesRequest>(api, family, body, given, &integers),
    }
}

/// The model name under which the vendor's library looks up the family.
const MODEL: &str = "model";

/// What the vendor's conversion overwrites or does not know.
struct Given {
    temperature: Option<f32>,
    top_p: Option<f32>,
    presence_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    longest: bool,
    common: Sampling,
    effort: Option<Effort>,
    thinks: bool,
    tools: Tools,
    one_call: bool,
    ignored: Vec<String>,
    format: Option<ResponseFormat>,
    choice: Choice,
}

fn number(fields: &serde_json::Map<String, Value>, name: &str) -> Option<f32> {
    fields.get(name).and_then(Value::as_f64).map(|value| value as f32)
}

fn converted<R: ProtocolRequest + serde::de::DeserializeOwned>(
    api: Api,
    family: Family,
    body: Value,
    given: Given,
    integers: &BigIntegers,
) -> Result<Request, RequestError> {
    let definitions = strict::Definitions::of(api, &body);
    let again = given.choice.is_forced().then(|| body.clone());
    let vendor = |body| {
        vendor::<R>(api, family, given.thinks, body).map_err(|error| match error {
            RequestError::Field { field, message } => RequestError::Field { field, message: integers.restore(message) },
            other => other,
        })
    };
    let (request, refused) = match (vendor(body), again) {
        (Err(RequestError::Invalid(text)), Some(body)) if text == choice::REFUSAL => {
            (vendor(Choice::without(api, body))?, true)
        }
        (converted, _) => (converted?, false),
    };
    let mut request = translate::request(request, integers)?;
    given.choice.apply(refused, given.one_call, &mut request);
    definitions.restore(&mut request, integers);
    let Sampling { top_k, min_p, repetition_penalty, seed } = given.common;
    request.sampling = RequestedSampling {
        temperature: given.temperature,
        top_p: given.top_p,
        presence_penalty: given.presence_penalty,
        frequency_penalty: given.frequency_penalty,
        longest: given.longest,
        top_k,
        min_p,
        repetition_penalty,
        seed,
        // Responses has no other way to say that it wants none.
        logprobs: request.sampling.logprobs && (api != Api::Responses || request.sampling.top_logprobs != Some(0)),
        ..request.sampling
    };
    request.conversation.effort = given.effort.unwrap_or(request.conversation.effort);
    if let Some(format) = given.format {
        request.conversation.response_format = format;
    }
    for tool in request.conversation.tools_mut() {
        let input = given.tools.inputs.iter().find(|(name, _)| *name == tool.name);
        tool.input = input.map(|(_, input)| input.clone());
    }
    request.custom_tools.extend(given.tools.custom);
    request.one_call = given.one_call;
    request.ignored = given.ignored;
    Ok(request)
}

/// The vendor's conversion.
fn vendor<R: ProtocolRequest + serde::de::DeserializeOwned>(
    api: Api,
    family: Family,
    thinks: bool,
    body: Value,
) -> Result<ConversationRequest, RequestError> {
    let version = match family {
        Family::V4 => ModelVersion::DeepseekV4Pro,
        Family::V41 => ModelVersion::DeepseekV41Flash,
    };
    let request: R = typed(body)?;
    let options =
        ConversionOptions::new().with_default_thinking_mode(thinks).with_model_versions_by_name([(MODEL, version)]);
    request.convert(options).map_err(|error| match error {
        ConversionError::BadRequest { detail } => in_words_of(api, detail),
        ConversionError::Internal { detail } => RequestError::Internal(detail),
    })
}

/// The library names these fields as Chat does, whatever the API.
fn in_words_of(api: Api, text: String) -> RequestError {
    let field = |field: &str, message: String| RequestError::Field { field: field.to_owned(), message };
    match api {
        Api::Responses if text.starts_with("Invalid max_tokens") => {
            field("max_output_tokens", text.replace("max_tokens", "max_output_tokens"))
        }
        Api::Messages if text.starts_with("Invalid 'stop[") => {
            field("stop_sequences", text.replacen("'stop[", "'stop_sequences[", 1))
        }
        Api::Messages if text.starts_with("Stop string array") => {
            field("stop_sequences", format!("Invalid stop_sequences: {text}"))
        }
        _ => RequestError::Invalid(text),
    }
}
