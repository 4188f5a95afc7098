//! How a model's files are read on this machine.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use cachalot_checkpoint::{Arrival, Checkpoint};
use cachalot_experts::{ExpertLayout, LayerLayout};
use cachalot_storage::{Interface, Method, Probe, Reader, probe};

/// Experts below this many bytes are in memory after a moment however they are read: nothing is measured.
const SMALL: u64 = 256 << 20;
/// Time for a probe: of a model of some GB, and of one that will be read all the time.
const PROBE_TIME: [Duration; 2] = [Duration::from_millis(250), Duration::from_millis(1500)];
/// Experts from this many bytes on are a large model.
const LARGE: u64 = 16 << 30;
/// Longest read of a table row.
pub(crate) const ROW_BYTES: usize = 256 << 10;

/// How fast a checkpoint's experts come from the disk. `None` if their data has not arrived, or lies in holes of sparse
/// files: what is not there cannot be read, and zeros come fast.
pub fn measure(checkpoint: &Checkpoint, layout: &ExpertLayout) -> Option<Probe> {
    let there = checkpoint.shards().iter().all(|shard| shard.arrival == Arrival::Complete && !shard.is_sparse());
    let time = PROBE_TIME[usize::from(bytes(layout) >= SMALL)];
    there.then(|| probe(&layout.targets(), layout.largest_read(), time))
}

/// Bytes of all experts.
fn bytes(layout: &ExpertLayout) -> u64 {
    layout.count() as u64 * layout.record_bytes() as u64
}

/// The devices that a checkpoint lies on.
pub(crate) fn devices(checkpoint: &Checkpoint) -> Vec<u64> {
    let files = checkpoint.tensors().iter().filter_map(|tensor| checkpoint.file_of(tensor));
    let mut devices: Vec<u64> = files.map(|file| file.device()).collect();
    devices.sort_unstable();
    devices.dedup();
    devices
}

/// The reader of a model's files, and what was found out about the disk.
pub(crate) struct Disk {
    pub reader: Arc<Reader>,
    pub probe: Probe,
    pub notes: Vec<String>,
}

impl Disk {
    /// Finds the best way of reading, unless one is given, and opens a reader.
    ///
    /// # Errors
    /// If the system gives no thread or memory.
    pub fn open(
        checkpoint: &Checkpoint,
        layout: &ExpertLayout,
        layers: &LayerLayout,
        method: Option<Method>,
    ) -> io::Result<Self> {
        let bytes = bytes(layout);
        let devices = devices(checkpoint);
        let read = layout.largest_read();
        let probe = match method {
            Some(method) => Probe { method, ..Probe::unmeasured(read) },
            None if bytes < SMALL => Probe::unmeasured(read),
            None => probe(&layout.targets(), read, PROBE_TIME[usize::from(bytes >= LARGE)]),
        };
        let largest = read.max(layers.largest_read()).max(ROW_BYTES);
        let mut notes: Vec<String> = probe.fallback().into_iter().collect();
        let reader = match Reader::new(probe.method, largest, devices.iter().copied()) {
            Err(error) if probe.method.interface == Interface::IoUring => {
                let method = Method { interface: Interface::Pread, ..probe.method };
                notes.push(format!("io_uring is not possible here ({error}); reading with {method}"));
                Reader::new(method, largest, devices)?
            }
            reader => reader?,
        };
        Ok(Self { reader: Arc::new(reader), probe, notes })
    }
}
