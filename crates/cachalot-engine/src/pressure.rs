//! Watches what memory the machine has left, and gives experts back before it runs short.
//!
//! On a thread of its own: a step over a long prompt takes minutes, a server may be idle for days, and a control group
//! whose limit is lowered does not wait for either.

use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::time::Duration;
use std::{io, thread};

use cachalot_experts::StreamedExperts;

use crate::planner::Available;

/// How often the machine's memory is looked at: a disk fills no more slots in this time than the floor has room for.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// The watch; dropping it ends it.
pub(crate) struct PressureWatch(Arc<Ended>);

#[derive(Default)]
struct Ended {
    ended: Mutex<bool>,
    change: Condvar,
}

impl PressureWatch {
    /// Keeps `floor` bytes free for others, as far as giving back `experts` can; `None` if that is nothing, or the
    /// system does not say what it has.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub(crate) fn start(experts: &Arc<StreamedExperts>, floor: u64) -> io::Result<Option<Self>> {
        if floor == 0 || Available::now().is_none() {
            return Ok(None);
        }
        let (watch, experts) = (Self(Arc::default()), Arc::downgrade(experts));
        let shared = Arc::clone(&watch.0);
        thread::Builder::new().name("memory".to_owned()).spawn(move || shared.serve(&experts, floor))?;
        Ok(Some(watch))
    }
}

impl Drop for PressureWatch {
    fn drop(&mut self) {
        *self.0.ended.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.0.change.notify_all();
    }
}

impl Ended {
    fn serve(&self, experts: &Weak<StreamedExperts>, floor: u64) {
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        while !*ended {
            let Some(experts) = experts.upgrade() else { return };
            relieve(&experts, floor);
            drop(experts);
            ended = self.change.wait_timeout(ended, LOOK_EVERY).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

fn relieve(experts: &StreamedExperts, floor: u64) {
    let Some(Available { bytes, .. }) = Available::now() else { return };
    // Memory of slots that have never been filled has not been taken yet, and soon will be.
    let growth = experts.unfilled_bytes();
    if bytes < floor.saturating_add(growth) {
        // Half as much again, so that not every look brings another few.
        let aim = floor.saturating_add(floor / 2).saturating_add(growth);
        experts.shrink(aim - bytes);
    }
}
