//! Many reads in flight: one [`Reader`] over all files of a model.
//!
//! Each device has a queue and a depth of its own, so that a model spread over several disks is read from all of them
//! at once. Reads of files that have no descriptor (memory, a disk that fails on schedule) go through threads whatever
//! the method.

use crate::buffer::{ALIGNMENT, AlignedBuffer};
use crate::lane::{Activity, Lane, Priority, Queued, Read, Sink};
use serde::Serialize;
use std::io;
use std::sync::Arc;

/// How the system is asked for bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Interface {
    /// Threads that wait in `pread`.
    Pread,
    /// Queues shared with the kernel (Linux).
    IoUring,
}

/// A way of reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Method {
    /// How the system is asked.
    pub interface: Interface,
    /// Past the system's cache, where the file allows it.
    pub direct: bool,
    /// Reads in flight on each device.
    pub depth: usize,
}

impl Method {
    /// What works everywhere.
    pub const PLAIN: Self = Self { interface: Interface::Pread, direct: false, depth: 8 };
}

impl std::fmt::Display for Method {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let interface = match self.interface {
            Interface::Pread => "pread",
            Interface::IoUring => "io_uring",
        };
        let direct = if self.direct { "O_DIRECT" } else { "buffered" };
        write!(f, "{interface}, {direct}, {} in flight", self.depth)
    }
}

/// Threads of one device that receive from the kernel's queues, and hand over, at the same time.
#[cfg(target_os = "linux")]
const RINGS: usize = 2;

/// Keeps reads in flight. Dropping it drops what has not been issued.
pub struct Reader {
    method: Method,
    largest: usize,
    lanes: Vec<(u64, Arc<Lane>)>,
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Reader({}, {} devices)", self.method, self.lanes.len())
    }
}

impl Reader {
    /// A reader of files on the devices `devices` ([`crate::Storage::device`]), of ranges of at most `largest` bytes.
    ///
    /// Takes [`Reader::buffer_bytes`] of memory.
    ///
    /// # Errors
    /// If the system gives no thread, no memory for a buffer, or no queue.
    pub fn new(method: Method, largest: usize, devices: impl IntoIterator<Item = u64>) -> io::Result<Self> {
        let mut numbers: Vec<u64> = devices.into_iter().collect();
        numbers.sort_unstable();
        numbers.dedup();
        let mut reader = Self { method, largest, lanes: Vec::with_capacity(numbers.len()) };
        for device in numbers {
            let lane = Arc::new(Lane::new(method.depth.max(1)));
            reader.lanes.push((device, Arc::clone(&lane)));
            reader.start(&lane, device)?;
        }
        Ok(reader)
    }

    fn start(&self, lane: &Arc<Lane>, device: u64) -> io::Result<()> {
        let Method { interface, direct, depth } = self.method;
        let depth = depth.max(1);
        let buffer = || AlignedBuffer::new(buffer_length(self.largest)).ok_or(io::ErrorKind::OutOfMemory);
        #[cfg(target_os = "linux")]
        if interface == Interface::IoUring && device != 0 {
            for ring in 0..RINGS.min(depth) {
                let share = (depth + ring) / RINGS.min(depth);
                let buffers = (0..share).map(|_| buffer()).collect::<Result<_, _>>()?;
                let ring = crate::uring::Ring::new(Arc::clone(lane), direct, buffers)?;
                std::thread::Builder::new().name("disk-ring".to_owned()).spawn(move || ring.serve())?;
            }
            return Ok(());
        }
        let _ = interface;
        // Those that deal with what they have read do not keep the others from reading.
        for reader in 0..depth + depth.div_ceil(2) {
            let (lane, buffer) = (Arc::clone(lane), buffer()?);
            let name = format!("disk-{device}-{reader}");
            std::thread::Builder::new().name(name).spawn(move || lane.serve(direct, buffer))?;
        }
        Ok(())
    }

    /// How it reads.
    pub fn method(&self) -> Method {
        self.method
    }

    /// Longest range that it reads, in bytes.
    pub fn largest(&self) -> usize {
        self.largest
    }

    /// Bytes of its buffers.
    pub fn buffer_bytes(&self) -> usize {
        let depth = self.method.depth.max(1);
        let buffers = if self.method.interface == Interface::Pread { depth + depth.div_ceil(2) } else { depth };
        self.lanes.len() * buffers * Self::buffer_bytes_for(self.largest)
    }

    /// Bytes of one buffer of a reader of ranges of at most `largest` bytes.
    pub fn buffer_bytes_for(largest: usize) -> usize {
        AlignedBuffer::bytes_for(buffer_length(largest)).unwrap_or(usize::MAX)
    }

    /// Queues a read; `sink` hears of it.
    ///
    /// # Panics
    /// If the range is longer than the reader was made for.
    pub fn submit(&self, read: Read, priority: Priority, sink: &Arc<dyn Sink>) {
        assert!(read.length <= self.largest, "{} bytes at once, at most {}", read.length, self.largest);
        let device = read.file.device();
        let lane = self.lanes.iter().find(|(number, _)| *number == device).or_else(|| self.lanes.first());
        let Some((_, lane)) = lane else { return };
        lane.push(std::iter::once(Queued { read, sink: Arc::clone(sink) }), priority);
    }

    /// What it has done so far: sums over the devices, but for the time, which is that of the busiest.
    pub fn activity(&self) -> Activity {
        self.lanes.iter().map(|(_, lane)| lane.activity()).fold(Activity::default(), |sum, lane| Activity {
            reads: sum.reads + lane.reads,
            bytes: sum.bytes + lane.bytes,
            busy: sum.busy.max(lane.busy),
        })
    }
}

/// A range may begin and end inside a page.
fn buffer_length(largest: usize) -> usize {
    largest + 2 * ALIGNMENT
}

impl Drop for Reader {
    fn drop(&mut self) {
        // The threads are not waited for: one may hang in a read for as long as the disk does, and each owns what it
        // reads into.
        self.lanes.iter().for_each(|(_, lane)| lane.stop());
    }
}
