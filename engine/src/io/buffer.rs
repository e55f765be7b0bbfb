//! Owned byte buffers aligned for unbuffered disk I/O.
//!
//! The kernel reads and writes them in place, without a copy through the page cache. Nothing here is pooled:
//! the allocator's own caches serve buffers of these few sizes well.

#![allow(unsafe_code)]

use std::{
    alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error},
    fmt,
    ops::{Deref, DerefMut},
    ptr::NonNull,
};

use tokio_uring::buf::{IoBuf, IoBufMut};

/// Alignment of every [`AlignedBuf`] in bytes: the largest that any logical block needs.
pub(super) const ALIGNMENT: usize = 4096;

/// A heap buffer of fixed capacity, aligned to 4096 bytes. All of its bytes are always initialised.
pub struct AlignedBuf {
    start: NonNull<u8>,
    len: usize,
    capacity: usize,
}

impl AlignedBuf {
    /// `len` zero bytes. Allocates nothing if `len` is 0.
    #[must_use]
    pub fn zeroed(len: usize) -> Self {
        if len == 0 {
            return Self::default();
        }
        let layout = Self::layout(len);
        // SAFETY: the layout's size is `len`, which is not zero.
        let start = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(start) else { handle_alloc_error(layout) };
        Self { start, len, capacity: len }
    }

    /// A buffer with the same bytes.
    #[must_use]
    pub fn copy_of(bytes: &[u8]) -> Self {
        let mut buf = Self::zeroed(bytes.len());
        buf.copy_from_slice(bytes);
        buf
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Forgets all but the first `len` bytes; without effect if there are no more.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    #[allow(clippy::expect_used)] // A length over isize::MAX - 4095 cannot be met: like Vec, a capacity overflow.
    fn layout(capacity: usize) -> Layout {
        Layout::from_size_align(capacity, ALIGNMENT).expect("capacity overflow")
    }
}

impl Default for AlignedBuf {
    fn default() -> Self {
        // Never dereferenced for a length of 0, but aligned like any other.
        let start = NonNull::without_provenance(const { std::num::NonZero::new(ALIGNMENT).unwrap() });
        Self { start, len: 0, capacity: 0 }
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        if self.capacity != 0 {
            // SAFETY: `start` was allocated in `zeroed` with this very layout, and is freed only here.
            unsafe { dealloc(self.start.as_ptr(), Self::layout(self.capacity)) }
        }
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `start` is valid and initialised for `capacity >= len` bytes (zeroed at birth), or `len` is 0.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`; `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl Clone for AlignedBuf {
    fn clone(&self) -> Self {
        Self::copy_of(self)
    }
}

impl fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AlignedBuf({} bytes)", self.len)
    }
}

impl PartialEq for AlignedBuf {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for AlignedBuf {}

// SAFETY: it owns its bytes exclusively, like a `Box<[u8]>`.
unsafe impl Send for AlignedBuf {}

// SAFETY: shared access only reads.
unsafe impl Sync for AlignedBuf {}

// SAFETY: the bytes are on the heap, so their address survives moves of the buffer; `len` bytes are initialised.
unsafe impl IoBuf for AlignedBuf {
    fn stable_ptr(&self) -> *const u8 {
        self.start.as_ptr()
    }

    fn bytes_init(&self) -> usize {
        self.len
    }

    fn bytes_total(&self) -> usize {
        self.len
    }
}

// SAFETY: as above; the pointer may be written through for `bytes_total` bytes.
unsafe impl IoBufMut for AlignedBuf {
    fn stable_mut_ptr(&mut self) -> *mut u8 {
        self.start.as_ptr()
    }

    unsafe fn set_init(&mut self, _: usize) {} // Everything always is.
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_aligned_and_zero() {
        for len in [1, 511, 512, 4096, 4097, 1 << 20] {
            let buf = AlignedBuf::zeroed(len);
            assert_eq!(buf.len(), len);
            assert_eq!(buf.as_ptr() as usize % ALIGNMENT, 0);
            assert!(buf.iter().all(|&b| b == 0));
        }
    }

    #[test]
    fn holds_what_was_put_in_and_can_be_cut() {
        let bytes: Vec<u8> = (0..10_000).map(|i| i as u8).collect();
        let mut buf = AlignedBuf::copy_of(&bytes);
        assert_eq!(&buf[..], &bytes[..]);
        let twin = buf.clone();
        buf[9_999] ^= 1;
        assert_ne!(buf, twin);
        buf.truncate(9_999);
        buf.truncate(20_000);
        assert_eq!(&buf[..], &twin[..9_999]);
    }

    #[test]
    fn may_be_empty() {
        let buf = AlignedBuf::zeroed(0);
        assert!(buf.is_empty());
        assert_eq!(buf.clone(), AlignedBuf::copy_of(&[]));
    }
}
