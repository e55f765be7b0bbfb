//! The maps kept for each disk between a mark and its durability at the target, and the memory under them.
//!
//! Who moves what from one map to the next, and when, is the caller's business.

use std::{
    ops::Range,
    sync::{Arc, atomic::AtomicU64},
};

use engine::{
    dirty_map::{DirtyMap, Granularity},
    io::SharedWords,
};

/// The words under a map: ordinary memory, or a part of memory shared with the kernel.
#[derive(Debug)]
pub enum Words {
    /// Ordinary memory, gone with the process.
    Memory(Box<[AtomicU64]>),
    /// Part of a mapped BPF array, which survives the process.
    Shared {
        /// The whole mapping.
        map: Arc<SharedWords>,
        /// The part, within the mapping.
        range: Range<usize>,
    },
}

impl Words {
    /// `words` zeros in ordinary memory.
    #[must_use]
    pub fn in_memory(words: usize) -> Self {
        Self::Memory((0..words).map(|_| AtomicU64::new(0)).collect())
    }
}

impl AsRef<[AtomicU64]> for Words {
    fn as_ref(&self) -> &[AtomicU64] {
        match self {
            Self::Memory(words) => words,
            Self::Shared { map, range } => &(**map).as_ref()[range.clone()],
        }
    }
}

/// What is known of a disk's blocks between being written and being durable at the target.
#[derive(Debug)]
pub struct DiskMaps {
    /// Must be sent.
    pub dirty: DirtyMap<Words>,
    /// Sent but not yet durable; two halves that rotate.
    pub sent: [DirtyMap<Words>; 2],
}

impl DiskMaps {
    /// Empty maps in ordinary memory.
    #[must_use]
    pub fn in_memory(granularity: Granularity) -> Self {
        let map = || DirtyMap::over(Words::in_memory(granularity.words()), granularity);
        Self { dirty: map(), sent: [map(), map()] }
    }
}
