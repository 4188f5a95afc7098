//! A file that is already in memory: embedded in the program, or made by a test.

use crate::{Storage, StorageError, read_exactly};
use std::sync::Arc;

/// Bytes that live as long as the program, or as long as someone holds them.
#[derive(Clone, Debug)]
pub enum Bytes {
    /// Part of the program.
    Static(&'static [u8]),
    /// Shared.
    Shared(Arc<[u8]>),
}

impl AsRef<[u8]> for Bytes {
    fn as_ref(&self) -> &[u8] {
        match self {
            Self::Static(bytes) => bytes,
            Self::Shared(bytes) => bytes,
        }
    }
}

impl From<&'static [u8]> for Bytes {
    fn from(bytes: &'static [u8]) -> Self {
        Self::Static(bytes)
    }
}

impl<const N: usize> From<&'static [u8; N]> for Bytes {
    fn from(bytes: &'static [u8; N]) -> Self {
        Self::Static(bytes)
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Shared(bytes.into())
    }
}

/// A file in memory.
#[derive(Clone, Debug)]
pub struct Memory {
    name: String,
    bytes: Bytes,
}

impl Memory {
    /// A file called `name` that holds `bytes`.
    pub fn new(name: impl Into<String>, bytes: impl Into<Bytes>) -> Self {
        Self { name: name.into(), bytes: bytes.into() }
    }
}

impl Storage for Memory {
    fn name(&self) -> &str {
        &self.name
    }

    fn length(&self) -> u64 {
        self.bytes.as_ref().len() as u64
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), StorageError> {
        read_exactly(&self.name, offset, buffer, |offset, rest| {
            let tail = usize::try_from(offset).ok().and_then(|at| self.bytes.as_ref().get(at..)).unwrap_or_default();
            let count = tail.len().min(rest.len());
            rest[..count].copy_from_slice(&tail[..count]);
            Ok(count)
        })
    }

    fn waits(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_like_a_file() {
        for file in
            [Memory::new("m", b"abcdef"), Memory::new("m", &b"abcdef"[..]), Memory::new("m", b"abcdef".to_vec())]
        {
            let mut buffer = [0; 3];
            file.read_at(3, &mut buffer).expect("inside");
            assert_eq!(&buffer, b"def");
            let message = file.read_at(5, &mut buffer).unwrap_err().to_string();
            assert_eq!(message, "m: 3 bytes at offset 5 were asked for, but the file ends after 1 of them");
            assert!(file.read_at(u64::MAX, &mut buffer).is_err());
            assert!(!file.waits());
        }
    }
}
