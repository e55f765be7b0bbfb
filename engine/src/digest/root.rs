//! The root of a disk's tree from its leaves one by one, for disks whose tree would not fit in memory.

use super::{
    leaves_in,
    tree::{FAN_OUT, TreeError, node, root},
};
use crate::units::Digest;

/// Takes leaf digests in order and keeps one unfinished node a level: a few KiB for any disk.
#[derive(Debug)]
pub struct RootBuilder {
    bytes: u64,
    leaves: u64,
    /// Digests that are not in a node yet, fewer than [`FAN_OUT`] at each level. Leaves first.
    levels: Vec<Vec<Digest>>,
}

impl RootBuilder {
    /// For a disk of `bytes`.
    #[must_use]
    pub fn new(bytes: u64) -> Self {
        Self { bytes, leaves: 0, levels: vec![Vec::new()] }
    }

    /// Takes the digest of the next leaf.
    pub fn push(&mut self, leaf: Digest) {
        self.leaves += 1;
        self.add(0, leaf);
    }

    /// The root, as [`super::Tree::root`] has it.
    ///
    /// # Errors
    /// [`TreeError::Leaves`] unless every leaf was given.
    pub fn finish(mut self) -> Result<Digest, TreeError> {
        if self.leaves != leaves_in(self.bytes) {
            return Err(TreeError::Leaves { bytes: self.bytes, found: self.leaves as usize });
        }
        let mut level = 0;
        loop {
            let rest = std::mem::take(&mut self.levels[level]);
            let is_top = level + 1 == self.levels.len();
            if is_top && rest.len() <= 1 {
                return Ok(root(self.bytes, &rest));
            }
            level += 1;
            if !rest.is_empty() {
                self.add(level, node(&rest));
            }
        }
    }

    fn add(&mut self, level: usize, digest: Digest) {
        if level == self.levels.len() {
            self.levels.push(Vec::new());
        }
        self.levels[level].push(digest);
        if self.levels[level].len() == FAN_OUT {
            let full = std::mem::take(&mut self.levels[level]);
            self.add(level + 1, node(&full));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{LEAF_BYTES, Tree},
        *,
    };

    #[test]
    fn is_the_root_of_the_tree() {
        for leaves in [0, 1, 2, 63, 64, 65, 128, 4095, 4096, 4097, 4160, 9000] {
            let digests: Vec<Digest> = (0..leaves).map(|leaf: u64| Digest::of(&leaf.to_le_bytes())).collect();
            let mut builder = RootBuilder::new(leaves * LEAF_BYTES);
            digests.iter().for_each(|digest| builder.push(*digest));
            let tree = Tree::new(leaves * LEAF_BYTES, digests).unwrap();
            assert_eq!(builder.finish().unwrap(), tree.root(), "{leaves} leaves");
        }
        let missing = RootBuilder::new(LEAF_BYTES).finish();
        assert_eq!(missing, Err(TreeError::Leaves { bytes: LEAF_BYTES, found: 0 }));
    }
}
