//! The way back, as fast as disks allow: three stages at once, each a batch ahead of the next.
//!
//! One thread reads before-images from the logs, ahead and many at once; one reads what they will overwrite, appends it
//! to the restore's own log and syncs; one writes the disks, many operations in flight. Nothing is written before what
//! it overwrites is synced, and a mark is set only when everything before it is. Blocks that are as they should be are
//! left alone.

use std::thread;

use crossbeam_channel::{Receiver, Sender, bounded};
use engine::{
    extent::Extent,
    io::{AlignedBuf, Op},
    limits,
    units::{BLOCK_BYTES, DiskIndex},
};

use crate::{
    journal::{IMAGE_BLOCKS, JournalError, Log, Mark, Piece, View, Watchers},
    replica::{ReplicaError, Target, disk_error, read_extents},
};

/// Bytes of one batch; up to six are in memory at once.
const BATCH_BYTES: u64 = 16 << 20;

/// Blocks that are written at once.
const CHUNK_BLOCKS: u32 = (limits::IO_BYTES as u64 / BLOCK_BYTES) as u32;

/// Bytes from one mark to the next: what an interrupted restore looks at again.
const MARK_BYTES: u64 = 256 << 20;

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
struct Batch {
    disk: u16,
    chunks: Vec<Chunk>,
    /// Bytes that are not zeros.
    bytes: u64,
    /// Bytes of all blocks.
    span: u64,
    /// The block behind the last.
    end: u64,
}

/// What to follow, and what it touches.
pub(super) struct Way<'a> {
    pub(super) view: &'a View,
    pub(super) targets: &'a [Target],
    pub(super) watchers: &'a Watchers,
    /// Everything before is done.
    pub(super) from: Option<Mark>,
    /// Where what is overwritten is saved, if it is.
    pub(super) log: Option<&'a mut Log>,
}

/// Reads every image of a view once, to find damage before it is in the way. The error names the place.
pub(super) fn check(view: &View) -> Result<(), ReplicaError> {
    Batches::new(view, None)?.try_for_each(|batch| batch?.read(view).map_err(Into::into))
}

impl Way<'_> {
    /// Follows it to the end. `mark` is called when everything before a place is durable.
    pub(super) fn follow(
        self,
        progress: &mut dyn FnMut(u64, u64) -> bool,
        mark: &mut dyn FnMut(Mark) -> Result<(), ReplicaError>,
    ) -> Result<(), ReplicaError> {
        let Self { view, targets, watchers, from, log } = self;
        let batches = Batches::new(view, from)?;
        thread::scope(|scope| {
            // A stage ends when the one before it or behind it does.
            let (read, mut incoming) = bounded(1);
            scope.spawn(move || send_images(batches, view, &read));
            if let Some(log) = log {
                let (saved, outgoing) = bounded(1);
                let images = std::mem::replace(&mut incoming, outgoing);
                scope.spawn(move || send_saved(&images, targets, watchers, log, &saved));
            }
            write_all(incoming, targets, view.bytes(), progress, mark)
        })
    }
}

type Ready = Result<Batch, ReplicaError>;

fn send_images(batches: Batches, view: &View, read: &Sender<Ready>) {
    for batch in batches {
        let batch = batch.and_then(|mut batch| batch.read(view).map(|()| batch)).map_err(ReplicaError::from);
        let failed = batch.is_err();
        // A closed channel means that a later stage failed; it says so itself.
        if read.send(batch).is_err() || failed {
            return;
        }
    }
}

fn send_saved(
    images: &Receiver<Ready>,
    targets: &[Target],
    watchers: &Watchers,
    log: &mut Log,
    saved: &Sender<Ready>,
) {
    for batch in images {
        let batch = batch.and_then(|mut batch| batch.save(targets, watchers, log).map(|()| batch));
        let failed = batch.is_err();
        if saved.send(batch).is_err() || failed {
            return;
        }
    }
}

fn write_all(
    incoming: Receiver<Ready>,
    targets: &[Target],
    all: u64,
    progress: &mut dyn FnMut(u64, u64) -> bool,
    mark: &mut dyn FnMut(Mark) -> Result<(), ReplicaError>,
) -> Result<(), ReplicaError> {
    let sync = |disk: u16| {
        let target = &targets[usize::from(disk)];
        target.device.sync().map_err(|e| disk_error("sync", target, 0, e))
    };
    let (mut done, mut unmarked, mut current) = (0, 0, None);
    for batch in incoming {
        let batch = batch?;
        if let Some(before) = current.replace(batch.disk).filter(|before| *before != batch.disk) {
            sync(before)?;
        }
        let (disk, span, end) = (batch.disk, batch.span, batch.end);
        batch.write(&targets[usize::from(disk)])?;
        (done, unmarked) = (done + span, unmarked + span);
        let go_on = progress(done, all.max(done));
        if unmarked >= MARK_BYTES || !go_on {
            sync(disk)?;
            mark(Mark { disk, block: end })?;
            unmarked = 0;
        }
        if !go_on {
            return Err(ReplicaError::Interrupted);
        }
    }
    current.map_or(Ok(()), sync)
}

impl Batch {
    /// Reads the images, in the order in which they lie in their logs.
    fn read(&mut self, view: &View) -> Result<(), JournalError> {
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

    /// Saves what will be overwritten, and leaves out what would not change.
    fn save(&mut self, targets: &[Target], watchers: &Watchers, log: &mut Log) -> Result<(), ReplicaError> {
        let target = &targets[usize::from(self.disk)];
        let old = read_extents(target, self.chunks.iter().map(|chunk| chunk.extent))?;
        let mut images = Vec::new();
        let chunks = std::mem::take(&mut self.chunks);
        for (chunk, old) in chunks.into_iter().zip(old) {
            if chunk.is(&old) {
                continue;
            }
            let from = chunk.extent.offset();
            for extent in chunk.extent.pieces(IMAGE_BLOCKS) {
                let bytes = &old[(extent.offset() - from) as usize..][..extent.bytes() as usize];
                images.push(log.push_image(DiskIndex(self.disk), extent, bytes));
            }
            self.chunks.push(chunk);
        }
        log.sync()?;
        watchers.saved(&images, log.file().id());
        Ok(())
    }

    fn write(self, target: &Target) -> Result<(), ReplicaError> {
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

impl Chunk {
    /// Whether it shall be zeros. Its pieces are of one kind.
    fn is_zeros(&self) -> bool {
        self.pieces.first().is_some_and(|piece| piece.image.zeros)
    }

    /// Whether the blocks hold already what they shall hold.
    fn is(&self, old: &[u8]) -> bool {
        match &self.bytes {
            Some(bytes) => bytes[..] == *old,
            None => old.iter().all(|byte| *byte == 0),
        }
    }
}

/// A view's pieces from a place on, in batches.
struct Batches {
    cursor: crate::journal::Cursor,
    next: Option<Piece>,
}

impl Batches {
    fn new(view: &View, from: Option<Mark>) -> Result<Self, JournalError> {
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
