//! A piece of a disk, read, digested, and made into what a file has of it.

use engine::{
    digest::LEAF_BYTES,
    units::{BLOCK_BYTES, Digest, is_zero},
};

use super::{check::digest, error::ExportError, format::Format, limits::PIECE_BYTES};
use crate::{
    image::Image,
    vmdk::stream_optimized::{GRAIN_BYTES, GrainWriter},
};

/// What a file has of a piece, and what is known of it.
pub(super) struct Piece {
    /// Digest of each of its leaves.
    pub(super) leaves: Vec<Digest>,
    /// What is stored, in order.
    pub(super) parts: Vec<Part>,
    /// Bytes that were not known to be zeros before they were read.
    pub(super) read: u64,
    /// Bytes of the disk that `parts` hold.
    pub(super) data: u64,
}

/// Something that is stored.
pub(super) struct Part {
    /// Raw: bytes from the beginning of the disk. StreamOptimized: number of the grain.
    pub(super) at: u64,
    /// As in the file.
    pub(super) bytes: Vec<u8>,
}

/// Reads piece number `piece` of `disk`.
pub(super) fn read(disk: &dyn Image, format: Format, piece: u64) -> Result<Piece, ExportError> {
    let start = piece * PIECE_BYTES;
    let len = PIECE_BYTES.min(disk.bytes() - start);
    let (mut buf, mut read, mut at) = (vec![0; len as usize], 0, start);
    for (len, zeros) in disk.holes(start, len)? {
        if !zeros {
            disk.read_at(at, &mut buf[(at - start) as usize..][..len as usize])?;
            read += len;
        }
        at += len;
    }
    let leaves = buf.chunks(LEAF_BYTES as usize).map(digest).collect();
    let (parts, data) = match format {
        _ if read == 0 => (Vec::new(), 0),
        Format::Raw => runs(start, &buf),
        Format::StreamOptimized => grains(start, &buf),
    };
    Ok(Piece { leaves, parts, read, data })
}

/// Runs of blocks that are not zeros.
fn runs(start: u64, buf: &[u8]) -> (Vec<Part>, u64) {
    let mut parts: Vec<Part> = Vec::new();
    let mut data = 0;
    for (block, at) in buf.chunks(BLOCK_BYTES as usize).zip((start..).step_by(BLOCK_BYTES as usize)) {
        if is_zero(block) {
            continue;
        }
        data += block.len() as u64;
        match parts.last_mut() {
            Some(part) if part.at + part.bytes.len() as u64 == at => part.bytes.extend(block),
            _ => parts.push(Part { at, bytes: block.to_vec() }),
        }
    }
    (parts, data)
}

/// Grains that are not zeros, compressed; the last of a disk is filled up with zeros.
fn grains(start: u64, buf: &[u8]) -> (Vec<Part>, u64) {
    let mut writer = GrainWriter::new();
    let mut parts = Vec::new();
    let mut data = 0;
    for (grain, bytes) in (start / GRAIN_BYTES as u64..).zip(buf.chunks(GRAIN_BYTES)) {
        if is_zero(bytes) {
            continue;
        }
        data += bytes.len() as u64;
        let record = if bytes.len() == GRAIN_BYTES {
            writer.compress(grain, bytes)
        } else {
            let mut whole = bytes.to_vec();
            whole.resize(GRAIN_BYTES, 0);
            writer.compress(grain, &whole)
        };
        parts.push(Part { at: grain, bytes: record });
    }
    (parts, data)
}

const _: () = assert!(PIECE_BYTES.is_multiple_of(GRAIN_BYTES as u64) && GRAIN_BYTES as u64 == LEAF_BYTES);
