//! A conversation with the model: the tokens so far, the state that goes with them, and generation on top.
//!
//! A prompt that begins like the tokens already there continues from the longest state kept, instead of anew.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cachalot_model::{Sequence, StepError, Workspace};

use crate::constraint::{Constraint, ConstraintError};
use crate::engine::Engine;
use crate::generation::{Generation, Progress, StepLogits, check_length};
use crate::prefixes::Prefixes;
use crate::sampling::{LogProb, SamplingError, SamplingParams};

/// States kept to return to that the memory plan has room for, beside one that fills the context.
pub(crate) const SNAPSHOTS: usize = 8;

/// How a prompt is processed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Prefill {
    /// Every layer sees every token.
    #[default]
    Exact,
    /// The vendor's approximation: the layers from the last KV source on see the last window of tokens only.
    Replay,
}

/// What to generate.
#[derive(Clone, Debug)]
pub struct Request {
    /// How tokens are chosen.
    pub sampling: SamplingParams,
    /// Most tokens to generate; lowered to what the context has left.
    pub max_tokens: usize,
    /// How the prompt is processed.
    pub prefill: Prefill,
    /// Log-probabilities of that many most likely tokens beside the chosen one; none if absent.
    pub top_logprobs: Option<usize>,
    /// The same for the tokens of the prompt; then no state that was kept spares any of it. [`Prefill::Exact`] only.
    pub prompt_logprobs: Option<usize>,
    /// What the output must be; anything if absent.
    pub constraint: Option<Constraint>,
}

/// What happens while generating.
#[derive(Debug)]
pub enum Event<'a> {
    /// Tokens of the prompt processed, and their number; those that were kept from before are counted as done.
    Prefill {
        /// Tokens done.
        done: usize,
        /// All tokens of the prompt.
        total: usize,
    },
    /// A token of the prompt, from the second on, if log-probabilities of the prompt were asked for.
    PromptToken {
        /// Its log-probability, given all tokens before it.
        logprob: LogProb,
        /// Those of the most likely tokens at its place, best first.
        top: &'a [LogProb],
    },
    /// A generated token, but for the one that ends the answer.
    Token {
        /// Its id.
        id: u32,
        /// Its log-probability and those of the most likely tokens, if asked for.
        logprobs: Option<(LogProb, &'a [LogProb])>,
    },
    /// The end-of-answer token, if log-probabilities were asked for. What is returned does not matter.
    EndToken {
        /// Its log-probability.
        logprob: LogProb,
        /// Those of the most likely tokens at its place, best first.
        top: &'a [LogProb],
    },
}

/// Whether to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// Go on.
    Continue,
    /// The answer is complete: a stop string, or the end of a tool call.
    Stop,
    /// The user has had enough.
    Cancel,
}

/// Why generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The model ended its answer.
    EndOfAnswer,
    /// The caller said [`Flow::Stop`].
    Stopped,
    /// `max_tokens` or the context's end.
    Length,
    /// The caller said [`Flow::Cancel`].
    Cancelled,
}

/// What generation took.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// Why it ended.
    pub finish: Finish,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Of these, tokens whose state was kept from before.
    pub cached_tokens: usize,
    /// Tokens generated, the end of the answer included.
    pub generated_tokens: usize,
    /// From the request to the end of the prompt.
    pub prefill_time: Duration,
    /// From the request to the first token.
    pub time_to_first_token: Duration,
    /// From the first token to the last.
    pub decode_time: Duration,
}

impl Outcome {
    /// Of an answer to `prompt_tokens` tokens that has not begun.
    pub(crate) fn nothing(prompt_tokens: usize) -> Self {
        Self {
            finish: Finish::Cancelled,
            prompt_tokens,
            cached_tokens: 0,
            generated_tokens: 0,
            prefill_time: Duration::ZERO,
            time_to_first_token: Duration::ZERO,
            decode_time: Duration::ZERO,
        }
    }

    /// Prompt tokens processed per second.
    pub fn prefill_rate(&self) -> f64 {
        (self.prompt_tokens - self.cached_tokens) as f64 / self.prefill_time.as_secs_f64().max(1e-9)
    }

    /// Tokens decoded per second, the first one (which the prompt pays for) left out.
    pub fn decode_rate(&self) -> f64 {
        self.generated_tokens.saturating_sub(1) as f64 / self.decode_time.as_secs_f64().max(1e-9)
    }
}

/// Why nothing, or no more, could be generated.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    /// No token to start from.
    #[error("the prompt is empty")]
    EmptyPrompt,
    /// A prompt longer than the context.
    #[error(
        "the prompt has {prompt} tokens, but the context holds {context}, of which one at least must be left for the answer: shorten it, or ask for a larger context (the model goes up to {limit})"
    )]
    PromptTooLong {
        /// Tokens of the prompt.
        prompt: usize,
        /// Tokens of the context.
        context: usize,
        /// The model's own limit.
        limit: usize,
    },
    /// An approximate prefill leaves out what early logits need.
    #[error("log-probabilities of a prompt need its exact prefill")]
    InexactLogprobs,
    /// A parameter or the logits are wrong.
    #[error(transparent)]
    Sampling(#[from] SamplingError),
    /// The output could not be held to its constraint.
    #[error(transparent)]
    Constraint(#[from] ConstraintError),
    /// The model could not take a step.
    #[error(transparent)]
    Step(#[from] StepError),
}

/// A sequence of tokens with its state.
pub struct Session {
    engine: Arc<Engine>,
    work: Workspace,
    sequence: Sequence,
    /// Tokens that `sequence` has seen.
    tokens: Vec<u32>,
    /// States of earlier prompts and answers.
    prefixes: Prefixes,
    /// The prefill that made the states; the two are not mixed.
    prefill: Prefill,
}

impl Session {
    /// A session without tokens.
    pub fn new(engine: Arc<Engine>) -> Self {
        let sequence = engine.model().sequence();
        let prefixes = Prefixes::new(engine.plan().state_bytes(), engine.prefix_store());
        Self { engine, work: Workspace::new(), sequence, tokens: Vec::new(), prefixes, prefill: Prefill::Exact }
    }

    /// The engine that it runs on.
    pub fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// Tokens whose state is held.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// The state held.
    pub fn sequence(&self) -> &Sequence {
        &self.sequence
    }

    /// Whether a prompt of `tokens` tokens can be answered.
    ///
    /// # Errors
    /// If it is empty, or the context has no room for an answer behind it.
    pub fn check_length(&self, tokens: usize) -> Result<(), GenerateError> {
        check_length(&self.engine, tokens)
    }

    /// Processes `prompt` and generates until the answer ends; `on_event` hears of everything and may end it.
    ///
    /// # Errors
    /// If the prompt is empty or too long, a parameter is out of range, or a step fails. The session stays usable.
    pub fn generate(
        &mut self,
        prompt: &[u32],
        request: &Request,
        on_event: &mut dyn FnMut(Event<'_>) -> Flow,
    ) -> Result<Outcome, GenerateError> {
        let engine = Arc::clone(&self.engine);
        let mut generation = Generation::new(&engine, prompt, request, Instant::now())?;
        if self.prefill != request.prefill {
            // What one prefill approximated must not leak into answers of the other, nor onto the disk.
            let store = engine.prefix_store().filter(|_| request.prefill == Prefill::Exact);
            self.prefixes = Prefixes::new(engine.plan().state_bytes(), store);
            self.prefill = request.prefill;
        }
        if generation.may_go_on()
            && let Some(state) = self.prefixes.longest(prompt, &engine.model().sequence())
        {
            generation.go_on_from(state);
        }
        let result = self.run(&engine, &mut generation, on_event);
        let (tokens, sequence, outcome) = generation.into_parts();
        self.prefixes.keep(&tokens, sequence.clone());
        (self.tokens, self.sequence) = (tokens, sequence);
        result.map(|()| outcome)
    }

    /// Prompt and answer; a generation that fails is left where it was.
    fn run(
        &mut self,
        engine: &Engine,
        generation: &mut Generation,
        on_event: &mut dyn FnMut(Event<'_>) -> Flow,
    ) -> Result<(), GenerateError> {
        if !generation.report(on_event) {
            return Ok(());
        }
        if self.prefill == Prefill::Replay && !self.replay(engine, generation, on_event)? {
            return Ok(());
        }
        loop {
            generation.expect(engine, &mut self.work);
            let mut segments = [generation.segment(engine.prefill_chunk())];
            let count = segments[0].tokens.len();
            let wanted = match engine.model().step(&mut self.work, &mut segments, None) {
                // The caller would not wait for the disk: as if it had cancelled before this token.
                Err(StepError::Cancelled) => {
                    generation.cut(Finish::Cancelled);
                    return Ok(());
                }
                stepped => stepped?,
            };
            let mut logits = StepLogits::new(engine.model(), &mut self.work, wanted);
            match generation.advanced(engine, count, &mut logits, on_event)? {
                Progress::Goes => {}
                Progress::Keep => self.prefixes.keep(generation.tokens(), generation.sequence().clone()),
                Progress::Done => return Ok(()),
            }
        }
    }

    /// The vendor's approximate prefill, and the first token; false if that ends the answer.
    fn replay(
        &mut self,
        engine: &Engine,
        generation: &mut Generation,
        on_event: &mut dyn FnMut(Event<'_>) -> Flow,
    ) -> Result<bool, GenerateError> {
        let (first, total) = (generation.tokens().len(), generation.prompt().len());
        let mut sequence = generation.sequence().clone();
        let rest = &generation.prompt()[first..];
        let mut progress = |done: usize| on_event(Event::Prefill { done: first + done, total }) == Flow::Continue;
        let chunk = engine.prefill_chunk();
        match engine.model().prefill_replay(&mut self.work, &mut sequence, rest, chunk, &mut progress) {
            Err(StepError::Cancelled) => return Ok(false),
            replayed => replayed?,
        };
        generation.processed(sequence);
        let progress = generation.prompt_done(engine, self.work.logits(), on_event)?;
        self.prefixes.keep(generation.tokens(), generation.sequence().clone());
        Ok(progress != Progress::Done)
    }

    /// Forgets all tokens.
    pub fn clear(&mut self) {
        self.sequence = self.engine.model().sequence();
        self.tokens.clear();
        self.prefixes.clear();
    }
}
