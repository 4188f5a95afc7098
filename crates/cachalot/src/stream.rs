//! A turn as it happens: the answer to standard output, the rest to standard error.

use std::io::{IsTerminal, stderr, stdout};
use std::sync::Arc;

use cachalot_engine::{Engine, Flow, Turn, TurnEvent};
use cachalot_text::parser::{Event, FinishReason};

use crate::status::Status;
use crate::terminal::{Bar, dim, harmless, seconds};
use crate::{interrupt, output};

/// Shows one turn.
pub struct Stream {
    bar: Bar,
    status: Status,
    /// Whether anything is shown: not for programs, which get everything at the end.
    shown: bool,
    /// Whether standard output and standard error are terminals.
    terminals: [bool; 2],
    in_reasoning: bool,
    /// Whether the answer shown so far ends a line.
    at_line_start: bool,
    failed: Option<anyhow::Error>,
}

impl Stream {
    /// For one turn; nothing is shown for a program that reads JSON.
    pub fn new(engine: &Arc<Engine>, shown: bool) -> Self {
        Self {
            bar: Bar::tokens("reading"),
            status: Status::new(engine, shown),
            shown,
            terminals: [stdout().is_terminal(), stderr().is_terminal()],
            in_reasoning: false,
            at_line_start: true,
            failed: None,
        }
    }

    /// Shows an event; says whether to go on.
    pub fn event(&mut self, event: &TurnEvent<'_>) -> Flow {
        match event {
            TurnEvent::Prefill { done, total } if self.shown => {
                self.bar.set(*done as u64, *total as u64);
                if done == total {
                    self.bar.clear();
                }
            }
            TurnEvent::Output(Event::Reasoning(text)) if self.shown => self.reasoning(text),
            TurnEvent::Output(Event::Answer(text)) if self.shown => self.answer(text),
            _ => {}
        }
        if !matches!(event, TurnEvent::Prefill { .. }) {
            self.status.token();
        }
        if interrupt::pressed() || self.failed.is_some() { Flow::Cancel } else { Flow::Continue }
    }

    fn reasoning(&mut self, text: &str) {
        let (on, off) = dim();
        let text = if self.terminals[1] { harmless(text) } else { text.into() };
        self.status.clear();
        // One write for each piece: the styles stay around it whatever comes between.
        eprint!("{on}{text}{off}");
        self.status.wrote(&text);
        self.in_reasoning = true;
    }

    fn answer(&mut self, text: &str) {
        self.end_reasoning();
        if let Some(last) = text.chars().next_back() {
            self.at_line_start = last == '\n';
        }
        let text = if self.terminals[0] { harmless(text) } else { text.into() };
        self.status.clear();
        if self.terminals[0] {
            self.status.wrote(&text);
        }
        if let Err(error) = output::print(&text) {
            self.failed = Some(error);
        }
    }

    fn end_reasoning(&mut self) {
        self.status.clear();
        if std::mem::take(&mut self.in_reasoning) {
            self.status.wrote("\n");
            eprintln!("\n");
        }
    }

    /// Ends the last line.
    ///
    /// # Errors
    /// If standard output could not be written.
    pub fn finish(mut self) -> anyhow::Result<()> {
        self.bar.clear();
        self.end_reasoning();
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        if self.at_line_start { Ok(()) } else { output::print("\n") }
    }
}

/// The figures of a turn, in one line.
pub fn figures(turn: &Turn) -> String {
    let outcome = &turn.outcome;
    let mut line = format!("prompt {} tokens", outcome.prompt_tokens);
    if outcome.cached_tokens > 0 {
        line += &format!(" ({} kept)", outcome.cached_tokens);
    }
    if !outcome.prefill_time.is_zero() {
        line += &format!(" at {:.1} tokens/s", outcome.prefill_rate());
    }
    if outcome.generated_tokens > 0 {
        line += &format!(", first token after {}", seconds(outcome.time_to_first_token));
        line += &format!(", answer {} tokens", outcome.generated_tokens);
    }
    if outcome.generated_tokens > 1 {
        line += &format!(" at {:.1} tokens/s", outcome.decode_rate());
    }
    match &turn.finish {
        FinishReason::Stop | FinishReason::ToolCalls => {}
        FinishReason::StopSequence(text) => line += &format!(", ended by {text:?}"),
        FinishReason::Length => line += ", cut off by the token limit",
        FinishReason::Cancelled => line += ", interrupted",
    }
    line
}
