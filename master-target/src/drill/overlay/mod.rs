//! What a drill writes to a disk: kept beside it, and thrown away.
//!
//! Bytes go to a file without a name, as large as the disk and sparse; the system frees it when its last descriptor
//! is closed, also that of a process that was killed. Which blocks are in it stands in memory. Nothing is ever
//! synced: what is thrown away needs not survive anything.
//!
//! A block is in the map only when all its bytes are in the file. So whoever reads gets the old or the new bytes.

mod map;
#[cfg(test)]
mod tests;

use std::{
    fs::File,
    io,
    ops::Range,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use engine::units::BLOCK_BYTES;
use rustix::fs::{FallocateFlags, fallocate};

use self::map::BlockMap;
pub use self::map::Kind;
use super::limits;
use crate::image::Image;
use crate::replica::ReplicaError;

/// Why the overlay did not take a write.
#[derive(Debug, thiserror::Error)]
pub enum OverlayError {
    /// More was written than a drill may write.
    #[error(
        "this drill has written {limit} bytes, as much as it may: raise `bytes` of [drill], or drill less"
    )]
    Full {
        /// Bytes that all its disks may take.
        limit: u64,
    },
    /// More scattered than can be remembered.
    #[error(
        "this drill has written more than {} scattered runs of blocks, the most it may",
        limits::OVERLAY_RUNS
    )]
    Scattered,
    /// Zeros that keep their space cannot be made without writing them.
    #[error("the file system of {} cannot make zeros quickly", folder.display())]
    Slow {
        /// The overlay's folder.
        folder: PathBuf,
    },
    /// The file system said no.
    #[error("cannot {action} an overlay in {}: {source}", folder.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The overlay's folder.
        folder: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// What lies below could not be read.
    #[error(transparent)]
    Below(#[from] ReplicaError),
}

/// Bytes that a drill may write, over all its disks.
#[derive(Debug)]
pub struct Budget {
    limit: u64,
    used: AtomicU64,
}

impl Budget {
    /// At most `limit` bytes.
    #[must_use]
    pub fn new(limit: u64) -> Arc<Self> {
        Arc::new(Self { limit, used: AtomicU64::new(0) })
    }

    /// Bytes taken.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.used.load(Relaxed)
    }

    fn take(&self, bytes: u64) -> Result<(), OverlayError> {
        let take = |used: u64| used.checked_add(bytes).filter(|used| *used <= self.limit);
        let taken = self.used.fetch_update(Relaxed, Relaxed, take);
        taken.map(drop).map_err(|_| OverlayError::Full { limit: self.limit })
    }

    fn give_back(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Relaxed);
    }
}

/// The writes to one disk.
pub struct Overlay {
    file: File,
    folder: PathBuf,
    bytes: u64,
    map: RwLock<BlockMap>,
    budget: Arc<Budget>,
    /// Held while a block is made whole: two writes to parts of one block must not lose each other.
    filling: Mutex<()>,
}

impl Overlay {
    /// An empty one in `folder`, for a disk of `bytes`.
    pub fn create(folder: &Path, bytes: u64, budget: Arc<Budget>) -> Result<Self, OverlayError> {
        let failed = |source| OverlayError::Io { action: "make", folder: folder.to_owned(), source };
        let file = tempfile::tempfile_in(folder).map_err(failed)?;
        file.set_len(bytes).map_err(failed)?;
        Ok(Self {
            file,
            folder: folder.to_owned(),
            bytes,
            map: RwLock::default(),
            budget,
            filling: Mutex::new(()),
        })
    }

    /// The disk's range, cut where the kind changes; `None` is what was never written.
    pub fn parts(&self, offset: u64, len: u64) -> Vec<(Range<u64>, Option<Kind>)> {
        let end = offset + len;
        let blocks = offset / BLOCK_BYTES..end.div_ceil(BLOCK_BYTES);
        let map = self.map();
        let parts = map.parts(blocks);
        parts
            .map(|(part, kind)| {
                ((part.start * BLOCK_BYTES).max(offset)..(part.end * BLOCK_BYTES).min(end), kind)
            })
            .collect()
    }

    /// Reads what is [`Kind::Data`].
    pub fn read_data(&self, offset: u64, buf: &mut [u8]) -> Result<(), OverlayError> {
        self.file.read_exact_at(buf, offset).map_err(|e| self.failed("read", e))
    }

    /// Writes `data`; blocks of which it is a part are filled up from `below`.
    pub fn write(&self, below: &dyn Image, offset: u64, data: &[u8]) -> Result<(), OverlayError> {
        let end = offset + data.len() as u64;
        let whole = self.whole_blocks(offset, end);
        let bytes_of =
            |range: Range<u64>| &data[(range.start - offset) as usize..(range.end - offset) as usize];
        if whole.is_empty() {
            // One block, or the end of one and the beginning of the next.
            let middle = (offset / BLOCK_BYTES + 1) * BLOCK_BYTES;
            let cut = middle.clamp(offset, end);
            self.write_part(below, offset, bytes_of(offset..cut))?;
            return self.write_part(below, cut, bytes_of(cut..end));
        }
        let (first, last) = (whole.start * BLOCK_BYTES, (whole.end * BLOCK_BYTES).min(self.bytes));
        self.write_part(below, offset, bytes_of(offset..first))?;
        self.write_whole(whole, |file| file.write_all_at(bytes_of(first..last), first))?;
        self.write_part(below, last, bytes_of(last..end))
    }

    /// Makes a range zeros; such that they take space, if they must keep it. `fast`: rather not than slowly.
    pub fn zero(
        &self,
        below: &dyn Image,
        offset: u64,
        len: u64,
        keep_space: bool,
        fast: bool,
    ) -> Result<(), OverlayError> {
        let end = offset + len;
        let whole = self.whole_blocks(offset, end);
        let zeros = [0; BLOCK_BYTES as usize];
        if whole.is_empty() {
            let middle = ((offset / BLOCK_BYTES + 1) * BLOCK_BYTES).clamp(offset, end);
            self.write_part(below, offset, &zeros[..(middle - offset) as usize])?;
            return self.write_part(below, middle, &zeros[..(end - middle) as usize]);
        }
        let (first, last) = (whole.start * BLOCK_BYTES, (whole.end * BLOCK_BYTES).min(self.bytes));
        self.write_part(below, offset, &zeros[..(first - offset) as usize])?;
        match keep_space {
            true => self.zero_in_place(whole, first..last, fast)?,
            false => self.forget(whole)?,
        }
        self.write_part(below, last, &zeros[..(end - last) as usize])
    }

    /// Forgets the whole blocks of a range: they are zeros from now on.
    pub fn trim(&self, offset: u64, len: u64) -> Result<(), OverlayError> {
        let whole = self.whole_blocks(offset, offset + len);
        if whole.is_empty() { Ok(()) } else { self.forget(whole) }
    }

    fn zero_in_place(&self, blocks: Range<u64>, bytes: Range<u64>, fast: bool) -> Result<(), OverlayError> {
        let unsupported = |e: &io::Error| e.kind() == io::ErrorKind::Unsupported;
        let len = bytes.end - bytes.start;
        let quickly = |file: &File| Ok(fallocate(file, FallocateFlags::ZERO_RANGE, bytes.start, len)?);
        match self.write_whole(blocks.clone(), quickly) {
            Err(OverlayError::Io { source, .. }) if unsupported(&source) && fast => {
                Err(OverlayError::Slow { folder: self.folder.clone() })
            }
            Err(OverlayError::Io { source, .. }) if unsupported(&source) => {
                self.write_whole(blocks, |file| {
                    let zeros = vec![0; limits::PIECE_BYTES];
                    (bytes.start..bytes.end).step_by(zeros.len()).try_for_each(|at| {
                        file.write_all_at(&zeros[..(bytes.end - at).min(zeros.len() as u64) as usize], at)
                    })
                })
            }
            other => other,
        }
    }

    fn forget(&self, blocks: Range<u64>) -> Result<(), OverlayError> {
        let (start, len) = (blocks.start * BLOCK_BYTES, (blocks.end - blocks.start) * BLOCK_BYTES);
        self.mark(blocks, Kind::Zero)?;
        // Only to save space: what the map calls zeros is not read from the file.
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        if let Err(error) = fallocate(&self.file, punch, start, len) {
            tracing::debug!(%error, "cannot punch a hole into an overlay");
        }
        Ok(())
    }

    /// Writes a part of one block.
    fn write_part(&self, below: &dyn Image, offset: u64, data: &[u8]) -> Result<(), OverlayError> {
        if data.is_empty() {
            return Ok(());
        }
        let block = offset / BLOCK_BYTES;
        let _filling = self.filling.lock().unwrap_or_else(PoisonError::into_inner);
        let kind = self.map().parts(block..block + 1).next().and_then(|(_, kind)| kind);
        if kind == Some(Kind::Data) {
            return self.file.write_all_at(data, offset).map_err(|e| self.failed("write", e));
        }
        let start = block * BLOCK_BYTES;
        let mut whole = vec![0; (self.bytes - start).min(BLOCK_BYTES) as usize];
        if kind.is_none() {
            below.read_at(start, &mut whole)?;
        }
        whole[(offset - start) as usize..][..data.len()].copy_from_slice(data);
        self.write_whole(block..block + 1, |file| file.write_all_at(&whole, start))
    }

    /// Writes whole blocks, then puts them into the map.
    fn write_whole(
        &self,
        blocks: Range<u64>,
        write: impl FnOnce(&File) -> io::Result<()>,
    ) -> Result<(), OverlayError> {
        let new = (blocks.end - blocks.start) - self.map().data_blocks_in(blocks.clone());
        if new == 0 {
            return write(&self.file).map_err(|e| self.failed("write", e));
        }
        self.budget.take(new * BLOCK_BYTES)?;
        let written = match write(&self.file) {
            Ok(()) => self.mark(blocks, Kind::Data),
            Err(error) => Err(self.failed("write", error)),
        };
        // What was taken twice, as by two writes to the same block, or for nothing. The map has counted what it holds.
        self.budget.give_back(new * BLOCK_BYTES);
        written
    }

    fn mark(&self, blocks: Range<u64>, kind: Kind) -> Result<(), OverlayError> {
        let mut map = self.map_mut();
        if map.runs() + 2 > limits::OVERLAY_RUNS {
            return Err(OverlayError::Scattered);
        }
        let before = map.data_blocks();
        map.set(blocks, kind);
        let after = map.data_blocks();
        if after >= before {
            self.budget.used.fetch_add((after - before) * BLOCK_BYTES, Relaxed);
        } else {
            self.budget.give_back((before - after) * BLOCK_BYTES);
        }
        Ok(())
    }

    /// Blocks that a range covers; the last of the disk may be short.
    fn whole_blocks(&self, offset: u64, end: u64) -> Range<u64> {
        let last = if end == self.bytes { end.div_ceil(BLOCK_BYTES) } else { end / BLOCK_BYTES };
        let first = offset.div_ceil(BLOCK_BYTES);
        first..last.max(first)
    }

    fn failed(&self, action: &'static str, source: io::Error) -> OverlayError {
        OverlayError::Io { action, folder: self.folder.clone(), source }
    }

    fn map(&self) -> RwLockReadGuard<'_, BlockMap> {
        // `set` panics nowhere, so the map is whole.
        self.map.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn map_mut(&self) -> RwLockWriteGuard<'_, BlockMap> {
        self.map.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        self.budget.give_back(self.map().data_blocks() * BLOCK_BYTES);
    }
}
