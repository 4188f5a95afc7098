//! A disk that fails on purpose, so that one can see what happens when a real one does.

use std::ops::Range;
use std::time::Duration;

use cachalot_storage::{Fault, Plan};

/// What happens to which reads, counted since the model was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rehearsal {
    fault: Fault,
    reads: Range<u64>,
}

impl Rehearsal {
    /// Reads `eio@FIRST..END` and `delay=SECONDS@FIRST..END`; without an end it goes on for ever.
    ///
    /// # Errors
    /// Says what is expected.
    pub fn parse(text: &str) -> Result<Self, String> {
        let parsed = text.split_once('@').and_then(|(what, reads)| {
            let fault = match what.split_once('=') {
                None if what == "eio" => Fault::Eio,
                Some(("delay", seconds)) => Fault::Delay(Duration::try_from_secs_f64(seconds.parse().ok()?).ok()?),
                _ => return None,
            };
            let (first, end) = reads.split_once("..")?;
            let end = if end.is_empty() { u64::MAX } else { end.parse().ok()? };
            Some(Self { fault, reads: first.parse().ok()?..end })
        });
        parsed.ok_or_else(|| "eio@400..500, delay=30@400..401 or either without an end is expected".to_owned())
    }

    /// The faults of `plan` from now on.
    pub fn begin(&self, plan: &Plan) {
        let (now, Range { start, end }) = (plan.calls(), self.reads.clone());
        plan.on_calls(now.saturating_add(start)..now.saturating_add(end), self.fault);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_read_or_refused() {
        let eio = Rehearsal::parse("eio@4..9").unwrap();
        assert_eq!(eio, Rehearsal { fault: Fault::Eio, reads: 4..9 });
        let delay = Rehearsal::parse("delay=0.5@7..").unwrap();
        assert_eq!(delay, Rehearsal { fault: Fault::Delay(Duration::from_millis(500)), reads: 7..u64::MAX });
        for wrong in
            ["", "eio", "eio@4", "eio=3@1..2", "delay@1..2", "delay=-1@1..2", "delay=x@1..2", "eio@a..b", "fire@1..2"]
        {
            assert!(Rehearsal::parse(wrong).is_err(), "{wrong}");
        }
    }
}
