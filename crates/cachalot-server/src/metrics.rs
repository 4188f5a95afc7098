//! Counters for Prometheus.
//!
//! Owns what the server counts itself; what the backend counts is read from its status when somebody asks.

use axum::http::{Method, StatusCode};
use cachalot_engine::scheduler::{JobError, Status};
use cachalot_engine::session::Outcome;
use cachalot_engine::stats::StatsReport;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

type Labels = Vec<(&'static str, String)>;

/// What is counted.
pub struct Metrics {
    registry: Registry,
    requests: Family<Labels, Counter>,
    answers: Family<Labels, Counter>,
    first_token: Histogram,
    per_token: Histogram,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("cachalot");
        let requests = Family::<Labels, Counter>::default();
        let answers = Family::<Labels, Counter>::default();
        let first_token = Histogram::new(exponential_buckets(0.01, 2.0, 16));
        let per_token = Histogram::new(exponential_buckets(0.001, 2.0, 14));
        registry.register("http_requests", "Requests, by method, path and status", requests.clone());
        registry.register("answers", "Answers, by how they ended", answers.clone());
        registry.register(
            "time_to_first_token_seconds",
            "From a request to the first token of its answer",
            first_token.clone(),
        );
        registry.register("time_per_token_seconds", "Per generated token after the first", per_token.clone());
        Self { registry, requests, answers, first_token, per_token }
    }
}

impl Metrics {
    /// Counts an answered request.
    pub fn request(&self, method: &Method, path: &str, status: StatusCode) {
        // A method is whatever a client wrote: those that nobody serves are one entry.
        let method = match *method {
            Method::GET | Method::HEAD | Method::POST | Method::DELETE | Method::OPTIONS => method.as_str(),
            _ => "other",
        };
        let labels =
            vec![("method", method.to_owned()), ("path", path.to_owned()), ("status", status.as_str().to_owned())];
        self.requests.get_or_create(&labels).inc();
    }

    /// Counts the end of a job.
    pub fn ended(&self, result: Result<&Outcome, &JobError>) {
        use cachalot_engine::session::Finish;
        let end = match result {
            Ok(outcome) => match outcome.finish {
                Finish::EndOfAnswer => "end_of_answer",
                Finish::Stopped => "stopped",
                Finish::Length => "length",
                Finish::Cancelled => "cancelled",
            },
            Err(JobError::TimedOut) => "timed_out",
            Err(JobError::Stopping) => "server_stopping",
            Err(JobError::Generate(_)) => "failed",
        };
        self.answers.get_or_create(&vec![("end", end.to_owned())]).inc();
        let Ok(outcome) = result else { return };
        if outcome.generated_tokens > 0 {
            self.first_token.observe(outcome.time_to_first_token.as_secs_f64());
        }
        if outcome.generated_tokens > 1 {
            self.per_token.observe(outcome.decode_time.as_secs_f64() / (outcome.generated_tokens - 1) as f64);
        }
    }

    /// Everything, in the text form that Prometheus reads.
    pub fn text(&self, status: &Status, stats: Option<&StatsReport>) -> String {
        let mut text = String::new();
        // Writing to a string does not fail. The end marker comes once, at the very end.
        let _ = encode(&mut text, &self.registry);
        text.truncate(text.trim_end_matches("# EOF\n").len());
        let _ = encode(&mut text, &of_backend(status, stats));
        text
    }
}

/// A registry of what the backend says now.
fn of_backend(status: &Status, stats: Option<&StatsReport>) -> Registry {
    let mut registry = Registry::with_prefix("cachalot");
    let counters = [
        ("generated_tokens", "Tokens generated", status.generated_tokens),
        ("prompt_tokens", "Prompt tokens processed", status.prompt_tokens),
        ("cached_prompt_tokens", "Prompt tokens whose state had been kept", status.cached_tokens),
        ("jobs_finished", "Jobs that ended", status.finished),
        ("jobs_cancelled", "Jobs that were cancelled", status.cancelled),
        ("jobs_failed", "Jobs that failed", status.failed),
    ];
    for (name, help, value) in counters {
        registry.register(name, help, ConstCounter::new(value));
    }
    let gauges = [
        ("jobs_running", "Answers in the making", status.running as f64),
        ("jobs_waiting", "Jobs that wait", status.waiting as f64),
        ("tokens_per_second", "Tokens generated per second, all answers together", status.tokens_per_second),
        ("prompt_tokens_per_second", "Prompt tokens processed per second", status.prompt_tokens_per_second),
        ("kept_states", "States kept for prompts to come", status.kept_states as f64),
        ("kept_state_bytes", "Bytes of these", status.kept_bytes as f64),
        ("kept_state_tokens", "Tokens of these", status.kept_tokens as f64),
    ];
    for (name, help, value) in gauges {
        registry.register(name, help, ConstGauge::new(value));
    }
    if let Some(stats) = stats {
        registry.register("expert_hits", "Experts found in memory", ConstCounter::new(stats.expert_hits));
        registry.register("expert_misses", "Experts waited for", ConstCounter::new(stats.expert_misses));
        let bytes = stats.disk_demand_bytes + stats.disk_prefetch_bytes + stats.disk_row_bytes;
        registry.register("disk_read_bytes", "Bytes read from the disk", ConstCounter::new(bytes));
        let rate = stats.disk_bytes_per_s.unwrap_or(0.0);
        registry.register("disk_bytes_per_second", "While the disk was busy", ConstGauge::new(rate));
    }
    registry
}
