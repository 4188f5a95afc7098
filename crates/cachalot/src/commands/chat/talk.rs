//! The conversation of a chat and what its commands do to it.
//!
//! A message whose answer fails, or is stopped before it begins, is taken back: what is kept is always a conversation
//! that can go on.

use std::path::Path;
use std::sync::Arc;

use anyhow::bail;
use cachalot_engine::{Engine, Session, Turn, TurnOptions, turn};
use cachalot_text::conversation::{Conversation, Message};
use cachalot_text::parser::FinishReason;

use super::command::{HELP, Input};
use super::saved;
use crate::output::told;
use crate::report::Roofline;
use crate::stream::{Stream, figures};
use crate::terminal::dim;
use crate::{interrupt, report};

/// A conversation with the state that goes with it.
pub struct Talk {
    engine: Arc<Engine>,
    stats: bool,
    session: Session,
    conversation: Conversation,
    options: TurnOptions,
    last: Option<Turn>,
    turns: usize,
    generated: usize,
    /// Whether keeping it for `--resume` has failed.
    unsaved: bool,
}

impl Talk {
    /// Begins with `conversation`.
    ///
    /// With `stats`, what each answer took from memory and from the disk is shown after it.
    pub fn new(engine: Arc<Engine>, stats: bool, conversation: Conversation, options: TurnOptions) -> Self {
        let session = Session::new(Arc::clone(&engine));
        Self { engine, stats, session, conversation, options, last: None, turns: 0, generated: 0, unsaved: false }
    }

    /// What is shown at the beginning.
    pub fn greeting(&self) -> String {
        let mode = if self.conversation.thinking { "on" } else { "off" };
        format!("{}: context {} tokens, thinking {mode}", self.engine.label(), self.engine.context())
    }

    /// Does what the user asks; what there is to say goes to standard error, answers to standard output.
    ///
    /// # Errors
    /// If it cannot be done; the conversation is as it was.
    pub fn handle(&mut self, input: Input) -> anyhow::Result<()> {
        match input {
            Input::Empty | Input::Exit => {}
            Input::Message(text) => self.say(text)?,
            Input::Help => eprintln!("{HELP}"),
            Input::Clear => {
                self.conversation.messages.retain(|message| matches!(message, Message::System { .. }));
                self.session.clear();
                eprintln!("(forgotten)");
            }
            Input::ShowSystem => match self.conversation.messages.first() {
                Some(Message::System { content, .. }) => eprintln!("{}", saved::text(content)),
                _ => eprintln!("(no instructions)"),
            },
            Input::System(text) => self.set_system(text),
            Input::Think(on) => {
                self.conversation.thinking = on;
                eprintln!("(thinking {})", if on { "on" } else { "off" });
            }
            Input::Effort(effort) => {
                self.conversation.effort = effort;
                let note = if self.conversation.thinking { "" } else { "; it has no effect while thinking is off" };
                eprintln!("(effort set{note})");
            }
            Input::Save(path) => {
                saved::save(&self.conversation, &path)?;
                eprintln!("({} messages saved to {})", self.conversation.messages.len(), path.display());
            }
            Input::Load(path) => self.load(&path)?,
            Input::Regenerate => self.regenerate()?,
            Input::Stats => self.stats(),
        }
        Ok(())
    }

    fn set_system(&mut self, text: Option<String>) {
        if let Some(Message::System { .. }) = self.conversation.messages.first() {
            self.conversation.messages.remove(0);
        }
        eprintln!("{}", if text.is_some() { "(instructions set)" } else { "(instructions removed)" });
        if let Some(text) = text {
            self.conversation.messages.insert(0, Message::system(text));
        }
    }

    fn load(&mut self, path: &Path) -> anyhow::Result<()> {
        self.conversation = saved::load(path, &self.conversation)?;
        if let Some(Message::User { .. }) = self.conversation.messages.last() {
            eprintln!("(the last message has no answer yet: /regenerate answers it)");
        }
        eprintln!("({} messages loaded from {})", self.conversation.messages.len(), path.display());
        Ok(())
    }

    /// Goes on with the conversation of `path`.
    ///
    /// # Errors
    /// If there is none, or it cannot be read.
    pub fn resume(&mut self, path: Option<&Path>) -> anyhow::Result<()> {
        match path {
            Some(path) if path.exists() => self.load(path),
            _ => bail!("there is no chat to go on with: chats held in a terminal are kept"),
        }
    }

    /// Keeps the conversation for `--resume`; that it cannot be kept is said once and no failure.
    pub fn save_last(&mut self, path: &Path) {
        if self.conversation.messages.is_empty() || self.unsaved {
            return;
        }
        let directory = path.parent().map_or(Ok(()), std::fs::create_dir_all);
        let saved = directory.map_err(anyhow::Error::from).and_then(|()| saved::save(&self.conversation, path));
        if let Err(error) = saved {
            self.unsaved = true;
            eprintln!("cachalot: the chat cannot be kept for --resume: {}", told(&error));
        }
    }

    /// Says something and lets the model answer.
    fn say(&mut self, text: String) -> anyhow::Result<()> {
        let kept = self.conversation.messages.len();
        self.conversation.messages.push(Message::user(text));
        let answered = self.answer();
        if !matches!(answered, Ok(true)) {
            self.conversation.messages.truncate(kept);
        }
        if let Ok(false) = answered {
            eprintln!("(no answer: the message is taken back)");
        }
        answered.map(|_| ())
    }

    /// Answers the last message anew, with another seed where one was chosen.
    fn regenerate(&mut self) -> anyhow::Result<()> {
        let before = self.conversation.messages.clone();
        if let Some(Message::Assistant { .. }) = self.conversation.messages.last() {
            self.conversation.messages.pop();
        }
        let Some(Message::User { .. }) = self.conversation.messages.last() else {
            self.conversation.messages = before;
            bail!("there is nothing to answer anew");
        };
        if let Some(seed) = &mut self.options.sampling.seed {
            *seed = seed.wrapping_add(1);
        }
        let answered = self.answer();
        if !matches!(answered, Ok(true)) {
            self.conversation.messages = before;
        }
        if let Ok(false) = answered {
            eprintln!("(no answer: the one before is kept)");
        }
        answered.map(|_| ())
    }

    /// Lets the model answer and keeps what it says; false if it said nothing.
    fn answer(&mut self) -> anyhow::Result<bool> {
        interrupt::clear();
        let before = self.engine.stats();
        let mut stream = Stream::new(&self.engine, true);
        let outcome = turn(&mut self.session, &self.conversation, &self.options, &mut |event| stream.event(&event));
        let shown = stream.finish();
        // The next answer is not to be stopped by the press that stopped this one.
        interrupt::clear();
        let turn = outcome?;
        shown?;
        let (on, off) = dim();
        eprintln!("{on}{}{off}", figures(&turn));
        if self.stats {
            let stats = self.engine.stats().since(&before);
            let roofline = Roofline::measure(&self.engine, &stats, &turn)?;
            eprintln!("{on}{}{off}", report::stats(&stats, &turn, &roofline));
        }
        self.turns += 1;
        self.generated += turn.outcome.generated_tokens;
        let said = !turn.answer.is_empty() || turn.finish == FinishReason::Stop;
        if said {
            let reasoning = (!turn.reasoning.is_empty()).then(|| turn.reasoning.clone());
            self.conversation.messages.push(Message::assistant(turn.answer.clone(), reasoning));
        }
        self.last = Some(turn);
        Ok(said)
    }

    fn stats(&self) {
        if let Some(turn) = &self.last {
            eprintln!("last answer: {}", figures(turn));
            let sampling = &turn.sampling;
            eprintln!(
                "sampling: temperature {}, top-k {}, top-p {}, min-p {}, seed {}",
                sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p, sampling.seed
            );
        }
        let state = self.session.sequence().bytes();
        let bytes = state.entries + state.index_keys + state.windows + state.other;
        eprintln!(
            "session: {} answers, {} tokens generated, {} of {} tokens of context in use, state {:.1} MB",
            self.turns,
            self.generated,
            self.session.tokens().len(),
            self.engine.context(),
            bytes as f64 / 1e6
        );
        let experts = self.engine.expert_stats();
        eprintln!(
            "experts: {} found in memory, {} read, {} kept in {:.1} MB; {} threads, {}",
            experts.hits,
            experts.misses,
            experts.kept,
            experts.kept_bytes as f64 / 1e6,
            self.engine.threads(),
            self.engine.instruction_set()
        );
    }
}
