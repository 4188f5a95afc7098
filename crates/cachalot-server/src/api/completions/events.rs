//! The events of completions: several answers may come at once, each with its index.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::body::Body;
use axum::http::Response;
use bytes::Bytes;
use futures_util::future::select_all;
use futures_util::stream::unfold;
use tokio::time::timeout;

use super::{Choosing, CompletionChoice, CompletionLogprobs, CompletionUsage, Echo, Head, finish_reason};
use crate::answer::{Piece, Step};
use crate::error::ApiError;
use crate::prepare::log;
use crate::sse::{Frames, event_stream};

struct Telling {
    head: Head,
    include_usage: bool,
    keep_alive: Duration,
    /// Answers that have not ended, with their index and the length of their text in characters.
    going: Vec<(usize, Choosing, usize)>,
    /// What is repeated before the answers.
    echoes: VecDeque<(usize, String)>,
    usage: CompletionUsage,
    ended: bool,
    span: tracing::Span,
}

/// A response that tells all `choices` as they come.
pub(super) fn stream(keep_alive: Duration, head: Head, choices: Vec<Choosing>, include_usage: bool) -> Response<Body> {
    let mut echoes = VecDeque::new();
    let mut going = Vec::with_capacity(choices.len());
    for (index, mut choosing) in choices.into_iter().enumerate() {
        let offset = choosing.echo.as_ref().map_or(0, |echo| echo.text.chars().count());
        // With log-probabilities it is told when they are there.
        let echo = choosing.echo.take_if(|_| !head.logprobs);
        echoes.extend(echo.map(|echo| (index, echo.text)));
        going.push((index, choosing, offset));
    }
    let usage = CompletionUsage::default();
    let span = tracing::Span::current();
    let telling = Telling { head, include_usage, keep_alive, going, echoes, usage, ended: false, span };
    let frames = unfold(telling, |mut telling| async move {
        let frames = telling.next().await?;
        Some((Ok::<_, Infallible>(Bytes::from(frames.into_bytes())), telling))
    });
    event_stream(Body::from_stream(frames))
}

impl Telling {
    async fn next(&mut self) -> Option<Frames> {
        let mut out = Frames::default();
        while out.is_empty() {
            if self.ended {
                return None;
            }
            if let Some((index, text)) = self.echoes.pop_front() {
                self.tell(index, text, None, None, &mut out);
                continue;
            }
            if self.going.is_empty() {
                self.end(&mut out);
                continue;
            }
            let keep_alive = self.keep_alive;
            let all =
                self.going.iter_mut().map(|(_, choosing, _)| Box::pin(choosing.answer.next(&mut choosing.updates)));
            let first = timeout(keep_alive, select_all(all)).await.map(|(step, place, _)| (step, place));
            match first {
                Err(_) => out.comment("keep-alive"),
                Ok((step, place)) => self.step(step, place, &mut out),
            }
        }
        Some(out)
    }

    fn step(&mut self, step: Result<Step, ApiError>, place: usize, out: &mut Frames) {
        match step {
            Ok(Step::Started) => {}
            Ok(Step::Scored) => {
                let (index, choosing, _) = &mut self.going[place];
                let Some(Echo { text, ids }) = choosing.echo.take() else { return };
                let mut logprobs = CompletionLogprobs::default();
                logprobs.echo(&self.head.tokenizer, &ids, &std::mem::take(&mut choosing.answer.prompt_logprobs));
                let index = *index;
                self.tell(index, text, Some(logprobs), None, out);
            }
            Ok(Step::Pieces(pieces)) => {
                for piece in pieces {
                    let Piece::Content(text, tokens) = piece else { continue };
                    let (index, _, offset) = &mut self.going[place];
                    let (index, start) = (*index, *offset);
                    *offset += text.chars().count();
                    let logprobs = self.head.logprobs.then(|| {
                        let mut logprobs = CompletionLogprobs::default();
                        logprobs.extend(&self.head.tokenizer, &tokens, start);
                        logprobs
                    });
                    self.tell(index, text, logprobs, None, out);
                }
            }
            Ok(Step::Done(done)) => {
                let (index, choosing, offset) = self.going.swap_remove(place);
                self.span.in_scope(|| log(&choosing.answer, &done));
                self.usage.add(&choosing.answer.usage);
                let logprobs = self.head.logprobs.then(|| {
                    let mut logprobs = CompletionLogprobs::default();
                    logprobs.extend(&self.head.tokenizer, &done.unsaid, offset);
                    logprobs
                });
                self.tell(index, String::new(), logprobs, Some(finish_reason(&choosing.answer)), out);
            }
            Err(error) => {
                self.ended = true;
                self.span.in_scope(|| tracing::warn!(error = error.message(), "an answer failed"));
                out.data(&error.openai());
            }
        }
    }

    fn tell(
        &self,
        index: usize,
        text: String,
        logprobs: Option<CompletionLogprobs>,
        finish_reason: Option<&'static str>,
        out: &mut Frames,
    ) {
        let choice = CompletionChoice { text, index, logprobs, finish_reason };
        out.data(&self.head.completion(vec![choice], None));
    }

    fn end(&mut self, out: &mut Frames) {
        self.ended = true;
        if self.include_usage {
            out.data(&self.head.completion(Vec::new(), Some(self.usage)));
        }
        out.end_mark();
    }
}
