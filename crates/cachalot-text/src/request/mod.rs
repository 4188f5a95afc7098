//! Requests of the three HTTP APIs to a [`Conversation`] (protocol.md 5.2 to 5.6).
//!
//! Owns the conversion of a JSON body; the vendor's library `deepseek-recipe` validates and converts, this module accepts
//! the common spellings it does not know (`lenient.rs`), formats (`format.rs`) and forced calls (`choice.rs`) that
//! constrained decoding makes possible, keeps integers of any size (2.4), and reports parameters as they were given: the
//! vendor's forced values are only defaults here (section 4). Refuses what else the vendor refuses, with the vendor's
//! words. It knows nothing of HTTP, model names or events.

mod choice;
mod fields;
mod format;
mod lenient;
mod strict;
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
use choice::Choice;
use fields::Extras;

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
    /// Text of this grammar, in llguidance's variant of Lark.
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
    /// Not JSON, or not of the API's shape.
    #[error("{0}")]
    Shape(String),
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
    let mut body: Value = serde_json::from_str(&hidden).map_err(|error| RequestError::Shape(error.to_string()))?;
    let Value::Object(fields) = &mut body else {
        return Err(RequestError::Shape("the body must be a JSON object".to_owned()));
    };
    let extras = fields::take(api, fields)?;
    let effort = lenient::apply(api, fields)?;
    let given = Given {
        temperature: number(fields, "temperature"),
        top_p: number(fields, "top_p"),
        presence_penalty: number(fields, "presence_penalty"),
        frequency_penalty: number(fields, "frequency_penalty"),
        effort,
        seed: fields.get("seed").and_then(Value::as_u64),
        thinks,
        extras,
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
    effort: Option<Effort>,
    seed: Option<u64>,
    thinks: bool,
    extras: Extras,
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
    let (request, refused) = match (vendor::<R>(family, given.thinks, body), again) {
        (Err(RequestError::Invalid(text)), Some(body)) if text == choice::REFUSAL => {
            (vendor::<R>(family, given.thinks, Choice::without(api, body))?, true)
        }
        (converted, _) => (converted?, false),
    };
    let mut request = translate::request(request, integers)?;
    given.choice.apply(refused, given.extras.one_call, &mut request);
    definitions.restore(&mut request, integers);
    request.sampling = RequestedSampling {
        temperature: given.temperature,
        top_p: given.top_p,
        presence_penalty: given.presence_penalty,
        frequency_penalty: given.frequency_penalty,
        top_k: given.extras.top_k,
        min_p: given.extras.min_p,
        repetition_penalty: given.extras.repetition_penalty,
        // Two of the three APIs have no seed in the vendor's library.
        seed: request.sampling.seed.or(given.seed),
        ..request.sampling
    };
    request.conversation.effort = given.effort.unwrap_or(request.conversation.effort);
    if let Some(format) = given.format {
        request.conversation.response_format = format;
    }
    request.custom_tools.extend(given.extras.custom_tools);
    request.one_call = given.extras.one_call;
    request.ignored = given.extras.ignored;
    Ok(request)
}

/// The vendor's conversion.
fn vendor<R: ProtocolRequest + serde::de::DeserializeOwned>(
    family: Family,
    thinks: bool,
    body: Value,
) -> Result<ConversationRequest, RequestError> {
    let version = match family {
        Family::V4 => ModelVersion::DeepseekV4Pro,
        Family::V41 => ModelVersion::DeepseekV41Flash,
    };
    let request: R = serde_json::from_value(body).map_err(|error| RequestError::Shape(error.to_string()))?;
    let options =
        ConversionOptions::new().with_default_thinking_mode(thinks).with_model_versions_by_name([(MODEL, version)]);
    request.convert(options).map_err(|error| match error {
        ConversionError::BadRequest { detail } => RequestError::Invalid(detail),
        ConversionError::Internal { detail } => RequestError::Internal(detail),
    })
}
