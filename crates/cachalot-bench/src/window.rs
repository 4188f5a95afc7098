//! What was measured of a model, window by window, and how it reads.

use std::fmt;

use serde::Serialize;

use crate::model::Test;

/// One window.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Window {
    /// What was measured.
    pub test: Test,
    /// `resident`: every expert was in memory. `streamed`: some were read.
    pub tier: &'static str,
    /// Tokens measured.
    pub tokens: usize,
    /// Tokens in the context before.
    pub depth: usize,
    /// Tokens per second.
    pub tokens_per_s: f64,
    /// Tokens per second if memory were the only limit (decode), or float32 arithmetic (prefill); for experts from the
    /// disk, if the slower of that and the disk were.
    pub roofline_tokens_per_s: f64,
    /// The former over the latter.
    pub share: f64,
    /// Bytes of weights and caches that one decoded token reads from memory.
    pub memory_bytes_per_token: u64,
    /// Plain read of memory in this window's probes, GB/s.
    pub memory_gb_per_s: f64,
    /// Records from the disk in this window's probes, read as the model reads them, GB/s; absent if nothing was read.
    pub disk_gb_per_s: Option<f64>,
    /// Bytes of experts and layers that were used and had to be read, per token.
    pub disk_bytes_per_token: u64,
    /// What the disk gave while it was busy in the window, wrong guesses included, GB/s.
    pub disk_busy_gb_per_s: Option<f64>,
    /// Share of the window in which the disk had nothing to do.
    pub disk_idle: f64,
    /// Share of the window in which the model waited for experts.
    pub expert_wait: f64,
    /// Share of the window in which the model waited for layers that do not stay.
    pub layer_wait: f64,
    /// Milliseconds waited for table rows, per token.
    pub row_wait_ms_per_token: f64,
    /// Share of the guesses that were right; absent without guesses.
    pub guess_precision: Option<f64>,
    /// Share of the experts not kept that had been read before they were asked for; absent without any.
    pub guess_recall: Option<f64>,
    /// What guessing gains, as a share of the time; absent until measured.
    pub guess_gain: Option<f64>,
    /// Experts that were found in memory, per token.
    pub expert_hits_per_token: f64,
    /// Experts that were read, per token.
    pub expert_misses_per_token: f64,
    /// Share of the experts' bytes that need not be read: found in memory.
    pub hit_rate: f64,
    /// Tokens per second that the planner's arithmetic makes of the rates of this window: kernels, disk, hit rate.
    pub forecast_tokens_per_s: f64,
    /// What was measured over that.
    pub forecast_ratio: f64,
    /// Tokens per second that the planner would have said, not knowing the hit rate.
    pub planned_tokens_per_s: f64,
    /// Seconds of the window, and those that the disk needs for what was read; the latter absent if nothing was.
    pub seconds: f64,
    /// See `seconds`.
    pub disk_seconds: Option<f64>,
}

/// Windows of a model that is read from the disk, beside those of the same model in memory.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Comparison {
    /// What was measured.
    pub test: Test,
    /// Tokens of a window.
    pub tokens: usize,
    /// Seconds of a window; the middle one, as all that follow.
    pub streamed_seconds: f64,
    /// Seconds that the disk needs for what such a window read, at the rate of its own probes.
    pub disk_seconds: f64,
    /// Seconds of a window with everything in memory.
    pub resident_seconds: f64,
    /// A window's seconds over the larger of the other two.
    pub ratio: f64,
}

impl Comparison {
    /// Compares two runs; `None` if one has no windows, or nothing was read in the first.
    pub fn new(streamed: &ModelReport, resident: &ModelReport) -> Option<Self> {
        let [_, resident_seconds, _] = resident.spread(|window| window.seconds);
        let last = streamed.windows.last().filter(|_| !resident.windows.is_empty())?;
        last.disk_seconds?;
        let disk = |window: &Window| window.disk_seconds.unwrap_or(0.0);
        Some(Self {
            test: last.test,
            tokens: last.tokens,
            streamed_seconds: streamed.spread(|window| window.seconds)[1],
            disk_seconds: streamed.spread(disk)[1],
            resident_seconds,
            ratio: streamed.spread(|window| window.seconds / disk(window).max(resident_seconds))[1],
        })
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tokens, streamed_seconds, disk_seconds, resident_seconds, ratio, .. } = self;
        write!(
            f,
            "{tokens} tokens: {streamed_seconds:.2} s; the disk alone {disk_seconds:.2} s, everything in memory \
             {resident_seconds:.2} s: {ratio:.2} times the larger"
        )
    }
}

/// All windows of one run.
#[derive(Clone, Debug, Serialize)]
pub struct ModelReport {
    /// Threads that computed.
    pub threads: usize,
    /// Instruction set.
    pub instruction_set: &'static str,
    /// In the order measured.
    pub windows: Vec<Window>,
}

impl ModelReport {
    /// Minimum, middle and maximum of `value` over the windows; zeros without any.
    pub fn spread(&self, value: impl Fn(&Window) -> f64) -> [f64; 3] {
        spread(&self.windows, &|window| Some(value(window))).unwrap_or_default()
    }
}

/// Minimum, middle and maximum of what the windows have of a value, if any has.
fn spread(windows: &[Window], value: &dyn Fn(&Window) -> Option<f64>) -> Option<[f64; 3]> {
    let mut values: Vec<f64> = windows.iter().filter_map(value).collect();
    values.sort_by(f64::total_cmp);
    Some([*values.first()?, values[values.len() / 2], *values.last()?])
}

impl fmt::Display for ModelReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(last) = self.windows.last() else { return Ok(()) };
        let name = if last.test == Test::Decode { "decode" } else { "prefill" };
        writeln!(
            f,
            "{name}, {} tokens at depth {}, {} windows, {} threads, {}, experts {}",
            last.tokens,
            last.depth,
            self.windows.len(),
            self.threads,
            self.instruction_set,
            last.tier
        )?;
        let mut row = |name: &str, value: &dyn Fn(&Window) -> Option<f64>| match spread(&self.windows, value) {
            Some([least, middle, most]) => writeln!(f, "  {name:<28}{least:>12.3}{middle:>12.3}{most:>12.3}"),
            None => writeln!(f, "  {name:<28}{:>36}", "not measured"),
        };
        row("(min, median, max)  tokens/s", &|window| Some(window.tokens_per_s))?;
        row("roofline, tokens/s", &|window| Some(window.roofline_tokens_per_s))?;
        row("share", &|window| Some(window.share))?;
        row("plain read, GB/s", &|window| Some(window.memory_gb_per_s))?;
        if last.tier == "streamed" {
            row("disk, GB/s", &|window| window.disk_gb_per_s)?;
            row("disk bytes per token, MB", &|window| Some(window.disk_bytes_per_token as f64 / 1e6))?;
            row("layers waited for, share", &|window| Some(window.layer_wait))?;
            row("disk idle, share", &|window| Some(window.disk_idle))?;
            row("waiting for experts, share", &|window| Some(window.expert_wait))?;
            row("waiting for rows, ms/token", &|window| Some(window.row_wait_ms_per_token))?;
            row("guesses right, share", &|window| window.guess_precision)?;
            row("found by guesses, share", &|window| window.guess_recall)?;
            row("gain of guesses, share", &|window| window.guess_gain)?;
        }
        row("forecast, tokens/s", &|window| Some(window.forecast_tokens_per_s))?;
        row("measured over forecast", &|window| Some(window.forecast_ratio))?;
        row("planned, tokens/s", &|window| Some(window.planned_tokens_per_s))?;
        row("expert hits per token", &|window| Some(window.expert_hits_per_token))?;
        row("expert misses per token", &|window| Some(window.expert_misses_per_token))?;
        write!(f, "  one decoded token reads {:.3} GB from memory", last.memory_bytes_per_token as f64 / 1e9)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A window of so many seconds, and of so many that the disk needed.
    fn window(seconds: f64, disk_seconds: Option<f64>) -> Window {
        Window {
            test: Test::Prefill,
            tier: if disk_seconds.is_some() { "streamed" } else { "resident" },
            tokens: 100,
            depth: 0,
            tokens_per_s: 100.0 / seconds,
            roofline_tokens_per_s: 0.0,
            share: 0.0,
            memory_bytes_per_token: 0,
            memory_gb_per_s: 0.0,
            disk_gb_per_s: None,
            disk_bytes_per_token: 0,
            disk_busy_gb_per_s: None,
            disk_idle: 0.0,
            expert_wait: 0.0,
            layer_wait: 0.0,
            row_wait_ms_per_token: 0.0,
            guess_precision: None,
            guess_recall: None,
            guess_gain: None,
            expert_hits_per_token: 0.0,
            expert_misses_per_token: 0.0,
            hit_rate: 0.0,
            forecast_tokens_per_s: 0.0,
            forecast_ratio: 0.0,
            planned_tokens_per_s: 0.0,
            seconds,
            disk_seconds,
        }
    }

    fn report(windows: &[(f64, Option<f64>)]) -> ModelReport {
        let windows = windows.iter().map(|(seconds, disk)| window(*seconds, *disk)).collect();
        ModelReport { threads: 2, instruction_set: "portable", windows }
    }

    #[test]
    fn the_middle_of_all_windows_counts() {
        let seconds = |windows: &[(f64, Option<f64>)]| report(windows).spread(|window| window.seconds);
        assert_eq!(seconds(&[(9.0, None), (1.0, None), (4.0, None)]), [1.0, 4.0, 9.0]);
        assert_eq!(seconds(&[(2.0, None), (3.0, None)]), [2.0, 3.0, 3.0]);
        assert_eq!(seconds(&[]), [0.0; 3]);
    }

    #[test]
    fn a_streamed_run_is_compared_with_the_larger_of_disk_and_computing() {
        let resident = report(&[(4.0, None), (5.0, None), (3.0, None)]);
        for (disk, ratio) in [(8.0, 10.0 / 8.0), (2.0, 10.0 / 4.0)] {
            let compared = Comparison::new(&report(&[(10.0, Some(disk)); 3]), &resident).expect("both were measured");
            let Comparison { streamed_seconds, disk_seconds, resident_seconds, .. } = compared;
            assert_eq!([streamed_seconds, disk_seconds, resident_seconds, compared.ratio], [10.0, disk, 4.0, ratio]);
        }
        // The middle of the ratios, each window with its own disk: 10/8, 6/4, 30/20.
        let windows = report(&[(10.0, Some(8.0)), (6.0, Some(1.0)), (30.0, Some(20.0))]);
        assert_eq!(Comparison::new(&windows, &resident).expect("both").ratio, 1.5);
        assert!(Comparison::new(&resident, &resident).is_none(), "nothing was read");
        assert!(Comparison::new(&report(&[(10.0, Some(8.0))]), &report(&[])).is_none());
    }

    #[test]
    fn what_was_not_measured_is_not_a_zero() {
        let mut streamed = report(&[(10.0, Some(8.0)), (10.0, Some(8.0))]);
        let line = |report: &ModelReport, name: &str| {
            let text = report.to_string();
            text.lines().find(|line| line.contains(name)).map(str::to_owned).expect("a line")
        };
        assert!(line(&streamed, "gain of guesses").ends_with("not measured"));
        streamed.windows[1].guess_gain = Some(0.25);
        assert_eq!(line(&streamed, "gain of guesses").matches("0.250").count(), 3);
    }
}
