//! Append-only files that hold what an index points into.
//!
//! Owns the bytes and their checksums: what is read is what was written, or an error. A file is never changed, only
//! appended to and, as a whole, removed. Refuses to know what the bytes mean.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::xxh3_64;

/// Where bytes lie, and what they must hash to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub segment: u32,
    pub offset: u64,
    pub length: u64,
    pub checksum: u64,
}

/// The files of a directory.
#[derive(Debug)]
pub(super) struct Segments {
    directory: PathBuf,
    /// Bytes that each holds.
    lengths: BTreeMap<u32, u64>,
    /// The newest one, which is appended to.
    newest: Option<(u32, File)>,
    /// A file is not appended to when it has this many bytes.
    full: u64,
}

fn path(directory: &Path, segment: u32) -> PathBuf {
    directory.join(format!("segment-{segment:08}.dat"))
}

impl Segments {
    /// Those of `directory`, which exists; new ones hold some `full` bytes.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn open(directory: &Path, full: u64) -> io::Result<Self> {
        let mut lengths = BTreeMap::new();
        for entry in std::fs::read_dir(directory)? {
            let entry = entry?;
            let name = entry.file_name();
            let number = name.to_str().and_then(|name| name.strip_prefix("segment-")?.strip_suffix(".dat"));
            if let Some(number) = number.and_then(|number| number.parse().ok()) {
                lengths.insert(number, entry.metadata()?.len());
            }
        }
        Ok(Self { directory: directory.to_owned(), lengths, newest: None, full })
    }

    /// Bytes of all of them.
    pub fn bytes(&self) -> u64 {
        self.lengths.values().sum()
    }

    /// Their numbers, oldest first.
    pub fn numbers(&self) -> Vec<u32> {
        self.lengths.keys().copied().collect()
    }

    /// Whether `place` lies inside a file.
    pub fn holds(&self, place: &Place) -> bool {
        let length = self.lengths.get(&place.segment).copied().unwrap_or(0);
        place.offset.checked_add(place.length).is_some_and(|end| end <= length)
    }

    /// Appends `bytes`; they are safe after [`Segments::sync`].
    ///
    /// # Errors
    /// If they cannot be written; then nothing has been.
    pub fn append(&mut self, bytes: &[u8]) -> io::Result<Place> {
        let (segment, mut file) = match self.newest.take() {
            Some((segment, file)) if self.lengths.get(&segment).copied().unwrap_or(0) < self.full => (segment, file),
            last => {
                if let Some((_, file)) = last {
                    file.sync_data()?;
                }
                // Never into a file of an earlier run: its end may be half written.
                let segment = self.lengths.keys().next_back().map_or(0, |last| last + 1);
                let file = private(&path(&self.directory, segment))?;
                self.lengths.insert(segment, 0);
                (segment, file)
            }
        };
        let offset = self.lengths.get(&segment).copied().unwrap_or(0);
        let written = file.seek(SeekFrom::Start(offset)).and_then(|_| file.write_all(bytes));
        if let Err(error) = written {
            // What is half there is behind the end, and is written over.
            let _ = file.set_len(offset);
            self.newest = Some((segment, file));
            return Err(error);
        }
        self.newest = Some((segment, file));
        self.lengths.insert(segment, offset + bytes.len() as u64);
        Ok(Place { segment, offset, length: bytes.len() as u64, checksum: xxh3_64(bytes) })
    }

    /// Makes what was appended survive a loss of power.
    ///
    /// # Errors
    /// If the system cannot.
    pub fn sync(&mut self) -> io::Result<()> {
        self.newest.as_ref().map_or(Ok(()), |(_, file)| file.sync_data())
    }

    /// The bytes at `place`.
    ///
    /// # Errors
    /// If they cannot be read, or are not what was written.
    pub fn read(&self, place: &Place) -> io::Result<Vec<u8>> {
        if !self.holds(place) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut file = File::open(path(&self.directory, place.segment))?;
        file.seek(SeekFrom::Start(place.offset))?;
        let mut bytes = Vec::new();
        file.take(place.length).read_to_end(&mut bytes)?;
        if bytes.len() as u64 != place.length || xxh3_64(&bytes) != place.checksum {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the bytes are not those that were written"));
        }
        Ok(bytes)
    }

    /// Removes a whole file.
    pub fn remove(&mut self, segment: u32) {
        self.lengths.remove(&segment);
        if self.newest.as_ref().is_some_and(|(newest, _)| *newest == segment) {
            self.newest = None;
        }
        // One that cannot be removed is found again at the next start.
        let _ = std::fs::remove_file(path(&self.directory, segment));
    }
}

/// A new file that only its user can read: it holds what was said.
fn private(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_is_what_was_written_or_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let mut segments = Segments::open(directory.path(), 100).unwrap();
        let texts: Vec<Vec<u8>> = (0..9u8).map(|n| vec![n; 20 + usize::from(n) * 7]).collect();
        let places: Vec<Place> = texts.iter().map(|text| segments.append(text).unwrap()).collect();
        segments.sync().unwrap();
        assert!(segments.numbers().len() > 2);
        let again = Segments::open(directory.path(), 100).unwrap();
        assert_eq!(again.bytes(), segments.bytes());
        for (place, text) in places.iter().zip(&texts) {
            assert_eq!(again.read(place).unwrap(), *text);
            assert!(!again.holds(&Place { length: 1000, ..*place }));
        }
        // A bit that has flipped, and a file that is shorter than it was.
        let first = path(directory.path(), places[0].segment);
        let mut bytes = std::fs::read(&first).unwrap();
        bytes[3] ^= 1;
        std::fs::write(&first, &bytes).unwrap();
        assert!(again.read(&places[0]).is_err() && again.read(&places[1]).is_ok());
        std::fs::write(&first, &bytes[..30]).unwrap();
        assert!(again.read(&places[1]).is_err());
        // A new run does not append to what may be half written.
        let mut later = Segments::open(directory.path(), 100).unwrap();
        let place = later.append(b"more").unwrap();
        assert!(place.segment > places.last().unwrap().segment);
        later.remove(place.segment);
        assert!(later.read(&place).is_err());
    }
}
