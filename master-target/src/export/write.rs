//! Writes a disk to a file, and reads it again.

use std::fs::File;

use engine::{digest::RootBuilder, units::Digest};
use serde::{Deserialize, Serialize};

use super::{
    check,
    error::ExportError,
    format::{Format, GoOn},
    limits::{LOOK_BYTES, PIECE_BYTES},
    output::Output,
    piece::{self, Part, Piece},
    pipeline::in_order,
};
use crate::{
    image::Image,
    vmdk::{geometry::Capacity, stream_optimized::StreamWriter},
};

/// What was written of a disk. Sizes are bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Written {
    /// As what.
    pub format: Format,
    /// Size of the disk at its source.
    pub disk_bytes: u64,
    /// Size of the disk in the file: whole MiB in a VMDK.
    pub capacity_bytes: u64,
    /// What of the disk is stored, in blocks of 4 KiB or grains of 64 KiB that are not zeros.
    pub data_bytes: u64,
    /// Length of the file.
    pub file_bytes: u64,
    /// Root of the disk's digest tree, as in a certificate of a proof.
    pub root: Digest,
    /// Whether the file was read again, and is as it should be: not if it is a stream.
    pub checked: bool,
}

/// Writes `disk` to `file`, a new file that is open to read and write, or a pipe (`is_stream`).
pub fn write(
    disk: &dyn Image,
    format: Format,
    file: &File,
    is_stream: bool,
    go_on: &mut GoOn<'_>,
) -> Result<Written, ExportError> {
    let disk_bytes = disk.bytes();
    let mut output = Output::new(file, is_stream);
    let mut layout = Layout::of(format, disk_bytes)?;
    let todo = data_bytes(disk, go_on)?;
    output.check_space(layout.bound(todo))?;

    let mut root = RootBuilder::new(disk_bytes);
    let (mut done, mut data_bytes) = (0, 0);
    let read = |number| piece::read(disk, format, number);
    in_order(disk_bytes.div_ceil(PIECE_BYTES), &read, &mut |_, piece: Piece| {
        piece.leaves.into_iter().for_each(|leaf| root.push(leaf));
        piece.parts.iter().try_for_each(|part| layout.put(part, &mut output))?;
        data_bytes += piece.data;
        done += piece.read;
        if go_on("exporting", done.min(todo), todo) { Ok(()) } else { Err(ExportError::Interrupted) }
    })?;
    let capacity_bytes = layout.finish(&mut output)?;
    let (root, file_bytes) = (root.finish()?, output.len());

    let again = output.written()?;
    if let Some(file) = again {
        let found = check::root(format, &output, file, disk_bytes, go_on)?;
        if found != root {
            return Err(ExportError::Different { name: output.name().clone(), root, found });
        }
    }
    let checked = again.is_some();
    Ok(Written { format, disk_bytes, capacity_bytes, data_bytes, file_bytes, root, checked })
}

/// Bytes of a disk that are not known to be zeros.
fn data_bytes(disk: &dyn Image, go_on: &mut GoOn<'_>) -> Result<u64, ExportError> {
    let mut data = 0;
    for start in (0..disk.bytes()).step_by(LOOK_BYTES as usize) {
        let holes = disk.holes(start, LOOK_BYTES.min(disk.bytes() - start))?;
        data += holes.iter().filter(|(_, zeros)| !zeros).map(|(len, _)| len).sum::<u64>();
        if !go_on("looking for data", start, disk.bytes()) {
            return Err(ExportError::Interrupted);
        }
    }
    Ok(data)
}

/// How a format lays a disk out in a file.
enum Layout {
    Raw {
        bytes: u64,
    },
    StreamOptimized {
        capacity: Capacity,
        writer: Box<StreamWriter>,
        /// What was not put yet.
        next: Vec<u8>,
    },
}

impl Layout {
    fn of(format: Format, bytes: u64) -> Result<Self, ExportError> {
        Ok(match format {
            Format::Raw => Self::Raw { bytes },
            Format::StreamOptimized => {
                let (capacity, mut next) = (Capacity::for_bytes(bytes)?, Vec::new());
                let writer = StreamWriter::begin(capacity, &mut rand::rng(), &mut next);
                Self::StreamOptimized { capacity, writer: Box::new(writer), next }
            }
        })
    }

    /// Bytes that a file of so much data takes at most.
    fn bound(&self, data: u64) -> u64 {
        match self {
            Self::Raw { .. } => data,
            // What cannot be compressed grows by a sector for a grain; tables and directory are a thousandth.
            Self::StreamOptimized { .. } => data + data / 64 + (1 << 20),
        }
    }

    fn put(&mut self, part: &Part, output: &mut Output<'_>) -> Result<(), ExportError> {
        match self {
            Self::Raw { .. } => output.put(part.at, &part.bytes),
            Self::StreamOptimized { writer, next, .. } => {
                writer.grain(part.at, &part.bytes, next)?;
                output.append(next)?;
                next.clear();
                Ok(())
            }
        }
    }

    /// Completes the file; how large the disk in it is.
    fn finish(self, output: &mut Output<'_>) -> Result<u64, ExportError> {
        match self {
            Self::Raw { bytes } => output.finish(bytes).map(|()| bytes),
            Self::StreamOptimized { capacity, writer, mut next } => {
                writer.finish(&mut next)?;
                output.append(&next)?;
                Ok(capacity.bytes())
            }
        }
    }
}
