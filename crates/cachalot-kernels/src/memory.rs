//! Zeroed, 64-byte aligned memory for packed weights, on huge pages where the system gives them.

use std::alloc::Layout;
use std::ptr::NonNull;

/// From this size on, memory is asked for huge pages.
const HUGE_PAGE: usize = 2 << 20;

/// An owned, zeroed, 64-byte aligned run of bytes.
pub struct Memory {
    start: NonNull<u8>,
    length: usize,
    mapped: bool,
}

impl Memory {
    /// No bytes; nothing is allocated.
    pub fn empty() -> Self {
        Self { start: NonNull::<Aligned>::dangling().cast(), length: 0, mapped: false }
    }

    /// `None` if the system refuses.
    pub fn zeroed(length: usize) -> Option<Self> {
        if length == 0 {
            return Some(Self::empty());
        }
        if length >= HUGE_PAGE
            && let Some(start) = map(length)
        {
            return Some(Self { start, length, mapped: true });
        }
        let layout = Layout::from_size_align(length, 64).ok()?;
        // SAFETY: the layout has a size above zero.
        let start = NonNull::new(unsafe { std::alloc::alloc_zeroed(layout) })?;
        Some(Self { start, length, mapped: false })
    }

    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: `length` initialised (zeroed) bytes at `start` belong to this value.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.length) }
    }

    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `self` is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.length) }
    }
}

#[repr(align(64))]
struct Aligned(#[allow(dead_code)] [u8; 64]);

#[cfg(target_os = "linux")]
fn map(length: usize) -> Option<NonNull<u8>> {
    use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous};
    let access = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new private mapping at an address of the system's choice touches no memory of ours.
    let start = unsafe { mmap_anonymous(std::ptr::null_mut(), length, access, MapFlags::PRIVATE) }.ok()?;
    // SAFETY: the range was mapped just above; the advice does not change its contents. A refusal only costs speed.
    let _ = unsafe { madvise(start, length, Advice::LinuxHugepage) };
    NonNull::new(start.cast())
}

#[cfg(not(target_os = "linux"))]
fn map(_length: usize) -> Option<NonNull<u8>> {
    None
}

impl Drop for Memory {
    fn drop(&mut self) {
        if self.length == 0 {
            return;
        }
        #[cfg(target_os = "linux")]
        if self.mapped {
            // SAFETY: the mapping of this address and length was made by `map` and ends here; nothing borrows it any more.
            let _ = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.length) };
            return;
        }
        debug_assert!(!self.mapped);
        if let Ok(layout) = Layout::from_size_align(self.length, 64) {
            // SAFETY: allocated in `zeroed` with the same layout.
            unsafe { std::alloc::dealloc(self.start.as_ptr(), layout) }
        }
    }
}

// SAFETY: `Memory` owns its bytes; access follows the borrow of `self`.
unsafe impl Send for Memory {}
// SAFETY: shared access only reads.
unsafe impl Sync for Memory {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeroed_aligned_and_writable() {
        for length in [0, 1, 100, HUGE_PAGE - 1, HUGE_PAGE, 3 * HUGE_PAGE + 12_345] {
            let mut memory = Memory::zeroed(length).unwrap();
            assert_eq!(memory.as_slice().as_ptr() as usize % 64, 0);
            assert_eq!(memory.as_slice().len(), length);
            assert!(memory.as_slice().iter().all(|&byte| byte == 0));
            memory.as_mut_slice().fill(7);
            assert!(memory.as_slice().iter().all(|&byte| byte == 7));
        }
        assert!(Memory::zeroed(1 << 62).is_none());
    }
}
