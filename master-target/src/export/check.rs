//! Reads an export again, as any other program would, and computes the root of the disk in it.

use std::{fs::File, os::unix::fs::FileExt};

use engine::{
    digest::{LEAF_BYTES, RootBuilder, leaf_digest, leaves_in, zero_leaf},
    units::{Digest, is_zero},
};

use super::{
    error::ExportError,
    format::{Format, GoOn},
    limits::PIECE_BYTES,
    output::Output,
    pipeline::in_order,
};
use crate::vmdk::sparse::SparseDisk;

/// The root of the disk of `bytes` in `file`.
pub(super) fn root(
    format: Format,
    output: &Output<'_>,
    file: &File,
    bytes: u64,
    go_on: &mut GoOn<'_>,
) -> Result<Digest, ExportError> {
    match format {
        Format::Raw => root_of(bytes, go_on, &|leaf, buf| {
            buf.resize(leaf_bytes(leaf, bytes), 0);
            file.read_exact_at(buf, leaf * LEAF_BYTES)
                .map_err(|source| output.error("read again", source))?;
            Ok(digest(buf))
        }),
        Format::StreamOptimized => {
            let disk = SparseDisk::open(output.name(), file)?;
            if disk.grain_bytes() != LEAF_BYTES || disk.capacity().bytes() < bytes {
                return Err(ExportError::Reshaped { name: output.name().clone() });
            }
            root_of(bytes, go_on, &|leaf, buf| {
                let len = leaf_bytes(leaf, bytes);
                let stored = disk.read_grain(leaf, buf)?;
                Ok(stored.map_or_else(|| zeros(len), |grain| digest(&grain[..len])))
            })
        }
    }
}

/// Digest of the leaf of this number; a buffer to read it into is given.
type DigestOf<'a> = dyn Fn(u64, &mut Vec<u8>) -> Result<Digest, ExportError> + Sync + 'a;

/// The root of a disk of `bytes`, from the digest of each leaf.
fn root_of(bytes: u64, go_on: &mut GoOn<'_>, leaf_digest: &DigestOf<'_>) -> Result<Digest, ExportError> {
    const LEAVES: u64 = PIECE_BYTES / LEAF_BYTES;
    let work = |piece: u64| {
        let mut buf = Vec::new();
        let leaves = piece * LEAVES..leaves_in(bytes).min((piece + 1) * LEAVES);
        leaves.map(|leaf| leaf_digest(leaf, &mut buf)).collect::<Result<Vec<Digest>, _>>()
    };
    let mut root = RootBuilder::new(bytes);
    in_order(bytes.div_ceil(PIECE_BYTES), &work, &mut |piece, leaves| {
        leaves.into_iter().for_each(|leaf| root.push(leaf));
        let done = bytes.min((piece + 1) * PIECE_BYTES);
        if go_on("checking", done, bytes) { Ok(()) } else { Err(ExportError::Interrupted) }
    })?;
    Ok(root.finish()?)
}

fn leaf_bytes(leaf: u64, bytes: u64) -> usize {
    LEAF_BYTES.min(bytes - leaf * LEAF_BYTES) as usize
}

/// Digest of a leaf's bytes. Whether they are zeros is quicker found out than computed.
pub(super) fn digest(leaf: &[u8]) -> Digest {
    if is_zero(leaf) { zeros(leaf.len()) } else { leaf_digest(leaf) }
}

/// Digest of a leaf of so many zeros.
fn zeros(len: usize) -> Digest {
    if len as u64 == LEAF_BYTES { zero_leaf() } else { leaf_digest(&vec![0; len]) }
}
