//! What the server is doing, for people: `GET /status`, `GET /health`, `GET /metrics`.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderValue, Response, StatusCode, header};
use cachalot_engine::stats::StatsReport;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::api::json;
use crate::app::App;

/// What the server is doing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ServerStatus {
    /// The model's name.
    pub model: String,
    /// The program's version.
    pub version: String,
    /// Most tokens of prompt and answer together.
    pub context: usize,
    /// Seconds since the start.
    pub uptime_seconds: u64,
    /// Whether it is going to stop.
    pub stopping: bool,
    /// Answers in the making.
    pub running: usize,
    /// Requests that wait.
    pub waiting: usize,
    /// Tokens generated per second, all answers together, over the last seconds.
    pub tokens_per_second: f64,
    /// Prompt tokens processed per second, over the last seconds.
    pub prefill_tokens_per_second: f64,
    /// Tokens generated since the start.
    pub generated_tokens: u64,
    /// Prompt tokens since the start, processed or kept.
    pub prompt_tokens: u64,
    /// Of these, tokens whose state had been kept.
    pub cached_prompt_tokens: u64,
    /// Share of the experts that were found in memory over the last seconds; null if none was asked for.
    pub expert_hit_rate: Option<f64>,
    /// Bytes per second read from the disk over the last seconds.
    pub disk_bytes_per_second: Option<f64>,
    /// States kept for prompts to come.
    pub kept_states: usize,
    /// Bytes of these.
    pub kept_bytes: u64,
    /// Tokens of these; those that several begin with count once.
    pub prefix_tokens_kept: u64,
    /// Answers that ended.
    pub finished: u64,
    /// Of these, answers that were cancelled.
    pub cancelled: u64,
    /// Of these, answers that failed.
    pub failed: u64,
}

/// Whether the server is there.
#[derive(Debug, Serialize, ToSchema)]
pub struct Health {
    status: &'static str,
}

/// Over how long rates are taken, at least.
const WINDOW: Duration = Duration::from_secs(2);

/// Rates between two looks at counters.
#[derive(Default)]
pub struct Recent(Mutex<Looks>);

#[derive(Default)]
struct Looks {
    last: Option<Look>,
    hit_rate: Option<f64>,
    disk_rate: Option<f64>,
}

struct Look {
    at: Instant,
    hits: u64,
    misses: u64,
    bytes: u64,
}

impl Recent {
    /// Share of experts found in memory, and bytes read per second, lately.
    fn rates(&self, stats: &StatsReport) -> (Option<f64>, Option<f64>) {
        let mut looks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let look = Look {
            at: Instant::now(),
            hits: stats.expert_hits,
            misses: stats.expert_misses,
            bytes: stats.disk_demand_bytes + stats.disk_prefetch_bytes + stats.disk_row_bytes,
        };
        let looks = &mut *looks;
        match &looks.last {
            Some(last) if look.at - last.at < WINDOW => {}
            Some(last) => {
                let (hits, misses) = (look.hits - last.hits, look.misses - last.misses);
                looks.hit_rate = (hits + misses > 0).then(|| hits as f64 / (hits + misses) as f64);
                looks.disk_rate = Some((look.bytes - last.bytes) as f64 / (look.at - last.at).as_secs_f64());
                looks.last = Some(look);
            }
            None => looks.last = Some(look),
        }
        (looks.hit_rate, looks.disk_rate)
    }
}

/// `GET /status`.
pub async fn status(State(app): State<Arc<App>>) -> Response<Body> {
    let status = app.backend.status();
    let (hit_rate, disk_rate) = app.backend.stats().map_or((None, None), |stats| app.recent.rates(&stats));
    json(&ServerStatus {
        model: app.card.id.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        context: app.card.context,
        uptime_seconds: app.started.elapsed().as_secs(),
        stopping: app.is_stopping(),
        running: status.running,
        waiting: status.waiting,
        tokens_per_second: status.tokens_per_second,
        prefill_tokens_per_second: status.prompt_tokens_per_second,
        generated_tokens: status.generated_tokens,
        prompt_tokens: status.prompt_tokens + status.cached_tokens,
        cached_prompt_tokens: status.cached_tokens,
        expert_hit_rate: hit_rate,
        disk_bytes_per_second: disk_rate,
        kept_states: status.kept_states,
        kept_bytes: status.kept_bytes,
        prefix_tokens_kept: status.kept_tokens,
        finished: status.finished,
        cancelled: status.cancelled,
        failed: status.failed,
    })
}

/// `GET /health`: 200 while the server takes requests.
pub async fn health(State(app): State<Arc<App>>) -> Response<Body> {
    if app.is_stopping() {
        let mut response = json(&Health { status: "stopping" });
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        return response;
    }
    json(&Health { status: "ok" })
}

/// `GET /metrics`.
pub async fn metrics(State(app): State<Arc<App>>) -> Response<Body> {
    let text = app.metrics.text(&app.backend.status(), app.backend.stats().as_ref());
    let mut response = Response::new(Body::from(text));
    let kind = HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}
