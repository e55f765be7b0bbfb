//! A file of leaf digests, byte by byte: the one place with its magic, offsets and versions (docs/formats.md repeats
//! them for people and a test holds the two together). Little-endian. Reads and writes nothing itself.
//!
//! A file is pages of 4096 bytes: a header, then pages of digests, each with a checksum of its own. Every bit of the file
//! is under a checksum or must be zero, so that any that flips is found.

/// First bytes of every file.
pub const MAGIC: [u8; 4] = *b"HWLD";

/// Version 1, 2026-11: the first.
pub const VERSION: u8 = 1;

/// Length of a page. The header takes the first; the rest of that is zero.
pub const PAGE: usize = 4096;

/// Length of the header.
pub const HEADER: usize = 64;

/// Offsets of the header's fields.
pub mod at {
    /// `[u8; 4]`: [`super::MAGIC`].
    pub const MAGIC: usize = 0;
    /// `u8`: [`super::VERSION`].
    pub const VERSION: usize = 4;
    /// `u8`: one of [`super::state`].
    pub const STATE: usize = 5;
    /// `u16`: index of the disk.
    pub const DISK: usize = 6;
    /// `[u8; 16]`: stream id.
    pub const STREAM: usize = 8;
    /// `u64`: size of the disk in bytes.
    pub const BYTES: usize = 24;
    /// `u64`: the layer at whose end the digests held; what was overwritten later is void.
    pub const LAYER: usize = 32;
    /// `[u8; 20]`: zero.
    pub const RESERVED: usize = 40;
    /// `u32`: CRC-32 of the bytes before this.
    pub const CRC: usize = 60;
}

/// What a start may expect of the pages.
pub mod state {
    /// All are whole.
    pub const WHOLE: u8 = 1;
    /// Some were being written: one whose checksum does not hold may be torn.
    pub const BEING_WRITTEN: u8 = 2;
}

/// Digests in a page.
pub const DIGESTS: usize = 127;

/// Length of a digest. All zeros: not known.
pub const DIGEST: usize = 32;

/// Offsets of a page's fields, behind its digests.
pub mod page_at {
    /// `[[u8; 32]; 127]`.
    pub const DIGESTS: usize = 0;
    /// `u64`: number of the page, from 0.
    pub const NUMBER: usize = 4064;
    /// `[u8; 20]`: zero.
    pub const RESERVED: usize = 4072;
    /// `u32`: CRC-32 of the bytes before this. A page that was never written is all zeros.
    pub const CRC: usize = 4092;
}

const _: () = assert!(at::CRC + 4 == HEADER && at::STREAM + 16 == at::BYTES && HEADER <= PAGE);
const _: () = assert!(DIGESTS * DIGEST == page_at::NUMBER && page_at::CRC + 4 == PAGE);
