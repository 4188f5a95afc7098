//! A file on disk, read with `pread`, through the system's cache or past it.
//!
//! A file that was written to since it was opened is an error: half of one version and half of another would be a
//! wrong answer without a sign of it.

use crate::buffer::ALIGNMENT;
use crate::{AlignedBuffer, Storage, StorageError, read_exactly};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;

/// A regular file. Reads do not move a cursor, so any number of threads may read at once.
#[derive(Debug)]
pub struct DiskFile {
    name: String,
    file: File,
    /// The same file, opened to be read past the system's cache; `None` where the file system refuses.
    direct: Option<File>,
    state: State,
}

/// What tells one version of a file from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct State {
    device: u64,
    inode: u64,
    length: u64,
    modified: (i64, i64),
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
        let state = State::of(&file).map_err(fail)?;
        let direct = open_direct(path).filter(|direct| State::of(direct).is_ok_and(|other| other == state));
        Ok(Self { name: name.to_owned(), file, direct, state })
    }

    /// Whether the file system lets it be read past the system's cache.
    pub fn has_direct(&self) -> bool {
        self.direct.is_some()
    }

    /// Whether most of it is holes: a file made long before its data comes.
    pub fn is_sparse(&self) -> bool {
        #[cfg(unix)]
        {
            use std::os::unix::fs::MetadataExt;
            self.file.metadata().is_ok_and(|metadata| metadata.blocks() * 512 < metadata.len() / 2)
        }
        #[cfg(not(unix))]
        false
    }

    /// The descriptor to read from.
    pub(crate) fn descriptor(&self, direct: bool) -> &File {
        self.direct.as_ref().filter(|_| direct).unwrap_or(&self.file)
    }

    /// Reads `length` bytes from `offset` past the system's cache, into `buffer`; where that is not possible, through
    /// it. `buffer` must have room for the range rounded out to whole pages.
    ///
    /// # Errors
    /// As [`Storage::read_at`].
    pub fn read_direct<'a>(
        &self,
        offset: u64,
        length: usize,
        buffer: &'a mut AlignedBuffer,
    ) -> Result<&'a [u8], StorageError> {
        let span = Span::around(offset, length);
        let room = buffer.as_slice().len();
        let Some(direct) = self.direct.as_ref().filter(|_| span.length <= room) else {
            let bytes = &mut buffer.as_mut_slice()[..length];
            self.read_at(offset, bytes)?;
            return Ok(bytes);
        };
        let mut filled = 0;
        while filled < span.needed {
            let rest = &mut buffer.as_mut_slice()[filled..span.length];
            match rustix::io::pread(direct, rest, span.start + filled as u64) {
                Ok(count) => {
                    let ended = || self.ended(offset, length, &span, filled + count);
                    filled = span.advance(filled, count).ok_or_else(ended)?;
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::INVAL) => {
                    // A file system that opens such files and then refuses to read them.
                    let bytes = &mut buffer.as_mut_slice()[..length];
                    self.read_at(offset, bytes)?;
                    return Ok(bytes);
                }
                Err(error) => return Err(self.failed(offset, length, error.into())),
            }
        }
        self.check_unchanged(offset, length)?;
        Ok(&buffer.as_slice()[span.skip..span.skip + length])
    }

    /// Asks the system to forget what it has cached of a range; a hint.
    pub(crate) fn forget(&self, range: Range<u64>) {
        #[cfg(target_os = "linux")]
        {
            let length = std::num::NonZeroU64::new(range.end.saturating_sub(range.start));
            // A refusal means that a measurement may find pages in the cache.
            let _ = rustix::fs::fadvise(&self.file, range.start, length, rustix::fs::Advice::DontNeed);
        }
        #[cfg(not(target_os = "linux"))]
        let _ = range;
    }

    /// The error of a read that the system refused.
    pub(crate) fn failed(&self, offset: u64, length: usize, source: io::Error) -> StorageError {
        StorageError::Read { file: self.name.clone(), offset, length, source }
    }

    /// The error of a read of `span` that reached the file's end after `filled` bytes.
    pub(crate) fn ended(&self, offset: u64, length: usize, span: &Span, filled: usize) -> StorageError {
        StorageError::short(&self.name, offset, length, filled.saturating_sub(span.skip).min(length))
    }

    /// Refuses the bytes of a read if the file was written to since it was opened.
    ///
    /// # Errors
    /// [`StorageError::Changed`], or what the system says.
    pub(crate) fn check_unchanged(&self, offset: u64, length: usize) -> Result<(), StorageError> {
        match State::of(&self.file) {
            Ok(state) if state == self.state => Ok(()),
            Ok(_) => Err(StorageError::Changed { file: self.name.clone(), offset, length }),
            Err(error) => Err(self.failed(offset, length, error)),
        }
    }
}

impl State {
    fn of(file: &File) -> io::Result<Self> {
        let stat = rustix::fs::fstat(file)?;
        #[allow(clippy::unnecessary_cast, reason = "these types differ from system to system")]
        Ok(Self {
            device: stat.st_dev as u64,
            inode: stat.st_ino as u64,
            length: u64::try_from(stat.st_size).unwrap_or(0),
            modified: (stat.st_mtime as i64, stat.st_mtime_nsec as i64),
        })
    }
}

#[cfg(target_os = "linux")]
fn open_direct(path: &Path) -> Option<File> {
    use rustix::fs::{Mode, OFlags};
    rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECT | OFlags::CLOEXEC, Mode::empty()).ok().map(File::from)
}

#[cfg(not(target_os = "linux"))]
fn open_direct(_path: &Path) -> Option<File> {
    None
}

/// A range, rounded out to whole pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    /// Offset of the first page.
    pub(crate) start: u64,
    /// Bytes of the pages.
    pub(crate) length: usize,
    /// Bytes before the range.
    pub(crate) skip: usize,
    /// Bytes from the first page to the end of the range: what has to arrive.
    pub(crate) needed: usize,
}

impl Span {
    pub(crate) fn around(offset: u64, length: usize) -> Self {
        let skip = (offset % ALIGNMENT as u64) as usize;
        let needed = skip + length;
        Self { start: offset - skip as u64, length: needed.next_multiple_of(ALIGNMENT), skip, needed }
    }

    /// The range as it is: for reads that need no alignment.
    pub(crate) fn exact(offset: u64, length: usize) -> Self {
        Self { start: offset, length, skip: 0, needed: length }
    }

    /// Bytes filled after a read at `filled` delivered `count` bytes; `None` if that was the file's end.
    ///
    /// A read that goes on must start at a page again; the page that was cut is read twice.
    pub(crate) fn advance(&self, filled: usize, count: usize) -> Option<usize> {
        let now = filled + count.min(self.length - filled);
        if now >= self.needed {
            return Some(now);
        }
        let aligned = self.length.is_multiple_of(ALIGNMENT) && self.start.is_multiple_of(ALIGNMENT as u64);
        let next = if aligned { now - now % ALIGNMENT } else { now };
        (next > filled).then_some(next)
    }
}

impl Storage for DiskFile {
    fn name(&self) -> &str {
        &self.name
    }

    fn length(&self) -> u64 {
        self.state.length
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), StorageError> {
        read_exactly(&self.name, offset, buffer, |offset, rest| Ok(rustix::io::pread(&self.file, rest, offset)?))?;
        self.check_unchanged(offset, buffer.len())
    }

    fn device(&self) -> u64 {
        // Number 0 stands for files without a device.
        self.state.device.max(1)
    }

    fn disk(&self) -> Option<&DiskFile> {
        Some(self)
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
    fn past_the_cache_any_range_is_the_same() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("weights");
        let bytes: Vec<u8> = (0..20_001u32).map(|place| (place * 7 % 251) as u8).collect();
        std::fs::write(&path, &bytes).expect("a file");
        let file = DiskFile::open(&path, "weights").expect("opens");
        let mut buffer = AlignedBuffer::new(24_576).expect("memory");
        for (offset, length) in [(0, 1), (1, 4096), (4095, 2), (8192, 4096), (3, 19_998), (20_000, 1), (12_288, 7713)] {
            let read = file.read_direct(offset as u64, length, &mut buffer).expect("inside");
            assert_eq!(read, &bytes[offset..offset + length], "{length} at {offset}");
        }
        let short = file.read_direct(19_999, 100, &mut buffer).unwrap_err().to_string();
        assert_eq!(short, "weights: 100 bytes at offset 19999 were asked for, but the file ends after 2 of them");
    }

    #[test]
    fn a_file_that_changes_is_refused() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("weights");
        std::fs::write(&path, [7; 10_000]).expect("a file");
        let file = DiskFile::open(&path, "weights").expect("opens");
        let (mut bytes, mut buffer) = ([0; 10], AlignedBuffer::new(8192).expect("memory"));
        // A file that takes its name changes nothing: the old one is still open.
        let other = directory.path().join("other");
        std::fs::write(&other, [8; 10_000]).expect("a file");
        std::fs::rename(&other, &path).expect("renamed");
        file.read_at(0, &mut bytes).expect("the old file");
        let file = DiskFile::open(&path, "weights").expect("opens");
        std::thread::sleep(std::time::Duration::from_millis(20));
        std::fs::write(&path, [9; 10_000]).expect("written");
        let message = "weights: reading 10 bytes at offset 7 failed: the file was written to while it was in use: start \
                       again once it is complete";
        assert_eq!(file.read_at(7, &mut bytes).unwrap_err().to_string(), message);
        assert_eq!(file.read_direct(7, 10, &mut buffer).unwrap_err().to_string(), message);
        std::fs::write(&path, [9; 100]).expect("cut");
        assert!(matches!(file.read_at(5000, &mut bytes), Err(StorageError::Short { got: 0, .. })));
    }

    #[test]
    fn refuses_what_is_no_file() {
        let directory = tempfile::tempdir().expect("a directory");
        assert!(DiskFile::open(&directory.path().join("x"), "x").unwrap_err().is_not_found());
        let error = DiskFile::open(directory.path(), "folder").unwrap_err().to_string();
        assert_eq!(error, "folder cannot be opened: it is not a regular file");
    }
}
