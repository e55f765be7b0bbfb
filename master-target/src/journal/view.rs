//! The disks as they were at a point: for every block that changed since, the oldest before-image.
//!
//! Layers are read oldest first, and within a layer in the order of time; the first image of a block wins. Blocks
//! without an image have not changed, and are on the disk as they were. Memory is bounded, however long the way back.

use std::sync::Arc;

use engine::units::{Block, DiskIndex, blocks_in};

use super::{Cursor, Gatherer, JournalError, Key, Lease, Logs, Piece, Sorted, State, entry::Malformed};

/// Where the changed blocks of each disk were at a point. While it lives, the logs stay that it needs.
pub struct View {
    logs: Arc<Logs>,
    sorted: Sorted,
    _lease: Lease,
}

impl View {
    /// The disks at the end of layer `to`, from the logs of all later layers.
    pub fn at(logs: &Arc<Logs>, state: &State, to: u64) -> Result<Self, JournalError> {
        Self::between(logs, state, to, state.newest_layer())
    }

    /// What leads from the end of layer `from` back to the end of layer `to`.
    pub fn between(logs: &Arc<Logs>, state: &State, to: u64, from: u64) -> Result<Self, JournalError> {
        if to < state.oldest {
            let oldest = state.oldest;
            return Err(JournalError::Refused(format!("layer {to} is older than the oldest kept, {oldest}")));
        }
        if state.boundary(to) != to {
            let what = format!("layer {to} is no point any more: it was merged with what follows");
            return Err(JournalError::Refused(what));
        }
        let lease = logs.lease();
        let mut gatherer = Gatherer::new(&logs.scratch, &logs.bounds);
        for layer in state.layers.values().filter(|layer| layer.first > to && layer.last <= from) {
            logs.gather(layer, &mut gatherer)?;
        }
        for (id, bytes) in state.unlayered() {
            if id.layer > to && id.layer <= from {
                logs.gather_log(id, bytes, &mut gatherer)?;
            }
        }
        let view = Self { logs: Arc::clone(logs), sorted: gatherer.finish()?, _lease: lease };
        view.check_places(state)?;
        Ok(view)
    }

    /// Checksums do not keep what never was right: no image may be of blocks that the VM's disks do not have.
    fn check_places(&self, state: &State) -> Result<(), JournalError> {
        let damaged = |piece: &Piece, what| {
            let path = piece.log.path(&self.logs.dir);
            Err(JournalError::Damaged { path, at: piece.image.at, what: Malformed::Nonsense(what) })
        };
        for (disk, info) in (0..).zip(&state.stream.disks) {
            match self.sorted.from((disk, blocks_in(info.bytes)))?.next()? {
                Some(piece) if piece.disk().0 == disk => {
                    return damaged(&piece, "an image of blocks beyond the end of its disk");
                }
                _ => {}
            }
        }
        match self.sorted.from((state.stream.disks.len() as u16, 0))?.next()? {
            Some(piece) => damaged(&piece, "an image of a disk that the VM does not have"),
            None => Ok(()),
        }
    }

    /// Runs that differ from the newest state, or may, in order of place.
    pub fn pieces(&self) -> impl Iterator<Item = Result<Piece, JournalError>> {
        let mut cursor = self.sorted.cursor();
        std::iter::from_fn(move || cursor.next().transpose())
    }

    /// The same, from a place on.
    pub(crate) fn pieces_from(&self, key: Key) -> Result<Cursor, JournalError> {
        self.sorted.from(key)
    }

    /// Bytes of all such runs of all disks.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.sorted.bytes()
    }

    /// Number of them.
    #[must_use]
    pub fn runs(&self) -> u64 {
        self.sorted.records()
    }

    /// The bytes of a piece at the point, checked.
    pub fn read(&self, piece: &Piece) -> Result<Vec<u8>, JournalError> {
        let mut bytes = vec![0; piece.extent.bytes() as usize];
        self.logs.read_into(piece, &mut bytes)?;
        Ok(bytes)
    }

    /// The same, into `bytes`, which are as many.
    pub(crate) fn read_into(&self, piece: &Piece, bytes: &mut [u8]) -> Result<(), JournalError> {
        self.logs.read_into(piece, bytes)
    }

    /// Tells the logs' files that these are about to be read. Nothing depends on it.
    pub(crate) fn will_read<'a>(&self, pieces: impl Iterator<Item = &'a Piece>) {
        /// Bytes between two images that are read along.
        const GAP: u64 = 64 << 10;
        let mut wanted: Vec<&Piece> = pieces.filter(|piece| !piece.image.zeros).collect();
        wanted.sort_unstable_by_key(|piece| (piece.log, piece.image.at));
        let end = |piece: &Piece| piece.image.at + piece.image.extent.bytes();
        for run in wanted.chunk_by(|a, b| a.log == b.log && b.image.at <= end(a) + GAP) {
            let (first, last) = (run[0], run[run.len() - 1]);
            self.logs.will_read(first.log, first.image.at, end(last));
        }
    }

    /// What of the blocks `start..end` has changed since the point, in order.
    pub(crate) fn find(&self, disk: DiskIndex, start: Block, end: Block) -> Result<Vec<Piece>, JournalError> {
        self.sorted.find(disk, start, end)
    }
}
