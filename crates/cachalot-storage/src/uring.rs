//! Reads that the kernel carries out while the thread does something else.
//!
//! Owns one submission and completion queue and the buffers that the kernel writes into: a buffer is lent to one read
//! and comes back with its completion. Nothing is freed while a read is in flight.

use crate::buffer::AlignedBuffer;
use crate::file::Span;
use crate::lane::{Lane, Next, Queued};
use crate::{DiskFile, StorageError};
use io_uring::{IoUring, opcode, types};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, PoisonError};

/// The completion of the bell, as opposed to that of buffer number so and so.
const BELL: u64 = u64::MAX;

/// Whether this system lets us have such queues.
///
/// # Errors
/// What it says: containers often forbid them.
pub(crate) fn available() -> io::Result<()> {
    IoUring::new(2).map(|_| ())
}

/// One thread's queues and buffers.
pub(crate) struct Ring {
    ring: IoUring,
    lane: Arc<Lane>,
    bell: Arc<OwnedFd>,
    bell_is_watched: bool,
    direct: bool,
    flights: Vec<Option<Flight>>,
    buffers: Vec<AlignedBuffer>,
}

struct Flight {
    queued: Queued,
    span: Span,
    filled: usize,
}

impl Ring {
    pub(crate) fn new(lane: Arc<Lane>, direct: bool, buffers: Vec<AlignedBuffer>) -> io::Result<Self> {
        let ring = IoUring::new((buffers.len() as u32 + 1).next_power_of_two())?;
        let flags = rustix::event::EventfdFlags::NONBLOCK | rustix::event::EventfdFlags::CLOEXEC;
        let bell = Arc::new(rustix::event::eventfd(0, flags)?);
        lane.bells.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&bell));
        let flights = buffers.iter().map(|_| None).collect();
        Ok(Self { ring, lane, bell, bell_is_watched: false, direct, flights, buffers })
    }

    /// Reads until the lane stops.
    pub(crate) fn serve(mut self) {
        loop {
            let idle = self.flights.iter().all(Option::is_none);
            let stopped = !self.take_work(idle);
            if stopped && self.flights.iter().all(Option::is_none) {
                return;
            }
            self.wait();
        }
    }

    /// Issues reads while there are buffers and work; false once the lane has stopped.
    fn take_work(&mut self, idle: bool) -> bool {
        let mut wait = idle;
        while let Some(place) = self.flights.iter().position(Option::is_none) {
            match self.lane.next(wait) {
                Next::Stop => return false,
                Next::Nothing => break,
                Next::Work(queued) => {
                    wait = false;
                    let Some(disk) = queued.read.file.disk() else {
                        // Not a file of the system: read here and now.
                        let bytes = &mut self.buffers[place].as_mut_slice()[..queued.read.length];
                        let outcome = queued.read.file.read_at(queued.read.offset, bytes).map(|()| &*bytes);
                        self.lane.finish(&queued, outcome);
                        continue;
                    };
                    let (offset, length) = (queued.read.offset, queued.read.length);
                    let aligned = self.direct && disk.has_direct();
                    let span = if aligned { Span::around(offset, length) } else { Span::exact(offset, length) };
                    self.flights[place] = Some(Flight { queued, span, filled: 0 });
                    self.issue(place);
                }
            }
        }
        true
    }

    /// Hands what is missing of a flight to the kernel.
    fn issue(&mut self, place: usize) {
        let Some(flight) = &self.flights[place] else { return };
        let Some(disk) = flight.queued.read.file.disk() else { return };
        let rest = &mut self.buffers[place].as_mut_slice()[flight.filled..flight.span.length];
        let entry = opcode::Read::new(
            types::Fd(disk.descriptor(self.direct).as_raw_fd()),
            rest.as_mut_ptr(),
            rest.len() as u32,
        )
        .offset(flight.span.start + flight.filled as u64)
        .build()
        .user_data(place as u64);
        self.push(&entry);
    }

    fn push(&mut self, entry: &io_uring::squeue::Entry) {
        loop {
            // SAFETY: a read's memory is a part of `self.buffers[place]`, which no other read is lent and which is not
            // touched or freed before its completion has been taken (`drop` gives it up while a flight is left); its file is kept open by the flight. The bell's entry refers to no memory, and its
            // descriptor lives as long as the ring.
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                return;
            }
            // Full: the queue has an entry for every buffer and one for the bell, so this only takes a moment.
            let _ = self.ring.submit();
        }
    }

    /// Waits for a completion or for the bell, and takes all that there are.
    fn wait(&mut self) {
        if !self.bell_is_watched {
            let entry = opcode::PollAdd::new(types::Fd(self.bell.as_raw_fd()), 1 /* POLLIN */).build().user_data(BELL);
            self.push(&entry);
            self.bell_is_watched = true;
        }
        // Interrupted or briefly out of resources: the next round waits again.
        let _ = self.ring.submit_and_wait(1);
        loop {
            let next = self.ring.completion().next();
            let Some(completion) = next else { break };
            if completion.user_data() == BELL {
                self.bell_is_watched = false;
                // An empty counter means that somebody was faster.
                let _ = rustix::io::read(&self.bell, &mut [0u8; 8]);
            } else {
                self.complete(completion.user_data() as usize, completion.result());
            }
        }
    }

    fn complete(&mut self, place: usize, result: i32) {
        let Some(flight) = &mut self.flights[place] else { return };
        let (offset, length) = (flight.queued.read.offset, flight.queued.read.length);
        let Some(disk) = flight.queued.read.file.disk() else { return };
        let outcome = if let Ok(count) = usize::try_from(result) {
            match flight.span.advance(flight.filled, count) {
                Some(filled) if filled < flight.span.needed => {
                    flight.filled = filled;
                    return self.issue(place);
                }
                Some(_) => disk.check_unchanged(offset, length),
                None => Err(disk.ended(offset, length, &flight.span, flight.filled + count)),
            }
        } else {
            match rustix::io::Errno::from_raw_os_error(-result) {
                rustix::io::Errno::INTR | rustix::io::Errno::AGAIN => return self.issue(place),
                // What the kernel does not do by this way for this file, a plain read may.
                rustix::io::Errno::INVAL | rustix::io::Errno::OPNOTSUPP => {
                    flight.span = Span::exact(offset, length);
                    plain(disk, offset, &mut self.buffers[place].as_mut_slice()[..length])
                }
                error => Err(disk.failed(offset, length, error.into())),
            }
        };
        let Some(flight) = self.flights[place].take() else { return };
        let bytes = &self.buffers[place].as_slice()[flight.span.skip..flight.span.skip + length];
        self.lane.finish(&flight.queued, outcome.map(|()| bytes));
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        if self.flights.iter().any(Option::is_some) {
            // Only a panic of a receiver leads here. The kernel may still write: the memory is given up.
            std::mem::forget(std::mem::take(&mut self.buffers));
        }
    }
}

fn plain(disk: &DiskFile, offset: u64, bytes: &mut [u8]) -> Result<(), StorageError> {
    crate::Storage::read_at(disk, offset, bytes)
}
