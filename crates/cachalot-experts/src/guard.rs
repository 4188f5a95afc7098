//! Whether guessing pays on this machine: pure bookkeeping over the times that tokens took.
//!
//! Guesses are read while the disk would rest, and get in the way when it would not. So a few tokens are decoded with
//! and a few without, in turn; the medians decide for a while, then it is tried again.

use std::time::Duration;

/// Tokens of one turn.
const TURN: usize = 4;
/// Turns of a trial, with and without alternating.
const TURNS: usize = 8;
/// Tokens before the first trial: caches fill and memory is touched for the first time.
const WARM_UP: usize = 8;
/// Tokens for which a decision holds.
const HOLDS: usize = 600;
/// What guessing must gain to be kept: unpacking costs the processor time while it computes.
const MUST_GAIN: f64 = 0.02;

/// What became of guessing.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Verdict {
    /// Whether guesses are read now.
    pub on: bool,
    /// Time per token without over time with, less one; absent until it has been measured.
    pub gain: Option<f64>,
}

/// Decides token by token.
#[derive(Debug, Default)]
pub(crate) struct Guard {
    /// Times without and with.
    times: [Vec<Duration>; 2],
    /// Tokens since the trial, or the decision, began.
    tokens: usize,
    /// Tokens in all, up to the first trial.
    warm: usize,
    decided: Option<bool>,
    gain: Option<f64>,
}

impl Guard {
    /// Whether the next token should be decoded with guesses.
    pub(crate) fn on(&self) -> bool {
        self.decided.unwrap_or((self.tokens / TURN).is_multiple_of(2))
    }

    /// A token took `time`.
    pub(crate) fn took(&mut self, time: Duration) {
        if self.warm < WARM_UP {
            self.warm += 1;
            return;
        }
        let on = self.on();
        self.tokens += 1;
        if self.decided.is_some() {
            if self.tokens >= HOLDS {
                (self.decided, self.tokens) = (None, 0);
            }
            return;
        }
        // The first token of a turn pays for what the turn before left in flight.
        if self.tokens % TURN != 1 {
            self.times[usize::from(on)].push(time);
        }
        if self.tokens >= TURN * TURNS {
            let [without, with] = self.times.each_mut().map(|times| {
                times.sort_unstable();
                let median = times.get(times.len() / 2).map_or(0.0, Duration::as_secs_f64);
                times.clear();
                median
            });
            let gain = if with > 0.0 { without / with - 1.0 } else { 0.0 };
            (self.decided, self.gain, self.tokens) = (Some(gain >= MUST_GAIN), Some(gain), 0);
        }
    }

    pub(crate) fn verdict(&self) -> Verdict {
        Verdict { on: self.on(), gain: self.gain }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(guard: &mut Guard, tokens: usize, with: u64, without: u64) -> usize {
        (0..tokens)
            .filter(|_| {
                let on = guard.on();
                guard.took(Duration::from_millis(if on { with } else { without }));
                on
            })
            .count()
    }

    #[test]
    fn it_stays_on_where_it_pays_and_off_where_not() {
        let mut guard = Guard::default();
        run(&mut guard, WARM_UP, 500, 100);
        run(&mut guard, TURN * TURNS, 80, 100);
        assert_eq!(guard.verdict(), Verdict { on: true, gain: Some(0.25) });
        assert_eq!(run(&mut guard, HOLDS, 80, 100), HOLDS);
        // The machine changes: another trial finds out.
        run(&mut guard, TURN * TURNS, 110, 100);
        assert!(!guard.on());
        assert_eq!(run(&mut guard, HOLDS, 110, 100), 0);
        let mut same = Guard::default();
        run(&mut same, WARM_UP + TURN * TURNS, 101, 100);
        assert!(!same.on(), "a loss is a loss");
    }

    #[test]
    fn one_slow_token_decides_nothing() {
        let mut guard = Guard::default();
        for token in 0..WARM_UP + TURN * TURNS {
            let base = if guard.on() { 80 } else { 100 };
            guard.took(Duration::from_millis(if token == WARM_UP + 2 { 5000 } else { base }));
        }
        assert!(guard.on());
    }
}
