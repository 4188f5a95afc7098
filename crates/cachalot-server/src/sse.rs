//! An answer on its way out: server-sent events as it comes, or JSON when it is whole.
//!
//! Owns the framing, the signs of life while nothing is ready, and what happens when a response ends early. It is polled
//! only as fast as its client reads.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::{HeaderValue, Response, header};
use bytes::Bytes;
use futures_util::stream::unfold;
use serde::Serialize;
use tokio::sync::mpsc::Receiver;
use tokio::time::timeout;
use tracing::Instrument;

use crate::answer::{Answer, Piece, Step};
use crate::api::json_response;
use crate::error::{ApiError, Style};
use crate::generation::{Done, Update};

/// Events on their way to the client.
#[derive(Debug, Default)]
pub struct Frames(Vec<u8>);

impl Frames {
    /// Whether there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What is sent.
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    /// An event without a name.
    pub fn data(&mut self, data: &impl Serialize) {
        self.0.extend_from_slice(b"data: ");
        // Our own types always have a JSON form, without a line break in it.
        let _ = serde_json::to_writer(&mut self.0, data);
        self.0.extend_from_slice(b"\n\n");
    }

    /// An event with a name.
    pub fn event(&mut self, name: &str, data: &impl Serialize) {
        self.0.extend_from_slice(format!("event: {name}\n").as_bytes());
        self.data(data);
    }

    /// The mark at the end of OpenAI's streams.
    pub fn end_mark(&mut self) {
        self.0.extend_from_slice(b"data: [DONE]\n\n");
    }

    /// Something that clients do not look at.
    pub fn comment(&mut self, text: &str) {
        self.0.extend_from_slice(format!(": {text}\n\n").as_bytes());
    }
}

/// How an API tells an answer.
pub trait Narrator: Send + 'static {
    /// The form of its errors.
    const STYLE: Style;

    /// All of it, when it has ended.
    fn whole(&self, answer: &Answer) -> Vec<u8>;
    /// The prompt's tokens are known.
    fn start(&mut self, answer: &Answer, out: &mut Frames);
    /// The model said something; `answer` has it already.
    fn piece(&mut self, answer: &Answer, piece: Piece, out: &mut Frames);
    /// It has ended.
    fn end(&mut self, answer: &Answer, out: &mut Frames);
    /// It will not end.
    fn fail(&mut self, error: &ApiError, out: &mut Frames);
    /// Nothing is ready, after the start.
    fn wait(&mut self, out: &mut Frames) {
        out.comment("keep-alive");
    }
}

/// What is done when an answer has ended.
pub type AtEnd = Box<dyn FnOnce(&Answer, &Done) + Send>;

/// A response that tells `answer`: as it comes if it is `streamed`, else when it has ended.
///
/// # Errors
/// If the answer fails while its status can still say so.
pub async fn tell<N: Narrator>(
    narrator: N,
    streamed: bool,
    mut answer: Answer,
    mut updates: Receiver<Update>,
    keep_alive: Duration,
    at_end: AtEnd,
) -> Result<Response<Body>, ApiError> {
    if streamed {
        return Ok(stream(narrator, answer, updates, keep_alive, at_end));
    }
    let whole = async move {
        let done = answer.whole(&mut updates).await?;
        at_end(&answer, &done);
        Ok(narrator.whole(&answer))
    };
    patiently(whole, N::STYLE, keep_alive).await
}

/// A response of JSON that may be long in the making. Whoever waits for it hears an empty line every `keep_alive`, as from
/// the vendor's API (protocol.md 5.1): readers of JSON skip it, and nobody between them takes the connection for dead.
/// From the first one on the status is 200, and an error can be told in the body only.
///
/// # Errors
/// Those of `work`, before anything has been sent.
pub async fn patiently(
    work: impl Future<Output = Result<Vec<u8>, ApiError>> + Send + 'static,
    style: Style,
    keep_alive: Duration,
) -> Result<Response<Body>, ApiError> {
    let mut work = Box::pin(work.instrument(tracing::Span::current()));
    if let Ok(whole) = timeout(keep_alive, &mut work).await {
        return Ok(json_response(Body::from(whole?)));
    }
    let lines = unfold((Some(work), true), move |(work, first)| async move {
        let mut work = work?;
        let waited = if first { Err(()) } else { timeout(keep_alive, &mut work).await.map_err(|_| ()) };
        let (bytes, work) = match waited {
            Err(()) => (Bytes::from_static(b"\n"), Some(work)),
            Ok(Ok(whole)) => (Bytes::from(whole), None),
            Ok(Err(error)) => {
                tracing::warn!(error = error.message(), "an answer failed after its status had been sent");
                (Bytes::from(error.body(style)), None)
            }
        };
        Some((Ok::<_, Infallible>(bytes), (work, false)))
    });
    Ok(json_response(Body::from_stream(lines)))
}

struct Telling<N> {
    narrator: N,
    answer: Answer,
    updates: Receiver<Update>,
    at_end: Option<AtEnd>,
    started: bool,
    ended: bool,
    keep_alive: Duration,
    since: Instant,
    span: tracing::Span,
}

fn stream<N: Narrator>(
    narrator: N,
    answer: Answer,
    updates: Receiver<Update>,
    keep_alive: Duration,
    at_end: AtEnd,
) -> Response<Body> {
    let telling = Telling {
        narrator,
        answer,
        updates,
        at_end: Some(at_end),
        started: false,
        ended: false,
        keep_alive,
        since: Instant::now(),
        span: tracing::Span::current(),
    };
    let frames = unfold(telling, |mut telling| async move {
        let frames = telling.next().await?;
        Some((Ok::<_, Infallible>(Bytes::from(frames.into_bytes())), telling))
    });
    event_stream(Body::from_stream(frames))
}

/// A response of events.
pub fn event_stream(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // Proxies that collect a response before they pass it on would defeat the purpose.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

impl<N: Narrator> Telling<N> {
    async fn next(&mut self) -> Option<Frames> {
        let mut out = Frames::default();
        while out.is_empty() {
            if self.ended {
                return None;
            }
            match timeout(self.keep_alive, self.answer.next(&mut self.updates)).await {
                Err(_) if self.started => self.narrator.wait(&mut out),
                Err(_) => out.comment("keep-alive"),
                Ok(step) => self.step(step, &mut out),
            }
        }
        Some(out)
    }

    fn step(&mut self, step: Result<Step, ApiError>, out: &mut Frames) {
        let step = match step {
            Ok(step) => step,
            Err(error) => {
                self.ended = true;
                self.span.in_scope(|| tracing::warn!(error = error.message(), "an answer failed"));
                return self.narrator.fail(&error, out);
            }
        };
        if !std::mem::replace(&mut self.started, true) {
            self.narrator.start(&self.answer, out);
        }
        match step {
            Step::Started | Step::Scored => {}
            Step::Pieces(pieces) => {
                for piece in pieces {
                    self.narrator.piece(&self.answer, piece, out);
                }
            }
            Step::Done(done) => {
                self.ended = true;
                self.narrator.end(&self.answer, out);
                if let Some(at_end) = self.at_end.take() {
                    self.span.in_scope(|| at_end(&self.answer, &done));
                }
            }
        }
    }
}

impl<N> Drop for Telling<N> {
    fn drop(&mut self) {
        if !self.ended {
            let milliseconds = self.since.elapsed().as_millis() as u64;
            self.span.in_scope(|| tracing::info!(milliseconds, "the client is gone; its answer is cancelled"));
        }
    }
}
