//! `/openapi.json`: the routes and the shapes of requests and responses, from the types and lists that the code itself uses.
//!
//! Bodies of the conversation APIs are converted by the vendor's library and described in full by those APIs' own documents;
//! here they have the fields that are carried out, with their types.

use std::borrow::Cow;

use axum::body::Body;
use axum::http::Response;
use cachalot_text::request::Api;
use utoipa::openapi::schema::{ArrayBuilder, ObjectBuilder, OneOfBuilder, SchemaType, Type};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{OpenApi as Description, RefOr, Schema};
use utoipa::{Modify, OpenApi, PartialSchema, ToSchema};

use crate::api::chat::{ChatChunk, ChatCompletion};
use crate::api::completions::{Completion, CompletionRequest};
use crate::api::json;
use crate::api::messages::{Message, TokenCount};
use crate::api::models::{Model, ModelList};
use crate::api::responses::{Deleted, InputItems, ResponseBody};
use crate::error::{ErrorBody, MessagesErrorBody};
use crate::status::{Health, ServerStatus};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "cachalot",
        description = "A DeepSeek V4 model on its owner's machine. Where the server has keys, a request brings one as \
                       `Authorization: Bearer KEY` or as `x-api-key: KEY`.",
        license(name = "Apache-2.0")
    ),
    paths(
        chat_completions,
        completions,
        create_response,
        get_response,
        delete_response,
        input_items,
        create_message,
        count_tokens,
        list_models,
        get_model,
        status,
        health,
        metrics
    ),
    security((), ("key" = [])),
    modifiers(&Key)
)]
struct Document;

struct Key;

impl Modify for Key {
    fn modify(&self, document: &mut Description) {
        let scheme = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
        document.components.get_or_insert_default().add_security_scheme("key", SecurityScheme::Http(scheme));
    }
}

/// `GET /openapi.json`.
pub async fn document() -> Response<Body> {
    json(&Document::openapi())
}

/// The body of a conversation: the fields of its API that are carried out.
macro_rules! body {
    ($name:ident, $api:expr, $required:expr) => {
        struct $name;

        impl ToSchema for $name {
            fn name() -> Cow<'static, str> {
                Cow::Borrowed(stringify!($name))
            }
        }

        impl PartialSchema for $name {
            fn schema() -> RefOr<Schema> {
                let fields = ObjectBuilder::new().description(Some(
                    "Any other field is refused if it would change the answer, and else dropped and named in the header \
                     x-cachalot-ignored.",
                ));
                let fields = $api.fields().fold(fields, |fields, name| fields.property(name, field(name)));
                let required: &[&str] = $required;
                required.iter().fold(fields, |fields, name| fields.required(*name)).into()
            }
        }
    };
}

body!(ChatRequest, Api::Chat, &["messages"]);
body!(MessagesRequest, Api::Messages, &["messages"]);
body!(ResponsesRequest, Api::Responses, &[]);

/// The type of a field; null is the same as none.
fn field(name: &str) -> Schema {
    let of = |kind: Type| ObjectBuilder::new().schema_type(SchemaType::from_iter([kind, Type::Null]));
    let list = |items: Type| {
        let items = ObjectBuilder::new().schema_type(items);
        ArrayBuilder::new().schema_type(SchemaType::from_iter([Type::Array, Type::Null])).items(items)
    };
    let either = |one: Schema, other: Schema| Schema::OneOf(OneOfBuilder::new().item(one).item(other).build());
    let text = || ObjectBuilder::new().schema_type(Type::String).into();
    match name {
        "messages" | "tools" => list(Type::Object).into(),
        "include" | "stop_sequences" => list(Type::String).into(),
        "input" | "system" => either(text(), list(Type::Object).into()),
        "stop" => either(text(), list(Type::String).into()),
        "tool_choice" => either(text(), of(Type::Object).into()),
        "reasoning_effort" => either(text(), of(Type::Number).into()),
        "instructions" | "model" | "previous_response_id" => of(Type::String).into(),
        "continue_final_message" | "enable_thinking" | "logprobs" | "parallel_tool_calls" | "store" | "stream" => {
            of(Type::Boolean).into()
        }
        "max_completion_tokens" | "max_output_tokens" | "max_tokens" | "n" | "seed" | "top_k" | "top_logprobs" => {
            of(Type::Integer).into()
        }
        "frequency_penalty" | "min_p" | "presence_penalty" | "repeat_penalty" | "repetition_penalty"
        | "temperature" | "top_p" => of(Type::Number).into(),
        _ => of(Type::Object).into(),
    }
}

macro_rules! route {
    // What is generated, whole or as events.
    ($name:ident, $path:literal, $summary:literal, $body:ty, $answer:ty, $event:ty, $error:ty) => {
        #[utoipa::path(post, path = $path, summary = $summary, request_body = $body, responses(
            (status = 200, content(($answer = "application/json"), ($event = "text/event-stream")),
             headers(("x-cachalot-ignored" = String, description = "What of the request was dropped"))),
            (status = "4XX", body = $error)))]
        #[allow(dead_code, reason = "stands for a route in the document")]
        fn $name() {}
    };
    ($name:ident, $method:ident, $path:literal, $summary:literal, $answer:ty) => {
        #[utoipa::path($method, path = $path, summary = $summary,
                                    responses((status = 200, body = $answer), (status = "4XX", body = ErrorBody)))]
        #[allow(dead_code, reason = "stands for a route in the document")]
        fn $name() {}
    };
    ($name:ident, $method:ident, $path:literal, $summary:literal, $answer:ty, id) => {
        #[utoipa::path($method, path = $path, summary = $summary, params(("id" = String, Path)),
                                    responses((status = 200, body = $answer), (status = "4XX", body = ErrorBody)))]
        #[allow(dead_code, reason = "stands for a route in the document")]
        fn $name() {}
    };
}

route!(
    chat_completions,
    "/v1/chat/completions",
    "OpenAI Chat Completions",
    ChatRequest,
    ChatCompletion,
    ChatChunk,
    ErrorBody
);
route!(completions, "/v1/completions", "Raw completions", CompletionRequest, Completion, Completion, ErrorBody);
route!(create_response, "/v1/responses", "OpenAI Responses", ResponsesRequest, ResponseBody, Object, ErrorBody);
route!(create_message, "/v1/messages", "Anthropic Messages", MessagesRequest, Message, Object, MessagesErrorBody);
route!(get_response, get, "/v1/responses/{id}", "A stored response", ResponseBody, id);
route!(delete_response, delete, "/v1/responses/{id}", "Drop a stored response", Deleted, id);
route!(input_items, get, "/v1/responses/{id}/input_items", "What was put in", InputItems, id);
route!(list_models, get, "/v1/models", "The model", ModelList);
route!(get_model, get, "/v1/models/{id}", "The model, by a name it answers to", Model, id);
route!(status, get, "/status", "What the server is doing", ServerStatus);
route!(health, get, "/health", "Whether it takes requests", Health);

#[utoipa::path(post, path = "/v1/messages/count_tokens", summary = "Length of a prompt", request_body = MessagesRequest,
               responses((status = 200, body = TokenCount), (status = "4XX", body = MessagesErrorBody)))]
#[allow(dead_code, reason = "stands for a route in the document")]
fn count_tokens() {}

#[utoipa::path(get, path = "/metrics", summary = "Counters, in OpenMetrics",
               responses((status = 200, body = String, content_type = "application/openmetrics-text")))]
#[allow(dead_code, reason = "stands for a route in the document")]
fn metrics() {}
