//! Leaves: a disk in pieces of 64 KiB, each with its BLAKE3.

use std::{ops::Range, sync::LazyLock};

use crate::units::{BLOCK_BYTES, Block, Digest, blocks_in};

/// Bytes of a leaf; the last of a disk may be shorter.
pub const LEAF_BYTES: u64 = 64 << 10;

/// Leaves of a disk of `bytes`.
#[must_use]
pub const fn leaves_in(bytes: u64) -> u64 {
    bytes.div_ceil(LEAF_BYTES)
}

/// The blocks of a leaf of a disk of `bytes`.
#[must_use]
pub fn blocks_of(leaf: u64, bytes: u64) -> Range<Block> {
    const BLOCKS: u64 = LEAF_BYTES / BLOCK_BYTES;
    Block(leaf * BLOCKS)..Block(((leaf + 1) * BLOCKS).min(blocks_in(bytes)))
}

/// Digest of a leaf's bytes, as many as are on the disk.
#[must_use]
pub fn leaf_digest(bytes: &[u8]) -> Digest {
    debug_assert!(!bytes.is_empty() && bytes.len() as u64 <= LEAF_BYTES);
    Digest::of(bytes)
}

/// Digest of a whole leaf of zeros: what a hole need not be read for.
#[must_use]
pub fn zero_leaf() -> Digest {
    static ZERO: LazyLock<Digest> = LazyLock::new(|| Digest::of(&[0; LEAF_BYTES as usize]));
    *ZERO
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaves_cover_the_disk() {
        for bytes in [1, 4096, LEAF_BYTES, LEAF_BYTES + 1, 10 * LEAF_BYTES - 100] {
            let leaves = leaves_in(bytes);
            assert_eq!(blocks_of(0, bytes).start, Block(0));
            assert_eq!(blocks_of(leaves - 1, bytes).end, Block(blocks_in(bytes)));
            assert!((1..leaves).all(|leaf| blocks_of(leaf - 1, bytes).end == blocks_of(leaf, bytes).start));
        }
        assert_eq!(zero_leaf(), leaf_digest(&[0; LEAF_BYTES as usize]));
    }
}
