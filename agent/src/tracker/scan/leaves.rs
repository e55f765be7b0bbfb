//! Digests of a disk's leaves: runs of 64 KiB, or more on large disks so that their number stays bounded.
//!
//! A leaf is read in pieces, in any order; its digest is known when all pieces are. Pieces are also the granules
//! of a scanned disk's maps, and no larger than one read.

use std::collections::HashMap;

use engine::{
    digest::LEAF_BYTES,
    dirty_map::Granularity,
    limits,
    units::{BLOCK_BYTES, Block, Digest, blocks_in},
};

use super::super::block_device::truncated;

/// Leaves of one disk: their digests take at most 32 MiB.
const LEAVES: u64 = 2 << 20;

/// How a disk is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Division {
    bytes: u64,
    leaf: u64,
    piece: u64,
}

impl Division {
    pub(super) fn of_disk(bytes: u64) -> Self {
        let mut leaf = LEAF_BYTES;
        while bytes.div_ceil(leaf) > LEAVES {
            leaf *= 2;
        }
        Self { bytes, leaf, piece: leaf.min(limits::IO_BYTES as u64) }
    }

    pub(super) fn leaves(self) -> usize {
        self.bytes.div_ceil(self.leaf) as usize
    }

    /// The blocks of a leaf.
    pub(super) fn blocks_of(self, leaf: usize) -> (Block, Block) {
        let start = leaf as u64 * self.leaf;
        (Block(start / BLOCK_BYTES), Block(blocks_in((start + self.leaf).min(self.bytes))))
    }

    /// Granules of one piece each.
    pub(super) fn granularity(self) -> Granularity {
        Granularity { blocks: blocks_in(self.bytes), shift: (self.piece / BLOCK_BYTES).ilog2() }
    }

    fn pieces_of(self, leaf: usize) -> usize {
        let bytes = self.leaf.min(self.bytes - leaf as u64 * self.leaf);
        bytes.div_ceil(self.piece) as usize
    }
}

/// Makes digests of leaves from their pieces.
#[derive(Debug)]
pub(super) struct LeafHasher {
    division: Division,
    /// Digests of the pieces of leaves of which some are still missing (0).
    begun: HashMap<usize, Vec<u128>>,
}

impl LeafHasher {
    pub(super) fn new(division: Division) -> Self {
        Self { division, begun: HashMap::new() }
    }

    /// Takes in `bytes` read at `offset`. Calls `leaf(index, digest)` for each leaf touched: 0 if its digest is not
    /// known, because a piece of it was cut or is still to come.
    pub(super) fn add(&mut self, offset: u64, bytes: &[u8], mut leaf: impl FnMut(usize, u128)) {
        let Division { bytes: disk, leaf: leaf_bytes, piece } = self.division;
        let end = (offset + bytes.len() as u64).min(disk);
        for number in offset / piece..end.div_ceil(piece) {
            let (from, to) = (number * piece, ((number + 1) * piece).min(disk));
            let index = (from / leaf_bytes) as usize;
            if from < offset || end < to {
                self.begun.remove(&index);
                leaf(index, 0);
                continue;
            }
            let digest = truncated(Digest::of(&bytes[(from - offset) as usize..(to - offset) as usize]));
            leaf(index, self.add_piece(index, (from % leaf_bytes / piece) as usize, digest));
        }
    }

    fn add_piece(&mut self, leaf: usize, piece: usize, digest: u128) -> u128 {
        let count = self.division.pieces_of(leaf);
        if count == 1 {
            return digest;
        }
        let pieces = self.begun.entry(leaf).or_insert_with(|| vec![0; count]);
        pieces[piece] = digest;
        if pieces.contains(&0) {
            return 0;
        }
        let all: Vec<u8> = pieces.iter().flat_map(|piece| piece.to_le_bytes()).collect();
        self.begun.remove(&leaf);
        truncated(Digest::of(&all))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digests(division: Division, reads: &[(u64, &[u8])]) -> Vec<u128> {
        let mut found = vec![0; division.leaves()];
        let mut hasher = LeafHasher::new(division);
        for (offset, bytes) in reads {
            hasher.add(*offset, bytes, |leaf, digest| found[leaf] = digest);
        }
        found
    }

    #[test]
    fn the_number_of_leaves_is_bounded_and_pieces_fit_one_read() {
        for bytes in [1, 4096, 1 << 30, 128 << 30, (128 << 30) + 1, limits::DISK_BYTES] {
            let division = Division::of_disk(bytes);
            assert!(division.leaves() as u64 <= LEAVES);
            assert!(
                division.piece <= limits::IO_BYTES as u64 && division.leaf.is_multiple_of(division.piece)
            );
            assert_eq!(division.blocks_of(division.leaves() - 1).1, Block(blocks_in(bytes)));
        }
    }

    #[test]
    fn pieces_make_the_same_digest_in_any_order() {
        let division = Division { bytes: 11 * 4096 + 100, leaf: 16384, piece: 4096 };
        let disk: Vec<u8> = (0..division.bytes).map(|i| (i / 7) as u8).collect();
        let whole = digests(division, &[(0, &disk)]);
        assert!(whole.iter().all(|digest| *digest != 0));
        let mut pieces: Vec<_> =
            disk.chunks(4096).enumerate().map(|(i, piece)| (i as u64 * 4096, piece)).collect();
        pieces.reverse();
        assert_eq!(digests(division, &pieces), whole);
        pieces.swap(0, 5);
        assert_eq!(digests(division, &pieces), whole);

        let last = pieces.pop().unwrap();
        assert_eq!(
            digests(division, &pieces).iter().filter(|digest| **digest == 0).count(),
            1,
            "one is missing"
        );
        pieces.push((last.0, &last.1[..4095]));
        assert_eq!(digests(division, &pieces).iter().filter(|digest| **digest == 0).count(), 1, "one is cut");

        let mut other = disk.clone();
        other[11 * 4096 + 99] ^= 1;
        let other = digests(division, &[(0, &other)]);
        assert_eq!(other[..2], whole[..2]);
        assert_ne!(other[2], whole[2]);
    }
}
