//! Positioned reads of weight files, behind one small trait.
//!
//! Owns how bytes come from a disk or from memory: [`Storage`] is one file, [`Files`] the set of files that make up a
//! checkpoint, [`Reader`] keeps many reads in flight and hands them over as they arrive, [`probe`] finds the way of
//! reading that is fastest here. Refuses to know what the bytes mean, to map a file into memory (a bad sector must be an
//! error, not a signal), and to leave the directories that it was given.
//!
//! `unsafe` is in `buffer` (aligned memory) and `uring` (a kernel that writes into buffers), nowhere else.
#![deny(unsafe_code)]

#[allow(unsafe_code, reason = "aligned memory")]
mod buffer;
mod error;
mod faulty;
mod file;
mod files;
mod lane;
mod memory;
mod probe;
mod reader;
#[cfg(target_os = "linux")]
#[allow(unsafe_code, reason = "reads that the kernel carries out on its own")]
mod uring;

pub use buffer::{ALIGNMENT, AlignedBuffer};
pub use error::StorageError;
pub use faulty::{Fault, Faulty, FaultyFiles, Plan};
pub use file::DiskFile;
pub use files::{Directory, Embedded, Files, Spread};
pub use lane::{Activity, Priority, Read, Sink};
pub use memory::{Bytes, Memory};
pub use probe::{DeviceRate, Probe, Target, Tried, measure, probe};
pub use reader::{Interface, Method, Reader};

use std::io;

/// One read-only file of known length.
pub trait Storage: Send + Sync {
    /// The file's name, as errors show it.
    fn name(&self) -> &str;

    /// Length in bytes, as it was when the file was opened.
    fn length(&self) -> u64;

    /// Fills all of `buffer` with the bytes from `offset` on.
    ///
    /// # Errors
    /// [`StorageError::Short`] if the file ends before the buffer is full, [`StorageError::Read`] if the system says
    /// that the bytes cannot be read. What `buffer` holds then is not defined.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), StorageError>;

    /// Whether a read may wait for a device, so that several reads in flight are faster than one after the other.
    fn waits(&self) -> bool {
        true
    }

    /// Which device it lies on: reads of one device wait for each other. 0 if there is none, or none that is known.
    fn device(&self) -> u64 {
        0
    }

    /// The file of the system behind it, if reads of that file are reads of this one.
    fn disk(&self) -> Option<&DiskFile> {
        None
    }
}

/// Calls `read(offset, rest of the buffer)` until `buffer` is full: a system call may return less than was asked, or
/// be interrupted.
fn read_exactly(
    name: &str,
    offset: u64,
    buffer: &mut [u8],
    mut read: impl FnMut(u64, &mut [u8]) -> io::Result<usize>,
) -> Result<(), StorageError> {
    let length = buffer.len();
    let mut filled = 0;
    while filled < length {
        // An offset past 2^64 lies behind the end of any file.
        let at = offset.checked_add(filled as u64).ok_or_else(|| StorageError::short(name, offset, length, filled))?;
        match read(at, &mut buffer[filled..]) {
            Ok(0) => return Err(StorageError::short(name, offset, length, filled)),
            Ok(count) => filled += count.min(length - filled),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(source) => return Err(StorageError::Read { file: name.to_owned(), offset, length, source }),
        }
    }
    Ok(())
}
