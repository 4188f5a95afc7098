//! Watches what memory the machine has left: gives experts back before it runs short, and takes slots back when there
//! has been plenty for a while.
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

/// Looks in a row that must find plenty before slots are taken back: a minute, as programs come and go.
const CALM: u32 = 300;

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
        let mut balance = Balance::new(floor);
        while !*ended {
            let Some(experts) = experts.upgrade() else { return };
            if let Some(Available { bytes, .. }) = Available::now() {
                match balance.look(bytes, experts.unfilled_bytes(), experts.retired_bytes()) {
                    Change::GiveBack(bytes) => _ = experts.shrink(bytes),
                    Change::TakeBack(bytes) => _ = experts.grow(bytes),
                    Change::Nothing => {}
                }
            }
            drop(experts);
            ended = self.change.wait_timeout(ended, LOOK_EVERY).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// What to do about the memory that is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Nothing,
    GiveBack(u64),
    TakeBack(u64),
}

/// Decides look by look.
struct Balance {
    floor: u64,
    /// Looks in a row that found plenty.
    plenty: u32,
}

impl Balance {
    fn new(floor: u64) -> Self {
        Self { floor, plenty: 0 }
    }

    /// `free` bytes are left; slots for `unfilled` have never been filled, and slots of `retired` were given back.
    fn look(&mut self, free: u64, unfilled: u64, retired: u64) -> Change {
        // Memory of slots that have never been filled has not been taken yet, and soon will be.
        let needed = self.floor.saturating_add(unfilled);
        if free < needed {
            self.plenty = 0;
            // Half as much again, so that not every look brings another few.
            return Change::GiveBack(needed.saturating_add(self.floor / 2) - free);
        }
        // Twice the floor stays, so that what is taken back is not asked for by the next look.
        let spare = free.saturating_sub(needed.saturating_add(self.floor)).min(retired);
        self.plenty = if spare > 0 { self.plenty + 1 } else { 0 };
        if self.plenty < CALM {
            return Change::Nothing;
        }
        self.plenty = 0;
        Change::TakeBack(spare)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_need_is_given_back_at_once_and_taken_back_when_they_are_gone() {
        let mut balance = Balance::new(100);
        assert_eq!(balance.look(1000, 0, 0), Change::Nothing);
        assert_eq!(balance.look(1000, 950, 0), Change::GiveBack(100), "what will be filled counts as taken");
        assert_eq!(balance.look(60, 0, 0), Change::GiveBack(90));
        // A little more than the floor is not plenty, however long it lasts.
        assert!((0..2 * CALM).all(|_| balance.look(190, 0, 90) == Change::Nothing));
        assert!((1..CALM).all(|_| balance.look(250, 0, 90) == Change::Nothing));
        assert_eq!(balance.look(250, 0, 90), Change::TakeBack(50));
        // A short calm in between does not count.
        assert!((1..CALM).all(|_| balance.look(1000, 0, 40) == Change::Nothing));
        assert_eq!(balance.look(50, 0, 40), Change::GiveBack(100));
        assert_eq!(balance.look(1000, 0, 140), Change::Nothing);
    }
}
