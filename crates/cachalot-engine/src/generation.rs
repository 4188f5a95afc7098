//! One answer in the making: what its sequence sees next, and what its logits become.
//!
//! Owns the rules of prompt chunks, sampling and ends. Refuses to run the model: whoever holds it (a
//! [`Session`](crate::session::Session), a [`Scheduler`](crate::scheduler::Scheduler) over many at once) takes
//! [`Generation::segment`], advances it, alone or with others, and brings the logits back.

use std::ops::Range;
use std::time::{Duration, Instant};

use cachalot_model::{LogitsOf, Model, Segment, Sequence, Workspace};

use crate::constraint::Constrained;
use crate::engine::Engine;
use crate::sampling::{Sampler, SamplingError, logprobs};
use crate::session::{Event, Finish, Flow, GenerateError, Outcome, Prefill, Request};

/// An answer, from the first token of its prompt that has no state yet to its end.
pub(crate) struct Generation {
    prompt: Vec<u32>,
    request: Request,
    sampler: Sampler,
    constrained: Option<Constrained>,
    sequence: Sequence,
    /// Tokens that the sequence has seen.
    tokens: Vec<u32>,
    /// The newest token, which the sequence has not seen.
    next: Option<u32>,
    /// Position inside the prompt at which the state is worth keeping: others may share it.
    stop_at: Option<usize>,
    /// Tokens of the prompt whose table rows have been ordered.
    expected: usize,
    start: Instant,
    outcome: Outcome,
}

/// What a step meant for a generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// There is more to do.
    Goes,
    /// It has just come to the place whose state is worth keeping, or to the end of its prompt.
    Keep,
    /// It has ended.
    Done,
}

/// Positions whose logits are computed together: more than answers in the making have as a rule, and 8 MB of the released
/// vocabulary.
pub(crate) const LOGITS_AT_ONCE: usize = 16;

/// The logits of a step's positions in their order, a few at a time: those of a long prompt never lie in memory together.
pub(crate) struct StepLogits<'w> {
    model: &'w Model,
    work: &'w mut Workspace,
    wanted: usize,
    /// Positions that have been computed.
    ready: Range<usize>,
    next: usize,
}

impl<'w> StepLogits<'w> {
    /// Of the step that has just been taken, which wants those of `wanted` positions.
    pub fn new(model: &'w Model, work: &'w mut Workspace, wanted: usize) -> Self {
        Self { model, work, wanted, ready: 0..0, next: 0 }
    }

    /// Those of the next position, `[vocabulary]`; none behind the last.
    pub fn next(&mut self) -> &[f32] {
        if self.next >= self.wanted {
            return &[];
        }
        if !self.ready.contains(&self.next) {
            self.ready = self.next..self.wanted.min(self.next + LOGITS_AT_ONCE);
            self.model.logits(self.work, self.ready.clone());
        }
        let (vocabulary, row) = (self.model.config().vocab_size, self.next - self.ready.start);
        self.next += 1;
        &self.work.logits()[row * vocabulary..(row + 1) * vocabulary]
    }
}

/// Whether a prompt of `tokens` tokens can be answered.
pub(crate) fn check_length(engine: &Engine, tokens: usize) -> Result<(), GenerateError> {
    let (context, limit) = (engine.context(), engine.context_limit());
    match tokens {
        0 => Err(GenerateError::EmptyPrompt),
        tokens if tokens >= context => Err(GenerateError::PromptTooLong { prompt: tokens, context, limit }),
        _ => Ok(()),
    }
}

impl Generation {
    /// An answer to `prompt`, of which no state is known yet.
    ///
    /// # Errors
    /// If the prompt is empty or too long, a parameter is out of range, or log-probabilities are wanted of a prompt that
    /// is not processed exactly.
    pub fn new(engine: &Engine, prompt: &[u32], request: &Request, start: Instant) -> Result<Self, GenerateError> {
        check_length(engine, prompt.len())?;
        if request.prompt_logprobs.is_some() && request.prefill != Prefill::Exact {
            return Err(GenerateError::InexactLogprobs);
        }
        let sampler = Sampler::new(request.sampling.clone(), prompt)?.forbid(engine.tokenizer().image_token_id());
        Ok(Self {
            prompt: prompt.to_vec(),
            request: request.clone(),
            sampler,
            constrained: request.constraint.as_ref().map(Constrained::new),
            sequence: engine.model().sequence(),
            tokens: Vec::new(),
            next: None,
            stop_at: None,
            expected: 0,
            start,
            outcome: Outcome::nothing(prompt.len()),
        })
    }

    /// Whether it may go on from a state that was kept: logits of what that state has seen are lost.
    pub fn may_go_on(&self) -> bool {
        self.request.prompt_logprobs.is_none()
    }

    /// Goes on from `sequence`, which has seen a proper prefix of the prompt.
    pub fn go_on_from(&mut self, sequence: Sequence) {
        let seen = sequence.position();
        debug_assert!(seen < self.prompt.len());
        self.tokens.clear();
        self.tokens.extend_from_slice(&self.prompt[..seen]);
        self.outcome.cached_tokens = seen;
        self.sequence = sequence;
    }

    /// Reports [`Progress::Keep`] at this position of the prompt, too.
    pub fn keep_at(&mut self, position: Option<usize>) {
        self.stop_at = position.filter(|position| *position < self.prompt.len());
    }

    /// Tokens of the prompt that have no state yet.
    pub fn waiting(&self) -> usize {
        self.prompt.len().saturating_sub(self.tokens.len())
    }

    /// Tokens that the sequence has seen.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// What has been asked.
    pub fn prompt(&self) -> &[u32] {
        &self.prompt
    }

    /// The state.
    pub fn sequence(&self) -> &Sequence {
        &self.sequence
    }

    /// What it took so far.
    pub fn outcome(&self) -> &Outcome {
        &self.outcome
    }

    /// Ends it; tokens, state and outcome.
    pub fn into_parts(mut self) -> (Vec<u32>, Sequence, Outcome) {
        self.outcome.decode_time = match self.outcome.generated_tokens {
            0 => Duration::ZERO,
            _ => self.start.elapsed().saturating_sub(self.outcome.time_to_first_token),
        };
        (self.tokens, self.sequence, self.outcome)
    }

    /// Says how much of the prompt is done; true if the caller wants to go on.
    pub fn report(&self, on_event: &mut dyn FnMut(Event<'_>) -> Flow) -> bool {
        on_event(Event::Prefill { done: self.tokens.len(), total: self.prompt.len() }) == Flow::Continue
    }

    /// Rows of tables are known before anything is computed: all of the prompt's are ordered, as far as they have room.
    pub fn expect(&mut self, engine: &Engine, work: &mut Workspace) {
        let done = self.tokens.len();
        if done < self.prompt.len() {
            let before = self.expected.saturating_sub(done);
            self.expected = done + engine.model().expect(work, &self.sequence, &self.prompt[done..], before);
        }
    }

    /// What the sequence sees next: of the prompt at most `most` tokens, else the newest token.
    pub fn segment(&mut self, most: usize) -> Segment<'_> {
        let (tokens, logits) = match &self.next {
            Some(next) => (std::slice::from_ref(next), LogitsOf::Last),
            None => {
                let (first, total) = (self.tokens.len(), self.prompt.len());
                let stop = self.stop_at.filter(|stop| *stop > first).unwrap_or(total);
                let end = stop.min(first + most.max(1));
                let logits = match () {
                    () if self.request.prompt_logprobs.is_some() => LogitsOf::All,
                    () if end == total => LogitsOf::Last,
                    // Whoever shares this place goes on with at least one token.
                    () if stop < total => LogitsOf::Later(stop + 1 - end),
                    () => LogitsOf::Later(total - end),
                };
                (&self.prompt[first..end], logits)
            }
        };
        Segment { sequence: &mut self.sequence, tokens, embeddings: None, logits }
    }

    /// The sequence has seen its segment of `count` tokens; takes those of the step's logits that it asked for.
    ///
    /// # Errors
    /// If the logits are no numbers.
    pub fn advanced(
        &mut self,
        engine: &Engine,
        count: usize,
        logits: &mut StepLogits<'_>,
        on_event: &mut dyn FnMut(Event<'_>) -> Flow,
    ) -> Result<Progress, GenerateError> {
        let end = logits.next + self.wanted(count);
        let progress = self.advance(engine, count, logits, on_event);
        // Who ends early leaves the rest to nobody.
        logits.next = end;
        progress
    }

    /// Of how many of the `count` tokens that the sequence has just seen it asked for logits.
    fn wanted(&self, count: usize) -> usize {
        match self.request.prompt_logprobs {
            Some(_) if self.next.is_none() => count,
            _ => usize::from(self.waiting() <= count),
        }
    }

    fn advance(
        &mut self,
        engine: &Engine,
        count: usize,
        logits: &mut StepLogits<'_>,
        on_event: &mut dyn FnMut(Event<'_>) -> Flow,
    ) -> Result<Progress, GenerateError> {
        if let Some(next) = self.next.take() {
            self.tokens.push(next);
            return Ok(self.sample(engine, logits.next(), on_event)?.unwrap_or(Progress::Goes));
        }
        let first = self.tokens.len();
        self.tokens.extend_from_slice(&self.prompt[first..first + count]);
        if let Some(top) = self.request.prompt_logprobs {
            // What a token's logits tell is how likely the one behind it was.
            for &id in &self.prompt[first + 1..self.prompt.len().min(first + count + 1)] {
                let (chosen, top) = logprobs(logits.next(), id, top);
                if chosen.logprob.is_nan() {
                    return Err(SamplingError::NotFinite.into());
                }
                if on_event(Event::PromptToken { logprob: chosen, top: &top }) != Flow::Continue {
                    return Ok(Progress::Done);
                }
            }
        }
        if self.waiting() > 0 {
            let kept = self.stop_at == Some(self.tokens.len());
            return Ok(match self.report(on_event) {
                false => Progress::Done,
                true if kept => Progress::Keep,
                true => Progress::Goes,
            });
        }
        self.prompt_done(engine, logits.next(), on_event)
    }

    /// The prompt has been processed, whoever did it; samples the first token.
    ///
    /// # Errors
    /// If the logits are no numbers.
    pub fn prompt_done(
        &mut self,
        engine: &Engine,
        logits: &[f32],
        on_event: &mut dyn FnMut(Event<'_>) -> Flow,
    ) -> Result<Progress, GenerateError> {
        self.outcome.prefill_time = self.start.elapsed();
        if !self.report(on_event) {
            return Ok(Progress::Done);
        }
        if self.request.max_tokens == 0 {
            self.outcome.finish = Finish::Length;
            return Ok(Progress::Done);
        }
        Ok(self.sample(engine, logits, on_event)?.unwrap_or(Progress::Keep))
    }

    /// Replaces the state, after the whole prompt, by one that another way of processing it has made.
    pub fn processed(&mut self, sequence: Sequence) {
        self.sequence = sequence;
        self.tokens.clone_from(&self.prompt);
    }

    /// Ends the answer early.
    pub fn cut(&mut self, finish: Finish) {
        self.outcome.finish = finish;
    }

    /// The next token; none if the constraint allows none.
    fn choose(&mut self, engine: &Engine, logits: &[f32]) -> Result<Option<u32>, GenerateError> {
        let Some(constrained) = &mut self.constrained else { return Ok(Some(self.sampler.sample(logits)?)) };
        let Some(id) = self.sampler.sample_among(logits, &constrained.allowed()?)? else { return Ok(None) };
        if !engine.tokenizer().is_stop(id) {
            constrained.accept(id, engine.tokenizer())?;
        }
        Ok(Some(id))
    }

    /// Samples the next token; [`Progress::Done`] if that ends the answer.
    fn sample(
        &mut self,
        engine: &Engine,
        logits: &[f32],
        on_event: &mut dyn FnMut(Event<'_>) -> Flow,
    ) -> Result<Option<Progress>, GenerateError> {
        let Some(id) = self.choose(engine, logits)? else {
            // A constraint that nothing can follow: the answer ends here.
            self.outcome.finish = Finish::EndOfAnswer;
            return Ok(Some(Progress::Done));
        };
        self.outcome.generated_tokens += 1;
        if self.outcome.generated_tokens == 1 {
            self.outcome.time_to_first_token = self.start.elapsed();
        }
        let probabilities = self.request.top_logprobs.map(|top| logprobs(logits, id, top));
        let logprobs = probabilities.as_ref().map(|(chosen, top)| (*chosen, &**top));
        if engine.tokenizer().is_stop(id) {
            self.outcome.finish = Finish::EndOfAnswer;
            if let Some((logprob, top)) = logprobs {
                // The answer has ended, whatever is said to that.
                on_event(Event::EndToken { logprob, top });
            }
            return Ok(Some(Progress::Done));
        }
        match on_event(Event::Token { id, logprobs }) {
            Flow::Continue => {}
            Flow::Stop => {
                self.outcome.finish = Finish::Stopped;
                return Ok(Some(Progress::Done));
            }
            Flow::Cancel => {
                self.outcome.finish = Finish::Cancelled;
                return Ok(Some(Progress::Done));
            }
        }
        if self.outcome.generated_tokens >= self.request.max_tokens || self.tokens.len() + 1 >= engine.context() {
            self.outcome.finish = Finish::Length;
            return Ok(Some(Progress::Done));
        }
        self.next = Some(id);
        Ok(None)
    }
}
