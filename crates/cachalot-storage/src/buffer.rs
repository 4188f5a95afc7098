//! Memory that a device may write into: aligned to the pages that unbuffered reads demand.

use std::alloc::{Layout, alloc, dealloc};
use std::ptr::NonNull;

/// Alignment of offset, length and memory that every file system met so far accepts for unbuffered reads.
pub const ALIGNMENT: usize = 4096;

/// Buffers from this size on lie on pages of this size where the system has them. A device then sees a few long stretches
/// of memory instead of hundreds of scattered pages: virtual disks were measured twice as fast, for a fifth of the work.
const HUGE_PAGE: usize = 2 << 20;

/// Zeroed bytes of fixed length at an aligned address.
#[derive(Debug)]
pub struct AlignedBuffer {
    start: NonNull<u8>,
    layout: Layout,
}

impl AlignedBuffer {
    /// At least `length` bytes, rounded up to whole pages; `None` if the system refuses.
    pub fn new(length: usize) -> Option<Self> {
        let align = if length < HUGE_PAGE { ALIGNMENT } else { HUGE_PAGE };
        let layout = Layout::from_size_align(Self::bytes_for(length)?, align).ok()?;
        // SAFETY: the layout's size is above zero.
        let start = NonNull::new(unsafe { alloc(layout) })?;
        if align == HUGE_PAGE {
            advise(start, layout.size());
        }
        // SAFETY: `size` bytes at `start` were allocated just above.
        unsafe { start.as_ptr().write_bytes(0, layout.size()) };
        Some(Self { start, layout })
    }

    /// Bytes that a buffer of `length` takes; `None` if there are no such many.
    pub fn bytes_for(length: usize) -> Option<usize> {
        let page = if length < HUGE_PAGE { ALIGNMENT } else { HUGE_PAGE };
        length.max(1).checked_next_multiple_of(page)
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

/// Asks for huge pages before the memory is touched. A refusal only costs speed.
#[cfg(target_os = "linux")]
fn advise(start: NonNull<u8>, length: usize) {
    use rustix::mm::{Advice, madvise};
    // SAFETY: the range was allocated by the caller; the advice does not change its contents.
    let _ = unsafe { madvise(start.as_ptr().cast(), length, Advice::LinuxHugepage) };
}

#[cfg(not(target_os = "linux"))]
fn advise(_start: NonNull<u8>, _length: usize) {}

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
        for length in [0, 1, 4096, 10_000, HUGE_PAGE, HUGE_PAGE + 1] {
            let mut buffer = AlignedBuffer::new(length).expect("memory");
            assert!(buffer.as_slice().len() >= length && buffer.as_slice().len().is_multiple_of(ALIGNMENT));
            assert_eq!(buffer.as_slice().as_ptr() as usize % ALIGNMENT, 0);
            assert_eq!(Some(buffer.as_slice().len()), AlignedBuffer::bytes_for(length));
            assert!(buffer.as_slice().iter().all(|byte| *byte == 0));
            buffer.as_mut_slice().fill(3);
        }
        assert!(AlignedBuffer::new(usize::MAX).is_none());
    }
}
