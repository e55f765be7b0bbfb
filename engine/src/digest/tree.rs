//! The tree above the leaves: each node is the digest of up to 64 below it.
//!
//! In memory, 33 bytes for each leaf: 33 MiB for a disk of 64 GiB. Nodes and roots are hashed with contexts of their
//! own, so that none passes for a leaf or for the root of a disk of another size.

use super::{blocks_of, leaves_in};
use crate::{
    extent_set::ExtentSet,
    units::{Digest, blocks_in},
};

/// Digests below one node.
pub const FAN_OUT: usize = 64;

const NODE: &str = "homeward 2026-11 digest tree node 1";
const ROOT: &str = "homeward 2026-11 digest tree root 1";

/// Why two trees cannot be compared, or a tree not be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    /// Not one digest for each leaf.
    #[error("a disk of {bytes} bytes has {} leaves, but {found} digests were given", leaves_in(*bytes))]
    Leaves {
        /// Size of the disk.
        bytes: u64,
        /// Digests given.
        found: usize,
    },
    /// Disks of different sizes.
    #[error("disks of {0} and {1} bytes cannot be compared")]
    Sizes(u64, u64),
}

/// The digests of a whole disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tree {
    bytes: u64,
    /// Leaves first; the last level has at most one node.
    levels: Vec<Vec<Digest>>,
}

impl Tree {
    /// Of a disk of `bytes`, whose leaves have these digests.
    ///
    /// # Errors
    /// [`TreeError::Leaves`].
    pub fn new(bytes: u64, leaves: Vec<Digest>) -> Result<Self, TreeError> {
        if leaves.len() as u64 != leaves_in(bytes) {
            return Err(TreeError::Leaves { bytes, found: leaves.len() });
        }
        let mut levels = vec![leaves];
        while let Some(below) = levels.last().filter(|level| level.len() > 1) {
            levels.push(below.chunks(FAN_OUT).map(node).collect());
        }
        Ok(Self { bytes, levels })
    }

    /// Size of the disk.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What stands for the whole disk: equal only if sizes and all leaves are.
    #[must_use]
    pub fn root(&self) -> Digest {
        root(self.bytes, self.levels.last().map_or(&[][..], Vec::as_slice))
    }

    /// Digest of one leaf. Panics beyond the disk.
    #[must_use]
    pub fn leaf(&self, leaf: u64) -> Digest {
        self.levels[0][leaf as usize]
    }

    /// Changes one leaf and the nodes above it. Panics beyond the disk.
    pub fn set_leaf(&mut self, leaf: u64, digest: Digest) {
        let mut index = leaf as usize;
        self.levels[0][index] = digest;
        for level in 1..self.levels.len() {
            let first = index / FAN_OUT * FAN_OUT;
            let below = &self.levels[level - 1];
            let digest = node(&below[first..below.len().min(first + FAN_OUT)]);
            index /= FAN_OUT;
            self.levels[level][index] = digest;
        }
    }

    /// The blocks of all leaves that differ. Looks only below nodes that do.
    ///
    /// # Errors
    /// [`TreeError::Sizes`].
    pub fn differences(&self, other: &Self) -> Result<ExtentSet, TreeError> {
        if self.bytes != other.bytes {
            return Err(TreeError::Sizes(self.bytes, other.bytes));
        }
        let mut differing: Vec<usize> = (0..self.levels.last().map_or(0, Vec::len)).collect();
        for (level, (ours, theirs)) in self.levels.iter().zip(&other.levels).enumerate().rev() {
            differing.retain(|index| ours[*index] != theirs[*index]);
            if level > 0 {
                let below = self.levels[level - 1].len();
                let children = |node: &usize| node * FAN_OUT..((node + 1) * FAN_OUT).min(below);
                differing = differing.iter().flat_map(children).collect();
            }
        }
        let mut blocks = ExtentSet::new();
        for leaf in differing {
            let range = blocks_of(leaf as u64, self.bytes);
            blocks.insert(range.start, range.end);
        }
        debug_assert!(blocks.blocks() <= blocks_in(self.bytes));
        Ok(blocks)
    }
}

pub(super) fn root(bytes: u64, top: &[Digest]) -> Digest {
    hash(ROOT, &bytes.to_le_bytes(), top)
}

pub(super) fn node(children: &[Digest]) -> Digest {
    hash(NODE, &[], children)
}

fn hash(context: &str, first: &[u8], digests: &[Digest]) -> Digest {
    let mut hasher = blake3::Hasher::new_derive_key(context);
    hasher.update(first);
    for digest in digests {
        hasher.update(&digest.0);
    }
    Digest(*hasher.finalize().as_bytes())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::{super::LEAF_BYTES, *};

    fn digest(number: u64) -> Digest {
        Digest::of(&number.to_le_bytes())
    }

    fn tree(bytes: u64, leaf: impl Fn(u64) -> u64) -> Tree {
        Tree::new(bytes, (0..leaves_in(bytes)).map(|index| digest(leaf(index))).collect()).unwrap()
    }

    proptest! {
        #[test]
        fn exactly_the_leaves_that_differ_are_found(
            leaves in 1..9000u64,
            short in 0..LEAF_BYTES,
            changed in prop::collection::btree_set(0..9000u64, 0..40),
        ) {
            let bytes = leaves * LEAF_BYTES - short;
            let changed: BTreeSet<u64> = changed.into_iter().filter(|leaf| *leaf < leaves).collect();
            let one = tree(bytes, |leaf| leaf);
            let other = tree(bytes, |leaf| if changed.contains(&leaf) { leaf + 1_000_000 } else { leaf });
            let mut expected = ExtentSet::new();
            for range in changed.iter().map(|leaf| blocks_of(*leaf, bytes)) {
                expected.insert(range.start, range.end);
            }
            prop_assert_eq!(one.differences(&other).unwrap(), expected);
            prop_assert_eq!(one.root() == other.root(), changed.is_empty());

            let mut updated = one;
            changed.iter().for_each(|leaf| updated.set_leaf(*leaf, digest(leaf + 1_000_000)));
            prop_assert_eq!(updated, other);
        }
    }

    #[test]
    fn sizes_are_part_of_the_root_and_must_agree() {
        let (one, other) = (tree(LEAF_BYTES - 1, |leaf| leaf), tree(LEAF_BYTES, |leaf| leaf));
        assert_eq!(one.leaf(0), other.leaf(0));
        assert_ne!(one.root(), other.root());
        assert_eq!(one.differences(&other), Err(TreeError::Sizes(LEAF_BYTES - 1, LEAF_BYTES)));
        let error = Tree::new(LEAF_BYTES + 1, vec![digest(0)]).unwrap_err();
        assert_eq!(error, TreeError::Leaves { bytes: LEAF_BYTES + 1, found: 1 });
        assert!(error.to_string().contains("has 2 leaves"));
    }

    #[test]
    fn a_node_passes_for_no_leaf() {
        let two = tree(2 * LEAF_BYTES, |leaf| leaf);
        let concatenated = [digest(0).0, digest(1).0].concat();
        assert_ne!(two.levels[1][0], Digest::of(&concatenated));
    }

    /// Version 1; the expected root was computed by BLAKE3's own Python package.
    #[test]
    fn the_root_of_a_small_disk_stays_as_it_is() {
        let root = tree(65 * LEAF_BYTES, |leaf| leaf).root();
        assert_eq!(root.to_string(), "adfdc8816ccde8b79e48eb1b91d35d3c8069057952e24ed26402531b91333a4f");
    }
}
