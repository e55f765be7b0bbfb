//! A run of blocks on a disk.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::units::{BLOCK_BYTES, Block};

/// `blocks` blocks (at least 1) from `start` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Extent {
    /// First block.
    pub start: Block,
    /// Number of blocks.
    pub blocks: u32,
}

impl Extent {
    /// An extent of `blocks` blocks from block number `start`.
    #[must_use]
    pub const fn new(start: u64, blocks: u32) -> Self {
        Self { start: Block(start), blocks }
    }

    /// The block after its last.
    #[must_use]
    pub const fn end(self) -> Block {
        Block(self.start.0 + self.blocks as u64)
    }

    /// First byte on the disk.
    #[must_use]
    pub const fn offset(self) -> u64 {
        self.start.offset()
    }

    /// Length in bytes, of whole blocks.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.blocks as u64 * BLOCK_BYTES
    }

    /// Length in bytes on a disk of `disk_bytes`, whose last block may be short.
    #[must_use]
    pub fn bytes_within(self, disk_bytes: u64) -> u64 {
        self.bytes().min(disk_bytes.saturating_sub(self.offset()))
    }

    /// Cuts it into pieces of at most `blocks` blocks.
    pub fn pieces(self, blocks: u32) -> impl Iterator<Item = Extent> {
        debug_assert!(blocks > 0);
        (0..self.blocks.div_ceil(blocks)).map(move |i| {
            let done = i * blocks;
            Extent::new(self.start.0 + u64::from(done), blocks.min(self.blocks - done))
        })
    }
}

impl fmt::Display for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "blocks {}..{}", self.start.0, self.end().0)
    }
}
