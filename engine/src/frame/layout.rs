//! The frame format, byte by byte: the one place with its magic, offsets and versions (docs/formats.md repeats
//! them for people and a test holds the two together). Little-endian. Reads and writes nothing itself.

/// First bytes of every frame.
pub const MAGIC: [u8; 4] = *b"HWFR";

/// Version 1, 2026-11: the first.
pub const VERSION: u8 = 1;

/// Length of the header.
pub const HEADER: usize = 96;

/// Offsets of the header's fields.
pub mod at {
    /// `[u8; 4]`: [`super::MAGIC`].
    pub const MAGIC: usize = 0;
    /// `u8`: [`super::VERSION`].
    pub const VERSION: usize = 4;
    /// `u8`: one of [`super::kind`].
    pub const KIND: usize = 5;
    /// `u8`: one of [`super::codec`].
    pub const CODEC: usize = 6;
    /// `u8`: zero.
    pub const RESERVED: usize = 7;
    /// `[u8; 16]`: stream id.
    pub const STREAM: usize = 8;
    /// `u64`: epoch; zero in control frames.
    pub const EPOCH: usize = 24;
    /// `u64`: sequence number; zero in control frames.
    pub const SEQ: usize = 32;
    /// `u32`: length of the body as stored, i.e. after compression.
    pub const BODY_LEN: usize = 40;
    /// `u32`: length of the content, i.e. before compression.
    pub const CONTENT_LEN: usize = 44;
    /// `u32`: entries in the extent table, or digests; zero except in data and digests frames.
    pub const EXTENTS: usize = 48;
    /// `u16`: index of the disk; zero except in data and digests frames.
    pub const DISK: usize = 52;
    /// `[u8; 2]`: zero.
    pub const RESERVED2: usize = 54;
    /// `u32`: CRC-32 of the stored body.
    pub const BODY_CRC: usize = 56;
    /// `[u8; 32]`: chain digest up to and with this frame; zero in control frames.
    pub const CHAIN: usize = 60;
    /// `u32`: CRC-32 of the header's bytes before this.
    pub const HEADER_CRC: usize = 92;
}

/// What a frame carries.
pub mod kind {
    /// An extent table and the blocks of its data extents.
    pub const DATA: u8 = 1;
    /// The end of an epoch: a recovery point, as JSON.
    pub const SEAL: u8 = 2;
    /// Leaf digests of a disk of the source.
    pub const DIGESTS: u8 = 3;
    /// A message between two neighbours, as JSON; not part of the stream.
    pub const CONTROL: u8 = 16;
}

/// How the body is stored.
pub mod codec {
    /// As it is.
    pub const STORED: u8 = 0;
    /// One zstd frame (RFC 8878).
    pub const ZSTD: u8 = 1;
}

/// Length of an entry of the extent table.
pub const EXTENT: usize = 16;

/// Offsets of an extent entry's fields.
pub mod extent_at {
    /// `u64`: first block.
    pub const START: usize = 0;
    /// `u32`: number of blocks.
    pub const BLOCKS: usize = 8;
    /// `u8`: one of [`super::extent_kind`].
    pub const KIND: usize = 12;
    /// `[u8; 3]`: zero.
    pub const RESERVED: usize = 13;
}

/// What an extent's blocks hold; decides what stands for it in the data after the table.
pub mod extent_kind {
    /// Its blocks' bytes follow.
    pub const DATA: u8 = 1;
    /// All zeros; nothing follows.
    pub const ZERO: u8 = 2;
    /// A copy of blocks the target has; a reference of [`super::COPY`] bytes follows.
    pub const COPY: u8 = 3;
}

/// Length of a copy reference.
pub const COPY: usize = 48;

/// Offsets of a copy reference's fields.
pub mod copy_at {
    /// `u64`: first block to copy from.
    pub const START: usize = 0;
    /// `u16`: index of the disk to copy from.
    pub const DISK: usize = 8;
    /// `[u8; 6]`: zero.
    pub const RESERVED: usize = 10;
    /// `[u8; 32]`: BLAKE3 of the bytes that must be found there.
    pub const DIGEST: usize = 16;
}

/// Length of an entry of a digests frame.
pub const DIGEST: usize = 40;

/// Offsets of such an entry's fields.
pub mod digest_at {
    /// `u64`: number of the leaf.
    pub const LEAF: usize = 0;
    /// `[u8; 32]`: its BLAKE3.
    pub const DIGEST: usize = 8;
}

const _: () = assert!(at::HEADER_CRC + 4 == HEADER && at::CHAIN + 32 == at::HEADER_CRC);
const _: () = assert!(at::RESERVED2 + 2 == at::BODY_CRC && at::STREAM + 16 == at::EPOCH);
const _: () = assert!(extent_at::RESERVED + 3 == EXTENT && copy_at::DIGEST + 32 == COPY);
const _: () = assert!(digest_at::DIGEST + 32 == DIGEST);
