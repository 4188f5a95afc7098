//! The line that says how fast an answer is being made, and where its experts come from.
//!
//! On a terminal only, below the answer: it is taken away before anything else is written, drawn again behind it, and
//! gone at the end. Nothing of an answer is ever moved or overwritten: where the cursor's place is not certain, nothing is drawn.

use std::io::{IsTerminal, stderr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cachalot_engine::{Engine, Stats};
use console::{Term, measure_text_width, truncate_str};

use crate::terminal::dim;

/// How often the figures change.
const EVERY: Duration = Duration::from_millis(250);

/// One answer's status line.
pub struct Status {
    engine: Arc<Engine>,
    /// Whether anybody would see it.
    shown: bool,
    before: Stats,
    /// When the first token came, and how many have come.
    first: Option<Instant>,
    tokens: usize,
    text: String,
    renewed: Option<Instant>,
    /// Cells of the last line on the terminal, as far as reasoning or answer go there.
    column: usize,
    drawn: bool,
}

impl Status {
    /// For an answer that begins now; `shown` if people read it.
    pub fn new(engine: &Arc<Engine>, shown: bool) -> Self {
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        Self {
            engine: Arc::clone(engine),
            shown: stderr().is_terminal() && shown && !dumb,
            before: engine.stats(),
            first: None,
            tokens: 0,
            text: String::new(),
            renewed: None,
            column: 0,
            drawn: false,
        }
    }

    /// Takes it away: something is about to be written.
    pub fn clear(&mut self) {
        if std::mem::take(&mut self.drawn) {
            // Behind the cursor there is nothing else.
            eprint!("\x1b[J");
        }
    }

    /// `text` was written to the terminal.
    pub fn wrote(&mut self, text: &str) {
        match text.rsplit_once('\n') {
            Some((_, last)) => self.column = measure_text_width(last),
            None => self.column += measure_text_width(text),
        }
        // How wide a tab is, depends on where it begins.
        if text.contains('\t') {
            self.column = self.column.next_multiple_of(8);
        }
    }

    /// A token has come.
    pub fn token(&mut self) {
        self.tokens += 1;
        let first = *self.first.get_or_insert_with(Instant::now);
        if !self.shown || self.tokens < 2 {
            return;
        }
        if self.renewed.is_none_or(|renewed| renewed.elapsed() >= EVERY) {
            self.renewed = Some(Instant::now());
            self.text = figures(self.tokens - 1, first.elapsed(), &self.engine.stats().since(&self.before));
        }
        self.draw();
    }

    fn draw(&mut self) {
        let (_, width) = Term::stderr().size_checked().unwrap_or((24, 80));
        let width = usize::from(width).max(2);
        self.clear();
        // A full line leaves the cursor between two lines: what comes next decides.
        if self.column > 0 && self.column.is_multiple_of(width) {
            return;
        }
        let text = truncate_str(&self.text, width - 1, "");
        let (on, off) = dim();
        // One down and one up makes sure that there is a line below, in the same column; then draw there and return.
        eprint!("\x1bD\x1bM\x1b7\x1b[B\r\x1b[2K{on}{text}{off}\x1b8");
        self.drawn = true;
    }
}

/// What has been going on for `time`, in which `tokens` came.
fn figures(tokens: usize, time: Duration, stats: &Stats) -> String {
    let rate = tokens as f64 / time.as_secs_f64().max(1e-9);
    let mut text = format!("{rate:.1} tokens/s");
    if rate < 10.0 {
        text = format!("{rate:.2} tokens/s");
    }
    if stats.experts.hits + stats.experts.misses > 0 {
        text += &format!(", {:.0} % of experts from memory", 100.0 * stats.experts.hit_rate());
    }
    if let Some(rate) = stats.disk_rate().filter(|_| stats.disk.reads > 0) {
        text += &format!(", disk {:.2} GB/s", rate / 1e9);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_those_of_the_time_given() {
        let mut stats = Stats::default();
        assert_eq!(figures(30, Duration::from_secs(2), &stats), "15.0 tokens/s");
        (stats.experts.hits, stats.experts.misses) = (3, 1);
        (stats.disk.reads, stats.disk.bytes, stats.disk.busy) = (4, 1_500_000_000, Duration::from_secs(3));
        let text = figures(5, Duration::from_secs(2), &stats);
        assert_eq!(text, "2.50 tokens/s, 75 % of experts from memory, disk 0.50 GB/s");
    }
}
