//! What a data frame contains: an extent table, then the bytes of its extents packed together.
//!
//! Built by [`ContentBuilder`] on the sending side, checked once and read through [`Content`] on the other.
//! Extents ascend and do not overlap, so a frame never says two things about one block.

use std::ops::Range;

use super::{
    FrameError,
    header::{array, u32_at},
    layout::{COPY, EXTENT, copy_at, extent_at, extent_kind},
};
use crate::{
    extent::Extent,
    limits,
    units::{BLOCK_BYTES, Block, Digest, DiskIndex},
};

/// What an extent's blocks hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Payload<'a> {
    /// These bytes: whole blocks, a short last block of the disk padded with zeros.
    Data(&'a [u8]),
    /// Zeros.
    Zero,
    /// The bytes that the target has elsewhere.
    Copy {
        /// Disk to copy from.
        disk: DiskIndex,
        /// First block to copy from.
        from: Block,
        /// BLAKE3 of what must be found there.
        digest: Digest,
    },
}

/// Collects extents into the content of a frame.
#[derive(Debug, Default)]
pub struct ContentBuilder {
    table: Vec<u8>,
    data: Vec<u8>,
    end: Block,
}

impl ContentBuilder {
    /// Whether another `bytes` of data fit into a frame of the usual size.
    #[must_use]
    pub fn has_room(&self, bytes: usize) -> bool {
        (self.data.is_empty() || self.data.len() + bytes <= limits::FRAME_DATA_TARGET)
            && self.extents() < limits::FRAME_EXTENTS
    }

    /// Extents so far.
    #[must_use]
    pub fn extents(&self) -> usize {
        self.table.len() / EXTENT
    }

    /// Whether nothing has been added.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// Adds an extent, which must lie after those added before.
    ///
    /// # Panics
    /// If extents do not ascend or data is not `extent.bytes()` long: errors of the caller, not of input.
    pub fn push(&mut self, extent: Extent, payload: Payload<'_>) {
        assert!(extent.blocks > 0 && extent.start >= self.end, "extents must ascend");
        self.end = extent.end();
        let kind = match payload {
            Payload::Data(bytes) => {
                assert_eq!(bytes.len() as u64, extent.bytes(), "data must be whole blocks");
                self.data.extend_from_slice(bytes);
                extent_kind::DATA
            }
            Payload::Zero => extent_kind::ZERO,
            Payload::Copy { disk, from, digest } => {
                self.data.extend_from_slice(&from.0.to_le_bytes());
                self.data.extend_from_slice(&disk.0.to_le_bytes());
                self.data.extend_from_slice(&[0; copy_at::DIGEST - copy_at::RESERVED]);
                self.data.extend_from_slice(&digest.0);
                extent_kind::COPY
            }
        };
        self.table.extend_from_slice(&extent.start.0.to_le_bytes());
        self.table.extend_from_slice(&extent.blocks.to_le_bytes());
        self.table.extend_from_slice(&[kind, 0, 0, 0]);
    }

    /// The content: table and data; the number of extents stands in the header.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        self.table.append(&mut self.data);
        self.table
    }
}

/// The checked content of a data frame.
#[derive(Debug)]
pub struct Content {
    bytes: Vec<u8>,
    entries: Vec<(Extent, u8, Range<usize>)>,
}

impl Content {
    /// Checks `bytes` as a content with `extents` extents.
    pub fn parse(bytes: Vec<u8>, extents: u32) -> Result<Self, FrameError> {
        let malformed = |what| Err(FrameError::Malformed(what));
        let table_len = extents as usize * EXTENT;
        if bytes.len() < table_len {
            return malformed("content is shorter than its extent table");
        }
        let mut entries = Vec::with_capacity(extents as usize);
        let mut data_at = table_len;
        let mut end = Block(0);
        for entry in bytes[..table_len].chunks_exact(EXTENT) {
            let start = u64::from_le_bytes(array(entry, extent_at::START));
            let blocks = u32_at(entry, extent_at::BLOCKS);
            if array::<3>(entry, extent_at::RESERVED) != [0; 3] {
                return malformed("reserved bytes of an extent are not zero");
            }
            if blocks == 0 || blocks > limits::EXTENT_BLOCKS || start > limits::DISK_BYTES / BLOCK_BYTES {
                return malformed("extent is empty or over the limit");
            }
            let extent = Extent::new(start, blocks);
            if extent.start < end {
                return malformed("extents overlap or descend");
            }
            end = extent.end();
            let kind = entry[extent_at::KIND];
            let len = match kind {
                extent_kind::DATA => extent.bytes() as usize,
                extent_kind::ZERO => 0,
                extent_kind::COPY => COPY,
                _ => return malformed("unknown kind of extent"),
            };
            if len > bytes.len() - data_at {
                return malformed("content ends within an extent's data");
            }
            if kind == extent_kind::COPY && array::<6>(&bytes[data_at..], copy_at::RESERVED) != [0; 6] {
                return malformed("reserved bytes of a copy reference are not zero");
            }
            entries.push((extent, kind, data_at..data_at + len));
            data_at += len;
        }
        if data_at != bytes.len() {
            return malformed("content goes on after the last extent's data");
        }
        Ok(Self { bytes, entries })
    }

    /// Its extents in order, with what they hold.
    pub fn extents(&self) -> impl Iterator<Item = (Extent, Payload<'_>)> {
        self.entries.iter().map(|(extent, kind, range)| {
            let bytes = &self.bytes[range.clone()];
            let payload = match *kind {
                extent_kind::DATA => Payload::Data(bytes),
                extent_kind::ZERO => Payload::Zero,
                _ => Payload::Copy {
                    disk: DiskIndex(u16::from_le_bytes(array(bytes, copy_at::DISK))),
                    from: Block(u64::from_le_bytes(array(bytes, copy_at::START))),
                    digest: Digest(array(bytes, copy_at::DIGEST)),
                },
            };
            (*extent, payload)
        })
    }

    /// Blocks that it changes.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        self.entries.iter().map(|(extent, ..)| u64::from(extent.blocks)).sum()
    }
}
