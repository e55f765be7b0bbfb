//! A set of leaves of one disk, a bit each: 2 MiB for a disk of 1 TiB.

use std::ops::Range;

use super::{LEAF_BYTES, leaves_in};
use crate::units::{BLOCK_BYTES, Block};

/// A set of leaves of one disk.
#[derive(Clone, Debug)]
pub struct LeafMap {
    words: Vec<u64>,
    leaves: u64,
    /// Invariant: the number of ones in `words`, of which none stands beyond `leaves`.
    count: u64,
}

impl LeafMap {
    /// No leaf of a disk of `bytes`.
    #[must_use]
    pub fn empty(bytes: u64) -> Self {
        let leaves = leaves_in(bytes);
        Self { words: vec![0; leaves.div_ceil(64) as usize], leaves, count: 0 }
    }

    /// Leaves in the set.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Leaves of the disk.
    #[must_use]
    pub fn leaves(&self) -> u64 {
        self.leaves
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Whether a leaf is in the set; one beyond the disk is not.
    #[must_use]
    pub fn contains(&self, leaf: u64) -> bool {
        self.words.get((leaf / 64) as usize).is_some_and(|word| word & bit(leaf) != 0)
    }

    /// Adds a leaf, unless it lies beyond the disk; whether it was not in the set.
    pub fn insert(&mut self, leaf: u64) -> bool {
        let new = leaf < self.leaves && !self.contains(leaf);
        if new {
            self.words[(leaf / 64) as usize] |= bit(leaf);
            self.count += 1;
        }
        new
    }

    /// Adds a run of leaves, cut at the end of the disk.
    pub fn insert_all(&mut self, leaves: Range<u64>) {
        for leaf in leaves.start..leaves.end.min(self.leaves) {
            self.insert(leaf);
        }
    }

    /// Adds every leaf that holds one of the blocks `start..end`.
    pub fn insert_blocks(&mut self, start: Block, end: Block) {
        const BLOCKS: u64 = LEAF_BYTES / BLOCK_BYTES;
        self.insert_all(start.0 / BLOCKS..end.0.div_ceil(BLOCKS));
    }

    /// Takes a leaf out; whether it was in the set.
    pub fn remove(&mut self, leaf: u64) -> bool {
        let there = self.contains(leaf);
        if there {
            self.words[(leaf / 64) as usize] &= !bit(leaf);
            self.count -= 1;
        }
        there
    }

    /// Takes out all.
    pub fn clear(&mut self) {
        self.words.fill(0);
        self.count = 0;
    }

    /// The first leaf of the set from `from` on.
    #[must_use]
    pub fn next(&self, from: u64) -> Option<u64> {
        let mut index = (from / 64) as usize;
        let mut word = self.words.get(index)? & (u64::MAX << (from % 64));
        while word == 0 {
            index += 1;
            word = *self.words.get(index)?;
        }
        Some(index as u64 * 64 + u64::from(word.trailing_zeros()))
    }

    /// The first leaf from `from` on that is not in the set; beyond the disk if all are.
    #[must_use]
    pub fn next_absent(&self, from: u64) -> u64 {
        let mut index = (from / 64) as usize;
        let mut below = !(u64::MAX << (from % 64));
        while let Some(word) = self.words.get(index) {
            let absent = !(word | below);
            if absent != 0 {
                return index as u64 * 64 + u64::from(absent.trailing_zeros());
            }
            (index, below) = (index + 1, 0);
        }
        from.max(index as u64 * 64)
    }

    /// All leaves of the set from `from` on, in order.
    pub fn iter_from(&self, from: u64) -> impl Iterator<Item = u64> + '_ {
        std::iter::successors(self.next(from), |leaf| self.next(leaf + 1))
    }

    /// The set as runs, in order; if there are more than `most`, the last goes on to the end of the disk.
    #[must_use]
    pub fn runs(&self, most: usize) -> Vec<Range<u64>> {
        let mut runs: Vec<Range<u64>> = Vec::new();
        for leaf in self.iter_from(0) {
            let full = runs.len() == most;
            match runs.last_mut() {
                Some(run) if run.end == leaf => run.end += 1,
                Some(run) if full => {
                    run.end = self.leaves;
                    break;
                }
                _ => runs.push(leaf..leaf + 1),
            }
        }
        runs
    }
}

const fn bit(leaf: u64) -> u64 {
    1 << (leaf % 64)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn behaves_like_a_set(
            leaves in 1..300u64,
            steps in prop::collection::vec((any::<bool>(), 0..320u64, 1..40u64), 0..40),
            from in 0..320u64,
        ) {
            let (mut map, mut model) = (LeafMap::empty(leaves * LEAF_BYTES - 5), BTreeSet::new());
            for (insert, first, count) in steps {
                if insert {
                    map.insert_all(first..first + count);
                    model.extend(first..(first + count).min(leaves));
                } else {
                    prop_assert_eq!(map.remove(first), model.remove(&first));
                }
            }
            prop_assert_eq!(map.count(), model.len() as u64);
            prop_assert!(map.iter_from(from).eq(model.range(from..).copied()));
            let absent = (from..).find(|leaf| !model.contains(leaf)).unwrap();
            prop_assert_eq!(map.next_absent(from).min(leaves.max(from)), absent.min(leaves.max(from)));
            prop_assert!(map.runs(usize::MAX).into_iter().flatten().eq(model.iter().copied()));
            let (few, count) = (map.runs(2), map.runs(usize::MAX).len());
            prop_assert_eq!(few.len(), count.min(2));
            prop_assert!(model.iter().all(|leaf| few.iter().any(|run| run.contains(leaf))));
        }
    }

    #[test]
    fn blocks_belong_to_leaves() {
        let mut map = LeafMap::empty(3 * LEAF_BYTES);
        let runs = |map: &LeafMap| map.runs(9).iter().map(|run| (run.start, run.end)).collect::<Vec<_>>();
        map.insert_blocks(Block(15), Block(17));
        assert_eq!(runs(&map), [(0, 2)]);
        map.clear();
        map.insert_blocks(Block(16), Block(32));
        assert_eq!(runs(&map), [(1, 2)]);
        map.insert_blocks(Block(47), Block(1000));
        assert_eq!((runs(&map), map.count()), (vec![(1, 3)], 2));
    }
}
