//! Which blocks are written again and again: a bounded memory of recent marks, by block.
//!
//! It only orders reads; being wrong costs a try, never a point.

use std::collections::HashMap;

use engine::{
    extent_set::ExtentSet,
    units::{Block, DiskIndex},
};

/// Blocks remembered at most: about 2 MiB.
const BLOCKS: usize = 1 << 16;

/// Noted sets after which everything cools by half.
const COOLING: u32 = 16;

/// From here on a block counts as hot: marked at least twice of late.
pub const HOT: u8 = 2;

/// How often blocks were marked of late.
#[derive(Debug, Default)]
pub struct Heat {
    marks: HashMap<(DiskIndex, Block), u8>,
    noted: u32,
}

impl Heat {
    /// Notes blocks that were marked since they were last noted.
    pub fn note(&mut self, disk: DiskIndex, marked: &ExtentSet) {
        self.noted += 1;
        if self.noted >= COOLING || self.marks.len() >= BLOCKS {
            self.cool();
        }
        for block in marked.extents().flat_map(|extent| extent.start.0..extent.end().0).map(Block) {
            if let Some(marks) = self.marks.get_mut(&(disk, block)) {
                *marks = marks.saturating_add(1);
            } else if self.marks.len() < BLOCKS {
                self.marks.insert((disk, block), 1);
            } else {
                return;
            }
        }
    }

    /// Marks of a block of late.
    #[must_use]
    pub fn of(&self, disk: DiskIndex, block: Block) -> u8 {
        self.marks.get(&(disk, block)).copied().unwrap_or(0)
    }

    fn cool(&mut self) {
        self.noted = 0;
        self.marks.retain(|_, marks| {
            *marks /= 2;
            *marks > 0
        });
    }
}

#[cfg(test)]
mod tests {
    use engine::extent::Extent;

    use super::*;

    fn set(start: u64, blocks: u32) -> ExtentSet {
        [Extent::new(start, blocks)].into_iter().collect()
    }

    #[test]
    fn what_is_marked_often_is_hot_and_cools_when_left_alone() {
        let mut heat = Heat::default();
        for _ in 0..5 {
            heat.note(DiskIndex(1), &set(7, 1));
        }
        heat.note(DiskIndex(1), &set(9, 1));
        assert_eq!(heat.of(DiskIndex(1), Block(7)), 5);
        assert_eq!(heat.of(DiskIndex(1), Block(9)), 1);
        assert_eq!(heat.of(DiskIndex(0), Block(7)), 0);
        for _ in 0..3 * COOLING {
            heat.note(DiskIndex(0), &set(1, 1));
        }
        assert!(heat.of(DiskIndex(1), Block(7)) < HOT);
    }

    #[test]
    fn is_bounded() {
        let mut heat = Heat::default();
        for round in 0..4 {
            heat.note(DiskIndex(0), &set(round << 20, 1 << 20));
            assert!(heat.marks.len() <= BLOCKS);
        }
    }
}
