//! Which blocks changed: the [`Tracker`] trait and its kinds.
//!
//! A tracker marks writes in one of two generations. A *flip* makes the other one active, at one instant T for
//! all disks of the VM; after it, the old generation can be taken, and each block can be asked whether a write
//! to it was issued since T. That is all a barrier needs (docs/barrier.md). A tracker never reads disk contents
//! for sending and knows nothing of frames or points.

mod block_device;
pub mod broken;
pub mod continuity;
pub mod ebpf;
mod error;
mod maps;
pub mod scan;

#[cfg(test)]
pub(crate) mod testing;

use std::{fs, io};

use engine::{
    extent_set::ExtentSet,
    units::{Block, DiskIndex},
};
use serde::{Deserialize, Serialize};

pub use continuity::{Continuity, LostReason};
pub use error::TrackerError;
pub use maps::{DiskMaps, Words};

/// The kinds of tracker there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// [`ebpf::EbpfTracker`]: the kernel marks writes as they pass. Needs root.
    Ebpf,
    /// [`scan::ScanTracker`]: finds changes by comparing digests. Needs nothing.
    Scan,
}

/// Finds out which blocks of the VM's disks were written.
///
/// A `disk` must be one of those the tracker was opened with; others are a mistake of the caller and panic.
pub trait Tracker: Send {
    /// Ends the active generation at one instant T for all disks and returns once it is still.
    /// The generation before must have been taken. Costs microseconds.
    fn flip(&mut self) -> Result<(), TrackerError>;

    /// Whether every write that was issued before the last flip has completed, as far as can be proven.
    fn drained(&self) -> Result<bool, TrackerError>;

    /// Whether dirty blocks may be read for sending. One read while a write of before the last flip is in flight would
    /// not be marked again when that completes. A tracker that finds such a change all the same always says yes.
    fn may_read(&self) -> Result<bool, TrackerError> {
        Ok(true)
    }

    /// Whether no write since the last flip escaped it, as far as blocks are concerned that were found unwritten; if
    /// not, everything is dirty with the next take.
    fn saw_all(&self) -> Result<bool, TrackerError> {
        Ok(true)
    }

    /// Whether no write seems to be in flight just now. Only a hint, and costs nothing: a flip at such a moment has
    /// nothing to wait for.
    fn seems_quiet(&self) -> bool {
        true
    }

    /// Moves the marks of the generation that the last flip ended into the disk's `dirty` map (set there first,
    /// then cleared here, so that a crash between loses none) and returns them, in whole granules; `None` if they
    /// are more than `limit` blocks, since a set of every other block of a disk would not fit the agent's memory.
    fn take(&mut self, disk: DiskIndex, limit: u64) -> Result<Option<ExtentSet>, TrackerError>;

    /// Whether a write to any of `blocks` blocks from `first` may have been issued since the last flip.
    fn written_since_flip(&self, disk: DiskIndex, first: Block, blocks: u32) -> bool;

    /// Tells the tracker that `bytes`, from block `first` on, were read and will be sent. A tracker that learns
    /// of changes by comparing contents keeps their digests; a granule it is not told of stays dirty for it.
    fn note_read(&mut self, disk: DiskIndex, first: Block, bytes: &[u8]) {
        let _ = (disk, first, bytes);
    }

    /// Some of what was sent has become durable and was taken out of the `sent` maps. A tracker that keeps anything
    /// besides maps for its next start saves it now.
    fn note_durable(&mut self) -> Result<(), TrackerError> {
        Ok(())
    }

    /// The target does not hold what it was known to hold: what the tracker keeps besides maps must not be used by
    /// its next start either. Until this has succeeded nothing may be sent.
    fn distrust(&mut self) -> Result<(), TrackerError> {
        Ok(())
    }

    /// The maps that survive the agent: what still has to be sent, and what is sent but not yet durable.
    fn maps(&self, disk: DiskIndex) -> &DiskMaps;
}

/// What tells this boot of the machine from others.
fn boot_id() -> Result<u128, TrackerError> {
    const PATH: &str = "/proc/sys/kernel/random/boot_id";
    let text = fs::read_to_string(PATH).map_err(TrackerError::io("read", PATH))?;
    let digits: String = text.trim().split('-').collect();
    u128::from_str_radix(&digits, 16)
        .map_err(|error| TrackerError::io("read", PATH)(io::Error::new(io::ErrorKind::InvalidData, error)))
}
