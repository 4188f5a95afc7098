//! A sequence's state as bytes, and back.
//!
//! Owns the two parts of it: the compressed records of a range of tokens, which every sequence that begins with these
//! tokens has alike, and the rest: windows, groups that are not complete, counters. What is read is checked against the
//! model's own sizes: bytes of another model, or too few, are refused. Whoever stores them vouches for their content.

use std::ops::Range;

use crate::shared::records::{RecordPages, RecordRing};
use crate::state::Sequence;

/// Why bytes are not a state.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("stored bytes are not a state of this model: {0}")]
pub struct StoredError(&'static str);

/// Bytes on their way in.
struct Bytes<'b>(&'b [u8]);

impl<'b> Bytes<'b> {
    fn take(&mut self, count: usize) -> Result<&'b [u8], StoredError> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(StoredError("they end too early"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn number(&mut self) -> Result<usize, StoredError> {
        let bytes = self.take(8)?.try_into().map_err(|_| StoredError("they end too early"))?;
        usize::try_from(u64::from_le_bytes(bytes)).map_err(|_| StoredError("a number is too large"))
    }

    fn end(&self) -> Result<(), StoredError> {
        if self.0.is_empty() { Ok(()) } else { Err(StoredError("there are too many of them")) }
    }
}

fn put(number: usize, out: &mut Vec<u8>) {
    out.extend_from_slice(&(number as u64).to_le_bytes());
}

impl Sequence {
    /// Appends the compressed entries and index keys that the tokens at `tokens` complete.
    pub fn write_records(&self, tokens: Range<usize>, out: &mut Vec<u8>) {
        for cache in &self.caches {
            let records = tokens.start / cache.ratio()..tokens.end / cache.ratio();
            for pages in [&cache.entries, &cache.index_keys] {
                if pages.record() > 0 {
                    pages.runs(records.start, records.end).for_each(|(_, bytes, _)| out.extend_from_slice(bytes));
                }
            }
        }
    }

    /// Takes what [`Sequence::write_records`] wrote of `tokens`; everything before them must have been taken.
    ///
    /// # Errors
    /// If the bytes are not of this model and range. Then nothing may be done with the sequence.
    pub fn read_records(&mut self, tokens: Range<usize>, bytes: &[u8]) -> Result<(), StoredError> {
        let mut bytes = Bytes(bytes);
        for cache in &mut self.caches {
            let ratio = cache.ratio();
            let records = tokens.start / ratio..tokens.end / ratio;
            for pages in [&mut cache.entries, &mut cache.index_keys] {
                if pages.record() > 0 {
                    read_pages(pages, &records, &mut bytes)?;
                }
            }
        }
        bytes.end()
    }

    /// Appends everything else.
    pub fn write_rest(&self, out: &mut Vec<u8>) {
        for number in [self.position(), self.floor(), self.owed()] {
            put(number, out);
        }
        self.window_start.iter().for_each(|start| put(*start, out));
        self.windows.iter().for_each(|ring| out.extend_from_slice(ring.slots()));
        for ring in self.caches.iter().flat_map(|cache| &cache.rolling) {
            ring.slots().iter().for_each(|value| out.extend_from_slice(&value.to_le_bytes()));
        }
        self.history().iter().for_each(|class| out.extend_from_slice(&class.to_le_bytes()));
    }

    /// Takes what [`Sequence::write_rest`] wrote, after all records.
    ///
    /// # Errors
    /// As [`Sequence::read_records`].
    pub fn read_rest(&mut self, bytes: &[u8]) -> Result<(), StoredError> {
        let mut bytes = Bytes(bytes);
        let [position, floor, owed] = [bytes.number()?, bytes.number()?, bytes.number()?];
        let complete = |cache: &crate::state::CompressedCache| {
            let records = position / cache.ratio();
            [&cache.entries, &cache.index_keys].iter().all(|pages| pages.record() == 0 || pages.len() == records)
        };
        if floor > position || (owed > 0 && owed <= position) || !self.caches.iter().all(complete) {
            return Err(StoredError("its parts do not belong together"));
        }
        for start in &mut self.window_start {
            *start = bytes.number()?;
            if *start > position {
                return Err(StoredError("a window begins behind its end"));
            }
        }
        for ring in &mut self.windows {
            let slots = ring.slots_mut();
            slots.copy_from_slice(bytes.take(slots.len())?);
        }
        for ring in self.caches.iter_mut().flat_map(|cache| &mut cache.rolling) {
            read_words(ring, &mut bytes)?;
        }
        for class in self.history_mut() {
            *class = u32::from_le_bytes(word(&mut bytes)?);
        }
        self.restore(position, floor, owed);
        bytes.end()
    }
}

fn word(bytes: &mut Bytes<'_>) -> Result<[u8; 4], StoredError> {
    bytes.take(4)?.try_into().map_err(|_| StoredError("they end too early"))
}

fn read_words(ring: &mut RecordRing<f32>, bytes: &mut Bytes<'_>) -> Result<(), StoredError> {
    for value in ring.slots_mut() {
        *value = f32::from_le_bytes(word(bytes)?);
    }
    Ok(())
}

fn read_pages(pages: &mut RecordPages, records: &Range<usize>, bytes: &mut Bytes<'_>) -> Result<(), StoredError> {
    if pages.len() != records.start {
        return Err(StoredError("records before them are missing"));
    }
    for _ in records.clone() {
        let record = bytes.take(pages.record())?;
        pages.push(|slot| slot.copy_from_slice(record));
    }
    Ok(())
}
