//! What people see besides the answer: progress bars, dimmed reasoning, figures. All of it goes to standard error.
//!
//! Nothing moves and nothing is coloured unless standard error is a terminal; NO_COLOR turns colours off there too.

use std::io::{IsTerminal, stderr};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Whether text on standard error may be styled.
pub fn styled() -> bool {
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    stderr().is_terminal() && !no_color && !dumb
}

/// Starts and ends dimmed text; empty where nothing is styled.
pub fn dim() -> (&'static str, &'static str) {
    if styled() { ("\x1b[2m", "\x1b[0m") } else { ("", "") }
}

/// A bar that is shown once the work has taken a moment, if there is a terminal.
pub struct Bar {
    bar: ProgressBar,
}

impl Bar {
    /// A bar for bytes.
    pub fn bytes(what: &'static str) -> Self {
        Self::new(what, "{decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec} {eta}")
    }

    /// A bar for tokens.
    pub fn tokens(what: &'static str) -> Self {
        Self::new(what, "{pos}/{len} tokens {per_sec} {eta}")
    }

    fn new(what: &'static str, figures: &str) -> Self {
        let target = if stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(0), target);
        let colour = if styled() { "cyan" } else { "" };
        let template = format!("{{msg:<8}} {{bar:30.{colour}}} {figures}");
        if let Ok(style) = ProgressStyle::with_template(&template) {
            bar.set_style(style);
        }
        bar.set_message(what);
        Self { bar }
    }

    /// Shows that `done` of `total` are done.
    pub fn set(&self, done: u64, total: u64) {
        self.bar.set_length(total);
        self.bar.set_position(done);
    }

    /// Takes the bar off the screen.
    pub fn clear(&self) {
        self.bar.finish_and_clear();
    }
}

/// A duration as people read it.
pub fn seconds(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    if seconds < 1.0 { format!("{:.0} ms", seconds * 1000.0) } else { format!("{seconds:.1} s") }
}
