//! Capture: reading the protected disks while they are written, so that what is sent adds up to exact points.
//!
//! [`precopy`] reads whatever is dirty, in any state; [`barrier`] makes the one instant that a point is. Both hand
//! their blocks to [`contents`], which makes frames' contents of them, packed by a [`pack::Packer`]. What is read
//! leaves the dirty map only when its frame is sealed, which is the node's business. Nothing here knows of
//! connections or acknowledgements.
//!
//! The argument why a point is exact stands in docs/barrier.md.

pub mod barrier;
pub mod buffer;
pub mod contents;
pub mod freeze;
mod fs_ioctl;
pub mod heat;
pub mod hooks;
pub mod learned;
pub mod level;
pub mod mounts;
pub mod pack;
pub mod precopy;
pub mod quiesce;
pub mod watchdog;
pub mod witness;

#[cfg(test)]
mod model;

use std::{
    error::Error,
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use engine::{
    io::Device,
    limits,
    units::{BLOCK_BYTES, Block, DiskIndex},
};
use jiff::Timestamp;

use crate::tracker::{Tracker, TrackerError};

/// Time, as a capture needs it. The driver's is the system's; a simulation's moves when it likes.
pub trait Clock: Send {
    /// Now, for measuring.
    fn now(&self) -> Instant;
    /// Now, for people.
    fn wall(&self) -> Timestamp;
    /// Lets `time` pass.
    fn pause(&self, time: Duration);
}

/// The protected disks, what tracks them, and time.
pub struct Source {
    /// Marks writes to `disks`.
    pub tracker: Box<dyn Tracker>,
    /// By [`DiskIndex`].
    pub disks: Vec<Arc<dyn Device>>,
    /// Measures windows.
    pub clock: Box<dyn Clock>,
}

impl Source {
    /// All disks.
    pub fn indices(&self) -> impl Iterator<Item = DiskIndex> + Clone + use<> {
        (0..self.disks.len() as u16).map(DiskIndex)
    }

    /// One disk. Panics on an index that is not of this VM, which only a bug can make.
    #[must_use]
    pub fn disk(&self, index: DiskIndex) -> &dyn Device {
        &*self.disks[usize::from(index.0)]
    }

    /// How each disk is divided.
    #[must_use]
    pub fn divisions(&self) -> Vec<witness::Division> {
        let granule = |disk| 1 << self.tracker.maps(disk).dirty.granularity().shift;
        let division =
            |disk: DiskIndex| witness::Division { bytes: self.disk(disk).size(), granule: granule(disk) };
        self.indices().map(division).collect()
    }

    /// Bytes marked dirty on all disks.
    #[must_use]
    pub fn dirty_bytes(&self) -> u64 {
        self.indices().map(|disk| self.tracker.maps(disk).dirty.blocks() * BLOCK_BYTES).sum()
    }

    /// Whether nothing is marked dirty on any disk.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.indices().all(|disk| self.tracker.maps(disk).dirty.is_empty())
    }

    /// Whether no write to any disk was issued since the last flip.
    #[must_use]
    pub fn is_untouched(&self) -> bool {
        let step = limits::EXTENT_BLOCKS;
        self.indices().zip(&self.disks).all(|(index, disk)| {
            let blocks = disk.size().div_ceil(BLOCK_BYTES);
            (0..blocks).step_by(step as usize).all(|first| {
                let piece = (blocks - first).min(step.into()) as u32;
                !self.tracker.written_since_flip(index, Block(first), piece)
            })
        })
    }

    /// Waits until every write issued before the last flip has completed, for at most `bound`; false if that
    /// was not enough.
    ///
    /// # Errors
    /// The tracker's.
    pub fn drain(&self, bound: Duration) -> Result<bool, TrackerError> {
        let began = self.clock.now();
        loop {
            if self.tracker.drained()? {
                return Ok(true);
            }
            if self.clock.now().duration_since(began) >= bound {
                return Ok(false);
            }
            self.clock.pause(DRAIN_POLL);
        }
    }

    /// Waits for a moment when no write seems to be in flight, for at most `bound`.
    pub fn await_quiet(&self, bound: Duration) {
        let began = self.clock.now();
        while !self.tracker.seems_quiet() && self.clock.now().duration_since(began) < bound {
            self.clock.pause(QUIET_POLL);
        }
    }
}

/// Pause between looks for a quiet moment, which may be short.
const QUIET_POLL: Duration = Duration::from_micros(5);

/// Pause between looks at writes in flight: about as long as a quick disk takes for one.
const DRAIN_POLL: Duration = Duration::from_micros(50);

/// Stops those who write to the protected disks, for a moment.
pub trait Freezer: Send {
    /// Writes out what the file systems hold back, so that freezing has little left to do.
    ///
    /// # Errors
    /// What refused, and why.
    fn sync(&mut self) -> Result<(), FreezeError>;

    /// Freezes every mounted file system of the protected disks, until [`Self::thaw`], which must come `within` that
    /// time; dropping the freezer thaws, too. Between the two the caller writes no file and no log.
    ///
    /// # Errors
    /// What refused, and why; then nothing is left frozen.
    fn freeze(&mut self, within: Duration) -> Result<(), FreezeError>;

    /// Thaws them.
    ///
    /// # Errors
    /// If any of them was not frozen all along, as when the watchdog thawed it: what was read then is no point.
    fn thaw(&mut self) -> Result<(), FreezeError>;

    /// Mount points of file systems that know no freezing and were left as they are by the last freeze.
    fn not_frozen(&self) -> &[String] {
        &[]
    }
}

/// Why writers could not be stopped, or not long enough: what, where, and what to do.
#[derive(Debug, thiserror::Error)]
#[error("cannot freeze the file systems: {0}")]
pub struct FreezeError(#[from] pub Box<dyn Error + Send + Sync>);

/// Why disks could not be captured.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The tracker failed.
    #[error(transparent)]
    Tracker(#[from] TrackerError),
    /// A disk could not be read.
    #[error("cannot read {disk} at byte {offset}: {source}; its blocks stay marked and are tried again")]
    Read {
        /// Path of the device.
        disk: String,
        /// Where.
        offset: u64,
        /// Why.
        source: io::Error,
    },
    /// Writers could not be stopped.
    #[error(transparent)]
    Freeze(#[from] FreezeError),
}
