//! The mapped table of writes in flight. The programs fill and empty it; this looks, and frees what they could not.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::*},
};

use engine::io::SharedWords;

/// The table: words that tell a request and, in the lowest bit, the generation it was issued under; 0 is free.
#[derive(Clone, Debug)]
pub(super) struct Flight(Arc<SharedWords>);

impl Flight {
    pub(super) fn new(words: Arc<SharedWords>) -> Self {
        Self(words)
    }

    /// Whether there is no write of `generation`. If it has ended, none is added to it, so a yes is true although the
    /// table was not read at one instant; else it is a guess. Takes microseconds.
    pub(super) fn is_empty(&self, generation: usize) -> bool {
        self.of(generation).next().is_none()
    }

    /// The number of writes of `generation`.
    pub(super) fn count(&self, generation: usize) -> usize {
        self.of(generation).count()
    }

    /// Frees the entries of an ended generation, whose writes must be complete.
    pub(super) fn free(&self, generation: usize) {
        for (entry, was) in self.of(generation) {
            // If it has changed then it is free already, or of a write of the active generation, and stays.
            let _ = entry.compare_exchange(was, 0, AcqRel, Relaxed);
        }
    }

    fn of(&self, generation: usize) -> impl Iterator<Item = (&AtomicU64, u64)> {
        let entries = (*self.0).as_ref().iter().map(|entry| (entry, entry.load(Acquire)));
        entries.filter(move |(_, entry)| *entry != 0 && entry & 1 == generation as u64)
    }
}
