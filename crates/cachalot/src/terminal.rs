//! What people see besides the answer: progress bars, dimmed reasoning, figures. All of it goes to standard error.
//!
//! Nothing moves and nothing is coloured unless standard error is a terminal; NO_COLOR turns colours off there too.

use std::borrow::Cow;
use std::fmt::Write;
use std::io::{IsTerminal, stderr};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

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

/// `text` as it may be shown on a terminal: a model's output must not move the cursor or change colours, so control
/// characters but line ends and tabs become a visible mark.
pub fn harmless(text: &str) -> Cow<'_, str> {
    let harmful = |character: char| character.is_control() && !matches!(character, '\n' | '\t');
    if text.contains(harmful) { text.replace(harmful, "\u{FFFD}").into() } else { text.into() }
}

/// How long work goes on before a bar is shown.
const PATIENCE: Duration = Duration::from_millis(300);

/// A bar that is shown once the work has taken a moment, if there is a terminal.
pub struct Bar {
    bar: ProgressBar,
    start: Instant,
    shown: bool,
}

impl Bar {
    /// A bar for bytes.
    pub fn bytes(what: &'static str) -> Self {
        Self::new(what, "{decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec} {eta}")
    }

    /// A bar for tokens.
    pub fn tokens(what: &'static str) -> Self {
        Self::new(what, "{pos}/{len} tokens {rate} {eta}")
    }

    fn new(what: &'static str, figures: &str) -> Self {
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::hidden());
        let colour = if styled() { ".cyan" } else { "" };
        let template = format!("{{msg:<8}} {{bar:30{colour}}} {figures}");
        if let Ok(style) = ProgressStyle::with_template(&template) {
            let rate = |state: &ProgressState, out: &mut dyn Write| {
                // A bar that cannot be written shows nothing.
                let _ = write!(out, "{:.1}/s", state.per_sec());
            };
            bar.set_style(style.with_key("rate", rate));
        }
        bar.set_message(what);
        Self { bar, start: Instant::now(), shown: false }
    }

    /// Shows that `done` of `total` are done.
    pub fn set(&mut self, done: u64, total: u64) {
        self.bar.update(|state| {
            state.set_len(total);
            state.set_pos(done);
        });
        if !self.shown && self.start.elapsed() >= PATIENCE && stderr().is_terminal() {
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
            self.shown = true;
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_lose_their_power() {
        assert_eq!(harmless("a\tb\n\u{1F40B} é"), "a\tb\n\u{1F40B} é");
        assert_eq!(harmless("\x1b[2Ja\r\x08\x7f\u{9b}0m"), "\u{FFFD}[2Ja\u{FFFD}\u{FFFD}\u{FFFD}\u{FFFD}0m");
    }

    #[test]
    fn times_read_well() {
        assert_eq!(seconds(Duration::from_micros(71_400)), "71 ms");
        assert_eq!(seconds(Duration::from_millis(61_250)), "61.2 s");
    }

    #[test]
    fn the_bars_have_a_sound_style() {
        for mut bar in [Bar::bytes("a"), Bar::tokens("b")] {
            bar.set(1, 2);
            assert_eq!((bar.bar.position(), bar.bar.length()), (1, Some(2)));
            bar.clear();
        }
    }
}
