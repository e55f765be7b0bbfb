//! Indexes: which blocks a log holds images of, in order of place.
//!
//! A view of a point, a merge of layers and an open image all ask the same: of many images of a block, which is the
//! oldest? Answered with bounded memory: tables that are written out when they are full, files that are read a page at
//! a time. An index can always be made again from its log, so a damaged one is only slow.

pub mod layout;
mod merge;
mod record;
mod saved;
mod sorted;
mod table;

#[cfg(test)]
mod tests;

pub(crate) use merge::Gatherer;
pub(crate) use record::Key;
pub use record::Piece;
pub(crate) use sorted::{Cursor, Scratch, Sorted};
pub(crate) use table::Table;

/// What the sorting of pieces may take.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Pieces in memory at once: 80 bytes each.
    pub pieces: usize,
    /// Sets that are merged in one pass, with a page of each in memory.
    pub fan_in: usize,
    /// A log of fewer bytes has no index file: it is read through instead.
    pub unindexed: u64,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { pieces: 64 << 10, fan_in: 64, unindexed: 4 << 20 }
    }
}
