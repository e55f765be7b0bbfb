//! Pieces in memory, of which the first of every block counts.

use std::collections::BTreeMap;

use engine::{
    extent::Extent,
    units::{Block, DiskIndex},
};

use super::record::{Key, Piece};

/// Pieces that do not overlap, in order.
#[derive(Clone, Debug, Default)]
pub struct Table {
    pieces: BTreeMap<Key, Piece>,
}

impl Table {
    /// Number of pieces: what its memory goes with.
    #[must_use]
    pub fn len(&self) -> usize {
        self.pieces.len()
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Adds what of `piece` is not there yet.
    pub fn add(&mut self, piece: &Piece) {
        let (disk, (start, end)) = (piece.disk(), (piece.extent.start, piece.extent.end()));
        let mut at = start.max(self.before(disk, start).map_or(start, |before| before.extent.end()));
        while at < end {
            let next = self.pieces.range((disk.0, at.0)..(disk.0, end.0)).next().map(|(_, next)| next.extent);
            if let Some(gap) = piece.within(at, next.map_or(end, |next| next.start)) {
                self.pieces.insert(gap.key(), gap);
            }
            at = next.map_or(end, Extent::end);
        }
    }

    /// What there is of blocks `start..end`, cut to them, in order.
    pub fn find(&self, disk: DiskIndex, start: Block, end: Block) -> Vec<Piece> {
        let later = self.pieces.range((disk.0, start.0)..(disk.0, end.0)).map(|(_, piece)| piece);
        let before = self.before(disk, start).filter(|before| before.extent.start < start);
        before.into_iter().chain(later).filter_map(|piece| piece.within(start, end)).collect()
    }

    /// All of them, in order; none are left.
    pub fn take(&mut self) -> impl Iterator<Item = Piece> + use<> {
        std::mem::take(&mut self.pieces).into_values()
    }

    /// The last piece of `disk` that begins at or before `block`.
    fn before(&self, disk: DiskIndex, block: Block) -> Option<&Piece> {
        self.pieces.range((disk.0, 0)..=(disk.0, block.0)).next_back().map(|(_, piece)| piece)
    }
}
