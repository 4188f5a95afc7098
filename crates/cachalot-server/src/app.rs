//! The routes, and what all requests share.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::Response;
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};
use tokio::sync::Semaphore;

use crate::api::responses::store::Responses;
use crate::api::{chat, completions, messages, models, responses};
use crate::backend::{Backend, ModelCard};
use crate::error::{ApiError, Kind};
use crate::gate;
use crate::metrics::Metrics;
use crate::options::ServerOptions;
use crate::replay::Replays;
use crate::status::Recent;
use crate::{body, openapi, page, status};

/// Prompts that are written at once: each takes a core and memory for a while.
const PREPARING: usize = 4;

/// What all requests share.
pub struct App {
    /// The model.
    pub card: ModelCard,
    /// Who answers.
    pub backend: Arc<dyn Backend>,
    /// What was decided.
    pub options: ServerOptions,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Turns that may come back.
    pub replays: Mutex<Replays>,
    /// Responses that may be gone on from.
    pub responses: Mutex<Responses>,
    /// Room for bodies.
    pub bodies: Arc<Semaphore>,
    /// Turns of those who write prompts.
    pub preparing: Semaphore,
    /// Rates of the last seconds.
    pub recent: Recent,
    /// When it began.
    pub started: Instant,
    stopping: AtomicBool,
}

impl App {
    /// A server of one model.
    pub fn new(card: ModelCard, backend: Arc<dyn Backend>, options: ServerOptions) -> Self {
        let limits = options.limits;
        Self {
            card,
            backend,
            metrics: Arc::default(),
            replays: Mutex::new(Replays::new(limits.replay_tokens)),
            responses: Mutex::new(Responses::new(limits.stored_bytes)),
            bodies: Arc::new(body::room(limits.bodies_bytes)),
            preparing: Semaphore::new(PREPARING),
            recent: Recent::default(),
            started: Instant::now(),
            stopping: AtomicBool::new(false),
            options,
        }
    }

    /// Whether it is going to stop.
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// It is going to stop.
    pub fn set_stopping(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }
}

/// The routes.
pub fn router(app: Arc<App>) -> Router {
    let apis = Router::new()
        .route("/chat/completions", post(chat::create))
        .route("/completions", post(completions::create))
        .route("/responses", post(responses::create))
        .route("/responses/{id}", get(responses::get).delete(responses::delete))
        .route("/responses/{id}/input_items", get(responses::input_items))
        .route("/messages", post(messages::create))
        .route("/messages/count_tokens", post(messages::count_tokens))
        .route("/models", get(models::list))
        .route("/models/{*id}", get(models::get));
    // The vendor has its APIs under these, so that clients only change the host (protocol.md 5.1).
    let mut router = apis.clone();
    for prefix in ["/v1", "/beta", "/beta/v1", "/anthropic", "/anthropic/v1"] {
        router = router.nest(prefix, apis.clone());
    }
    router
        .route("/", get(page::index))
        .route("/assets/{*path}", get(page::asset))
        .route("/health", get(status::health))
        .route("/status", get(status::status))
        .route("/metrics", get(status::metrics))
        .route("/openapi.json", get(openapi::document))
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(from_fn_with_state(Arc::clone(&app), gate::pass))
        .with_state(app)
}

async fn not_found(request: Request) -> Response<Body> {
    let message = format!("there is nothing at {} {}", request.method(), request.uri().path());
    ApiError::not_found(message).response(gate::style(&request))
}

async fn method_not_allowed(request: Request) -> Response<Body> {
    let message = format!("{} does not take {}", request.uri().path(), request.method());
    ApiError::new(Kind::Method, message).response(gate::style(&request))
}
