//! The set of files that make up a checkpoint: a directory, or files that are part of the program.

use crate::{Bytes, DiskFile, Memory, Storage, StorageError};
use std::path::{Path, PathBuf};

/// Files by name. A name is one path component: no set of files lets a name lead elsewhere.
pub trait Files: Send + Sync {
    /// Opens the file called `name`.
    ///
    /// # Errors
    /// If the name is refused, or there is no such file, or it cannot be opened.
    fn open(&self, name: &str) -> Result<Box<dyn Storage>, StorageError>;

    /// Where the files are, for people.
    fn label(&self) -> String;

    /// The whole file, if it has at most `limit_bytes`.
    ///
    /// # Errors
    /// As [`Files::open`] and [`Storage::read_at`]; [`StorageError::TooLarge`] before anything is allocated.
    fn read_all(&self, name: &str, limit_bytes: u64) -> Result<Vec<u8>, StorageError> {
        let file = self.open(name)?;
        let length = file.length();
        let too_large = || StorageError::TooLarge { file: name.to_owned(), length, limit: limit_bytes };
        if length > limit_bytes {
            return Err(too_large());
        }
        let mut bytes = vec![0; usize::try_from(length).map_err(|_| too_large())?];
        file.read_at(0, &mut bytes)?;
        Ok(bytes)
    }
}

/// Refuses a name that is not a plain file name: it comes from an index file, which nobody vouches for.
fn plain_name(name: &str) -> Result<&str, StorageError> {
    let reason = if name.is_empty() {
        "it is empty"
    } else if name == "." || name.contains("..") {
        "it leads out of the directory"
    } else if name.contains(['/', '\\', ':']) {
        "it contains a separator"
    } else if name.chars().any(char::is_control) {
        "it contains a control character"
    } else if name.len() > 255 {
        "it is longer than 255 bytes"
    } else {
        return Ok(name);
    };
    Err(StorageError::Name { name: name.chars().take(80).collect(), reason })
}

/// The files of one directory.
#[derive(Clone, Debug)]
pub struct Directory {
    path: PathBuf,
}

impl Directory {
    /// The directory at `path`. Nothing is opened yet.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Files for Directory {
    fn open(&self, name: &str) -> Result<Box<dyn Storage>, StorageError> {
        let path = self.path.join(plain_name(name)?);
        Ok(Box::new(DiskFile::open(&path, name)?))
    }

    fn label(&self) -> String {
        self.path.display().to_string()
    }
}

/// The files of several directories, on several disks perhaps: a file is where it is found first.
#[derive(Clone, Debug)]
pub struct Spread {
    directories: Vec<Directory>,
}

impl Spread {
    /// The directories at `paths`, the first with config and index. Nothing is opened yet.
    pub fn new(paths: impl IntoIterator<Item = impl Into<PathBuf>>) -> Self {
        Self { directories: paths.into_iter().map(Directory::new).collect() }
    }
}

impl Files for Spread {
    fn open(&self, name: &str) -> Result<Box<dyn Storage>, StorageError> {
        let mut absent = StorageError::NotFound { file: plain_name(name)?.to_owned() };
        for directory in &self.directories {
            match directory.open(name) {
                Err(error) if error.is_not_found() => absent = error,
                opened => return opened,
            }
        }
        Err(absent)
    }

    fn label(&self) -> String {
        let labels: Vec<String> = self.directories.iter().map(Files::label).collect();
        labels.join(", ")
    }
}

/// Files that are part of the program, or that a test has made.
#[derive(Clone, Debug)]
pub struct Embedded {
    label: String,
    files: Vec<(String, Bytes)>,
}

impl Embedded {
    /// An empty set, called `label` for people.
    pub fn new(label: impl Into<String>) -> Self {
        Self { label: label.into(), files: Vec::new() }
    }

    /// Adds a file, in place of one of the same name.
    #[must_use]
    pub fn with(mut self, name: &str, bytes: impl Into<Bytes>) -> Self {
        self.files.retain(|(other, _)| other != name);
        self.files.push((name.to_owned(), bytes.into()));
        self
    }
}

impl Files for Embedded {
    fn open(&self, name: &str) -> Result<Box<dyn Storage>, StorageError> {
        let name = plain_name(name)?;
        let found = self.files.iter().find(|(other, _)| other == name);
        let (_, bytes) = found.ok_or_else(|| StorageError::NotFound { file: name.to_owned() })?;
        Ok(Box::new(Memory::new(name, bytes.clone())))
    }

    fn label(&self) -> String {
        self.label.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_leads_out_of_the_directory() {
        let outer = tempfile::tempdir().expect("a directory");
        let inner = outer.path().join("model");
        std::fs::create_dir(&inner).expect("a folder");
        std::fs::write(outer.path().join("secret"), "x").expect("a file");
        std::fs::write(inner.join("shard"), "y").expect("a file");
        let sets: [Box<dyn Files>; 2] =
            [Box::new(Directory::new(&inner)), Box::new(Embedded::new("e").with("shard", &b"y"[..]))];
        let absolute = outer.path().join("secret").display().to_string();
        for files in sets {
            assert_eq!(files.read_all("shard", 1).expect("there"), b"y");
            for name in ["../secret", "..", ".", "", "a/b", "a\\b", "c:x", "a\0b", "a\nb", &absolute, &"x".repeat(256)]
            {
                let error = files.open(name).err().expect("refused");
                assert!(matches!(error, StorageError::Name { .. }), "{name:?}: {error}");
            }
            assert!(files.open("absent").err().expect("absent").is_not_found());
        }
    }

    #[test]
    fn a_file_is_where_it_is_found_first() {
        let (one, two) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
        std::fs::write(one.path().join("a"), "1a").expect("a file");
        std::fs::write(two.path().join("a"), "2a").expect("a file");
        std::fs::write(two.path().join("b"), "2b").expect("a file");
        let files = Spread::new([one.path(), two.path()]);
        assert_eq!(files.read_all("a", 9).expect("there"), b"1a");
        assert_eq!(files.read_all("b", 9).expect("there"), b"2b");
        assert!(files.open("c").err().expect("absent").is_not_found());
        assert!(matches!(files.open("../a").err(), Some(StorageError::Name { .. })));
        assert!(files.label().contains(", "));
    }

    #[test]
    fn a_whole_file_has_a_limit() {
        let files = Embedded::new("e").with("f", &b"old"[..]).with("f", b"12345".to_vec());
        assert_eq!(files.read_all("f", 5).expect("fits"), b"12345");
        let message = files.read_all("f", 4).unwrap_err().to_string();
        assert_eq!(message, "f has 5 bytes; at most 4 are read");
    }
}
