//! The scheduler's thread: who is let in, what a step holds, and what becomes of it.

use std::collections::{HashMap, VecDeque};
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use cachalot_model::{StepError, Workspace};

use super::queue::shares;
use super::{Inbox, Job, JobError, JobEvent, Shared, Sink, Stop};
use crate::engine::Engine;
use crate::generation::{Generation, Progress, StepLogits};
use crate::prefixes::Prefixes;
use crate::session::{Event, Finish, Flow, GenerateError, Outcome};

/// How often those who wait are told so.
const TELL_EVERY: Duration = Duration::from_secs(1);
/// Over how long rates are taken.
const RATE_WINDOW: Duration = Duration::from_secs(10);
/// A common beginning shorter than this is not worth a state of its own.
const SHARED_LEAST: usize = 64;

/// A job that has been let in.
struct Running {
    client: u64,
    deadline: Option<Instant>,
    sink: Sink,
    generation: Generation,
    /// Tokens of its prompt that the next step may hold.
    share: usize,
    /// Tokens that the last step held.
    advanced: usize,
    /// Bytes of state that it may come to take.
    reserved: u64,
    end: Option<End>,
}

/// How a running job ends.
enum End {
    /// With its outcome; the state is kept.
    Outcome,
    Error(JobError),
}

struct Worker<'s> {
    shared: &'s Shared,
    work: Workspace,
    running: Vec<Running>,
    prefixes: Prefixes,
    state_bytes: u64,
    rates: Rates,
    told: Instant,
}

/// Runs until the scheduler is stopped.
pub(super) fn run(shared: &Shared) {
    let state_bytes = shared.options.state_bytes.unwrap_or_else(|| shared.engine.plan().state_bytes());
    let mut worker = Worker {
        shared,
        work: Workspace::new(),
        running: Vec::new(),
        prefixes: Prefixes::new(state_bytes, shared.engine.prefix_store()),
        state_bytes,
        rates: Rates::default(),
        told: Instant::now(),
    };
    while worker.admit() {
        worker.step();
        worker.end_jobs();
    }
    shared.inbox().stop = Stop::Done;
    shared.changed.notify_all();
}

impl Worker<'_> {
    /// Waits for something to do and lets in who may; false when it is time to stop.
    fn admit(&mut self) -> bool {
        let shared = self.shared;
        loop {
            let mut inbox = shared.inbox();
            self.tell_waiting(&mut inbox);
            let refused = if inbox.stop == Stop::No { Vec::new() } else { inbox.queue.take_out(|_, _| true) };
            let next = self.next(&mut inbox);
            self.tell(&mut inbox);
            let stop = inbox.stop;
            if next.is_none() && self.running.is_empty() && stop == Stop::No {
                let waits = shared.changed.wait_timeout(inbox, TELL_EVERY);
                drop(waits.unwrap_or_else(PoisonError::into_inner));
                continue;
            }
            // What jobs are told from here on may take the lock.
            drop(inbox);
            refused.into_iter().for_each(|mut job| _ = (job.sink)(JobEvent::End(Err(JobError::Stopping))));
            if stop == Stop::Cut {
                self.running.iter_mut().for_each(|running| running.end = Some(End::Error(JobError::Stopping)));
                self.end_jobs();
                return false;
            }
            match next {
                Some((client, job)) => self.let_in(client, job),
                None => return !self.running.is_empty(),
            }
        }
    }

    /// Tells those who wait, and lets go who would not or whose time is over.
    fn tell_waiting(&mut self, inbox: &mut Inbox) {
        if self.told.elapsed() < TELL_EVERY {
            return;
        }
        self.told = Instant::now();
        let over = |job: &Job| job.deadline.is_some_and(|deadline| deadline <= Instant::now());
        let leavers =
            inbox.queue.take_out(|ahead, job| over(job) || (job.sink)(JobEvent::Waiting { ahead }) == Flow::Cancel);
        for mut job in leavers {
            let status = &mut inbox.status;
            status.finished += 1;
            if over(&job) {
                status.failed += 1;
                (job.sink)(JobEvent::End(Err(JobError::TimedOut)));
            } else {
                status.cancelled += 1;
                (job.sink)(JobEvent::End(Ok(Outcome::nothing(job.prompt.len()))));
            }
        }
    }

    /// The next job, if one waits and there is room for it. Says in the inbox how many more there is room for.
    fn next(&self, inbox: &mut Inbox) -> Option<(u64, Job)> {
        inbox.room = self.shared.options.sequences.saturating_sub(self.running.len());
        if inbox.room == 0 {
            return None;
        }
        let mut busy = HashMap::new();
        self.running.iter().for_each(|running| *busy.entry(running.client).or_default() += 1);
        let (client, job) = inbox.queue.next(&busy)?;
        if !self.running.is_empty() && self.reserved() + self.needs(&job) > self.state_bytes {
            inbox.queue.put_back(client, job);
            inbox.room = 0;
            return None;
        }
        inbox.room -= 1;
        Some((client, job))
    }

    /// Bytes of state that a job may come to take.
    fn needs(&self, job: &Job) -> u64 {
        let engine = &self.shared.engine;
        engine.state_bytes(job.prompt.len().saturating_add(job.request.max_tokens).min(engine.context()))
    }

    /// Bytes of state that those who run may come to take.
    fn reserved(&self) -> u64 {
        self.running.iter().map(|running| running.reserved).sum()
    }

    fn let_in(&mut self, client: u64, job: Job) {
        let engine = &*self.shared.engine;
        let reserved = self.needs(&job);
        let Job { prompt, request, deadline, mut sink, .. } = job;
        let mut generation = match Generation::new(engine, &prompt, &request, Instant::now()) {
            Ok(generation) => generation,
            Err(error) => {
                let mut inbox = self.shared.inbox();
                inbox.status.finished += 1;
                inbox.status.failed += 1;
                drop(inbox);
                sink(JobEvent::End(Err(error.into())));
                return;
            }
        };
        if generation.may_go_on()
            && let Some(state) = self.prefixes.longest(&prompt, &engine.model().sequence())
        {
            generation.go_on_from(state);
        }
        generation.keep_at(shared_beginning(engine, &prompt));
        let end = (!generation.report(&mut |event| pass(&mut sink, event))).then_some(End::Outcome);
        self.running.push(Running { client, deadline, sink, generation, share: 0, advanced: 0, reserved, end });
        self.prefixes.shrink(self.state_bytes.saturating_sub(self.reserved()));
    }

    /// Writes down what is going on.
    fn tell(&mut self, inbox: &mut Inbox) {
        let status = &mut inbox.status;
        status.running = self.running.len();
        status.waiting = inbox.queue.len();
        (status.tokens_per_second, status.prompt_tokens_per_second) = self.rates.rates();
    }

    /// One step of the model over all answers, and over prompts as far as their shares go.
    fn step(&mut self) {
        self.end_overdue();
        let engine = &*self.shared.engine;
        let mut running: Vec<&mut Running> = self.running.iter_mut().filter(|running| running.end.is_none()).collect();
        let waiting: Vec<usize> = running.iter().map(|running| running.generation.waiting()).collect();
        let answers = waiting.iter().filter(|waiting| **waiting == 0).count();
        let (chunk, beside) = (engine.prefill_chunk(), self.shared.options.prompt_tokens_beside.max(1));
        let budget = if answers > 0 && engine.experts_fit() { beside.min(chunk) } else { chunk };
        let shares = shares(&waiting, budget);
        running.iter_mut().zip(&shares).for_each(|(running, share)| running.share = *share);
        let mut advancing: Vec<&mut Running> =
            running.into_iter().filter(|running| running.share > 0 || running.generation.waiting() == 0).collect();
        if advancing.is_empty() {
            return;
        }
        let begin = Instant::now();
        match advance(engine, &mut self.work, &mut advancing) {
            Ok(logits) => deliver(engine, logits, &mut advancing, &mut self.prefixes),
            // Somebody else's bad luck is not everyone's: each by itself, and who fails then has failed.
            Err(_) if advancing.len() > 1 => {
                for running in advancing {
                    let mut alone = [running];
                    match advance(engine, &mut self.work, &mut alone) {
                        Ok(logits) => deliver(engine, logits, &mut alone, &mut self.prefixes),
                        Err(error) => alone[0].fail(error),
                    }
                }
            }
            Err(error) => advancing[0].fail(error),
        }
        let prompts = self.running.iter().map(|running| running.share.min(running.advanced)).sum();
        self.rates.add(answers, prompts, begin);
    }

    fn end_overdue(&mut self) {
        let now = Instant::now();
        for running in &mut self.running {
            if running.end.is_none() && running.deadline.is_some_and(|deadline| deadline <= now) {
                running.end = Some(match running.generation.outcome().generated_tokens {
                    0 => End::Error(JobError::TimedOut),
                    _ => {
                        running.generation.cut(Finish::Length);
                        End::Outcome
                    }
                });
            }
        }
    }

    /// Says goodbye to whoever has ended; their states are kept.
    fn end_jobs(&mut self) {
        for index in (0..self.running.len()).rev() {
            if self.running[index].end.is_none() {
                continue;
            }
            let Running { mut sink, generation, end, .. } = self.running.remove(index);
            let (tokens, sequence, outcome) = generation.into_parts();
            self.prefixes.keep(&tokens, sequence);
            self.prefixes.shrink(self.state_bytes.saturating_sub(self.reserved()));
            let mut inbox = self.shared.inbox();
            // Whoever hears of this end may ask again at once.
            inbox.room += 1;
            let status = &mut inbox.status;
            status.finished += 1;
            status.generated_tokens += outcome.generated_tokens as u64;
            status.prompt_tokens += (outcome.prompt_tokens - outcome.cached_tokens) as u64;
            status.cached_tokens += outcome.cached_tokens as u64;
            (status.kept_states, status.kept_bytes) = (self.prefixes.len(), self.prefixes.bytes());
            status.kept_tokens = self.prefixes.tokens() as u64;
            match &end {
                Some(End::Error(_)) => status.failed += 1,
                _ => status.cancelled += u64::from(outcome.finish == Finish::Cancelled),
            }
            drop(inbox);
            sink(JobEvent::End(match end {
                Some(End::Error(error)) => Err(error),
                _ => Ok(outcome),
            }));
        }
    }
}

impl Running {
    fn fail(&mut self, error: StepError) {
        self.end = Some(match error {
            // The program would not wait for the disk.
            StepError::Cancelled => {
                self.generation.cut(Finish::Cancelled);
                End::Outcome
            }
            error => End::Error(GenerateError::Step(error).into()),
        });
    }
}

/// Runs one step over `advancing`; if it fails nobody has moved.
fn advance<'w>(
    engine: &'w Engine,
    work: &'w mut Workspace,
    advancing: &mut [&mut Running],
) -> Result<StepLogits<'w>, StepError> {
    let mut segments: Vec<_> = Vec::with_capacity(advancing.len());
    for running in advancing.iter_mut() {
        running.generation.expect(engine, work);
        let segment = running.generation.segment(running.share);
        running.advanced = segment.tokens.len();
        segments.push(segment);
    }
    let wanted = engine.model().step(work, &mut segments, None)?;
    Ok(StepLogits::new(engine.model(), work, wanted))
}

/// Gives everyone the logits of its segment.
fn deliver(engine: &Engine, mut logits: StepLogits<'_>, advancing: &mut [&mut Running], prefixes: &mut Prefixes) {
    for running in advancing {
        let Running { generation, sink, advanced, .. } = &mut **running;
        match generation.advanced(engine, *advanced, &mut logits, &mut |event| pass(sink, event)) {
            Ok(Progress::Goes) => {}
            Ok(Progress::Keep) => prefixes.keep(generation.tokens(), generation.sequence().clone()),
            Ok(Progress::Done) => running.end = Some(End::Outcome),
            Err(error) => running.end = Some(End::Error(error.into())),
        }
    }
}

fn pass(sink: &mut Sink, event: Event<'_>) -> Flow {
    sink(match event {
        Event::Prefill { done, total } => JobEvent::Prefill { done, total },
        Event::PromptToken { logprob, top } => JobEvent::PromptToken { logprob, top },
        Event::Token { id, logprobs } => JobEvent::Token { id, logprobs },
        Event::EndToken { logprob, top } => JobEvent::EndToken { logprob, top },
    })
}

/// Where the text ends that other conversations begin with, too: instructions and tools, before the first user speaks.
fn shared_beginning(engine: &Engine, prompt: &[u32]) -> Option<usize> {
    let user = engine.tokenizer().markers().user;
    prompt.iter().position(|id| *id == user).filter(|position| *position >= SHARED_LEAST)
}

/// Tokens done over the last seconds.
#[derive(Default)]
struct Rates {
    steps: VecDeque<(Instant, usize, usize)>,
}

impl Rates {
    fn add(&mut self, answers: usize, prompts: usize, begin: Instant) {
        self.steps.push_back((begin, answers, prompts));
        self.forget();
    }

    fn forget(&mut self) {
        while self.steps.front().is_some_and(|(begin, ..)| begin.elapsed() > RATE_WINDOW) {
            self.steps.pop_front();
        }
    }

    /// Tokens of answers and of prompts per second.
    fn rates(&mut self) -> (f64, f64) {
        self.forget();
        let Some((begin, ..)) = self.steps.front() else { return (0.0, 0.0) };
        let seconds = begin.elapsed().as_secs_f64().max(1e-3);
        let sum = |of: fn(&(Instant, usize, usize)) -> usize| self.steps.iter().map(of).sum::<usize>() as f64 / seconds;
        (sum(|step| step.1), sum(|step| step.2))
    }
}
