//! One disk of a verification: which of its leaves are settled, and which differ.

use std::{collections::BTreeMap, ops::Range};

use engine::{
    digest::{LEAF_BYTES, LeafMap, blocks_of},
    extent_set::ExtentSet,
    frame::LeafRange,
    units::{Digest, DiskIndex, Epoch},
};

use super::{certificate::Coverage, report::Difference};
use crate::digests::{DigestFile, DigestFileError};

/// Differing leaves whose blocks are followed; more are found again when these are mended.
const FOLLOWED: usize = 64 << 10;

pub(super) struct DiskRun {
    index: DiskIndex,
    pub(super) name: String,
    pub(super) bytes: u64,
    /// Not found equal yet.
    unsettled: LeafMap,
    /// Overwritten since the point.
    changed: LeafMap,
    /// Found different, and not equal since.
    outstanding: LeafMap,
    /// Those of their blocks that were not overwritten since.
    stale: BTreeMap<u64, ExtentSet>,
    pub(super) coverage: Coverage,
    /// Digests of the leaves at the point, as far as they were compared as of it.
    pub(super) digests: DigestFile,
}

impl DiskRun {
    pub(super) fn new(
        index: DiskIndex,
        name: &str,
        bytes: u64,
        changed: LeafMap,
        digests: DigestFile,
    ) -> Self {
        let mut unsettled = LeafMap::empty(bytes);
        unsettled.insert_all(0..unsettled.leaves());
        Self {
            index,
            name: name.to_owned(),
            bytes,
            coverage: Coverage { leaves: unsettled.leaves(), ..Coverage::default() },
            unsettled,
            changed,
            outstanding: LeafMap::empty(bytes),
            stale: BTreeMap::new(),
            digests,
        }
    }

    /// Whether every leaf was found equal, and none different since.
    pub(super) fn is_settled(&self) -> bool {
        self.unsettled.is_empty() && self.outstanding.is_empty()
    }

    /// Whether something here is known to be wrong.
    pub(super) fn is_wrong(&self) -> bool {
        !self.stale.is_empty()
    }

    /// Whether a leaf holds what it held at the point.
    pub(super) fn is_unchanged(&self, leaf: u64) -> bool {
        !self.changed.contains(leaf)
    }

    /// These blocks were overwritten.
    pub(super) fn overwritten(&mut self, written: &ExtentSet) {
        for extent in written.extents() {
            self.changed.insert_blocks(extent.start, extent.end());
        }
        self.stale.retain(|leaf, rest| {
            let range = blocks_of(*leaf, self.bytes);
            if written.intersects(range.start, range.end) {
                let left = rest.extents().flat_map(|run| written.gaps(run.start, run.end()));
                *rest = left.collect();
            }
            !rest.is_empty()
        });
    }

    /// A leaf is equal to the source; whether it had differed before.
    pub(super) fn equal(&mut self, leaf: u64, digest: Digest) -> Result<bool, DigestFileError> {
        if self.unsettled.remove(leaf) {
            if self.changed.contains(leaf) {
                self.coverage.later += 1;
            } else {
                self.digests.set(leaf, digest)?;
                self.coverage.direct += 1;
            }
        }
        self.stale.remove(&leaf);
        Ok(self.outstanding.remove(leaf))
    }

    /// A leaf is not what the source holds; whether that is news.
    pub(super) fn differs(&mut self, leaf: u64) -> bool {
        if self.stale.len() < FOLLOWED {
            let (range, mut blocks) = (blocks_of(leaf, self.bytes), ExtentSet::new());
            blocks.insert(range.start, range.end);
            self.stale.insert(leaf, blocks);
        }
        self.outstanding.insert(leaf)
    }

    /// What the agent is to send digests of, in at most `most` ranges.
    pub(super) fn wanted(&self, most: usize) -> Vec<LeafRange> {
        let mut wanted = self.unsettled.clone();
        for leaf in self.outstanding.iter_from(0) {
            wanted.insert(leaf);
        }
        self.ranges(&wanted, most)
    }

    /// What the agent is to send again, in at most `most` ranges.
    pub(super) fn wrong(&self, most: usize) -> Vec<LeafRange> {
        let mut wrong = LeafMap::empty(self.bytes);
        for leaf in self.stale.keys() {
            wrong.insert(*leaf);
        }
        // The last of them would go on to the end of the disk.
        let runs = wrong.runs(usize::MAX);
        runs.into_iter().take(most).map(|run| self.range(run)).collect()
    }

    fn ranges(&self, leaves: &LeafMap, most: usize) -> Vec<LeafRange> {
        leaves.runs(most).into_iter().map(|run| self.range(run)).collect()
    }

    fn range(&self, run: Range<u64>) -> LeafRange {
        LeafRange { disk: self.index, first: run.start, count: run.end - run.start }
    }

    pub(super) fn difference(&self, leaf: u64, found: Epoch, unreadable: Option<String>) -> Difference {
        let offset = leaf * LEAF_BYTES;
        let bytes = LEAF_BYTES.min(self.bytes - offset);
        Difference { disk: self.name.clone(), offset, bytes, found, repaired: None, unreadable }
    }
}
