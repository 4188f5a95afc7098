//! Stores of packed cache records: a paged one that grows with the sequence, and a ring for the sliding window.
//!
//! What a record means is its writer's business.

use std::sync::Arc;

/// Records per page. A fork shares full pages; only the last one is copied when it is written to.
const PAGE_RECORDS: usize = 256;

/// Records of one size, appended in order, cut from the end, shared between forks page by page.
#[derive(Clone, Debug)]
pub struct RecordPages {
    record: usize,
    length: usize,
    pages: Vec<Arc<[u8]>>,
}

impl PartialEq for RecordPages {
    /// The same records; what pages hold behind them does not count.
    fn eq(&self, other: &Self) -> bool {
        let same = |index| self.get(index) == other.get(index);
        (self.record, self.length) == (other.record, other.length) && (0..self.length).all(same)
    }
}

impl RecordPages {
    /// An empty store of records of `record` bytes.
    pub fn new(record: usize) -> Self {
        Self { record, length: 0, pages: Vec::new() }
    }

    /// Bytes that the records take, not counting the unused end of the last page.
    pub fn bytes(&self) -> usize {
        self.length * self.record
    }

    /// Records.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Bytes of one record.
    pub fn record(&self) -> usize {
        self.record
    }

    /// Appends one record, filled in by `write`.
    pub fn push(&mut self, write: impl FnOnce(&mut [u8])) {
        let slot = self.length % PAGE_RECORDS;
        if self.length / PAGE_RECORDS == self.pages.len() {
            self.pages.push(vec![0; PAGE_RECORDS * self.record].into());
        }
        let page = Arc::make_mut(&mut self.pages[self.length / PAGE_RECORDS]);
        write(&mut page[slot * self.record..(slot + 1) * self.record]);
        self.length += 1;
    }

    /// The record at `index`, which must be below [`RecordPages::len`].
    pub fn get(&self, index: usize) -> &[u8] {
        assert!(index < self.length, "record {index} of {}", self.length);
        let slot = index % PAGE_RECORDS;
        &self.pages[index / PAGE_RECORDS][slot * self.record..(slot + 1) * self.record]
    }

    /// The records from `first` to `end` as contiguous runs: `(index of the first record, bytes, records)`.
    pub fn runs(&self, first: usize, end: usize) -> impl Iterator<Item = (usize, &[u8], usize)> {
        assert!(end <= self.length);
        let pages = first / PAGE_RECORDS..end.div_ceil(PAGE_RECORDS);
        pages.map(move |page| {
            let start = first.max(page * PAGE_RECORDS);
            let stop = end.min((page + 1) * PAGE_RECORDS);
            let offset = page * PAGE_RECORDS;
            (start, &self.pages[page][(start - offset) * self.record..(stop - offset) * self.record], stop - start)
        })
    }

    /// Every page: its address, which tells shared ones, and its bytes.
    pub fn pages(&self) -> impl Iterator<Item = (usize, usize)> {
        self.pages.iter().map(|page| (page.as_ptr().addr(), page.len()))
    }

    /// Forgets all records from `length` on.
    pub fn truncate(&mut self, length: usize) {
        self.length = self.length.min(length);
        self.pages.truncate(self.length.div_ceil(PAGE_RECORDS));
    }
}

/// The newest records of a sequence, one per position, in `capacity` slots of `record` elements.
#[derive(Clone, Debug, PartialEq)]
pub struct RecordRing<T> {
    record: usize,
    slots: Vec<T>,
}

impl<T: Copy + Default> RecordRing<T> {
    /// A ring of `capacity` records of `record` elements.
    pub fn new(record: usize, capacity: usize) -> Self {
        Self { record, slots: vec![T::default(); record * capacity] }
    }

    /// Slots.
    pub fn capacity(&self) -> usize {
        self.slots.len() / self.record
    }

    /// Bytes of all slots.
    pub fn bytes(&self) -> usize {
        size_of_val(&*self.slots)
    }

    /// All slots.
    pub fn slots(&self) -> &[T] {
        &self.slots
    }

    /// All slots, to be written.
    pub fn slots_mut(&mut self) -> &mut [T] {
        &mut self.slots
    }

    /// The slot of `position`.
    pub fn get(&self, position: usize) -> &[T] {
        let start = position % self.capacity() * self.record;
        &self.slots[start..start + self.record]
    }

    /// The slot of `position`, to be written.
    pub fn get_mut(&mut self, position: usize) -> &mut [T] {
        let start = position % self.capacity() * self.record;
        &mut self.slots[start..start + self.record]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forks_share_pages_and_never_see_each_other() {
        let mut pages = RecordPages::new(2);
        for index in 0..600u16 {
            pages.push(|record| record.copy_from_slice(&index.to_le_bytes()));
        }
        let mut fork = pages.clone();
        fork.truncate(599);
        fork.push(|record| record.copy_from_slice(&[1, 1]));
        pages.push(|record| record.copy_from_slice(&[2, 2]));
        assert_eq!(fork.get(599), [1, 1]);
        assert_eq!(pages.get(599), 599u16.to_le_bytes());
        assert_eq!(pages.get(600), [2, 2]);
        assert!(Arc::ptr_eq(&pages.pages[0], &fork.pages[0]));
        assert_eq!(pages.bytes(), 1202);
    }

    #[test]
    fn runs_cover_a_range_in_order() {
        let mut pages = RecordPages::new(1);
        for index in 0..700usize {
            pages.push(|record| record[0] = index as u8);
        }
        for (first, end) in [(0, 0), (0, 700), (255, 257), (256, 512), (300, 301), (511, 700)] {
            let mut next = first;
            for (start, bytes, count) in pages.runs(first, end) {
                assert_eq!(start, next);
                assert!(bytes.iter().enumerate().all(|(offset, &byte)| byte == (start + offset) as u8));
                assert_eq!(bytes.len(), count);
                next += count;
            }
            assert_eq!(next, end.max(first));
        }
    }
}
