//! Which experts were worth keeping at the end of the last run: read at the start of the next.
//!
//! A file of the user's cache directory, one for each checkpoint. It is a hint: one that is missing, damaged or of
//! another checkpoint costs nothing but the warm start.

use std::io;
use std::path::{Path, PathBuf};

use cachalot_checkpoint::Checkpoint;
use serde::{Deserialize, Serialize};

use crate::identity;

/// Largest file that is read, in bytes.
const MOST_BYTES: u64 = 4 << 20;

/// Where the hot experts of one checkpoint are remembered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HotList {
    path: PathBuf,
    identity: String,
}

#[derive(Serialize, Deserialize)]
struct Content {
    /// Of the checkpoint.
    identity: String,
    /// Layer and expert, the hottest first.
    experts: Vec<(u32, u32)>,
}

impl HotList {
    /// The file for `checkpoint` in `directory`, which need not exist.
    pub fn new(directory: &Path, checkpoint: &Checkpoint) -> Self {
        let identity = format!("{:016x}", identity::of_layout(checkpoint));
        Self { path: directory.join(format!("hot-{identity}.json")), identity }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is remembered; nothing if there is nothing, or it cannot be read.
    pub fn read(&self) -> Vec<(u32, u32)> {
        let small = std::fs::metadata(&self.path).is_ok_and(|metadata| metadata.len() <= MOST_BYTES);
        let bytes = if small { std::fs::read(&self.path).unwrap_or_default() } else { Vec::new() };
        let content = serde_json::from_slice::<Content>(&bytes).ok();
        content.filter(|content| content.identity == self.identity).map(|content| content.experts).unwrap_or_default()
    }

    /// Remembers `experts`, in place of what was remembered: all of it or, if it fails, what was there before.
    ///
    /// # Errors
    /// If the directory or file cannot be written.
    pub fn write(&self, experts: &[(u32, u32)]) -> io::Result<()> {
        let content = Content { identity: self.identity.clone(), experts: experts.to_vec() };
        let bytes = serde_json::to_vec(&content)?;
        if let Some(directory) = self.path.parent() {
            std::fs::create_dir_all(directory)?;
        }
        let temporary = self.path.with_extension(format!("{}.part", std::process::id()));
        let outcome = std::fs::write(&temporary, bytes).and_then(|()| std::fs::rename(&temporary, &self.path));
        if outcome.is_err() {
            // Half a file is of no use; it may not be there at all.
            let _ = std::fs::remove_file(&temporary);
        }
        outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cachalot_storage::Directory;
    use std::sync::Arc;

    fn checkpoint(name: &str) -> Checkpoint {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(name);
        Checkpoint::open(Arc::new(Directory::new(path))).unwrap()
    }

    #[test]
    fn what_is_written_is_read_for_the_same_checkpoint_only() {
        let directory = tempfile::tempdir().unwrap();
        let nested = directory.path().join("a/b");
        let list = HotList::new(&nested, &checkpoint("v41-tiny"));
        assert_eq!(list.read(), []);
        list.write(&[(3, 4), (1, 2)]).unwrap();
        list.write(&[(5, 6)]).unwrap();
        assert_eq!(list.read(), [(5, 6)]);
        let other = HotList::new(&nested, &checkpoint("v41-pairs"));
        assert_ne!(list.path(), other.path());
        std::fs::copy(list.path(), other.path()).unwrap();
        assert_eq!(other.read(), [], "the name alone is not believed");
        std::fs::write(list.path(), "{\"identity\":").unwrap();
        assert_eq!(list.read(), []);
        assert_eq!(std::fs::read_dir(&nested).unwrap().count(), 2, "no temporary files are left");
        // A directory that cannot be made is an error, not a panic.
        let file = directory.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(HotList::new(&file, &checkpoint("v41-tiny")).write(&[]).is_err());
    }
}
