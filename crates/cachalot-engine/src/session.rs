//! A conversation with the model: the tokens so far, the state that goes with them, and generation on top.
//!
//! A prompt that begins like the tokens already there continues from the longest state kept, instead of anew.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cachalot_model::{LogitsOf, Segment, Sequence, StepError, Workspace};

use crate::engine::Engine;
use crate::sampling::{LogProb, Sampler, SamplingError, SamplingParams, logprobs};

/// States kept to return to, oldest dropped first.
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
    /// A generated token; the end-of-answer token is not reported.
    Token {
        /// Its id.
        id: u32,
        /// Its log-probability and those of the most likely tokens, if asked for.
        logprobs: Option<(LogProb, &'a [LogProb])>,
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
    /// A parameter or the logits are wrong.
    #[error(transparent)]
    Sampling(#[from] SamplingError),
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
    /// States after earlier prompts; each is a prefix of `tokens`.
    snapshots: Vec<Sequence>,
    /// The prefill that made the states; the two are not mixed.
    prefill: Prefill,
}

impl Session {
    /// A session without tokens.
    pub fn new(engine: Arc<Engine>) -> Self {
        let sequence = engine.model().sequence();
        Self {
            engine,
            work: Workspace::new(),
            sequence,
            tokens: Vec::new(),
            snapshots: Vec::new(),
            prefill: Prefill::Exact,
        }
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
        let (context, limit) = (self.engine.context(), self.engine.context_limit());
        match tokens {
            0 => Err(GenerateError::EmptyPrompt),
            tokens if tokens >= context => Err(GenerateError::PromptTooLong { prompt: tokens, context, limit }),
            _ => Ok(()),
        }
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
        let start = Instant::now();
        let context = self.engine.context();
        self.check_length(prompt.len())?;
        let mut sampler =
            Sampler::new(request.sampling.clone(), prompt)?.forbid(self.engine.tokenizer().image_token_id());
        let cached = self.rewind(prompt, request.prefill);
        let mut outcome = Outcome {
            finish: Finish::Cancelled,
            prompt_tokens: prompt.len(),
            cached_tokens: cached,
            generated_tokens: 0,
            prefill_time: Duration::ZERO,
            time_to_first_token: Duration::ZERO,
            decode_time: Duration::ZERO,
        };
        if !self.process(prompt, request.prefill, on_event)? {
            return Ok(outcome);
        }
        self.keep_snapshot();
        outcome.prefill_time = start.elapsed();
        if request.max_tokens == 0 {
            outcome.finish = Finish::Length;
            return Ok(outcome);
        }
        self.decode(request, &mut sampler, start, context, &mut outcome, on_event)?;
        outcome.decode_time = start.elapsed().saturating_sub(outcome.time_to_first_token);
        Ok(outcome)
    }

    /// Samples and advances until something ends the answer.
    fn decode(
        &mut self,
        request: &Request,
        sampler: &mut Sampler,
        start: Instant,
        context: usize,
        outcome: &mut Outcome,
        on_event: &mut dyn FnMut(Event<'_>) -> Flow,
    ) -> Result<(), GenerateError> {
        loop {
            let logits = self.work.logits();
            let id = sampler.sample(logits)?;
            outcome.generated_tokens += 1;
            if outcome.generated_tokens == 1 {
                outcome.time_to_first_token = start.elapsed();
            }
            if self.engine.tokenizer().is_stop(id) {
                outcome.finish = Finish::EndOfAnswer;
                return Ok(());
            }
            let probabilities = request.top_logprobs.map(|top| logprobs(logits, id, top));
            let logprobs = probabilities.as_ref().map(|(chosen, top)| (*chosen, &**top));
            let flow = on_event(Event::Token { id, logprobs });
            if flow != Flow::Continue {
                outcome.finish = if flow == Flow::Stop { Finish::Stopped } else { Finish::Cancelled };
                return Ok(());
            }
            if outcome.generated_tokens >= request.max_tokens || self.tokens.len() + 1 >= context {
                outcome.finish = Finish::Length;
                return Ok(());
            }
            match self.advance(&[id], LogitsOf::Last) {
                // The caller would not wait for the disk: as if it had cancelled before this token.
                Err(StepError::Cancelled) => {
                    outcome.finish = Finish::Cancelled;
                    return Ok(());
                }
                advanced => advanced?,
            }
        }
    }

    /// Goes back to the longest state that is a proper prefix of `prompt`; returns its length.
    fn rewind(&mut self, prompt: &[u32], prefill: Prefill) -> usize {
        if self.prefill != prefill {
            // What one prefill approximated must not leak into answers of the other.
            self.clear();
            self.prefill = prefill;
        }
        let shared = self.tokens.iter().zip(prompt).take_while(|(a, b)| a == b).count().min(prompt.len() - 1);
        // A prompt that was cut off may have promised more tokens than this one has.
        let owed = self.sequence.owed() > prompt.len();
        if owed || self.sequence.roll_back(shared).is_err() {
            self.sequence = self.return_to(shared);
        }
        self.tokens.truncate(self.sequence.position());
        self.snapshots.retain(|state| state.position() <= self.tokens.len());
        self.tokens.len()
    }

    /// The longest state kept of the first `shared` tokens: a snapshot, perhaps rolled back a little.
    fn return_to(&self, shared: usize) -> Sequence {
        let reach = |state: &&Sequence| state.position().min(shared);
        let best = self.snapshots.iter().filter(|state| state.floor() <= shared).max_by_key(reach);
        let mut state = best.cloned().unwrap_or_else(|| self.engine.model().sequence());
        // Within reach by the choice above; were it not, starting anew is always right.
        if state.position() > shared && state.roll_back(shared).is_err() {
            state = self.engine.model().sequence();
        }
        state
    }

    /// Processes the rest of `prompt`; false if `on_event` ended it.
    fn process(
        &mut self,
        prompt: &[u32],
        prefill: Prefill,
        on_event: &mut dyn FnMut(Event<'_>) -> Flow,
    ) -> Result<bool, GenerateError> {
        let (total, chunk) = (prompt.len(), self.engine.prefill_chunk());
        let first = self.tokens.len();
        let mut report = |done: usize| on_event(Event::Prefill { done, total }) == Flow::Continue;
        if !report(first) {
            return Ok(false);
        }
        if prefill == Prefill::Replay {
            let engine = Arc::clone(&self.engine);
            let rest = &prompt[first..];
            let mut progress = |done: usize| report(first + done);
            match engine.model().prefill_replay(&mut self.work, &mut self.sequence, rest, chunk, &mut progress) {
                Ok(_) => {}
                Err(StepError::Cancelled) => return Ok(false),
                Err(error) => return Err(error.into()),
            }
            self.tokens.extend_from_slice(rest);
            return Ok(true);
        }
        // Rows of tables are known before anything is computed: all of a prompt's, as far as they have room.
        let mut expected = first;
        for tokens in prompt[first..].chunks(chunk) {
            let done = self.tokens.len();
            let (model, work) = (self.engine.model(), &mut self.work);
            expected = done + model.expect(work, &self.sequence, &prompt[done..], expected.saturating_sub(done));
            let following = total - self.tokens.len() - tokens.len();
            let logits = if following == 0 { LogitsOf::Last } else { LogitsOf::Later(following) };
            match self.advance(tokens, logits) {
                Err(StepError::Cancelled) => return Ok(false),
                advanced => advanced?,
            }
            if !report(self.tokens.len()) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn advance(&mut self, tokens: &[u32], logits: LogitsOf) -> Result<(), StepError> {
        self.engine.relieve();
        let mut segments = [Segment { sequence: &mut self.sequence, tokens, embeddings: None, logits }];
        self.engine.model().advance(&mut self.work, &mut segments, None)?;
        self.tokens.extend_from_slice(tokens);
        Ok(())
    }

    fn keep_snapshot(&mut self) {
        if self.snapshots.len() == SNAPSHOTS {
            self.snapshots.remove(0);
        }
        self.snapshots.push(self.sequence.clone());
    }

    /// Forgets all tokens.
    pub fn clear(&mut self) {
        self.sequence = self.engine.model().sequence();
        self.tokens.clear();
        self.snapshots.clear();
    }
}
