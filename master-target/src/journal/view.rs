//! The disks as they were at a point: for every block that changed since, the oldest before-image.
//!
//! Layers are read oldest first, and within a layer in the order of time; the first image of a block wins. Blocks
//! without an image have not changed, and are on the disk as they were.

use std::{path::Path, sync::Arc};

use engine::{
    extent::Extent,
    extent_set::ExtentSet,
    io::Storage,
    units::{Block, DiskIndex},
};

use super::{Image, JournalError, State, log::LogFile, overlay::Found, recover::read_log};

/// A run of blocks and where its bytes of that point are.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    /// Which blocks.
    pub extent: Extent,
    log: u32,
    image: Image,
}

/// Where the changed blocks of each disk were at a point.
pub struct View {
    logs: Vec<Arc<LogFile>>,
    /// By disk, in order of blocks.
    pieces: Vec<Vec<Piece>>,
}

impl View {
    /// The disks at the end of layer `to`, from the logs of all later layers.
    pub fn at(storage: &Arc<dyn Storage>, dir: &Path, state: &State, to: u64) -> Result<Self, JournalError> {
        if to < state.oldest {
            let oldest = state.oldest;
            return Err(JournalError::Refused(format!("layer {to} is older than the oldest kept, {oldest}")));
        }
        let disks = state.stream.disks.len();
        let mut view = Self { logs: Vec::new(), pieces: vec![Vec::new(); disks] };
        let mut claimed = vec![ExtentSet::new(); disks];
        for layer in to + 1..=state.newest_layer() {
            let Some((log, scan)) = read_log(storage, dir, state, layer)? else { continue };
            let number = view.logs.len() as u32;
            for image in scan.images {
                let disk = usize::from(image.disk.0);
                let Some(claimed) = claimed.get_mut(disk) else { continue };
                let extent = image.extent;
                for gap in claimed.gaps(extent.start, extent.end()) {
                    view.pieces[disk].push(Piece { extent: gap, log: number, image });
                }
                claimed.insert_extent(extent);
            }
            view.logs.push(Arc::clone(log.file()));
        }
        view.pieces.iter_mut().for_each(|pieces| pieces.sort_unstable_by_key(|piece| piece.extent));
        Ok(view)
    }

    /// Runs of `disk` that differ from the newest state, or may, in order.
    #[must_use]
    pub fn pieces(&self, disk: DiskIndex) -> &[Piece] {
        self.pieces.get(usize::from(disk.0)).map_or(&[], Vec::as_slice)
    }

    /// Bytes of all such runs of all disks.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.pieces.iter().flatten().map(|piece| piece.extent.bytes()).sum()
    }

    /// Reads every piece once, to find damage before it is in the way. The error names the place.
    pub fn check(&self) -> Result<(), JournalError> {
        self.pieces.iter().flatten().try_for_each(|piece| self.read(piece).map(drop))
    }

    /// The bytes of a piece at the point, checked.
    pub fn read(&self, piece: &Piece) -> Result<Vec<u8>, JournalError> {
        self.found(piece, piece.extent).read()
    }

    /// What of the blocks `start..end` has changed since the point, in order.
    pub(crate) fn find(&self, disk: DiskIndex, start: Block, end: Block) -> Vec<Found> {
        let pieces = self.pieces(disk);
        let first = pieces.partition_point(|piece| piece.extent.end() <= start);
        let within = pieces[first..].iter().take_while(|piece| piece.extent.start < end);
        let cut = within.map(|piece| {
            let (from, to) = (piece.extent.start.max(start), piece.extent.end().min(end));
            self.found(piece, Extent { start: from, blocks: (to.0 - from.0) as u32 })
        });
        cut.collect()
    }

    fn found(&self, piece: &Piece, extent: Extent) -> Found {
        Found::new(extent, piece.image, Arc::clone(&self.logs[piece.log as usize]))
    }
}
