//! A disk that fails on schedule, for tests of whatever reads.

use crate::{Files, Storage, StorageError, read_exactly};
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// What happens to one read from the system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// An input/output error, as a bad sector gives.
    Eio,
    /// The call is interrupted by a signal and delivers nothing; schedule it by calls, a reader tries again for ever.
    Interrupted,
    /// At most this many bytes are delivered by the call (0 is the end of the file).
    Short(usize),
    /// The call takes this much longer.
    Delay(Duration),
    /// The bit `bit` (0..8) of the byte at file offset `offset` is read inverted.
    Flip {
        /// Offset in the file.
        offset: u64,
        /// Which bit.
        bit: u8,
    },
}

/// Which reads from the system a fault happens to. Calls are counted from 0 over all files that share the plan.
#[derive(Clone, Debug)]
enum When {
    Calls(Range<u64>),
    Bytes(Range<u64>),
}

/// A schedule of faults.
#[derive(Debug, Default)]
pub struct Plan {
    steps: Mutex<Vec<(When, Fault)>>,
    calls: AtomicU64,
}

impl Plan {
    /// No faults.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// From now on `fault` happens to the calls numbered `calls` (counted from 0 since the plan was made).
    pub fn on_calls(&self, calls: Range<u64>, fault: Fault) {
        self.push(When::Calls(calls), fault);
    }

    /// From now on `fault` happens to each call that starts inside, or reads any of, the file offsets `bytes`.
    pub fn on_bytes(&self, bytes: Range<u64>, fault: Fault) {
        self.push(When::Bytes(bytes), fault);
    }

    /// Forgets all faults; the count of calls goes on.
    pub fn clear(&self) {
        self.steps.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Reads from the system so far, failed ones included.
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    fn push(&self, when: When, fault: Fault) {
        self.steps.lock().unwrap_or_else(PoisonError::into_inner).push((when, fault));
    }

    fn faults(&self, offset: u64, length: usize) -> Vec<Fault> {
        let call = self.calls.fetch_add(1, Ordering::Relaxed);
        let end = offset.saturating_add(length as u64);
        let applies = |when: &When| match when {
            When::Calls(calls) => calls.contains(&call),
            When::Bytes(bytes) => offset < bytes.end && bytes.start < end,
        };
        let steps = self.steps.lock().unwrap_or_else(PoisonError::into_inner);
        steps.iter().filter(|(when, _)| applies(when)).map(|(_, fault)| *fault).collect()
    }
}

/// A file whose reads go through a [`Plan`].
pub struct Faulty {
    inner: Box<dyn Storage>,
    plan: Arc<Plan>,
    length: u64,
}

impl Faulty {
    /// `inner`, with the faults of `plan`.
    pub fn new(inner: Box<dyn Storage>, plan: Arc<Plan>) -> Self {
        let length = inner.length();
        Self { inner, plan, length }
    }

    /// Cut after `length` bytes, as an unfinished download.
    #[must_use]
    pub fn truncated(mut self, length: u64) -> Self {
        self.length = self.length.min(length);
        self
    }

    /// One call to the system, with whatever the plan does to it.
    fn call(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let mut count = usize::try_from(self.length.saturating_sub(offset)).unwrap_or(usize::MAX).min(buffer.len());
        let faults = self.plan.faults(offset, buffer.len());
        for fault in &faults {
            match *fault {
                Fault::Eio => return Err(rustix::io::Errno::IO.into()),
                Fault::Interrupted => return Err(rustix::io::Errno::INTR.into()),
                Fault::Delay(time) => std::thread::sleep(time),
                Fault::Short(most) => count = count.min(most),
                Fault::Flip { .. } => {}
            }
        }
        self.inner.read_at(offset, &mut buffer[..count]).map_err(io::Error::other)?;
        for fault in &faults {
            if let Fault::Flip { offset: at, bit } = *fault
                && let Some(place) = at.checked_sub(offset).and_then(|place| usize::try_from(place).ok())
                && place < count
            {
                buffer[place] ^= 1 << (bit % 8);
            }
        }
        Ok(count)
    }
}

impl Storage for Faulty {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn length(&self) -> u64 {
        self.length
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), StorageError> {
        read_exactly(self.name(), offset, buffer, |offset, rest| self.call(offset, rest))
    }

    fn waits(&self) -> bool {
        true
    }
}

/// A set of files of which one, or each, is [`Faulty`].
pub struct FaultyFiles {
    inner: Arc<dyn Files>,
    plan: Arc<Plan>,
    only: Option<String>,
    length: u64,
}

impl FaultyFiles {
    /// The faults of `plan` in every file.
    pub fn new(inner: Arc<dyn Files>, plan: Arc<Plan>) -> Self {
        Self { inner, plan, only: None, length: u64::MAX }
    }

    /// Only the file called `name` is faulty.
    #[must_use]
    pub fn only(mut self, name: &str) -> Self {
        self.only = Some(name.to_owned());
        self
    }

    /// Faulty files are cut after `length` bytes.
    #[must_use]
    pub fn truncated(mut self, length: u64) -> Self {
        self.length = length;
        self
    }
}

impl Files for FaultyFiles {
    fn open(&self, name: &str) -> Result<Box<dyn Storage>, StorageError> {
        let file = self.inner.open(name)?;
        if self.only.as_deref().is_some_and(|only| only != name) {
            return Ok(file);
        }
        Ok(Box::new(Faulty::new(file, Arc::clone(&self.plan)).truncated(self.length)))
    }

    fn label(&self) -> String {
        self.inner.label()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Embedded, Memory};

    fn file(plan: &Arc<Plan>) -> Faulty {
        Faulty::new(Box::new(Memory::new("disk", (0..100u8).collect::<Vec<_>>())), Arc::clone(plan))
    }

    #[test]
    fn interrupted_and_short_calls_are_carried_on() {
        let plan = Plan::new();
        plan.on_calls(0..3, Fault::Interrupted);
        plan.on_calls(3..5, Fault::Short(7));
        plan.on_calls(5..6, Fault::Delay(Duration::from_millis(1)));
        let mut buffer = [0; 50];
        file(&plan).read_at(10, &mut buffer).expect("arrives in the end");
        assert!(buffer.iter().copied().eq(10..60));
        assert_eq!(plan.calls(), 6);
    }

    #[test]
    fn errors_name_file_offset_and_length() {
        let plan = Plan::new();
        plan.on_bytes(40..41, Fault::Eio);
        let mut buffer = [0; 8];
        file(&plan).read_at(41, &mut buffer).expect("behind the bad sector");
        let error = file(&plan).read_at(33, &mut buffer).unwrap_err();
        assert!(matches!(error, StorageError::Read { offset: 33, length: 8, .. }));
        assert!(error.to_string().starts_with("disk: reading 8 bytes at offset 33 failed"), "{error}");
        plan.clear();
        file(&plan).read_at(33, &mut buffer).expect("the sector is good again");
    }

    #[test]
    fn bits_flip_and_files_end_early() {
        let plan = Plan::new();
        plan.on_bytes(5..6, Fault::Flip { offset: 5, bit: 7 });
        let inner: Arc<dyn Files> =
            Arc::new(Embedded::new("e").with("a", (0..9u8).collect::<Vec<_>>()).with("b", &b"whole"[..]));
        let files = FaultyFiles::new(inner, plan).only("a").truncated(6);
        assert_eq!(files.read_all("a", 99).expect("reads"), [0, 1, 2, 3, 4, 133]);
        assert_eq!(files.read_all("b", 99).expect("reads"), b"whole");
        assert_eq!(files.label(), "e");
        let error = files.open("a").expect("opens").read_at(4, &mut [0; 3]).unwrap_err();
        assert!(matches!(error, StorageError::Short { got: 2, .. }), "{error}");
    }
}
