//! Pre-copy: reads what is dirty while it may be written, a batch at a time, in disk order.
//!
//! What it reads may be of no one instant and even torn: such a block is marked in the active generation, so that a later
//! round or the barrier reads it anew. The caller asks [`crate::tracker::Tracker::may_read`] first. Its order is a cursor over all disks; it reads
//! each block at most once in a pass, however hot.
//!
//! Between a batch's reading and its sealing no marks may be taken (see docs/barrier.md, rule 3).

use std::io;

use engine::{
    digest::{LEAF_BYTES, LeafMap, blocks_of},
    extent::Extent,
    extent_set::ExtentSet,
    io::{AlignedBuf, Op},
    limits,
    units::{BLOCK_BYTES, Block, DiskIndex, blocks_in},
};

use super::{
    CaptureError, Source,
    contents::{Contents, FrameContent},
};

/// Bytes read for one batch; they are in memory as read and again as contents.
pub const BATCH: u64 = 4 << 20;

/// Blocks of one read.
pub(crate) const READ_BLOCKS: u32 = (limits::IO_BYTES as u64 / BLOCK_BYTES) as u32;

/// Where a pass over the disks stands.
#[derive(Debug, Default)]
pub struct Precopy {
    disk: DiskIndex,
    next: Block,
}

/// What one batch gave.
#[derive(Debug, Default)]
pub struct Batch {
    /// For the packer, in order.
    pub contents: Vec<FrameContent>,
    /// Bytes read, as a measure of progress.
    pub bytes: u64,
    /// The first read that failed. Its blocks are in no content and stay dirty; the pass goes on behind them.
    pub error: Option<CaptureError>,
}

impl Precopy {
    /// Reads the next batch of dirty blocks; `None` when the pass is over, and the next call begins a new one.
    /// A new pass must not begin while contents of the last are unsealed: they are still dirty.
    /// The leaves in `without`, a map for each disk or none at all, which are whole granules, are left out.
    pub fn batch(&mut self, source: &mut Source, without: &[LeafMap]) -> Option<Batch> {
        while usize::from(self.disk.0) < source.disks.len() {
            let without = without.get(usize::from(self.disk.0));
            let size = source.disk(self.disk).size();
            // So that a large part of a disk that is left out costs nothing.
            let from = without.map_or(self.next, |without| first_outside(without, self.next, size));
            let dirty = &source.tracker.maps(self.disk).dirty;
            // Beyond the end there may be more of the last granule.
            let found = match from.0 < blocks_in(size) {
                true => dirty.collect(from, BATCH / BLOCK_BYTES),
                false => ExtentSet::new(),
            };
            let Some(last) = found.extents().last() else {
                *self = Self { disk: DiskIndex(self.disk.0 + 1), next: Block(0) };
                continue;
            };
            self.next = last.end();
            let found = match without {
                Some(without) => outside(&found, without, size),
                None => found,
            };
            if found.is_empty() {
                continue;
            }
            let pieces: Vec<Extent> = found.extents().flat_map(|run| run.pieces(READ_BLOCKS)).collect();
            return Some(read(source, self.disk, &pieces));
        }
        *self = Self::default();
        None
    }
}

/// The first block from `from` on that is in no leaf of `without`.
fn first_outside(without: &LeafMap, from: Block, disk_bytes: u64) -> Block {
    let leaf = from.offset() / LEAF_BYTES;
    match without.next_absent(leaf) {
        absent if absent > leaf => blocks_of(absent, disk_bytes).start,
        _ => from,
    }
}

/// The blocks of `found` that are in no leaf of `without`.
fn outside(found: &ExtentSet, without: &LeafMap, disk_bytes: u64) -> ExtentSet {
    let mut outside = ExtentSet::new();
    for run in found.extents() {
        let mut at = run.start;
        while at < run.end() {
            at = first_outside(without, at, disk_bytes);
            let leaf = at.offset() / LEAF_BYTES;
            let next = without.next(leaf).map_or(run.end(), |next| blocks_of(next, disk_bytes).start);
            let end = next.min(run.end());
            outside.insert(at, end);
            at = end.max(at);
        }
    }
    outside
}

/// Reads ascending pieces of a disk and makes contents of them.
fn read(source: &mut Source, disk: DiskIndex, pieces: &[Extent]) -> Batch {
    let device = source.disks[usize::from(disk.0)].clone();
    let mut read: Vec<Option<AlignedBuf>> = pieces.iter().map(|_| None).collect();
    let mut batch = Batch::default();
    let mut ops = pieces.iter().zip(0..).map(|(piece, tag)| read_op(*piece, device.size(), tag));
    device.run(&mut ops, &mut |op, outcome| match outcome {
        Ok(()) => read[op.tag as usize] = Some(op.buf),
        Err(source) => {
            batch.error.get_or_insert(read_error(device.name(), op.offset, source));
        }
    });

    let granule = granule_blocks(source, disk);
    let mut contents = Contents::new(disk, granule);
    for (piece, bytes) in pieces.iter().zip(read) {
        let Some(bytes) = bytes else { continue };
        source.tracker.note_read(disk, piece.start, &bytes);
        batch.bytes += bytes.len() as u64;
        contents.add(piece.start, &bytes, &mut batch.contents);
    }
    contents.finish(&mut batch.contents);
    batch
}

/// Blocks of one granule of a disk's dirty map. Divides [`READ_BLOCKS`], so that pieces are whole granules.
pub(crate) fn granule_blocks(source: &Source, disk: DiskIndex) -> usize {
    1 << source.tracker.maps(disk).dirty.granularity().shift
}

pub(crate) fn read_op(piece: Extent, disk_bytes: u64, tag: u64) -> Op {
    Op::read(piece.offset(), piece.bytes_within(disk_bytes) as usize, tag)
}

pub(crate) fn read_error(disk: &str, offset: u64, source: io::Error) -> CaptureError {
    CaptureError::Read { disk: disk.into(), offset, source }
}

/// Blocks of the largest granule, that of the largest disk.
const LARGEST_GRANULE: u64 =
    (limits::DISK_BYTES / BLOCK_BYTES).div_ceil(limits::DIRTY_MAP_BYTES * 8).next_power_of_two();
const _: () = assert!((READ_BLOCKS as u64).is_multiple_of(LARGEST_GRANULE));
