//! What a restore does at a time: runs of blocks of one disk, each read from the logs, compared with the disk, saved, and
//! written. When what happens, and what at once, is the pipeline's.

use std::thread;

use engine::{
    extent::Extent,
    io::{AlignedBuf, Op},
    limits,
    units::{BLOCK_BYTES, DiskIndex, is_zero},
};

use crate::{
    journal::{Cursor, IMAGE_BLOCKS, JournalError, Log, Mark, Piece, View, Watchers},
    replica::{ReplicaError, Target, disk_error, read_extents},
};

/// Bytes of one batch. Four are in memory at once, two of them with what they overwrite, and what is queued for the log.
const BATCH_BYTES: u64 = 16 << 20;

/// Blocks that are written at once.
const CHUNK_BLOCKS: u32 = (limits::IO_BYTES as u64 / BLOCK_BYTES) as u32;

/// Threads that read images.
const READERS: usize = 4;

/// Blocks that lie one behind the other, and what they shall hold.
struct Chunk {
    extent: Extent,
    /// `None`: zeros.
    bytes: Option<AlignedBuf>,
    pieces: Vec<Piece>,
}

/// Chunks of one disk.
pub(super) struct Batch {
    pub(super) disk: u16,
    chunks: Vec<Chunk>,
    /// Bytes that are not zeros.
    bytes: u64,
    /// Bytes of all blocks.
    pub(super) span: u64,
    /// The block behind the last.
    pub(super) end: u64,
}

/// A view's pieces from a place on, in batches.
pub(super) struct Batches {
    cursor: Cursor,
    next: Option<Piece>,
}

impl Batches {
    pub(super) fn new(view: &View, from: Option<Mark>) -> Result<Self, JournalError> {
        let from = from.map_or((0, 0), |mark| (mark.disk, mark.block));
        let mut cursor = view.pieces_from(from)?;
        Ok(Self { next: cursor.next()?, cursor })
    }

    fn batch(&mut self) -> Result<Option<Batch>, JournalError> {
        let Some(first) = self.next else { return Ok(None) };
        let mut batch = Batch { disk: first.disk().0, chunks: Vec::new(), bytes: 0, span: 0, end: 0 };
        while let Some(piece) = self.next.filter(|piece| piece.disk().0 == batch.disk) {
            if batch.bytes >= BATCH_BYTES || batch.chunks.len() >= limits::FRAME_EXTENTS {
                break;
            }
            batch.push(piece);
            self.next = self.cursor.next()?;
        }
        Ok(Some(batch))
    }
}

impl Iterator for Batches {
    type Item = Result<Batch, JournalError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.batch().transpose()
    }
}

impl Batch {
    /// Where its images are.
    pub(super) fn pieces(&self) -> impl Iterator<Item = &Piece> {
        self.chunks.iter().flat_map(|chunk| &chunk.pieces)
    }

    fn push(&mut self, piece: Piece) {
        let bytes = piece.extent.bytes();
        (self.span, self.end) = (self.span + bytes, piece.extent.end().0);
        self.bytes += if piece.image.zeros { 0 } else { bytes };
        if let Some(last) = self.chunks.last_mut()
            && last.extent.end() == piece.extent.start
            && last.extent.blocks + piece.extent.blocks <= CHUNK_BLOCKS
            && last.is_zeros() == piece.image.zeros
        {
            last.extent.blocks += piece.extent.blocks;
            last.pieces.push(piece);
            return;
        }
        self.chunks.push(Chunk { extent: piece.extent, bytes: None, pieces: vec![piece] });
    }
}

impl Batch {
    /// Reads the images, in the order in which they lie in their logs.
    pub(super) fn read(&mut self, view: &View) -> Result<(), JournalError> {
        let with_bytes = self.chunks.iter_mut().filter(|chunk| !chunk.is_zeros());
        let mut wanted: Vec<(&Piece, &mut [u8])> = Vec::new();
        for chunk in with_bytes {
            let mut rest = &mut chunk.bytes.insert(AlignedBuf::zeroed(chunk.extent.bytes() as usize))[..];
            for piece in &chunk.pieces {
                let (bytes, later) = rest.split_at_mut(piece.extent.bytes() as usize);
                wanted.push((piece, bytes));
                rest = later;
            }
        }
        wanted.sort_unstable_by_key(|(piece, _)| (piece.log, piece.image.at));
        let share = wanted.len().div_ceil(READERS).max(1);
        thread::scope(|scope| {
            let read = |part: &mut [(&Piece, &mut [u8])]| {
                part.iter_mut().try_for_each(|(piece, bytes)| view.read_into(piece, bytes))
            };
            let mut parts = wanted.chunks_mut(share);
            let Some(first) = parts.next() else { return Ok(()) };
            let others: Vec<_> = parts.map(|part| scope.spawn(move || read(part))).collect();
            let first = read(first);
            let others = others.into_iter().map(|other| {
                let ended = || JournalError::Refused("a thread that read before-images has panicked".into());
                other.join().unwrap_or_else(|_| Err(ended()))
            });
            others.fold(first, Result::and)
        })
    }

    /// Reads what will be overwritten, and leaves out what would not change.
    pub(super) fn look(mut self, targets: &[Target]) -> Result<Changes, ReplicaError> {
        let target = &targets[usize::from(self.disk)];
        let old = read_extents(target, self.chunks.iter().map(|chunk| chunk.extent))?;
        let chunks = std::mem::take(&mut self.chunks).into_iter();
        let (chunks, old) = chunks.zip(old).filter(|(chunk, old)| !chunk.is(old)).unzip();
        self.chunks = chunks;
        Ok(Changes { batch: self, old })
    }

    pub(super) fn write(self, target: &Target) -> Result<(), ReplicaError> {
        let mut ops = self.chunks.into_iter().map(|chunk| {
            let (offset, len) = (chunk.extent.offset(), chunk.extent.bytes_within(target.bytes));
            match chunk.bytes {
                Some(mut bytes) => {
                    bytes.truncate(len as usize);
                    Op::write(offset, bytes, 0)
                }
                None if target.thin => Op::zero(offset, len, 0),
                None => Op::write(offset, AlignedBuf::zeroed(len as usize), 0),
            }
        });
        let mut result = Ok(());
        target.device.run(&mut ops, &mut |op, outcome| {
            if let Err(error) = outcome {
                result = Err(disk_error("write", target, op.offset, error));
            }
        });
        result
    }
}

/// A batch, and what its chunks overwrite.
pub(super) struct Changes {
    batch: Batch,
    old: Vec<AlignedBuf>,
}

impl Changes {
    /// Saves what will be overwritten.
    pub(super) fn save(self, watchers: &Watchers, log: &mut Log) -> Result<Batch, ReplicaError> {
        let Self { batch, old } = self;
        let mut images = Vec::new();
        for (chunk, old) in batch.chunks.iter().zip(&old) {
            let from = chunk.extent.offset();
            for extent in chunk.extent.pieces(IMAGE_BLOCKS) {
                let bytes = &old[(extent.offset() - from) as usize..][..extent.bytes() as usize];
                images.push(log.push_image(DiskIndex(batch.disk), extent, bytes));
            }
        }
        if !images.is_empty() {
            log.sync()?;
            log.wont_read();
            watchers.saved(&images, log.file().id());
        }
        Ok(batch)
    }
}

impl Chunk {
    /// Whether it shall be zeros. Its pieces are of one kind.
    fn is_zeros(&self) -> bool {
        self.pieces.first().is_some_and(|piece| piece.image.zeros)
    }

    /// Whether the blocks hold already what they shall hold.
    fn is(&self, old: &[u8]) -> bool {
        match &self.bytes {
            Some(bytes) => bytes[..] == *old,
            None => is_zero(old),
        }
    }
}
