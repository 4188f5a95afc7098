//! The APIs, one module each. Each owns its routes' handlers, the shape of its responses, and the order of its events.

pub mod chat;
pub mod completions;
pub mod messages;
pub mod models;
pub mod responses;

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, Response, header};
use cachalot_engine::chat::TokenLogProbs;
use cachalot_text::{Tokenizer, request};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::app::App;
use crate::error::ApiError;

/// The header that names what of a request was dropped.
pub const IGNORED: HeaderName = HeaderName::from_static("x-cachalot-ignored");

/// What the server itself reads of every conversation's body.
#[derive(Debug, Default, Deserialize)]
pub struct Envelope {
    /// The model that is asked; this server's if absent.
    #[serde(default)]
    pub model: Option<String>,
}

/// The name under which the model answers: as it was asked for.
///
/// # Errors
/// If it is not this server's.
pub fn model_name(app: &App, asked: Option<String>) -> Result<String, ApiError> {
    match asked {
        None => Ok(app.card.id.clone()),
        Some(name) if app.card.answers_to(&name) => Ok(name),
        Some(name) => {
            let message = format!("there is no model {name:?} here; this server runs {:?}", app.card.id);
            Err(ApiError::not_found(message).with_code("model_not_found"))
        }
    }
}

/// Reads what the server needs of a body.
///
/// # Errors
/// Says which field is wrong.
pub fn parse<'b, T: Deserialize<'b>>(body: &'b str) -> Result<T, ApiError> {
    Ok(request::parse(body)?)
}

/// A JSON response.
pub fn json(value: &impl Serialize) -> Response<Body> {
    json_response(Body::from(bytes(value)))
}

/// The JSON of one of our own types, which always has one.
pub fn bytes(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}

/// A response whose body is JSON.
pub fn json_response(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// A response that also says what was dropped.
pub fn with_ignored(mut response: Response<Body>, ignored: Option<HeaderValue>) -> Response<Body> {
    if let Some(ignored) = ignored {
        response.headers_mut().insert(IGNORED, ignored);
    }
    response
}

/// Seconds since 1970.
pub fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// A token's log-probability as Chat and Responses tell it (protocol.md 1.4).
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct TokenLogprob {
    token: String,
    logprob: f64,
    bytes: Vec<u8>,
    top_logprobs: Vec<TopLogprob>,
}

/// One of the most likely tokens at a place.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct TopLogprob {
    token: String,
    logprob: f64,
    bytes: Vec<u8>,
}

/// Log-probabilities for the client.
pub fn logprobs(tokenizer: &Tokenizer, tokens: &[TokenLogProbs]) -> Vec<TokenLogprob> {
    let token = |token: &TokenLogProbs| {
        let top = token.top.iter().map(|top| {
            let (token, bytes) = spell(tokenizer, top.id);
            TopLogprob { token, logprob: finite(top.logprob), bytes }
        });
        let (text, bytes) = spell(tokenizer, token.chosen.id);
        TokenLogprob { token: text, logprob: finite(token.chosen.logprob), bytes, top_logprobs: top.collect() }
    };
    tokens.iter().map(token).collect()
}

/// JSON has no infinity; a token that a penalty made impossible is as unlikely as can be said.
pub fn finite(logprob: f64) -> f64 {
    logprob.max(-9999.0)
}

/// The text and the bytes of a token; bytes that are no text are spelled out.
pub fn spell(tokenizer: &Tokenizer, id: u32) -> (String, Vec<u8>) {
    let bytes = tokenizer.token_bytes(id).unwrap_or_default().to_vec();
    let text = match std::str::from_utf8(&bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().map(|byte| format!("\\x{byte:02x}")).collect(),
    };
    (text, bytes)
}
