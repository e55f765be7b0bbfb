//! Which blocks of a disk a drill has written, and how, as runs of blocks.
//!
//! Invariant: runs do not overlap, and two that touch are of different kinds.

use std::{collections::BTreeMap, ops::Range};

/// What a block is since it was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Bytes in the overlay's file.
    Data,
    /// Zeros, which take no space.
    Zero,
}

/// The written blocks.
#[derive(Debug, Default)]
pub struct BlockMap {
    /// start → end (exclusive) and kind.
    runs: BTreeMap<u64, (u64, Kind)>,
    data_blocks: u64,
}

impl BlockMap {
    /// Number of runs: what its memory goes with.
    pub fn runs(&self) -> usize {
        self.runs.len()
    }

    /// Blocks of data.
    pub fn data_blocks(&self) -> u64 {
        self.data_blocks
    }

    /// Blocks of data in a range.
    pub fn data_blocks_in(&self, blocks: Range<u64>) -> u64 {
        let data = self.parts(blocks).filter(|(_, kind)| *kind == Some(Kind::Data));
        data.map(|(part, _)| part.end - part.start).sum()
    }

    /// A range, cut where the kind changes; `None` is what was never written.
    pub fn parts(&self, blocks: Range<u64>) -> impl Iterator<Item = (Range<u64>, Option<Kind>)> + '_ {
        let mut at = blocks.start;
        std::iter::from_fn(move || {
            if at >= blocks.end {
                return None;
            }
            let start = at;
            let (end, kind) = match self.runs.range(..=start).next_back() {
                Some((_, &(end, kind))) if end > start => (end, Some(kind)),
                _ => (self.runs.range(start..).next().map_or(blocks.end, |(&next, _)| next), None),
            };
            at = end.min(blocks.end);
            Some((start..at, kind))
        })
    }

    /// Makes all blocks of a range one kind.
    pub fn set(&mut self, blocks: Range<u64>, kind: Kind) {
        let Range { mut start, mut end } = blocks;
        if start >= end {
            return;
        }
        self.clear(start, end);
        // Join with neighbours of the same kind.
        if let Some((&before, &(before_end, before_kind))) = self.runs.range(..start).next_back()
            && before_end == start
            && before_kind == kind
        {
            self.remove(before);
            start = before;
        }
        if let Some(&(after_end, after_kind)) = self.runs.get(&end)
            && after_kind == kind
        {
            self.remove(end);
            end = after_end;
        }
        self.insert(start, end, kind);
    }

    fn clear(&mut self, start: u64, end: u64) {
        while let Some((&from, &(to, kind))) = self.runs.range(..end).next_back()
            && to > start
        {
            self.remove(from);
            if to > end {
                self.insert(end, to, kind);
            }
            if from < start {
                self.insert(from, start, kind);
            }
        }
    }

    fn insert(&mut self, start: u64, end: u64, kind: Kind) {
        self.runs.insert(start, (end, kind));
        if kind == Kind::Data {
            self.data_blocks += end - start;
        }
    }

    fn remove(&mut self, start: u64) {
        if let Some((end, Kind::Data)) = self.runs.remove(&start) {
            self.data_blocks -= end - start;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BLOCKS: u64 = 64;

    fn check(map: &BlockMap) {
        let runs: Vec<_> = map.runs.iter().map(|(&start, &(end, kind))| (start, end, kind)).collect();
        assert!(runs.iter().all(|(start, end, _)| start < end), "{runs:?}");
        for pair in runs.windows(2) {
            let [(_, end, kind), (next, _, next_kind)] = pair else { continue };
            assert!(end < next || (end == next && kind != next_kind), "{runs:?}");
        }
        let data: u64 = runs.iter().filter(|run| run.2 == Kind::Data).map(|run| run.1 - run.0).sum();
        assert_eq!(data, map.data_blocks());
    }

    proptest! {
        #[test]
        fn it_is_what_an_array_of_blocks_is(
            sets in prop::collection::vec((0..BLOCKS, 0..BLOCKS, any::<bool>()), 0..64),
            look in (0..BLOCKS, 0..BLOCKS),
        ) {
            let mut map = BlockMap::default();
            let mut model = vec![None; BLOCKS as usize];
            for (a, b, data) in sets {
                let kind = if data { Kind::Data } else { Kind::Zero };
                let range = a.min(b)..a.max(b);
                map.set(range.clone(), kind);
                model[range.start as usize..range.end as usize].fill(Some(kind));
                check(&map);
            }
            let look = look.0.min(look.1)..look.0.max(look.1);
            let mut at = look.start;
            for (part, kind) in map.parts(look.clone()) {
                prop_assert_eq!(part.start, at);
                prop_assert!(part.end > at);
                prop_assert!(model[part.start as usize..part.end as usize].iter().all(|k| *k == kind));
                at = part.end;
            }
            prop_assert_eq!(at, look.end);
            let data = model[look.start as usize..look.end as usize].iter();
            prop_assert_eq!(map.data_blocks_in(look), data.filter(|k| **k == Some(Kind::Data)).count() as u64);
        }
    }
}
