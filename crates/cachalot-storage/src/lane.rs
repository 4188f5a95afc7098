//! The reads that wait for one device, and the threads that carry them out.
//!
//! Owns the order of reads: whatever someone waits for goes before what is only expected, and among equals the first
//! asked goes first. Refuses to know how a read is carried out: threads with `pread` are here, `uring` has the other way.

use crate::buffer::AlignedBuffer;
use crate::{Storage, StorageError};
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How urgent a read is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// Someone waits for it, and it is so small that it delays nobody: it need not wait for long reads to end.
    Small,
    /// Someone waits for it.
    Demand,
    /// Someone will want it.
    Prefetch,
    /// Someone may want it: read only while the device has little else to do.
    Guess,
}

/// Part of the depth that guesses may take: what is asked for next finds the rest free.
const GUESS_PART: usize = 4;

/// A range of a file to be read.
#[derive(Clone)]
pub struct Read {
    /// The file.
    pub file: Arc<dyn Storage>,
    /// Where the range starts, in bytes.
    pub offset: u64,
    /// Its length in bytes, at most what the reader was made for.
    pub length: usize,
    /// What the sink knows it by.
    pub token: u64,
}

/// Who receives what was read. Called on the reader's threads, several at a time.
pub trait Sink: Send + Sync {
    /// Whether the read is still wanted: asked once, just before it is issued. A read that is not is dropped, and
    /// nothing more is heard of it. Must not wait for anything.
    fn claim(&self, token: u64) -> bool;

    /// The bytes, for as long as the call takes, or why there are none.
    fn arrived(&self, token: u64, bytes: Result<&[u8], StorageError>);
}

/// What a reader has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Activity {
    /// Reads that have ended, failed ones included.
    pub reads: u64,
    /// Bytes asked for by them.
    pub bytes: u64,
    /// Time during which at least one read was in flight.
    pub busy: Duration,
}

pub(crate) struct Queued {
    pub(crate) read: Read,
    pub(crate) sink: Arc<dyn Sink>,
}

/// One device's reads.
pub(crate) struct Lane {
    /// Most reads in flight.
    depth: usize,
    state: Mutex<State>,
    work: Condvar,
    /// Wakes threads that wait for the kernel instead of for work.
    #[cfg(target_os = "linux")]
    pub(crate) bells: Mutex<Vec<Arc<std::os::fd::OwnedFd>>>,
}

#[derive(Default)]
struct State {
    /// By priority.
    queues: [VecDeque<Queued>; 4],
    activity: Activity,
    in_flight: usize,
    /// When the device last went from idle to busy.
    since: Option<Instant>,
    stop: bool,
}

/// A read whose turn has come.
enum Turn {
    Wanted(Queued),
    /// Nobody wants it any more. Not to be dropped under the lock: with it may go the reader itself.
    Stale(Queued),
}

impl State {
    /// The next read that may be issued on a device of depth `depth`.
    fn next(&mut self, depth: usize) -> Option<Turn> {
        let limits = [depth + depth.div_ceil(2), depth, depth, depth.div_ceil(GUESS_PART)];
        for (queue, limit) in self.queues.iter_mut().zip(limits) {
            if self.in_flight < limit
                && let Some(queued) = queue.pop_front()
            {
                if !queued.sink.claim(queued.read.token) {
                    return Some(Turn::Stale(queued));
                }
                self.in_flight += 1;
                if self.in_flight == 1 {
                    self.since = Some(Instant::now());
                }
                return Some(Turn::Wanted(queued));
            }
        }
        None
    }
}

/// What a thread that asks for work gets.
pub(crate) enum Next {
    Work(Queued),
    /// There is none at the moment.
    Nothing,
    Stop,
}

impl Lane {
    pub(crate) fn new(depth: usize) -> Self {
        Self {
            depth,
            state: Mutex::default(),
            work: Condvar::new(),
            #[cfg(target_os = "linux")]
            bells: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn push(&self, reads: impl Iterator<Item = Queued>, priority: Priority) {
        let mut state = self.state();
        state.queues[priority as usize].extend(reads);
        drop(state);
        self.wake();
    }

    fn wake(&self) {
        self.work.notify_all();
        #[cfg(target_os = "linux")]
        for bell in self.bells.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            // A counter that is full rings all the same.
            let _ = rustix::io::write(bell, &1u64.to_ne_bytes());
        }
    }

    /// The next read; waits for one if `wait` says so.
    pub(crate) fn next(&self, wait: bool) -> Next {
        let mut state = self.state();
        loop {
            if state.stop {
                return Next::Stop;
            }
            match state.next(self.depth) {
                Some(Turn::Wanted(queued)) => return Next::Work(queued),
                Some(Turn::Stale(queued)) => {
                    drop(state);
                    drop(queued);
                    state = self.state();
                    continue;
                }
                None => {}
            }
            if !wait {
                return Next::Nothing;
            }
            state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Books the end of a read and hands its bytes over.
    pub(crate) fn finish(&self, queued: &Queued, bytes: Result<&[u8], StorageError>) {
        let mut state = self.state();
        state.activity.reads += 1;
        state.activity.bytes += queued.read.length as u64;
        state.in_flight -= 1;
        if state.in_flight == 0
            && let Some(since) = state.since.take()
        {
            state.activity.busy += since.elapsed();
        }
        drop(state);
        // There is room for another while these bytes are dealt with.
        self.work.notify_one();
        queued.sink.arrived(queued.read.token, bytes);
    }

    pub(crate) fn activity(&self) -> Activity {
        let state = self.state();
        let mut activity = state.activity;
        activity.busy += state.since.map_or(Duration::ZERO, |since| since.elapsed());
        activity
    }

    /// Drops what has not been issued, and lets the threads go once what they read has arrived.
    pub(crate) fn stop(&self) {
        let mut state = self.state();
        state.stop = true;
        state.queues.iter_mut().for_each(VecDeque::clear);
        drop(state);
        self.wake();
    }

    /// A thread that reads one range after the other into its own buffer.
    pub(crate) fn serve(&self, direct: bool, mut buffer: AlignedBuffer) {
        while let Next::Work(queued) = self.next(true) {
            let Read { file, offset, length, .. } = &queued.read;
            let bytes = match file.disk().filter(|_| direct) {
                Some(disk) => disk.read_direct(*offset, *length, &mut buffer),
                None => {
                    let bytes = &mut buffer.as_mut_slice()[..*length];
                    file.read_at(*offset, bytes).map(|()| &*bytes)
                }
            };
            self.finish(&queued, bytes);
        }
    }
}
