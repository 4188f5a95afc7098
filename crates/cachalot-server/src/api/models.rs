//! The model, for OpenAI's and Anthropic's clients at once (protocol.md 5.7).

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, Response};
use cachalot_text::request::Api;
use cachalot_text::sampling::MAX_OUTPUT;
use serde::Serialize;
use utoipa::ToSchema;

use super::json;
use crate::app::App;
use crate::backend::ModelCard;
use crate::error::{ApiError, Style};

/// All models there are: one.
#[derive(Debug, Serialize, ToSchema)]
pub struct ModelList {
    object: &'static str,
    data: Vec<Model>,
    /// For Codex, which complains if it is missing; always empty. What its entries hold is Codex's own and changes with its
    /// versions, instructions for the model among it; of a model that is not listed it takes what its user configured.
    #[schema(value_type = Vec<Object>)]
    models: [(); 0],
    has_more: bool,
    first_id: String,
    last_id: String,
}

/// A model.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Model {
    id: String,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
    r#type: &'static str,
    display_name: String,
    created_at: String,
    context_length: usize,
    max_completion_tokens: usize,
    input_modalities: &'static [&'static str],
    output_modalities: [&'static str; 1],
    supported_parameters: Vec<&'static str>,
}

/// Of the fields that are carried out, those that say how to answer rather than what.
fn parameters() -> Vec<&'static str> {
    Api::Chat.fields().filter(|name| !["messages", "model", "n", "stream", "stream_options"].contains(name)).collect()
}

fn model(card: &ModelCard, id: &str) -> Model {
    Model {
        id: id.to_owned(),
        object: "model",
        created: card.created,
        owned_by: "cachalot",
        r#type: "model",
        display_name: card.id.clone(),
        created_at: timestamp(card.created),
        context_length: card.context,
        max_completion_tokens: MAX_OUTPUT.min(card.context),
        input_modalities: if card.images { &["text", "image"] } else { &["text"] },
        output_modalities: ["text"],
        supported_parameters: parameters(),
    }
}

/// `GET /v1/models`.
pub async fn list(State(app): State<Arc<App>>) -> Response<Body> {
    let card = &app.card;
    let (first_id, last_id) = (card.id.clone(), card.id.clone());
    let data = vec![model(card, &card.id)];
    json(&ModelList { object: "list", data, models: [], has_more: false, first_id, last_id })
}

/// `GET /v1/models/{id}`.
pub async fn get(State(app): State<Arc<App>>, Path(id): Path<String>, headers: HeaderMap) -> Response<Body> {
    if app.card.answers_to(&id) {
        return json(&model(&app.card, &id));
    }
    let style = if headers.contains_key("anthropic-version") { Style::Anthropic } else { Style::OpenAi };
    let message = format!("there is no model {id:?} here; this server runs {:?}", app.card.id);
    ApiError::not_found(message).with_code("model_not_found").response(style)
}

/// Seconds since 1970 as RFC 3339.
fn timestamp(seconds: u64) -> String {
    let (days, second) = ((seconds / 86_400) as i64, seconds % 86_400);
    // Days since 0000-03-01, in eras of 400 years.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute) = (second / 3600, second / 60 % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{:02}Z", second % 60)
}

#[cfg(test)]
mod tests {
    use super::timestamp;

    #[test]
    fn times_are_those_of_the_calendar() {
        assert_eq!(timestamp(0), "1970-01-01T00:00:00Z");
        assert_eq!(timestamp(951_782_399), "2000-02-28T23:59:59Z");
        assert_eq!(timestamp(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(timestamp(1_767_225_599), "2025-12-31T23:59:59Z");
        assert_eq!(timestamp(1_767_225_600), "2026-01-01T00:00:00Z");
    }
}
