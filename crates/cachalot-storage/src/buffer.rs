//! Memory that a device may write into: aligned to the pages that unbuffered reads demand.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;

/// Alignment of offset, length and memory that every file system met so far accepts for unbuffered reads.
pub const ALIGNMENT: usize = 4096;

/// Zeroed bytes of fixed length at an aligned address.
#[derive(Debug)]
pub struct AlignedBuffer {
    start: NonNull<u8>,
    layout: Layout,
}

impl AlignedBuffer {
    /// At least `length` bytes, rounded up to whole pages; `None` if the system refuses.
    pub fn new(length: usize) -> Option<Self> {
        let length = length.max(1).checked_next_multiple_of(ALIGNMENT)?;
        let layout = Layout::from_size_align(length, ALIGNMENT).ok()?;
        // SAFETY: the layout's size is above zero.
        let start = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        Some(Self { start, layout })
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: `start` points to `size` initialised bytes that belong to this value.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.layout.size()) }
    }

    /// The bytes, to be written.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `self` is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.layout.size()) }
    }
}

impl Drop for AlignedBuffer {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout, and nothing borrows it any more.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}

// SAFETY: the bytes belong to this value alone; access follows the borrow of `self`.
unsafe impl Send for AlignedBuffer {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aligned_zeroed_and_whole_pages() {
        for length in [0, 1, 4096, 10_000] {
            let mut buffer = AlignedBuffer::new(length).expect("memory");
            assert!(buffer.as_slice().len() >= length && buffer.as_slice().len().is_multiple_of(ALIGNMENT));
            assert_eq!(buffer.as_slice().as_ptr() as usize % ALIGNMENT, 0);
            assert!(buffer.as_slice().iter().all(|byte| *byte == 0));
            buffer.as_mut_slice().fill(3);
        }
        assert!(AlignedBuffer::new(usize::MAX).is_none());
    }
}
