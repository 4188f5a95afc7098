//! What can go wrong between a file and a buffer, in words that name the file and the range.

use std::io;

/// Why bytes could not be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StorageError {
    /// No file of that name.
    #[error("{file} is not there")]
    NotFound {
        /// The name that was asked for.
        file: String,
    },
    /// The file exists and cannot be opened, or it is no regular file.
    #[error("{file} cannot be opened: {source}")]
    Open {
        /// The name that was asked for.
        file: String,
        /// What the system said.
        source: io::Error,
    },
    /// A name that could lead out of the directory.
    #[error("the file name {name:?} is refused: {reason}")]
    Name {
        /// The name.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The system could not deliver the bytes (a bad sector, a lost network drive).
    #[error("{file}: reading {length} bytes at offset {offset} failed: {source}")]
    Read {
        /// The file.
        file: String,
        /// Where the read started.
        offset: u64,
        /// Bytes asked for.
        length: usize,
        /// What the system said.
        source: io::Error,
    },
    /// The file ends before the range does.
    #[error("{file}: {length} bytes at offset {offset} were asked for, but the file ends after {got} of them")]
    Short {
        /// The file.
        file: String,
        /// Where the read started.
        offset: u64,
        /// Bytes asked for.
        length: usize,
        /// Bytes that were there.
        got: usize,
    },
    /// The file was written to after it was opened: what was read may be of two versions.
    #[error(
        "{file}: reading {length} bytes at offset {offset} failed: the file was written to while it was in use: start \
         again once it is complete"
    )]
    Changed {
        /// The file.
        file: String,
        /// Where the read started.
        offset: u64,
        /// Bytes asked for.
        length: usize,
    },
    /// A file that is read whole is larger than it may be.
    #[error("{file} has {length} bytes; at most {limit} are read")]
    TooLarge {
        /// The file.
        file: String,
        /// Its length in bytes.
        length: u64,
        /// The most that is read.
        limit: u64,
    },
}

impl StorageError {
    pub(crate) fn short(file: &str, offset: u64, length: usize, got: usize) -> Self {
        Self::Short { file: file.to_owned(), offset, length, got }
    }

    /// Whether the file itself is missing, rather than unreadable.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }
}
