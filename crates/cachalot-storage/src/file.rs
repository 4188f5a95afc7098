//! A file on disk, read with `pread`.

use crate::{Storage, StorageError, read_exactly};
use std::fs::File;
use std::io;
use std::path::Path;

/// A regular file. Reads do not move a cursor, so any number of threads may read at once.
#[derive(Debug)]
pub struct DiskFile {
    name: String,
    file: File,
    length: u64,
}

impl DiskFile {
    /// Opens `path`; errors call it `name`. Symbolic links are followed (download caches consist of them).
    ///
    /// # Errors
    /// If there is no such file, it is no regular file (a pipe would block), or it may not be read.
    pub fn open(path: &Path, name: &str) -> Result<Self, StorageError> {
        let fail = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound => StorageError::NotFound { file: name.to_owned() },
            _ => StorageError::Open { file: name.to_owned(), source },
        };
        if !std::fs::metadata(path).map_err(fail)?.is_file() {
            return Err(fail(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file")));
        }
        let file = File::open(path).map_err(fail)?;
        let length = file.metadata().map_err(fail)?.len();
        Ok(Self { name: name.to_owned(), file, length })
    }
}

impl Storage for DiskFile {
    fn name(&self) -> &str {
        &self.name
    }

    fn length(&self) -> u64 {
        self.length
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), StorageError> {
        read_exactly(&self.name, offset, buffer, |offset, rest| Ok(rustix::io::pread(&self.file, rest, offset)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_ranges_and_names_what_is_missing() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("weights");
        std::fs::write(&path, (0..=255u8).collect::<Vec<_>>()).expect("a file");
        let file = DiskFile::open(&path, "weights").expect("opens");
        assert_eq!((file.length(), file.name(), file.waits()), (256, "weights", true));
        let mut buffer = [0; 4];
        file.read_at(252, &mut buffer).expect("the last bytes");
        assert_eq!(buffer, [252, 253, 254, 255]);
        file.read_at(999, &mut []).expect("nothing is always there");
        let short = file.read_at(254, &mut buffer).unwrap_err().to_string();
        assert_eq!(short, "weights: 4 bytes at offset 254 were asked for, but the file ends after 2 of them");
        assert!(file.read_at(u64::MAX - 1, &mut buffer).is_err());
    }

    #[test]
    fn refuses_what_is_no_file() {
        let directory = tempfile::tempdir().expect("a directory");
        assert!(DiskFile::open(&directory.path().join("x"), "x").unwrap_err().is_not_found());
        let error = DiskFile::open(directory.path(), "folder").unwrap_err().to_string();
        assert_eq!(error, "folder cannot be opened: it is not a regular file");
    }
}
