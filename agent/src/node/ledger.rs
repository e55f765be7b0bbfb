//! Which blocks are sent but not yet durable, in bounded memory whatever the spool holds.
//!
//! Each disk has two `sent` maps, the halves. Invariants, at every moment:
//! - the current half covers the frames `boundary + 1 ..= newest`, the other one those up to `boundary`;
//! - a block is set in a half before it is cleared in `dirty`, so that a crash at any instant loses none.
//!
//! When everything up to `boundary` is durable, the other half is cleared and the halves change places.

use engine::{extent_set::ExtentSet, units::Seq};

use crate::{capture::Source, tracker::DiskMaps};

#[derive(Debug)]
pub(super) struct Ledger {
    current: usize,
    boundary: Seq,
    newest: Seq,
    /// Whether a half may hold anything: clearing a large map is not free.
    used: [bool; 2],
}

impl Ledger {
    /// Takes back all that was sent but not known to be durable: it is dirty again. The next frame follows `at`.
    pub(super) fn reset(source: &Source, at: Seq) -> Self {
        for disk in source.indices() {
            let DiskMaps { dirty, sent } = source.tracker.maps(disk);
            sent.iter().for_each(|half| dirty.merge(half));
            sent.iter().for_each(|half| half.clear_all());
        }
        Self { current: 0, boundary: at, newest: at, used: [false; 2] }
    }

    /// Frame `seq`, the next one, now holds `covers`.
    pub(super) fn sealed(&mut self, maps: &DiskMaps, covers: &ExtentSet, seq: Seq) {
        debug_assert!(seq > self.newest);
        self.newest = seq;
        self.used[self.current] = true;
        covers.extents().for_each(|extent| maps.sent[self.current].set(extent.start, extent.end()));
        covers.extents().for_each(|extent| maps.dirty.clear(extent.start, extent.end()));
    }

    /// Frames up to `durable` are durable at the target.
    pub(super) fn forget(&mut self, source: &Source, durable: Seq) {
        while durable >= self.boundary {
            let other = 1 - self.current;
            if std::mem::take(&mut self.used[other]) {
                source.indices().for_each(|disk| source.tracker.maps(disk).sent[other].clear_all());
            }
            if self.newest == self.boundary {
                return;
            }
            self.boundary = self.newest;
            self.current = other;
        }
    }
}
