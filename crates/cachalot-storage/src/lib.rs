//! Positioned reads of weight files, behind one small trait.
//!
//! Owns how bytes come from a disk or from memory: [`Storage`] is one file, [`Files`] the set of files that make up a
//! checkpoint. Refuses to know what the bytes mean, to map a file into memory (a bad sector must be an error, not a
//! signal), and to leave the directory that it was given.
#![forbid(unsafe_code)]

mod error;
mod faulty;
mod file;
mod files;
mod memory;

pub use error::StorageError;
pub use faulty::{Fault, Faulty, FaultyFiles, Plan};
pub use file::DiskFile;
pub use files::{Directory, Embedded, Files};
pub use memory::{Bytes, Memory};

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
