//! OpenAI Responses (protocol.md 5.5): the handlers.
//!
//! Responses are kept for `previous_response_id` unless a request says otherwise; see [`store`].

mod custom;
mod events;
mod object;
pub mod store;

use std::sync::{Arc, PoisonError};

use axum::Extension;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::Response;
use cachalot_text::request::Api;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json as value};
use utoipa::ToSchema;

use super::{json, json_response, now, parse, with_ignored};
use crate::answer::Answer;
use crate::app::App;
use crate::error::{ApiError, Style};
use crate::gate::{Client, random};
use crate::generation::Done;
use crate::prepare::{Asked, Prepared, ignored_header, prepared, receive, turn_ended};
use crate::sse::tell;
use events::ResponsesNarrator;
pub use object::ResponseBody;
use object::{Echo, Items, ResponseObject};
use store::Stored;

/// What the server itself reads of a request; the conversation is converted from the whole body.
#[derive(Debug, Default, Deserialize)]
struct Fields {
    #[serde(default)]
    input: Value,
    #[serde(default)]
    previous_response_id: Option<String>,
    #[serde(default)]
    store: Option<bool>,
    #[serde(default)]
    include: Option<Vec<String>>,
    #[serde(flatten)]
    echo: Echo,
}

/// That a response is gone.
#[derive(Debug, Serialize, ToSchema)]
pub struct Deleted {
    id: String,
    object: &'static str,
    deleted: bool,
}

/// What was put in.
#[derive(Debug, Serialize, ToSchema)]
pub struct InputItems<'a> {
    object: &'static str,
    #[schema(value_type = Vec<Object>)]
    data: &'a [Value],
    first_id: Option<String>,
    last_id: Option<String>,
    has_more: bool,
}

/// `POST /v1/responses`.
pub async fn create(
    State(app): State<Arc<App>>,
    Extension(client): Extension<Client>,
    request: Request,
) -> Response<Body> {
    answer(app, client, request).await.unwrap_or_else(|error| error.response(Style::OpenAi))
}

/// `GET /v1/responses/{id}`.
pub async fn get(State(app): State<Arc<App>>, Path(id): Path<String>) -> Response<Body> {
    match stored(&app, &id) {
        Ok(stored) => json_response(Body::from(stored.response.clone())),
        Err(error) => error.response(Style::OpenAi),
    }
}

/// `GET /v1/responses/{id}/input_items`.
pub async fn input_items(State(app): State<Arc<App>>, Path(id): Path<String>) -> Response<Body> {
    match stored(&app, &id) {
        Ok(stored) => {
            let data = stored.input();
            let id = |item: Option<&Value>| item.and_then(|item| item["id"].as_str()).map(str::to_owned);
            let (first_id, last_id) = (id(data.first()), id(data.last()));
            json(&InputItems { object: "list", data, first_id, last_id, has_more: false })
        }
        Err(error) => error.response(Style::OpenAi),
    }
}

/// `DELETE /v1/responses/{id}`.
pub async fn delete(State(app): State<Arc<App>>, Path(id): Path<String>) -> Response<Body> {
    let removed = app.responses.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
    match removed {
        true => json(&Deleted { id, object: "response", deleted: true }),
        false => unknown(&id).response(Style::OpenAi),
    }
}

fn stored(app: &App, id: &str) -> Result<Arc<Stored>, ApiError> {
    let mut responses = app.responses.lock().unwrap_or_else(PoisonError::into_inner);
    responses.get(id).ok_or_else(|| unknown(id))
}

fn unknown(id: &str) -> ApiError {
    ApiError::not_found(format!("there is no response {id:?}: it was never stored, was deleted, or has been displaced"))
}

/// A request, with what its response tells of it.
struct Begun {
    prepared: Prepared,
    echo: Echo,
    /// All input items, if the response is kept.
    kept: Option<Vec<Value>>,
}

fn begin(app: &App, body: &str) -> Result<Begun, ApiError> {
    let Fields { mut input, previous_response_id, store, include, mut echo } = parse(body)?;
    let keep = store.unwrap_or(true);
    echo.store = keep;
    echo.previous_response_id.clone_from(&previous_response_id);
    let mut items = Vec::new();
    if let Some(id) = &previous_response_id {
        let missing = |_| {
            let message = format!("previous response {id:?} is not stored here; send the whole history as input");
            ApiError::field("previous_response_id", message).with_code("previous_response_not_found")
        };
        items.clone_from(&stored(app, id).map_err(missing)?.items);
    }
    let resolved = resolve(app, &mut input);
    let mut prepared = match previous_response_id.is_some() || resolved {
        false => prepared(app, Api::Responses, body)?,
        true => {
            let mut whole = items.clone();
            whole.extend(as_items(&input));
            let mut fields: serde_json::Map<String, Value> = parse(body)?;
            fields.insert("input".to_owned(), whole.into());
            prepared(app, Api::Responses, &Value::Object(fields).to_string())?
        }
    };
    if include.iter().flatten().any(|name| name == "message.output_text.logprobs") {
        prepared.request.sampling.logprobs = true;
    }
    let kept = keep.then(|| {
        items.extend(as_items(&input));
        items
    });
    Ok(Begun { prepared, echo, kept })
}

/// Puts stored items in the place of references to them; whether there were any. What is not stored stays, to be refused.
fn resolve(app: &App, input: &mut Value) -> bool {
    let mut resolved = false;
    let items = input.as_array_mut().into_iter().flatten();
    for item in items.filter(|item| item["type"] == "item_reference") {
        let mut responses = app.responses.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = item["id"].as_str().and_then(|id| responses.item(id)) {
            *item = found;
            resolved = true;
        }
    }
    resolved
}

/// The items of an input, which may be a text.
fn as_items(input: &Value) -> Vec<Value> {
    match input {
        Value::Array(items) => items.clone(),
        Value::String(text) => {
            let content = value!([{"type": "input_text", "text": text}]);
            vec![value!({"type": "message", "role": "user", "content": content})]
        }
        _ => Vec::new(),
    }
}

async fn answer(app: Arc<App>, client: Client, request: Request) -> Result<Response<Body>, ApiError> {
    let Begun { prepared, echo, kept } = receive(&app, request, begin).await?;
    let Asked { request, model, sampling, answer, updates, prompt } = prepared.ask(&app, client)?;
    let ignored = ignored_header(&request.ignored);
    let (streamed, one_call, tokenizer) = (request.stream, request.one_call, Arc::clone(&app.card.tokenizer));
    let items = Items::new(random("resp_"), request, tokenizer);
    let object = Arc::new(ResponseObject::new(items, model, now(), echo, sampling));
    let keep_alive = app.options.keep_alive;
    let at_end = {
        let object = Arc::clone(&object);
        move |answer: &Answer, done: &Done| {
            turn_ended(&app, &prompt, one_call, answer, done);
            if let Some(input) = kept {
                let stored = Stored::new(input, &object.ended(answer));
                app.responses.lock().unwrap_or_else(PoisonError::into_inner).keep(object.id().to_owned(), stored);
            }
        }
    };
    let told = tell(ResponsesNarrator::new(object), streamed, answer, updates, keep_alive, Box::new(at_end)).await?;
    Ok(with_ignored(told, ignored))
}
