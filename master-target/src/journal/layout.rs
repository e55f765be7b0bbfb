//! The undo log of an epoch, byte by byte: the one place with its magic, offsets and versions (docs/formats.md
//! repeats them for people and a test holds the two together). Little-endian. Reads and writes nothing itself.
//!
//! A log is a header and then entries, back to back. An entry is a header and its data. The order on disk is the
//! order of time: where two entries hold the same block, the earlier one is the disk as it was before the epoch.

/// First bytes of every log.
pub const MAGIC: [u8; 4] = *b"HWUL";

/// Version 1, 2026-11: the first.
pub const VERSION: u8 = 1;

/// Length of a log's header.
pub const HEADER: usize = 40;

/// Offsets of a log header's fields.
pub mod at {
    /// `[u8; 4]`: [`super::MAGIC`].
    pub const MAGIC: usize = 0;
    /// `u8`: [`super::VERSION`].
    pub const VERSION: usize = 4;
    /// `[u8; 3]`: zero.
    pub const RESERVED: usize = 5;
    /// `[u8; 16]`: stream id.
    pub const STREAM: usize = 8;
    /// `u64`: number of the layer, see `catalogue`.
    pub const LAYER: usize = 24;
    /// `[u8; 4]`: zero.
    pub const RESERVED2: usize = 32;
    /// `u32`: CRC-32 of the bytes before this.
    pub const CRC: usize = 36;
}

/// Length of an entry's header.
pub const ENTRY: usize = 32;

/// Offsets of an entry header's fields.
pub mod entry_at {
    /// `u8`: one of [`super::kind`].
    pub const KIND: usize = 0;
    /// `u8`: zero.
    pub const RESERVED: usize = 1;
    /// `u16`: index of the disk; zero in commits.
    pub const DISK: usize = 2;
    /// `u32`: number of blocks; zero in commits.
    pub const BLOCKS: usize = 4;
    /// `u64`: first block; zero in commits.
    pub const START: usize = 8;
    /// `u32`: length of the data that follows.
    pub const DATA_LEN: usize = 16;
    /// `u32`: CRC-32 of the data.
    pub const DATA_CRC: usize = 20;
    /// `u32`: number of the entry in its log, from 0.
    pub const NUMBER: usize = 24;
    /// `u32`: CRC-32 of the header's bytes before this.
    pub const CRC: usize = 28;
}

/// What an entry says.
pub mod kind {
    /// The blocks held these bytes before.
    pub const IMAGE: u8 = 1;
    /// The blocks were zeros before; no data.
    pub const ZEROS: u8 = 2;
    /// Everything up to this position of the stream is on the disks. Data: [`super::COMMIT`] bytes.
    pub const COMMIT: u8 = 3;
}

/// Length of a commit's data.
pub const COMMIT: usize = 48;

/// Offsets in a commit's data.
pub mod commit_at {
    /// `u64`: sequence number.
    pub const SEQ: usize = 0;
    /// `u64`: epoch.
    pub const EPOCH: usize = 8;
    /// `[u8; 32]`: chain digest.
    pub const CHAIN: usize = 16;
}

/// Blocks in one entry: 1 MiB.
pub const ENTRY_BLOCKS: u32 = 256;

/// Blocks of an image as it is written, 64 KiB: an image is read and checked as a whole, also for a block of it.
pub const IMAGE_BLOCKS: u32 = 16;

const _: () = assert!(at::CRC + 4 == HEADER && at::STREAM + 16 == at::LAYER);
const _: () = assert!(entry_at::CRC + 4 == ENTRY && commit_at::CHAIN + 32 == COMMIT);
