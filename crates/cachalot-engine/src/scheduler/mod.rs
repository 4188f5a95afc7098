//! Many answers at once on one model: continuous batching (design: the engine's scheduler).
//!
//! Owns the thread that runs the model, the queue before it, and the states kept between answers. Every step advances all
//! answers by a token and prompts by a share of the step, so that each expert is read once for all of them. Refuses HTTP
//! and text: a job is ids in, ids out. What a job is answered does not depend on what else runs: the model's steps do not.

mod queue;
mod worker;

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::engine::Engine;
use crate::generation::check_length;
use crate::sampling::LogProb;
use crate::session::{Flow, GenerateError, Outcome, Prefill, Request};
use queue::Queue;

/// Limits of a scheduler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SchedulerOptions {
    /// Answers in the making at once.
    pub sequences: usize,
    /// Jobs that may wait while no more can be answered at once.
    pub waiting: usize,
    /// Tokens of prompts in a step beside answers in the making, where all experts are in memory: more make prompts
    /// faster and answers jerkier. Where experts are read from the disk a step takes all it can, for the disk's sake.
    pub prompt_tokens_beside: usize,
    /// Bytes for states, running and kept; what the plan has for them if absent.
    pub state_bytes: Option<u64>,
}

impl Default for SchedulerOptions {
    fn default() -> Self {
        Self { sequences: 16, waiting: 256, prompt_tokens_beside: 128, state_bytes: None }
    }
}

/// What somebody wants answered.
pub struct Job {
    /// Ids of the prompt.
    pub prompt: Vec<u32>,
    /// How it is answered; [`Prefill::Exact`] only.
    pub request: Request,
    /// Who asks: clients get their turn by turns.
    pub client: u64,
    /// When the answer must have ended.
    pub deadline: Option<Instant>,
    /// Hears of everything, on the scheduler's thread: it must not block or call the scheduler, and may end the job.
    pub sink: Sink,
}

/// Where a job's events go.
pub type Sink = Box<dyn FnMut(JobEvent<'_>) -> Flow + Send>;

/// What happens to a job.
#[derive(Debug)]
pub enum JobEvent<'a> {
    /// It waits for its turn; told about once a second. [`Flow::Cancel`] takes it out of the queue.
    Waiting {
        /// Jobs before it.
        ahead: usize,
    },
    /// Tokens of the prompt processed, and their number.
    Prefill {
        /// Tokens done; those kept from before count.
        done: usize,
        /// All tokens of the prompt.
        total: usize,
    },
    /// A token of the prompt, from the second on, if log-probabilities of the prompt were asked for; the
    /// [`JobEvent::Prefill`] that counts it follows.
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
    /// The job has ended; nothing follows. What the sink returns does not matter.
    End(Result<Outcome, JobError>),
}

/// Why a job ended without the end of its answer.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// Nothing, or no more, could be generated.
    #[error(transparent)]
    Generate(#[from] GenerateError),
    /// Its deadline passed.
    #[error("the time for this answer is over; nothing is wrong with the request: try again when less is running")]
    TimedOut,
    /// The scheduler stops.
    #[error("the server is stopping")]
    Stopping,
}

/// Why a job was not taken.
#[derive(Debug, thiserror::Error)]
pub enum SubmitError {
    /// Too many wait.
    #[error("{waiting} requests are waiting already; try again later")]
    QueueFull {
        /// How many wait.
        waiting: usize,
    },
    /// The scheduler stops.
    #[error("the server is stopping")]
    Stopping,
    /// It cannot be answered.
    #[error(transparent)]
    Generate(#[from] GenerateError),
}

/// What a scheduler is doing and has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Status {
    /// Answers in the making.
    pub running: usize,
    /// Jobs that wait.
    pub waiting: usize,
    /// Tokens generated per second, all answers together, over the last seconds.
    pub tokens_per_second: f64,
    /// Prompt tokens processed per second, over the last seconds.
    pub prompt_tokens_per_second: f64,
    /// Tokens generated since the start.
    pub generated_tokens: u64,
    /// Prompt tokens processed since the start.
    pub prompt_tokens: u64,
    /// Prompt tokens that had been kept.
    pub cached_tokens: u64,
    /// Jobs that ended.
    pub finished: u64,
    /// Of these, jobs that were cancelled.
    pub cancelled: u64,
    /// Of these, jobs that failed.
    pub failed: u64,
    /// States kept.
    pub kept_states: usize,
    /// Bytes of them.
    pub kept_bytes: u64,
    /// Tokens of them; those that several begin with count once.
    pub kept_tokens: u64,
}

/// The thread that runs the model, and what waits for it. Dropping it cuts everything off.
pub struct Scheduler {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// What callers and the thread look at.
struct Shared {
    engine: Arc<Engine>,
    options: SchedulerOptions,
    inbox: Mutex<Inbox>,
    changed: Condvar,
}

struct Inbox {
    queue: Queue<Job>,
    /// Jobs of the queue that need not wait: the thread lets them in as soon as it sees them.
    room: usize,
    status: Status,
    stop: Stop,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stop {
    No,
    /// What runs may finish.
    Finish,
    /// Nothing may.
    Cut,
    Done,
}

impl Shared {
    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Scheduler {
    /// Starts the thread.
    ///
    /// # Errors
    /// If the system gives none.
    pub fn start(engine: Arc<Engine>, options: SchedulerOptions) -> std::io::Result<Self> {
        let inbox = Inbox { queue: Queue::new(), room: options.sequences, status: Status::default(), stop: Stop::No };
        let shared = Arc::new(Shared { engine, options, inbox: Mutex::new(inbox), changed: Condvar::new() });
        let thread = {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new().name("scheduler".to_owned()).spawn(move || worker::run(&shared))?
        };
        Ok(Self { shared, thread: Mutex::new(Some(thread)) })
    }

    /// The engine that it runs.
    pub fn engine(&self) -> &Arc<Engine> {
        &self.shared.engine
    }

    /// Takes a job; its sink hears of everything from here on.
    ///
    /// # Errors
    /// If the queue is full, the prompt cannot be answered, or the scheduler stops.
    pub fn submit(&self, job: Job) -> Result<(), SubmitError> {
        check_length(&self.shared.engine, job.prompt.len())?;
        job.request.sampling.validate().map_err(GenerateError::Sampling)?;
        debug_assert_eq!(job.request.prefill, Prefill::Exact);
        let mut inbox = self.shared.inbox();
        if inbox.stop != Stop::No {
            return Err(SubmitError::Stopping);
        }
        let waiting = inbox.queue.len();
        if waiting >= self.shared.options.waiting.saturating_add(inbox.room) {
            return Err(SubmitError::QueueFull { waiting });
        }
        inbox.queue.push(job.client, job);
        inbox.status.waiting = waiting + 1;
        self.shared.changed.notify_all();
        Ok(())
    }

    /// What it does and has done.
    pub fn status(&self) -> Status {
        self.shared.inbox().status
    }

    /// Takes no more jobs, refuses those that wait, lets what runs finish for up to `grace`, then cuts it off.
    pub fn stop(&self, grace: Duration) {
        // A time beyond all reckoning does not end.
        let end = Instant::now().checked_add(grace);
        let mut inbox = self.shared.inbox();
        if inbox.stop == Stop::No {
            inbox.stop = Stop::Finish;
        }
        self.shared.changed.notify_all();
        while inbox.stop != Stop::Done {
            let left = end.map_or(Duration::MAX, |end| end.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                inbox.stop = Stop::Cut;
                // A step that waits for the disk ends, too.
                self.shared.engine.interrupt().set(true);
                break;
            }
            inbox = self.shared.changed.wait_timeout(inbox, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(inbox);
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        // A panic of the thread has been printed; there is nothing left to stop.
        let _ = thread.map(JoinHandle::join);
        self.shared.engine.interrupt().set(false);
    }
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        self.stop(Duration::ZERO);
    }
}
