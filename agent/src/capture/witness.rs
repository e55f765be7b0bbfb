//! Witnesses: leaves whose digests are wanted as of T, and which are written too often to be read after it.
//!
//! Their blocks join the barrier's residual: read in its rounds and settled by the same rules, but hashed instead of
//! sent, since what is sent would put right at the target what a proof is to find wrong there. A point matters more
//! than a witness: one that does not settle is given up, and tried at the next point.

use engine::{
    digest::{LEAF_BYTES, blocks_of, leaf_digest},
    extent_set::ExtentSet,
    units::{BLOCK_BYTES, Block, Digest, DiskIndex},
};

use super::buffer::Buffer;

/// A leaf of one of the disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Leaf {
    /// Which disk.
    pub disk: DiskIndex,
    /// Its number.
    pub number: u64,
}

/// Leaves to be read at a point, and what was read of them so far.
#[derive(Debug, Default)]
pub struct Witnesses {
    asked: usize,
    leaves: Vec<Leaf>,
    /// What is not in the barrier's own buffer. Invariant: read since the last flip, or not marked by it.
    read: Buffer,
}

/// How a disk is divided.
#[derive(Clone, Copy, Debug)]
pub struct Division {
    /// Its size in bytes.
    pub bytes: u64,
    /// Blocks of a granule of its maps.
    pub granule: u64,
}

impl Witnesses {
    /// Wants these leaves.
    #[must_use]
    pub fn new(leaves: Vec<Leaf>) -> Self {
        Self { asked: leaves.len(), leaves, read: Buffer::default() }
    }

    /// How many leaves were wanted at first.
    #[must_use]
    pub fn asked(&self) -> usize {
        self.asked
    }

    /// Bytes held.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.read.bytes()
    }

    /// Whole granules that must still be read, by disk: neither in `pending`, which are read anyway, nor read before.
    #[must_use]
    pub fn missing(&self, disks: &[Division], pending: &[ExtentSet], captured: &Buffer) -> Vec<ExtentSet> {
        let mut missing = vec![ExtentSet::new(); disks.len()];
        for leaf in &self.leaves {
            let index = usize::from(leaf.disk.0);
            let division = disks[index];
            for first in granules(*leaf, division) {
                let known = pending[index].contains(first)
                    || captured.contains(leaf.disk, first)
                    || self.read.contains(leaf.disk, first);
                if !known {
                    missing[index].insert(first, Block(first.0 + division.granule));
                }
            }
        }
        missing
    }

    /// Takes a granule as of T.
    pub fn insert(&mut self, disk: DiskIndex, first: Block, bytes: &[u8]) {
        self.read.insert(disk, first, bytes);
    }

    /// These granules were written: what was read of them is of no use.
    pub fn remove(&mut self, disk: DiskIndex, marked: &ExtentSet) {
        self.read.remove(disk, marked);
    }

    /// Gives up the leaves that hold a block of `conflicts`, by disk.
    pub fn give_up(&mut self, disks: &[Division], conflicts: &[ExtentSet]) {
        self.leaves.retain(|leaf| {
            let index = usize::from(leaf.disk.0);
            let range = blocks_of(leaf.number, disks[index].bytes);
            !conflicts[index].intersects(range.start, range.end)
        });
    }

    /// Forgets what was read; the leaves are still wanted.
    pub fn start_over(&mut self) {
        self.read.clear();
    }

    /// Digests of the leaves as of T, when everything has settled; `captured` holds what is sent of them. A leaf of
    /// which something is missing is left out.
    #[must_use]
    pub fn digests(&self, disks: &[Division], captured: &Buffer) -> Vec<(Leaf, Digest)> {
        let digest = |leaf: &Leaf| {
            let division = disks[usize::from(leaf.disk.0)];
            let (mut bytes, mut at) = (Vec::with_capacity(LEAF_BYTES as usize), None);
            for first in granules(*leaf, division) {
                at.get_or_insert(first);
                let found = captured.append_to(leaf.disk, first, &mut bytes)
                    || self.read.append_to(leaf.disk, first, &mut bytes);
                if !found {
                    return None;
                }
            }
            // A granule may be larger than a leaf, and the disk end within one.
            let range = blocks_of(leaf.number, division.bytes);
            let from = (range.start.0 - at?.0) * BLOCK_BYTES;
            let len = LEAF_BYTES.min(division.bytes - range.start.offset());
            Some((*leaf, leaf_digest(bytes.get(from as usize..(from + len) as usize)?)))
        };
        self.leaves.iter().filter_map(digest).collect()
    }
}

/// First blocks of the granules that hold a leaf.
fn granules(leaf: Leaf, division: Division) -> impl Iterator<Item = Block> {
    let range = blocks_of(leaf.number, division.bytes);
    let first = range.start.0 / division.granule * division.granule;
    (first..range.end.0).step_by(division.granule as usize).map(Block)
}
