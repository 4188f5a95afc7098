//! What the server asks the engine for, as a trait: jobs in, events out.
//!
//! Owns the seam between HTTP and the engine, so that tests can play given tokens through the whole server.

use std::sync::Arc;
use std::time::Duration;

use cachalot_engine::scheduler::{Job, Scheduler, Status, SubmitError};
use cachalot_engine::stats::StatsReport;
use cachalot_engine::{Constraints, Engine};
use cachalot_text::conversation::EffortTexts;
use cachalot_text::{Family, Tokenizer};

/// Answers jobs.
pub trait Backend: Send + Sync + 'static {
    /// Takes a job; its sink hears of everything from here on, and [`End`](cachalot_engine::scheduler::JobEvent::End)
    /// last.
    ///
    /// # Errors
    /// If too many wait, the prompt cannot be answered, or the backend stops.
    fn submit(&self, job: Job) -> Result<(), SubmitError>;

    /// What it does and has done.
    fn status(&self) -> Status;

    /// What came from memory and from the disk; `None` where there is neither.
    fn stats(&self) -> Option<StatsReport>;

    /// Takes no more jobs, lets what runs finish for up to `grace`, then cuts it off. Blocks.
    fn stop(&self, grace: Duration);
}

impl Backend for Scheduler {
    fn submit(&self, job: Job) -> Result<(), SubmitError> {
        Scheduler::submit(self, job)
    }

    fn status(&self) -> Status {
        Scheduler::status(self)
    }

    fn stats(&self) -> Option<StatsReport> {
        Some(self.engine().stats().report())
    }

    fn stop(&self, grace: Duration) {
        Scheduler::stop(self, grace);
    }
}

/// What the server knows of the model.
#[derive(Clone, Debug)]
pub struct ModelCard {
    /// Its name in the APIs.
    pub id: String,
    /// Other names that it answers to.
    pub aliases: Vec<String>,
    /// Its tokenizer.
    pub tokenizer: Arc<Tokenizer>,
    /// What its outputs can be held to.
    pub constraints: Arc<Constraints>,
    /// Most tokens of prompt and answer together.
    pub context: usize,
    /// Which effort texts it knows (protocol.md 2.3).
    pub effort_texts: EffortTexts,
    /// Whether it reasons where a request does not say.
    pub thinks: bool,
    /// Whether it looks at images.
    pub images: bool,
    /// When it became available, in seconds since 1970.
    pub created: u64,
}

impl ModelCard {
    /// The card of a loaded model.
    pub fn new(engine: &Engine, id: String, thinks: bool) -> Self {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Self {
            id,
            aliases: Vec::new(),
            tokenizer: engine.shared_tokenizer(),
            constraints: Arc::clone(engine.constraints()),
            context: engine.context(),
            effort_texts: engine.effort_texts(),
            thinks,
            // No engine does yet.
            images: false,
            created: now.as_secs(),
        }
    }

    /// The prompt format.
    pub fn family(&self) -> Family {
        self.tokenizer.family()
    }

    /// Whether a request for `name` is for this model: its own names, those of the vendor's API, and those that programs
    /// made for other vendors insist on; a context suffix such as `[1m]` does not matter (protocol.md 5.2).
    pub fn answers_to(&self, name: &str) -> bool {
        const VENDOR: [&str; 6] = [
            "deepseek-chat",
            "deepseek-flash",
            "deepseek-reasoner",
            "deepseek-v4-flash",
            "deepseek-v4-pro",
            "deepseek-v4.1-flash",
        ];
        let name = match name.rfind('[') {
            Some(at) if name.ends_with(']') => &name[..at],
            _ => name,
        };
        let lower = name.to_ascii_lowercase();
        name == self.id
            || self.aliases.iter().any(|alias| alias == name)
            || VENDOR.contains(&lower.as_str())
            || ["claude-", "gpt-"].iter().any(|start| lower.starts_with(start))
    }
}
