//! An answer in the making: from the engine's tokens to what the APIs tell.
//!
//! Owns the ear that listens on the scheduler's thread: it parses each token at once, so that generation ends with the
//! stop string or the call that ends the answer, and passes events on without ever waiting. A client that is gone, or that
//! lets too many events wait, has its job cancelled. Refuses to know any API.

use std::sync::Arc;

use cachalot_engine::Flow;
use cachalot_engine::chat::TokenLogProbs;
use cachalot_engine::scheduler::{JobEvent, Sink};
use cachalot_engine::session::{Finish, Outcome};
use cachalot_text::Tokenizer;
use cachalot_text::parser::{EngineFinish, Event, FinishReason, OutputParser, ParserOptions};
use tokio::sync::mpsc::{Receiver, Sender, channel};

use crate::error::{ApiError, Kind};
use crate::metrics::Metrics;

/// What listeners hear.
#[derive(Debug)]
pub enum Update {
    /// The job has been let in.
    Started {
        /// Tokens of the prompt.
        prompt: usize,
        /// Of these, tokens whose state was kept.
        cached: usize,
    },
    /// Log-probabilities of the prompt's tokens, from the second on, if they were asked for: before anything is said.
    Scored(Vec<TokenLogProbs>),
    /// The model said something.
    Output(Vec<Output>),
    /// It has ended.
    Done(Box<Done>),
    /// It will not end.
    Failed(ApiError),
}

/// Something that the model said.
#[derive(Clone, Debug)]
pub struct Output {
    /// What.
    pub event: Event,
    /// Log-probabilities of the tokens that it was made of; those of markup are left out.
    pub logprobs: Vec<TokenLogProbs>,
}

/// The end of an answer.
#[derive(Clone, Debug)]
pub struct Done {
    /// Why it ended.
    pub finish: FinishReason,
    /// Counts and times.
    pub outcome: Outcome,
    /// Tokens generated, the end of the answer left out.
    pub completion_tokens: usize,
    /// Of these, tokens of the reasoning.
    pub reasoning_tokens: usize,
    /// The tokens, if they were asked for.
    pub sampled: Vec<u32>,
    /// Log-probabilities of tokens behind the last text, if they were asked for: of a character that was not finished, and
    /// the one that ended the answer. None if a stop string did.
    pub unsaid: Vec<TokenLogProbs>,
}

/// What a listener wants.
pub struct Listening {
    /// The tokenizer.
    pub tokenizer: Arc<Tokenizer>,
    /// How the output is parsed.
    pub parser: ParserOptions,
    /// Whether the answer ends with its first call.
    pub one_call: bool,
    /// Whether the sampled tokens are wanted at the end.
    pub keep_sampled: bool,
    /// Whether log-probabilities of the prompt come, and are passed on.
    pub scores: bool,
    /// Events that may wait to be read.
    pub unread: usize,
    /// Where the end is counted.
    pub metrics: Arc<Metrics>,
}

/// A sink for a job, and where its updates come out. The channel ends without [`Update::Done`] or [`Update::Failed`] only
/// if the backend lost the job.
pub fn listen(listening: Listening) -> (Sink, Receiver<Update>) {
    let (updates, receiver) = channel(listening.unread + RESERVE);
    let mut ear = Ear {
        parser: Some(OutputParser::new(Arc::clone(&listening.tokenizer), listening.parser)),
        tokenizer: listening.tokenizer,
        updates,
        one_call: listening.one_call,
        keep_sampled: listening.keep_sampled,
        scores: listening.scores.then(Vec::new),
        metrics: listening.metrics,
        started: false,
        call_ended: false,
        too_slow: false,
        pending: 0,
        pending_logprobs: Vec::new(),
        end_logprobs: None,
        completion_tokens: 0,
        reasoning_tokens: 0,
        sampled: Vec::new(),
    };
    (Box::new(move |event| ear.hear(event)), receiver)
}

/// Room in the channel for what is said at the end.
const RESERVE: usize = 3;

struct Ear {
    /// Gone after the end.
    parser: Option<OutputParser<Arc<Tokenizer>>>,
    tokenizer: Arc<Tokenizer>,
    updates: Sender<Update>,
    one_call: bool,
    keep_sampled: bool,
    /// Gone when the prompt has been processed.
    scores: Option<Vec<TokenLogProbs>>,
    metrics: Arc<Metrics>,
    started: bool,
    call_ended: bool,
    /// Its reader lets too much wait.
    too_slow: bool,
    /// Tokens, and their log-probabilities, whose text has not come out yet.
    pending: usize,
    pending_logprobs: Vec<TokenLogProbs>,
    /// Of the token that ended the answer.
    end_logprobs: Option<TokenLogProbs>,
    completion_tokens: usize,
    reasoning_tokens: usize,
    sampled: Vec<u32>,
}

impl Ear {
    fn hear(&mut self, event: JobEvent<'_>) -> Flow {
        match event {
            JobEvent::Waiting { .. } => self.flow(),
            JobEvent::Prefill { done, total } => {
                if !std::mem::replace(&mut self.started, true) {
                    self.tell(Update::Started { prompt: total, cached: done });
                }
                if let Some(scores) = self.scores.take_if(|_| done == total) {
                    self.tell(Update::Scored(scores));
                }
                self.flow()
            }
            JobEvent::PromptToken { logprob, top } => {
                self.scores
                    .iter_mut()
                    .for_each(|scores| scores.push(TokenLogProbs { chosen: logprob, top: top.to_vec() }));
                self.flow()
            }
            JobEvent::Token { id, logprobs } => {
                if self.updates.capacity() <= RESERVE {
                    self.too_slow = !self.updates.is_closed();
                    return Flow::Cancel;
                }
                self.token(id, logprobs.map(|(chosen, top)| TokenLogProbs { chosen, top: top.to_vec() }))
            }
            JobEvent::EndToken { logprob, top } => {
                self.end_logprobs = Some(TokenLogProbs { chosen: logprob, top: top.to_vec() });
                Flow::Stop
            }
            JobEvent::End(result) => {
                self.metrics.ended(result.as_ref());
                match result {
                    Ok(_) if self.too_slow => {
                        let message = "the answer was cut off: it was not read fast enough";
                        self.tell(Update::Failed(ApiError::new(Kind::Slow, message)));
                    }
                    Ok(outcome) => self.end(outcome),
                    Err(error) => self.tell(Update::Failed(error.into())),
                }
                Flow::Stop
            }
        }
    }

    fn flow(&self) -> Flow {
        if self.updates.is_closed() { Flow::Cancel } else { Flow::Continue }
    }

    fn tell(&mut self, update: Update) {
        // Nobody listens any more, or not fast enough: `hear` notices both.
        let _ = self.updates.try_send(update);
    }

    fn token(&mut self, id: u32, logprobs: Option<TokenLogProbs>) -> Flow {
        let Some(parser) = &mut self.parser else { return Flow::Stop };
        let events = match parser.push(id) {
            Ok(events) => events,
            Err(error) => {
                self.parser = None;
                self.tell(Update::Failed(ApiError::new(Kind::Internal, error.to_string())));
                return Flow::Stop;
            }
        };
        let finished = parser.is_finished();
        self.completion_tokens += 1;
        self.pending += 1;
        self.pending_logprobs.extend(logprobs);
        if self.keep_sampled {
            self.sampled.push(id);
        }
        if events.is_empty() {
            // Markup, unless it is raw text; text that is held back stays pending.
            if self.tokenizer.is_added(id) {
                self.forget_pending();
            }
            return if finished { Flow::Stop } else { self.flow() };
        }
        self.outputs(events);
        if finished || self.call_ended { Flow::Stop } else { self.flow() }
    }

    /// Passes events on, each text with the tokens that were waiting for it.
    fn outputs(&mut self, events: Vec<Event>) {
        let mut outputs = Vec::with_capacity(events.len());
        for event in events {
            if self.call_ended {
                break;
            }
            let mut logprobs = Vec::new();
            match &event {
                Event::Reasoning(_) => {
                    self.reasoning_tokens += std::mem::take(&mut self.pending);
                    logprobs = std::mem::take(&mut self.pending_logprobs);
                }
                Event::Answer(_) => {
                    self.pending = 0;
                    logprobs = std::mem::take(&mut self.pending_logprobs);
                }
                Event::CallEnd { .. } if self.one_call => self.call_ended = true,
                _ => self.forget_pending(),
            }
            outputs.push(Output { event, logprobs });
        }
        self.tell(Update::Output(outputs));
    }

    fn forget_pending(&mut self) {
        self.pending = 0;
        self.pending_logprobs.clear();
    }

    fn end(&mut self, outcome: Outcome) {
        let Some(parser) = self.parser.take() else { return };
        let engine = match outcome.finish {
            Finish::EndOfAnswer | Finish::Stopped => EngineFinish::Stop,
            Finish::Length => EngineFinish::Length,
            Finish::Cancelled => EngineFinish::Cancelled,
        };
        let finish = parser.finish(engine);
        if finish.empty_block {
            tracing::debug!("the model opened a block of tool calls and made none");
        }
        if !finish.events.is_empty() && !self.call_ended {
            self.outputs(finish.events);
        }
        if matches!(finish.reason, FinishReason::StopSequence(_)) {
            self.forget_pending();
        }
        let done = Done {
            finish: finish.reason,
            outcome,
            completion_tokens: self.completion_tokens,
            reasoning_tokens: self.reasoning_tokens,
            sampled: std::mem::take(&mut self.sampled),
            unsaid: self.pending_logprobs.drain(..).chain(self.end_logprobs.take()).collect(),
        };
        self.tell(Update::Done(Box::new(done)));
    }
}
