//! The index of a log, byte by byte: the one place with its magic, offsets and versions (docs/formats.md repeats
//! them for people and a test holds the two together). Little-endian. Reads and writes nothing itself.
//!
//! An index is a header and then pages. A page has a head and up to [`PAGE_RECORDS`] records; only the last has fewer.
//! Records ascend by disk and first block and do not overlap. It can always be made again from the log.

/// First bytes of every index.
pub const MAGIC: [u8; 4] = *b"HWIX";

/// Version 1, 2026-11: the first.
pub const VERSION: u8 = 1;

/// Length of an index's header.
pub const HEADER: usize = 64;

/// Offsets of the header's fields.
pub mod at {
    /// `[u8; 4]`: [`super::MAGIC`].
    pub const MAGIC: usize = 0;
    /// `u8`: [`super::VERSION`].
    pub const VERSION: usize = 4;
    /// `[u8; 3]`: zero.
    pub const RESERVED: usize = 5;
    /// `[u8; 16]`: stream id.
    pub const STREAM: usize = 8;
    /// `u64`: the log's layer.
    pub const LAYER: usize = 24;
    /// `u32`: the log's generation.
    pub const GENERATION: usize = 32;
    /// `[u8; 4]`: zero.
    pub const RESERVED2: usize = 36;
    /// `u64`: length of the log that it was made from.
    pub const LOG_BYTES: usize = 40;
    /// `u64`: number of records.
    pub const RECORDS: usize = 48;
    /// `[u8; 4]`: zero.
    pub const RESERVED3: usize = 56;
    /// `u32`: CRC-32 of the bytes before this.
    pub const CRC: usize = 60;
}

/// Length of a page's head.
pub const PAGE_HEAD: usize = 16;

/// Offsets of a page head's fields.
pub mod page_at {
    /// `u64`: number of the page, from 0.
    pub const NUMBER: usize = 0;
    /// `u16`: records in it.
    pub const RECORDS: usize = 8;
    /// `[u8; 2]`: zero.
    pub const RESERVED: usize = 10;
    /// `u32`: CRC-32 of the head before this and of the records.
    pub const CRC: usize = 12;
}

/// Records of a full page.
pub const PAGE_RECORDS: usize = 102;

/// Length of a full page.
pub const PAGE: usize = PAGE_HEAD + PAGE_RECORDS * RECORD;

const _: () = assert!(PAGE == 4096);

/// Length of a record.
pub const RECORD: usize = 40;

/// Offsets of a record's fields.
pub mod record_at {
    /// `u64`: first block.
    pub const START: usize = 0;
    /// `u64`: offset of the image's bytes in the log.
    pub const AT: usize = 8;
    /// `u64`: layer of the log.
    pub const LAYER: usize = 16;
    /// `u32`: generation of the log.
    pub const GENERATION: usize = 24;
    /// `u32`: CRC-32 of the whole image.
    pub const CRC: usize = 28;
    /// `u16`: index of the disk.
    pub const DISK: usize = 32;
    /// `u16`: number of blocks.
    pub const BLOCKS: usize = 34;
    /// `u16`: blocks of the whole image.
    pub const IMAGE_BLOCKS: usize = 36;
    /// `u8`: blocks of the image that come before these.
    pub const SKIP: usize = 38;
    /// `u8`: 1 if they are zeros and not in the log, else 0.
    pub const ZEROS: usize = 39;
}
