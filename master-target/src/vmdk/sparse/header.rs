//! The header of a hosted sparse file, and the footer of a stream: bytes in, checked values out, and back.

use super::{
    error::SparseErrorKind,
    layout::{self, HEADER, at, compression, flag},
};
use crate::vmdk::geometry::{Capacity, SECTOR_BYTES};

/// Where the grain directory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Directory {
    /// At this sector.
    At(u64),
    /// The footer says it.
    InFooter,
}

/// A header whose every field was checked, as far as one sector tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// 1 to 3.
    pub version: u32,
    /// Of [`flag`]: none that is unknown.
    pub flags: u32,
    /// Size of the disk.
    pub capacity: Capacity,
    /// Sectors of a grain, a power of two.
    pub grain_sectors: u64,
    /// First sector and sectors of the embedded descriptor.
    pub descriptor: (u64, u64),
    /// Where the grain directory is.
    pub directory: Directory,
    /// Sectors before the first grain.
    pub overhead: u64,
}

impl Header {
    /// Whether grains are compressed: a stream.
    #[must_use]
    pub fn is_compressed(&self) -> bool {
        self.flags & flag::COMPRESSED != 0
    }

    /// Bytes of a grain.
    #[must_use]
    pub fn grain_bytes(&self) -> usize {
        // At most 1 MiB.
        (self.grain_sectors * SECTOR_BYTES) as usize
    }

    /// Grain tables that the disk takes.
    #[must_use]
    pub fn tables(&self) -> u64 {
        self.capacity.sectors().div_ceil(self.grain_sectors * layout::TABLE_ENTRIES as u64)
    }

    /// Checks a sector. The second directory is a copy, and not read.
    pub fn parse(bytes: &[u8; HEADER]) -> Result<Self, SparseErrorKind> {
        let u64_at = |at: usize| u64::from_le_bytes(array(bytes, at));
        let u32_at = |at: usize| u32::from_le_bytes(array(bytes, at));
        let bad = |field, value, expected| SparseErrorKind::Field { field, value, expected };
        match array(bytes, at::MAGIC) {
            layout::MAGIC => {}
            layout::COWD_MAGIC => return Err(SparseErrorKind::Snapshot),
            found => return Err(SparseErrorKind::Magic { found }),
        }
        let version = u32_at(at::VERSION);
        if !layout::VERSIONS.contains(&version) {
            return Err(bad("version", version.into(), "1, 2 or 3"));
        }
        let flags = u32_at(at::FLAGS);
        if flags & !flag::ALL != 0 {
            return Err(bad("flags", flags.into(), "only bits 0, 1, 2, 16 and 17"));
        }
        if flags & flag::NEWLINE_TEST != 0 && array(bytes, at::NEWLINES) != layout::NEWLINES {
            return Err(SparseErrorKind::TransferredAsText);
        }
        let compressed = flags & flag::COMPRESSED != 0;
        if compressed != (flags & flag::MARKERS != 0) {
            return Err(bad(
                "flags",
                flags.into(),
                "bits 16 and 17 (compression and markers) both or neither",
            ));
        }
        let compression = u16::from_le_bytes(array(bytes, at::COMPRESSION));
        if compression != if compressed { compression::DEFLATE } else { compression::NONE } {
            let expected = "1 (deflate) with compressed grains, 0 without";
            return Err(bad("compressAlgorithm", compression.into(), expected));
        }
        if bytes[at::UNCLEAN] != 0 {
            return Err(SparseErrorKind::Unclean);
        }
        let sectors = u64_at(at::CAPACITY);
        let capacity = Capacity::from_sectors(sectors)
            .map_err(|_| bad("capacity", sectors, "sectors of at least 1 and at most 62 TiB"))?;
        let grain_sectors = u64_at(at::GRAIN);
        if !layout::GRAIN_SECTORS_READ.contains(&grain_sectors) || !grain_sectors.is_power_of_two() {
            return Err(bad("grainSize", grain_sectors, "a power of two from 8 to 2048"));
        }
        let entries = u32_at(at::TABLE_ENTRIES);
        if entries != layout::TABLE_ENTRIES as u32 {
            return Err(bad("numGTEsPerGT", entries.into(), "512"));
        }
        let directory = match u64_at(at::DIRECTORY) {
            layout::DIRECTORY_AT_END if compressed => Directory::InFooter,
            sector @ 1..=0xffff_ffff => Directory::At(sector),
            other => return Err(bad("gdOffset", other, "a sector behind the header")),
        };
        let descriptor = (u64_at(at::DESCRIPTOR), u64_at(at::DESCRIPTOR_SECTORS));
        let overhead = u64_at(at::OVERHEAD);
        let header = Self { version, flags, capacity, grain_sectors, descriptor, directory, overhead };
        if header.tables() > layout::DIRECTORY_ENTRIES_READ {
            return Err(bad("capacity", sectors, "at most 4,194,304 grain tables"));
        }
        Ok(header)
    }

    /// The sector.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        let mut put = |at: usize, value: &[u8]| bytes[at..][..value.len()].copy_from_slice(value);
        let directory = match self.directory {
            Directory::At(sector) => sector,
            Directory::InFooter => layout::DIRECTORY_AT_END,
        };
        let compression = if self.is_compressed() { compression::DEFLATE } else { compression::NONE };
        put(at::MAGIC, &layout::MAGIC);
        put(at::VERSION, &self.version.to_le_bytes());
        put(at::FLAGS, &self.flags.to_le_bytes());
        put(at::CAPACITY, &self.capacity.sectors().to_le_bytes());
        put(at::GRAIN, &self.grain_sectors.to_le_bytes());
        put(at::DESCRIPTOR, &self.descriptor.0.to_le_bytes());
        put(at::DESCRIPTOR_SECTORS, &self.descriptor.1.to_le_bytes());
        put(at::TABLE_ENTRIES, &(layout::TABLE_ENTRIES as u32).to_le_bytes());
        put(at::DIRECTORY, &directory.to_le_bytes());
        put(at::OVERHEAD, &self.overhead.to_le_bytes());
        put(at::NEWLINES, &layout::NEWLINES);
        put(at::COMPRESSION, &compression.to_le_bytes());
        bytes
    }
}

/// `N` bytes from `at` on.
pub(super) fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    std::array::from_fn(|i| bytes[at + i])
}
