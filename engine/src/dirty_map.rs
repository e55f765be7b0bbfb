//! A whole disk's set of granules as a bitmap over shared words.
//!
//! The words may be ordinary memory or memory shared with the kernel (a mapped BPF array), so every access is
//! atomic; a map may be read while another thread or the kernel sets bits. A *granule* is one or more blocks;
//! it doubles with the disk until the map fits [`limits::DIRTY_MAP_BYTES`].
//! What the bits mean, and when they may be cleared, is the owner's business.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::{
    extent_set::ExtentSet,
    limits,
    units::{Block, blocks_in},
};

/// How a disk's blocks map to granules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Granularity {
    /// Blocks of the disk.
    pub blocks: u64,
    /// log2 of blocks per granule.
    pub shift: u32,
}

impl Granularity {
    /// The finest that keeps one map of a disk of `disk_bytes` within its limit.
    #[must_use]
    pub fn of_disk(disk_bytes: u64) -> Self {
        let blocks = blocks_in(disk_bytes);
        let mut shift = 0;
        while blocks.div_ceil(1 << shift) > limits::DIRTY_MAP_BYTES * 8 {
            shift += 1;
        }
        Self { blocks, shift }
    }

    /// Number of granules, the last of which may be short.
    #[must_use]
    pub fn granules(self) -> u64 {
        self.blocks.div_ceil(1 << self.shift)
    }

    /// 64-bit words that one map needs.
    #[must_use]
    pub fn words(self) -> usize {
        self.granules().div_ceil(64) as usize
    }

    /// The blocks of granules `from..to`, cut at the end of the disk.
    #[must_use]
    pub fn blocks_of(self, from: u64, to: u64) -> (Block, Block) {
        (Block(from << self.shift), Block((to << self.shift).min(self.blocks)))
    }

    /// The granules that cover blocks `start..end` (`start < end`).
    #[must_use]
    pub fn granules_of(self, start: Block, end: Block) -> (u64, u64) {
        (start.0 >> self.shift, ((end.0 - 1) >> self.shift) + 1)
    }
}

/// A bitmap of granules. `W` holds at least [`Granularity::words`] words.
#[derive(Debug)]
pub struct DirtyMap<W> {
    words: W,
    granularity: Granularity,
}

impl DirtyMap<Vec<AtomicU64>> {
    /// An empty map in ordinary memory.
    #[must_use]
    pub fn in_memory(granularity: Granularity) -> Self {
        Self::over((0..granularity.words()).map(|_| AtomicU64::new(0)).collect(), granularity)
    }
}

impl<W: AsRef<[AtomicU64]>> DirtyMap<W> {
    /// A map over `words`, whose bits stand as they are.
    ///
    /// # Panics
    /// If `words` is shorter than the granularity needs.
    pub fn over(words: W, granularity: Granularity) -> Self {
        assert!(words.as_ref().len() >= granularity.words());
        Self { words, granularity }
    }

    /// How blocks map to its bits.
    pub fn granularity(&self) -> Granularity {
        self.granularity
    }

    fn words(&self) -> &[AtomicU64] {
        &self.words.as_ref()[..self.granularity.words()]
    }

    /// Marks every granule that holds one of the blocks `start..end`.
    pub fn set(&self, start: Block, end: Block) {
        self.each_word(start, end, |word, mask| {
            // Most marks hit bits that are set already; a load is cheaper than a locked or.
            if word.load(Ordering::Relaxed) & mask != mask {
                word.fetch_or(mask, Ordering::AcqRel);
            }
            true
        });
    }

    /// Clears every granule that holds one of the blocks `start..end`.
    pub fn clear(&self, start: Block, end: Block) {
        self.each_word(start, end, |word, mask| {
            word.fetch_and(!mask, Ordering::AcqRel);
            true
        });
    }

    /// Whether a granule of the blocks `start..end` is marked.
    pub fn any(&self, start: Block, end: Block) -> bool {
        !self.each_word(start, end, |word, mask| word.load(Ordering::Acquire) & mask == 0)
    }

    /// Whether every granule of the blocks `start..end` is marked.
    pub fn all(&self, start: Block, end: Block) -> bool {
        self.each_word(start, end, |word, mask| word.load(Ordering::Acquire) & mask == mask)
    }

    /// Marks the whole disk.
    pub fn set_all(&self) {
        self.set(Block(0), Block(self.granularity.blocks));
    }

    /// Clears the whole map.
    pub fn clear_all(&self) {
        self.words().iter().for_each(|word| word.store(0, Ordering::Release));
    }

    /// Marks whatever `other`, of the same granularity, has marked.
    pub fn merge(&self, other: &DirtyMap<impl AsRef<[AtomicU64]>>) {
        assert_eq!(self.granularity, other.granularity, "merging maps of different disks");
        for (word, other) in self.words().iter().zip(other.words()) {
            let bits = other.load(Ordering::Acquire);
            if bits != 0 {
                word.fetch_or(bits, Ordering::AcqRel);
            }
        }
    }

    /// Number of blocks marked (whole granules count, cut at the end of the disk).
    pub fn blocks(&self) -> u64 {
        let granules: u64 =
            self.words().iter().map(|w| u64::from(w.load(Ordering::Acquire).count_ones())).sum();
        let last = self.granularity.granules().saturating_sub(1);
        let (start, end) = self.granularity.blocks_of(last, last + 1);
        let missing = if end > start && self.any(start, end) {
            (1 << self.granularity.shift) - (end.0 - start.0)
        } else {
            0
        };
        (granules << self.granularity.shift) - missing
    }

    /// Whether nothing is marked.
    pub fn is_empty(&self) -> bool {
        self.words().iter().all(|word| word.load(Ordering::Acquire) == 0)
    }

    /// Marked blocks from `from` on, in order, until `limit` blocks are found or the disk ends. The last run is
    /// cut at the limit, rounded up to a granule.
    pub fn collect(&self, from: Block, limit: u64) -> ExtentSet {
        let mut found = ExtentSet::new();
        let first_granule = from.0 >> self.granularity.shift;
        for (index, word) in self.words().iter().enumerate().skip((first_granule / 64) as usize) {
            let mut bits = word.load(Ordering::Acquire);
            if index as u64 == first_granule / 64 {
                bits &= u64::MAX << (first_granule % 64);
            }
            while bits != 0 {
                let low = u64::from(bits.trailing_zeros());
                let run = u64::from((!(bits >> low)).trailing_zeros()).min(64 - low);
                let wanted = (limit - found.blocks()).div_ceil(1 << self.granularity.shift).min(run);
                let granule = index as u64 * 64 + low;
                let (start, end) = self.granularity.blocks_of(granule, granule + wanted);
                found.insert(start, end);
                if found.blocks() >= limit {
                    return found;
                }
                bits &= if low + run == 64 { 0 } else { u64::MAX << (low + run) };
            }
        }
        found
    }

    /// Calls `f(word, mask)` for each word that covers `start..end` until it returns false; returns whether all
    /// returned true.
    fn each_word(&self, start: Block, end: Block, mut f: impl FnMut(&AtomicU64, u64) -> bool) -> bool {
        let end = Block(end.0.min(self.granularity.blocks));
        if start >= end {
            return true;
        }
        let (from, to) = self.granularity.granules_of(start, end);
        (from / 64..=(to - 1) / 64).all(|index| {
            let mut mask = u64::MAX;
            if index == from / 64 {
                mask &= u64::MAX << (from % 64);
            }
            if index == (to - 1) / 64 {
                mask &= u64::MAX >> (63 - (to - 1) % 64);
            }
            f(&self.words()[index as usize], mask)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn behaves_like_a_set_of_granules(
            blocks in 1u64..600,
            shift in 0u32..4,
            steps in prop::collection::vec((any::<bool>(), 0u64..620, 0u64..90), 0..40),
            from in 0u64..620,
            limit in 1u64..700,
        ) {
            let granularity = Granularity { blocks, shift };
            let map = DirtyMap::in_memory(granularity);
            let mut model = BTreeSet::new();
            for (set, start, len) in steps {
                let (start, end) = (start, (start + len).min(blocks));
                let granules = if start < end { (start >> shift)..((end - 1) >> shift) + 1 } else { 0..0 };
                if set {
                    map.set(Block(start), Block(end));
                    model.extend(granules);
                } else {
                    map.clear(Block(start), Block(end));
                    model.retain(|g| !granules.contains(g));
                }
            }
            let in_model: Vec<u64> =
                model.iter().flat_map(|g| (g << shift)..((g + 1) << shift).min(blocks)).collect();
            prop_assert_eq!(map.blocks(), in_model.len() as u64);
            prop_assert_eq!(map.is_empty(), model.is_empty());
            for block in 0..blocks {
                prop_assert_eq!(map.any(Block(block), Block(block + 1)), model.contains(&(block >> shift)));
                let end = (block + limit).min(blocks);
                let all = (block..end).all(|block| model.contains(&(block >> shift)));
                prop_assert_eq!(map.all(Block(block), Block(end)), all);
            }
            let found: Vec<u64> = map.collect(Block(from), limit).extents()
                .flat_map(|e| e.start.0..e.end().0).collect();
            let from_granule = from >> shift << shift;
            let expected: Vec<u64> = in_model.iter().copied().filter(|b| *b >= from_granule).collect();
            prop_assert!(found.len() as u64 >= limit.min(expected.len() as u64));
            prop_assert!((found.len() as u64) < limit + (1 << shift));
            prop_assert_eq!(&found[..], &expected[..found.len()]);
        }
    }

    #[test]
    fn the_granule_grows_until_the_map_fits() {
        assert_eq!(Granularity::of_disk(1 << 40).shift, 0);
        assert_eq!(Granularity::of_disk((1 << 40) + 1).shift, 1);
        let largest = Granularity::of_disk(limits::DISK_BYTES);
        assert!(largest.words() as u64 * 8 <= limits::DIRTY_MAP_BYTES);
    }
}
