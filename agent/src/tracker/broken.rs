//! Test support: a tracker that misses writes, which is what a proof must find.
//!
//! It loses one in so many of the granules that another tracker hands over, as if their writes had never been seen.
//! Simulations use it, and a program of the whole-system tests; the agent itself has no way to.

use engine::{
    extent_set::ExtentSet,
    units::{Block, DiskIndex},
};
use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::{DiskMaps, Tracker, TrackerError};

/// Another tracker with holes.
pub struct BrokenTracker {
    inner: Box<dyn Tracker>,
    one_in: u32,
    rng: StdRng,
    missed: u64,
}

impl BrokenTracker {
    /// Loses one granule in `one_in`, which ones following from `seed`.
    #[must_use]
    pub fn new(inner: Box<dyn Tracker>, one_in: u32, seed: u64) -> Self {
        Self { inner, one_in, rng: StdRng::seed_from_u64(seed), missed: 0 }
    }
}

impl Tracker for BrokenTracker {
    fn flip(&mut self) -> Result<(), TrackerError> {
        self.inner.flip()
    }

    fn drained(&self) -> Result<bool, TrackerError> {
        self.inner.drained()
    }

    fn may_read(&self) -> Result<bool, TrackerError> {
        self.inner.may_read()
    }

    fn saw_all(&self) -> Result<bool, TrackerError> {
        self.inner.saw_all()
    }

    fn seems_quiet(&self) -> bool {
        self.inner.seems_quiet()
    }

    fn take(&mut self, disk: DiskIndex, limit: u64) -> Result<Option<ExtentSet>, TrackerError> {
        let Some(taken) = self.inner.take(disk, u64::MAX)? else { return Ok(None) };
        let dirty = &self.inner.maps(disk).dirty;
        let granule = 1 << dirty.granularity().shift;
        let mut seen = ExtentSet::new();
        for piece in taken.extents().flat_map(|run| run.pieces(granule)) {
            if self.rng.random_range(0..self.one_in) > 0 {
                seen.insert_extent(piece);
            } else {
                self.missed += 1;
                tracing::error!(missed = self.missed, %disk, at = %piece.start, "test build: this write is missed");
                dirty.clear(piece.start, piece.end());
            }
        }
        Ok((seen.blocks() <= limit).then_some(seen))
    }

    fn written_since_flip(&self, disk: DiskIndex, first: Block, blocks: u32) -> bool {
        self.inner.written_since_flip(disk, first, blocks)
    }

    fn note_read(&mut self, disk: DiskIndex, first: Block, bytes: &[u8]) {
        self.inner.note_read(disk, first, bytes);
    }

    fn note_durable(&mut self) -> Result<(), TrackerError> {
        self.inner.note_durable()
    }

    fn distrust(&mut self) -> Result<(), TrackerError> {
        self.inner.distrust()
    }

    fn maps(&self, disk: DiskIndex) -> &DiskMaps {
        self.inner.maps(disk)
    }
}
