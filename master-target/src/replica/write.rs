//! What batches and restores do with disks: saving before-images, and writing extents, many operations in flight.

use engine::{
    extent::Extent,
    extent_set::ExtentSet,
    io::{AlignedBuf, Op},
    limits,
    units::{BLOCK_BYTES, DiskIndex},
};

use super::{ReplicaError, Target, disk_error};
use crate::journal::{IMAGE_BLOCKS, Image, Log, Saved, Watchers};

/// Before-images that are in memory at once.
const IMAGE_BYTES: u64 = 4 << 20;

/// Appends images of what `touched` holds and `saved` does not, syncs, adds it to `saved` and tells `watchers`.
pub(crate) fn save_images(
    log: &mut Log,
    targets: &[Target],
    touched: &[ExtentSet],
    saved: &mut Saved,
    watchers: &Watchers,
) -> Result<(), ReplicaError> {
    let mut missing = Vec::new();
    for (at, touched) in touched.iter().enumerate() {
        for extent in touched.extents() {
            let gaps = saved.gaps(at, extent);
            missing
                .extend(gaps.into_iter().flat_map(|gap| gap.pieces(IMAGE_BLOCKS)).map(|piece| (at, piece)));
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    let mark = log.mark();
    match read_and_append(log, targets, &missing) {
        Ok(images) => watchers.saved(&images, log.file().id()),
        Err(error) => {
            log.give_back(mark)?;
            return Err(error);
        }
    }
    missing.into_iter().for_each(|(at, extent)| saved.add(at, extent));
    Ok(())
}

fn read_and_append(
    log: &mut Log,
    targets: &[Target],
    missing: &[(usize, Extent)],
) -> Result<Vec<Image>, ReplicaError> {
    let mut appended = Vec::with_capacity(missing.len());
    for chunk in chunks(missing) {
        let (disk, target) = (DiskIndex(chunk[0].0 as u16), &targets[chunk[0].0]);
        let images = read_extents(target, chunk.iter().map(|(_, extent)| *extent))?;
        for ((_, extent), bytes) in chunk.iter().zip(images) {
            appended.push(log.push_image(disk, *extent, &bytes));
        }
        log.flush()?;
    }
    log.sync()?;
    Ok(appended)
}

/// Reads extents, each as whole blocks: what lies beyond the end of the disk is zeros.
pub(crate) fn read_extents(
    target: &Target,
    extents: impl Iterator<Item = Extent> + Clone,
) -> Result<Vec<AlignedBuf>, ReplicaError> {
    let mut images: Vec<AlignedBuf> = extents.clone().map(|_| AlignedBuf::default()).collect();
    let mut ops = extents.enumerate().map(|(index, extent)| {
        Op::read(extent.offset(), extent.bytes_within(target.bytes) as usize, index as u64)
    });
    let mut result = Ok(());
    target.device.run(&mut ops, &mut |op, outcome| match outcome {
        // The end of a disk may lie within a block.
        Ok(()) if !op.buf.len().is_multiple_of(BLOCK_BYTES as usize) => {
            let mut whole = AlignedBuf::zeroed(op.buf.len().next_multiple_of(BLOCK_BYTES as usize));
            whole[..op.buf.len()].copy_from_slice(&op.buf);
            images[op.tag as usize] = whole;
        }
        Ok(()) => images[op.tag as usize] = op.buf,
        Err(error) => result = Err(disk_error("read", target, op.offset, error)),
    });
    result.map(|()| images)
}

/// Cuts `pieces` into runs on one disk of at most [`IMAGE_BYTES`].
fn chunks(pieces: &[(usize, Extent)]) -> impl Iterator<Item = &[(usize, Extent)]> {
    let mut bytes = 0;
    pieces.chunk_by(move |before, next| {
        bytes += before.1.bytes();
        let together = before.0 == next.0 && bytes + next.1.bytes() <= IMAGE_BYTES;
        if !together {
            bytes = 0;
        }
        together
    })
}

/// Writes extents that do not overlap: bytes of whole blocks, or `None` for zeros. Not durable before a sync.
pub(crate) fn write_extents<'a>(
    target: &Target,
    extents: impl Iterator<Item = (Extent, Option<&'a [u8]>)>,
) -> Result<(), ReplicaError> {
    const PIECE: u32 = (limits::IO_BYTES as u64 / BLOCK_BYTES) as u32;
    let mut ops = extents.flat_map(|(extent, bytes)| {
        // A hole may be made in one go; bytes are copied into buffers a piece at a time.
        let piece = if bytes.is_none() && target.thin { extent.blocks } else { PIECE };
        extent.pieces(piece).map(move |piece| {
            let (offset, len) = (piece.offset(), piece.bytes_within(target.bytes));
            match bytes {
                Some(bytes) => {
                    let from = (offset - extent.offset()) as usize;
                    Op::write(offset, AlignedBuf::copy_of(&bytes[from..][..len as usize]), 0)
                }
                None if target.thin => Op::zero(offset, len, 0),
                None => Op::write(offset, AlignedBuf::zeroed(len as usize), 0),
            }
        })
    });
    let mut result = Ok(());
    target.device.run(&mut ops, &mut |op, outcome| {
        if let Err(error) = outcome {
            result = Err(disk_error("write", target, op.offset, error));
        }
    });
    result
}
