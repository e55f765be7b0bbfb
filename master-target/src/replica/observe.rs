//! What a proof must see of frames as they are applied, in their order: what they overwrite, the source's digests beside
//! those of the disks at that very place in the stream, and the points they seal.

use std::io;

use engine::{
    digest::{LeafMap, leaves_in},
    extent::Extent,
    extent_set::ExtentSet,
    frame::{Header as FrameHeader, LeafDigests},
    units::{Digest, DiskIndex, Epoch},
};

use super::{Replica, ReplicaError, Target};
use crate::{
    digests::{self, Digests, digests_of},
    journal::{SealedPoint, State, View},
};

/// Something that happened while frames were applied.
#[derive(Debug)]
pub(crate) enum Observed {
    /// These blocks were overwritten, by disk.
    Overwritten(Vec<ExtentSet>),
    /// Digests arrived.
    Compared {
        /// The point they are of.
        point: Epoch,
        /// Whose leaves.
        disk: DiskIndex,
        /// Leaf, digest at the source, digest here.
        leaves: Vec<(u64, Digest, io::Result<Digest>)>,
    },
    /// A point was sealed.
    Sealed(Box<SealedPoint>),
}

/// Remembers what happens, if somebody wants to know. Bounded by asking after every batch.
#[derive(Debug, Default)]
pub(super) struct Observer {
    wanted: bool,
    seen: Vec<Observed>,
}

impl Observer {
    pub(super) fn note(&mut self, observed: impl FnOnce() -> Observed) {
        if self.wanted {
            self.seen.push(observed());
        }
    }
}

/// What the stored digests of a stream's disks are about.
pub(super) fn open_digests(
    storage: &std::sync::Arc<dyn engine::io::Storage>,
    dir: &std::path::Path,
    state: &State,
    targets: &[Target],
) -> Digests {
    let header = |(disk, target): (u16, &Target)| digests::Header {
        stream: state.stream.id,
        disk: DiskIndex(disk),
        bytes: target.bytes,
        layer: newest_closed(state),
        is_whole: true,
    };
    Digests::open(storage, dir, (0..).zip(targets).map(header).collect())
}

/// The newest layer that nobody appends to.
fn newest_closed(state: &State) -> u64 {
    state.points.keys().next_back().copied().unwrap_or(0)
}

impl Replica {
    /// From now on, or no longer, [`Self::take_observed`] tells what happens.
    pub(crate) fn observe(&mut self, wanted: bool) {
        self.observer = Observer { wanted, seen: Vec::new() };
    }

    /// What happened since the last time, in order.
    pub(crate) fn take_observed(&mut self) -> Vec<Observed> {
        std::mem::take(&mut self.observer.seen)
    }

    /// These blocks are about to be overwritten.
    pub(super) fn note_overwritten(&mut self, written: &[ExtentSet]) {
        self.digests.overwritten(written);
        self.observer.note(|| Observed::Overwritten(written.to_vec()));
    }

    /// Refuses digests of leaves that the VM does not have.
    pub(super) fn check_leaves(
        &self,
        header: &FrameHeader,
        digests: &LeafDigests,
    ) -> Result<(), ReplicaError> {
        let out_of_place = |what| Err(ReplicaError::OutOfPlace { frame: header.seq, what });
        let Some(target) = self.targets.get(usize::from(header.disk.0)) else {
            return out_of_place(format!("the VM has no {}", header.disk));
        };
        if digests.entries().last().is_some_and(|(leaf, _)| *leaf >= leaves_in(target.bytes)) {
            return out_of_place(format!("it has digests of leaves beyond the end of {}", header.disk));
        }
        Ok(())
    }

    /// Compares digests of the source, which were checked, with the disks, on which everything before them is applied
    /// and nothing after.
    pub(super) fn compare(&mut self, header: &FrameHeader, digests: &LeafDigests) {
        let (disk, entries) = (header.disk, digests.entries());
        let Some(target) = self.targets.get(usize::from(disk.0)).filter(|_| self.observer.wanted) else {
            return;
        };
        let wanted: Vec<u64> = entries.iter().map(|(leaf, _)| *leaf).collect();
        let here = digests_of(target.device.as_ref(), target.bytes, &wanted);
        let mut leaves = Vec::with_capacity(entries.len());
        for ((leaf, source), (_, found)) in entries.iter().zip(here) {
            if found.as_ref().is_ok_and(|found| found == source) {
                self.digests.set(disk, *leaf, *source);
            }
            leaves.push((*leaf, *source, found));
        }
        // It is the point that ended the epoch before theirs.
        let point = Epoch(header.epoch.0.saturating_sub(1));
        self.observer.note(|| Observed::Compared { point, disk, leaves });
    }

    /// Declares void what was stored before a crash and overwritten since.
    pub(super) fn void_digests(&mut self) -> Result<(), ReplicaError> {
        let Some(layer) = self.digests.oldest_layer() else { return Ok(()) };
        let mut written = self.leaf_maps();
        let since = |disk: DiskIndex, extent: Extent| {
            written[usize::from(disk.0)].insert_blocks(extent.start, extent.end());
        };
        // A journal that is damaged or does not lead back that far cannot tell.
        if self.state().restore.is_some() || !self.overwritten_since(layer, since).unwrap_or(false) {
            return self.begin_digests_again();
        }
        for (disk, written) in (0..).map(DiskIndex).zip(&written) {
            written.iter_from(0).for_each(|leaf| self.digests.void(disk, leaf));
        }
        Ok(())
    }

    /// No leaf of each disk.
    pub(crate) fn leaf_maps(&self) -> Vec<LeafMap> {
        self.targets.iter().map(|target| LeafMap::empty(target.bytes)).collect()
    }

    /// Calls `each` with what was overwritten since the end of `layer`; false if the journal does not know.
    pub(crate) fn overwritten_since(
        &self,
        layer: u64,
        mut each: impl FnMut(DiskIndex, Extent),
    ) -> Result<bool, ReplicaError> {
        let state = self.state();
        if layer < state.oldest {
            return Ok(false);
        }
        for piece in View::at(&self.logs, state, state.boundary(layer))?.pieces() {
            let piece = piece?;
            each(piece.disk(), piece.extent);
        }
        Ok(true)
    }

    /// Forgets all stored digests and begins with none.
    pub(crate) fn begin_digests_again(&mut self) -> Result<(), ReplicaError> {
        self.digests.forget()?;
        let layer = newest_closed(self.state());
        self.digests.begin_again(layer);
        Ok(())
    }

    /// Makes stored digests durable: before the stream is closed, so that they need not be computed again.
    pub fn flush_digests(&mut self) {
        let layer = newest_closed(self.state());
        self.digests.flush(layer);
    }
}
