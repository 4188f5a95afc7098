//! `/openapi.json`: the routes and the shapes of responses, from the types that the code itself uses.
//!
//! Bodies of the conversation APIs are converted by the vendor's library and described by those APIs' own documents; here
//! they are objects.

use axum::body::Body;
use axum::http::Response;
use utoipa::OpenApi;

use crate::api::chat::{ChatChunk, ChatCompletion};
use crate::api::completions::{Completion, CompletionRequest};
use crate::api::json;
use crate::api::messages::{Message, TokenCount};
use crate::api::models::{Model, ModelList};
use crate::api::responses::{Deleted, ResponseBody};
use crate::error::{ErrorBody, MessagesErrorBody};
use crate::status::{Health, ServerStatus};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "cachalot",
        description = "A DeepSeek V4 model on its owner's machine.",
        license(name = "Apache-2.0")
    ),
    paths(
        chat_completions,
        completions,
        create_response,
        get_response,
        delete_response,
        create_message,
        count_tokens,
        list_models,
        get_model,
        status,
        health
    ),
    components(schemas(ChatChunk, ErrorBody, MessagesErrorBody))
)]
struct Document;

/// `GET /openapi.json`.
pub async fn document() -> Response<Body> {
    json(&Document::openapi())
}

macro_rules! route {
    ($name:ident, $method:ident, $path:literal, $summary:literal, $body:ty, $answer:ty, $error:ty) => {
        #[utoipa::path($method, path = $path, summary = $summary, request_body = $body,
                                    responses((status = 200, body = $answer), (status = "4XX", body = $error)))]
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

route!(chat_completions, post, "/v1/chat/completions", "OpenAI Chat Completions", Object, ChatCompletion, ErrorBody);
route!(completions, post, "/v1/completions", "Raw completions", CompletionRequest, Completion, ErrorBody);
route!(create_response, post, "/v1/responses", "OpenAI Responses", Object, ResponseBody, ErrorBody);
route!(get_response, get, "/v1/responses/{id}", "A stored response", ResponseBody, id);
route!(delete_response, delete, "/v1/responses/{id}", "Drop a stored response", Deleted, id);
route!(create_message, post, "/v1/messages", "Anthropic Messages", Object, Message, MessagesErrorBody);
route!(count_tokens, post, "/v1/messages/count_tokens", "Length of a prompt", Object, TokenCount, MessagesErrorBody);
route!(list_models, get, "/v1/models", "The model", ModelList);
route!(get_model, get, "/v1/models/{id}", "The model, by a name it answers to", Model, id);
route!(status, get, "/status", "What the server is doing", ServerStatus);
route!(health, get, "/health", "Whether it takes requests", Health);
