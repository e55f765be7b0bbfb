//! 64-bit words shared with the kernel or another process through a memory mapping: BPF arrays, and files.

#![allow(unsafe_code)]

use std::{
    ffi::c_void,
    io,
    os::fd::AsFd,
    ptr::{self, NonNull},
    sync::atomic::AtomicU64,
};

use rustix::{
    fs::{FileType, fstat},
    mm::{MapFlags, ProtFlags, mmap, munmap},
};

/// A multiple of every page size in use, at which mappings may start.
const PAGES: u64 = 64 << 10;

/// Words mapped from a descriptor, readable and writable. Unmapped on drop; the descriptor may be closed before.
///
/// A file must not be cut while it is mapped: touching what is gone ends the process (SIGBUS).
#[derive(Debug)]
pub struct SharedWords {
    mapping: NonNull<c_void>,
    mapping_bytes: usize,
    /// Where the words start in the mapping, in bytes.
    start: usize,
    words: usize,
}

impl SharedWords {
    /// Maps `words` words that start at byte `offset` of `fd`. `offset` must be a multiple of 8, `words` not 0; a
    /// file must be long enough ([`io::ErrorKind::UnexpectedEof`]).
    pub fn map(fd: impl AsFd, offset: u64, words: usize) -> io::Result<Self> {
        let bytes = words.checked_mul(8).filter(|&bytes| bytes != 0 && offset.is_multiple_of(8));
        let end = bytes.and_then(|bytes| offset.checked_add(bytes as u64));
        let (Some(bytes), Some(end)) = (bytes, end) else {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("cannot map {words} words at byte {offset}"),
            ));
        };
        let stat = fstat(&fd)?;
        // Only of a file is the length known; the kernel checks that of a BPF map.
        if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && (stat.st_size as u64) < end {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let start = (offset % PAGES) as usize;
        let mapping_bytes = start + bytes;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the kernel chooses an address range that nothing else uses.
        let mapping = unsafe {
            mmap(ptr::null_mut(), mapping_bytes, access, MapFlags::SHARED, fd, offset - start as u64)
        }?;
        let mapping = NonNull::new(mapping).ok_or_else(|| io::Error::other("mapped at address 0"))?;
        Ok(Self { mapping, mapping_bytes, start, words })
    }
}

impl AsRef<[AtomicU64]> for SharedWords {
    fn as_ref(&self) -> &[AtomicU64] {
        // SAFETY: the range lies in the mapping, which lives as long as `self`; it is aligned, since the mapping is
        // to pages and `start` to 8. Whoever shares the memory, only atomic references to it are ever made here.
        unsafe {
            let first = self.mapping.as_ptr().byte_add(self.start).cast::<AtomicU64>();
            std::slice::from_raw_parts(first, self.words)
        }
    }
}

// SAFETY: a mapping belongs to the process, not to a thread.
unsafe impl Send for SharedWords {}

// SAFETY: it gives out nothing but atomics.
unsafe impl Sync for SharedWords {}

impl Drop for SharedWords {
    fn drop(&mut self) {
        // SAFETY: this is the mapping made in `map`, and no reference to it outlives `self`. Unmapping a whole
        // mapping cannot fail.
        let _ = unsafe { munmap(self.mapping.as_ptr(), self.mapping_bytes) };
    }
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::FileExt, sync::atomic::Ordering::SeqCst};

    use super::*;

    #[test]
    fn words_are_shared_with_the_file_and_other_mappings() {
        for offset in [0, 8, 4096, 65_528, 65_536, 200_008] {
            let file = tempfile::tempfile().unwrap();
            file.set_len(offset + 800).unwrap();
            file.write_all_at(&7u64.to_ne_bytes(), offset).unwrap();
            let one = SharedWords::map(&file, offset, 100).unwrap();
            let other = SharedWords::map(&file, offset, 100).unwrap();
            assert_eq!(one.as_ref().len(), 100);
            assert_eq!(one.as_ref()[0].load(SeqCst), 7);
            std::thread::scope(|scope| {
                scope.spawn(|| one.as_ref()[99].fetch_or(1 << 63, SeqCst));
            });
            assert_eq!(other.as_ref()[99].load(SeqCst), 1 << 63);
            let mut bytes = [0; 8];
            drop((one, other));
            file.read_exact_at(&mut bytes, offset + 792).unwrap();
            assert_eq!(u64::from_ne_bytes(bytes), 1 << 63);
        }
    }

    #[test]
    fn what_cannot_be_mapped_is_refused() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(800).unwrap();
        let refused = |offset, words| SharedWords::map(&file, offset, words).unwrap_err().kind();
        assert_eq!(refused(0, 101), io::ErrorKind::UnexpectedEof);
        assert_eq!(refused(0, 0), io::ErrorKind::InvalidInput);
        assert_eq!(refused(4, 1), io::ErrorKind::InvalidInput);
        assert_eq!(refused(8, usize::MAX / 8), io::ErrorKind::InvalidInput);
    }
}
