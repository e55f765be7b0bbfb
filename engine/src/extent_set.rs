//! A set of blocks, kept as disjoint runs in order.
//!
//! Meant for sets whose runs are few (a residual, a batch); whole-disk sets are a [`crate::dirty_map`].
//! Invariant: runs neither overlap nor touch: for neighbours `a`, `b`: `a.end < b.start`.

use std::collections::BTreeMap;

use crate::{
    extent::Extent,
    limits,
    units::{BLOCK_BYTES, Block},
};

/// A set of blocks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExtentSet {
    /// start → end (exclusive) of each run.
    runs: BTreeMap<u64, u64>,
    blocks: u64,
}

impl ExtentSet {
    /// The empty set.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the blocks `start..end`.
    pub fn insert(&mut self, start: Block, end: Block) {
        if start >= end {
            return;
        }
        let (mut from, mut to) = (start.0, end.0);
        // Swallow every run that overlaps or touches [from, to].
        while let Some((&run_start, &run_end)) = self.runs.range(..=to).next_back() {
            if run_end < from {
                break;
            }
            from = from.min(run_start);
            to = to.max(run_end);
            self.runs.remove(&run_start);
            self.blocks -= run_end - run_start;
        }
        self.runs.insert(from, to);
        self.blocks += to - from;
    }

    /// Adds an extent.
    pub fn insert_extent(&mut self, extent: Extent) {
        self.insert(extent.start, extent.end());
    }

    /// Adds every block of `other`.
    pub fn union(&mut self, other: &ExtentSet) {
        for (&start, &end) in &other.runs {
            self.insert(Block(start), Block(end));
        }
    }

    /// Whether `block` is in the set.
    #[must_use]
    pub fn contains(&self, block: Block) -> bool {
        self.runs.range(..=block.0).next_back().is_some_and(|(_, &end)| block.0 < end)
    }

    /// The runs of `start..end` that are not in the set, in order.
    #[must_use]
    pub fn gaps(&self, start: Block, end: Block) -> Vec<Extent> {
        let mut gaps = ExtentSet::new();
        let mut at = start.0;
        let before = self.runs.range(..=start.0).next_back();
        for (&run_start, &run_end) in
            before.into_iter().chain(self.runs.range(start.0 + 1..end.0.max(start.0 + 1)))
        {
            if run_end > at {
                gaps.insert(Block(at), Block(run_start.min(end.0)));
                at = run_end;
            }
        }
        gaps.insert(Block(at), end);
        gaps.extents().collect()
    }

    /// Whether a block of `start..end` is in the set.
    #[must_use]
    pub fn intersects(&self, start: Block, end: Block) -> bool {
        start < end && self.runs.range(..end.0).next_back().is_some_and(|(_, &run_end)| run_end > start.0)
    }

    /// Number of disjoint runs: what its memory goes with.
    #[must_use]
    pub fn runs(&self) -> usize {
        self.runs.len()
    }

    /// Number of blocks.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Bytes of that many whole blocks.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.blocks * BLOCK_BYTES
    }

    /// Whether it has no blocks.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Its runs in order, cut so that none is longer than an extent may be.
    pub fn extents(&self) -> impl Iterator<Item = Extent> + '_ {
        self.runs.iter().flat_map(|(&start, &end)| {
            let step = u64::from(limits::EXTENT_BLOCKS);
            (start..end).step_by(step as usize).map(move |s| Extent::new(s, (end - s).min(step) as u32))
        })
    }

    /// Panics if the invariant is broken.
    #[cfg(test)]
    fn check(&self) {
        let mut last_end = None;
        let mut sum = 0;
        for (&start, &end) in &self.runs {
            assert!(start < end);
            assert!(last_end.is_none_or(|last| last < start));
            last_end = Some(end);
            sum += end - start;
        }
        assert_eq!(sum, self.blocks);
    }
}

impl FromIterator<Extent> for ExtentSet {
    fn from_iter<I: IntoIterator<Item = Extent>>(iter: I) -> Self {
        let mut set = Self::new();
        iter.into_iter().for_each(|extent| set.insert_extent(extent));
        set
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn behaves_like_a_set_of_blocks(inserts in prop::collection::vec((0u64..200, 0u64..40), 0..60),
                                         probes in prop::collection::vec((0u64..230, 0u64..60), 20)) {
            let (mut set, mut model) = (ExtentSet::new(), BTreeSet::new());
            for (start, len) in inserts {
                set.insert(Block(start), Block(start + len));
                model.extend(start..start + len);
                set.check();
                prop_assert_eq!(set.blocks(), model.len() as u64);
            }
            for block in 0..260 {
                prop_assert_eq!(set.contains(Block(block)), model.contains(&block));
            }
            for (start, len) in probes {
                let missing: Vec<u64> = (start..start + len).filter(|b| !model.contains(b)).collect();
                let gaps = set.gaps(Block(start), Block(start + len));
                prop_assert_eq!(gaps.iter().flat_map(|e| e.start.0..e.end().0).collect::<Vec<_>>(), missing.clone());
                prop_assert_eq!(
                    set.intersects(Block(start), Block(start + len)),
                    missing.len() as u64 != len
                );
            }
            let listed: Vec<u64> = set.extents().flat_map(|e| e.start.0..e.end().0).collect();
            prop_assert_eq!(listed, model.into_iter().collect::<Vec<_>>());
        }
    }
}
