//! An answer as far as it has come: the one thing that all APIs' responses and events are made from.
//!
//! Owns reasoning, content, calls with their ids, log-probabilities and usage. The parser's order is reasoning, content,
//! calls; nothing of one kind follows a later one.

use cachalot_engine::chat::TokenLogProbs;
use cachalot_text::parser::{Event, FinishReason};
use rand::Rng;
use rand::distr::Alphanumeric;
use tokio::sync::mpsc::Receiver;
use xxhash_rust::xxh3::xxh3_64;

use crate::error::{ApiError, Kind};
use crate::generation::{Done, Output, Update};

/// An answer.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// Whether the model reasons.
    pub thinking: bool,
    /// Whether it begins in the reasoning: not if an answer is continued.
    pub starts_in_reasoning: bool,
    /// The reasoning so far.
    pub reasoning: String,
    /// The answer proper so far.
    pub content: String,
    /// The calls so far.
    pub calls: Vec<Call>,
    /// Per token of the reasoning, if asked for.
    pub reasoning_logprobs: Vec<TokenLogProbs>,
    /// Per token of the content, if asked for.
    pub content_logprobs: Vec<TokenLogProbs>,
    /// Per token of the prompt from the second on, if asked for.
    pub prompt_logprobs: Vec<TokenLogProbs>,
    /// What it took so far.
    pub usage: Usage,
    /// Why it ended; `None` while it has not.
    pub finish: Option<FinishReason>,
}

/// A tool call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Call {
    /// Its id.
    pub id: String,
    /// The tool.
    pub name: String,
    /// JSON text of an object, as far as it has come.
    pub arguments: String,
    /// Whether the model closed it.
    pub complete: bool,
}

/// Tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Of the prompt.
    pub prompt: usize,
    /// Of the prompt, kept from before.
    pub cached: usize,
    /// Generated.
    pub completion: usize,
    /// Generated as reasoning.
    pub reasoning: usize,
}

/// What is new.
#[derive(Debug)]
pub enum Piece {
    /// More reasoning.
    Reasoning(String, Vec<TokenLogProbs>),
    /// More of the answer.
    Content(String, Vec<TokenLogProbs>),
    /// The call of this index has a name.
    CallStart(usize),
    /// More of its arguments.
    CallArguments(usize, String),
    /// The newest call is complete.
    CallEnd,
}

/// What a turn of [`Answer::next`] brought.
#[derive(Debug)]
pub enum Step {
    /// The prompt is being processed: its tokens are known.
    Started,
    /// Log-probabilities of the prompt are there.
    Scored,
    /// The model said something.
    Pieces(Vec<Piece>),
    /// It has ended.
    Done(Box<Done>),
}

impl Answer {
    /// An empty one.
    pub fn new(thinking: bool, starts_in_reasoning: bool) -> Self {
        Self { thinking, starts_in_reasoning, ..Self::default() }
    }

    /// Waits for more.
    ///
    /// # Errors
    /// If the answer will not end.
    pub async fn next(&mut self, updates: &mut Receiver<Update>) -> Result<Step, ApiError> {
        match updates.recv().await {
            Some(Update::Started { prompt, cached }) => {
                (self.usage.prompt, self.usage.cached) = (prompt, cached);
                Ok(Step::Started)
            }
            Some(Update::Scored(scores)) => {
                self.prompt_logprobs = scores;
                Ok(Step::Scored)
            }
            Some(Update::Output(outputs)) => {
                Ok(Step::Pieces(outputs.into_iter().map(|output| self.take(output)).collect()))
            }
            Some(Update::Done(done)) => {
                let outcome = &done.outcome;
                self.usage = Usage {
                    prompt: outcome.prompt_tokens,
                    cached: outcome.cached_tokens,
                    completion: done.completion_tokens,
                    reasoning: done.reasoning_tokens,
                };
                if done.finish == FinishReason::Cancelled {
                    return Err(ApiError::new(Kind::Overloaded, "the answer was cut off: the server is stopping"));
                }
                self.finish = Some(done.finish.clone());
                Ok(Step::Done(done))
            }
            Some(Update::Failed(error)) => Err(error),
            None => Err(ApiError::new(Kind::Internal, "the answer was lost: this is a bug of the server")),
        }
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// If the answer will not end.
    pub async fn whole(&mut self, updates: &mut Receiver<Update>) -> Result<Box<Done>, ApiError> {
        loop {
            if let Step::Done(done) = self.next(updates).await? {
                return Ok(done);
            }
        }
    }

    fn take(&mut self, output: Output) -> Piece {
        let Output { event, logprobs } = output;
        match event {
            Event::Reasoning(text) => {
                self.reasoning.push_str(&text);
                self.reasoning_logprobs.extend_from_slice(&logprobs);
                Piece::Reasoning(text, logprobs)
            }
            Event::Answer(text) => {
                self.content.push_str(&text);
                self.content_logprobs.extend_from_slice(&logprobs);
                Piece::Content(text, logprobs)
            }
            Event::CallStart { index, name } => {
                let id = call_id(index, self.thinking && self.reasoning.is_empty());
                self.calls.push(Call { id, name, ..Call::default() });
                Piece::CallStart(self.calls.len() - 1)
            }
            Event::CallArguments { text, .. } => {
                if let Some(call) = self.calls.last_mut() {
                    call.arguments.push_str(&text);
                }
                Piece::CallArguments(self.calls.len().saturating_sub(1), text)
            }
            Event::CallEnd { .. } => {
                if let Some(call) = self.calls.last_mut() {
                    call.complete = true;
                }
                Piece::CallEnd
            }
        }
    }
}

/// An id of the vendor's form (protocol.md 5.2). `no_reasoning` marks a turn that was thinking and said nothing, so that a
/// later request is known to have left nothing out.
fn call_id(index: usize, no_reasoning: bool) -> String {
    let mark = if no_reasoning { "ET_" } else { "" };
    let random: String = rand::rng().sample_iter(Alphanumeric).take(20).map(char::from).collect();
    let id = format!("call_{index:02}_{mark}{random}");
    let checksum = xxh3_64(id.replace('_', "").as_bytes()) % 10_000;
    format!("{id}{checksum:04}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn call_ids_have_the_vendors_form() {
        let id = call_id(3, false);
        assert_eq!((id.len(), &id[..8]), (32, "call_03_"));
        let id = call_id(0, true);
        assert_eq!((id.len(), &id[..11]), (35, "call_00_ET_"));
        let checksum = xxh3_64(id[..31].replace('_', "").as_bytes()) % 10_000;
        assert_eq!(id[31..], format!("{checksum:04}"));
        assert_ne!(call_id(0, true), id);
    }
}
