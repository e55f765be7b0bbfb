//! The spool's files, byte by byte: the one place with their magics, offsets, versions and names
//! (docs/formats.md repeats them for people). Little-endian. Reads and writes nothing itself.
//!
//! ```text
//! <stream id>/                    one folder for each stream, 32 hexadecimal digits
//!   stream.frame                  the agent's Hello, one control frame: who owns the stream and what it is
//!   durable                       a mark: the last frame known to be durable at the master target
//!   <number of first frame>.seg   20 decimal digits; a mark: the position before the first frame; then frames,
//!                                 back to back, as they travel
//! ```
//!
//! A segment's header is durable before a frame follows it, and a segment is durable as a whole before the next
//! is created. So only the last segment can end in bytes that mean nothing.

use std::path::PathBuf;

use engine::{
    frame::Position,
    units::{Digest, Epoch, Seq, StreamId},
};

/// Version 1, 2026-11: the first.
pub const VERSION: u8 = 1;

/// Length of a mark: of a segment's header and of the file `durable`.
pub const MARK: usize = 80;

/// Offsets of a mark's fields.
pub mod at {
    /// `[u8; 4]`: one of [`super::magic`].
    pub const MAGIC: usize = 0;
    /// `u8`: [`super::VERSION`].
    pub const VERSION: usize = 4;
    /// `[u8; 3]`: zero.
    pub const RESERVED: usize = 5;
    /// `[u8; 16]`: stream id.
    pub const STREAM: usize = 8;
    /// `u64`: number of the last frame before this place; 0 at the start of the stream.
    pub const SEQ: usize = 24;
    /// `u64`: epoch of the next frame.
    pub const EPOCH: usize = 32;
    /// `[u8; 32]`: chain digest up to that last frame.
    pub const CHAIN: usize = 40;
    /// `[u8; 4]`: zero.
    pub const RESERVED2: usize = 72;
    /// `u32`: CRC-32 of the bytes before this.
    pub const CRC: usize = 76;
}

/// What a mark is for.
pub mod magic {
    /// Header of a segment: the position before its first frame.
    pub const SEGMENT: [u8; 4] = *b"HWSP";
    /// The last position known to be durable at the master target.
    pub const DURABLE: [u8; 4] = *b"HWSD";
}

const _: () = assert!(at::CRC + 4 == MARK && at::CHAIN + 32 == at::RESERVED2 && at::STREAM + 16 == at::SEQ);

/// The file that says whose stream it is.
pub const DESCRIPTION: &str = "stream.frame";

/// The file that says how much is durable at the master target.
pub const DURABLE: &str = "durable";

/// The folder of a stream.
#[must_use]
pub fn folder(stream: StreamId) -> PathBuf {
    PathBuf::from(stream.to_string())
}

/// The stream whose folder has this name.
#[must_use]
pub fn stream_of(folder: &str) -> Option<StreamId> {
    let id = StreamId(uuid::Uuid::try_parse(folder).ok()?);
    (id.to_string() == folder).then_some(id)
}

/// Name of the segment that begins after `before`.
#[must_use]
pub fn segment_name(before: &Position) -> String {
    format!("{:020}.seg", before.seq.next().0)
}

/// Number of the first frame of the segment of this name.
#[must_use]
pub fn first_of(name: &str) -> Option<Seq> {
    let digits = name.strip_suffix(".seg").filter(|digits| digits.len() == 20)?;
    digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok().map(Seq)).flatten()
}

/// Why bytes are no good mark.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MarkError {
    /// Something else.
    #[error("it starts with {found:02x?} instead of {expected:02x?}")]
    Magic {
        /// As found.
        found: [u8; 4],
        /// As it should be.
        expected: [u8; 4],
    },
    /// Written by another version.
    #[error("spool version {0} is unknown here (this is version {VERSION}); upgrade the process server")]
    Version(u8),
    /// Damaged.
    #[error("damaged: checksum {found:08x}, computed {computed:08x}")]
    Crc {
        /// As stored.
        found: u32,
        /// As it should be.
        computed: u32,
    },
    /// Good, but not where it belongs.
    #[error("it belongs to stream {0}")]
    Stream(StreamId),
    /// Numbers that no stream reaches, or reserved bytes that are not zero.
    #[error("it makes no sense, though its checksum is right")]
    Malformed,
}

/// The bytes of a mark.
#[must_use]
pub fn encode(magic: [u8; 4], stream: StreamId, position: &Position) -> [u8; MARK] {
    let mut raw = [0; MARK];
    let mut put = |at: usize, bytes: &[u8]| raw[at..at + bytes.len()].copy_from_slice(bytes);
    put(at::MAGIC, &magic);
    put(at::VERSION, &[VERSION]);
    put(at::STREAM, stream.0.as_bytes());
    put(at::SEQ, &position.seq.0.to_le_bytes());
    put(at::EPOCH, &position.epoch.0.to_le_bytes());
    put(at::CHAIN, &position.chain.0);
    let crc = crc32fast::hash(&raw[..at::CRC]);
    raw[at::CRC..].copy_from_slice(&crc.to_le_bytes());
    raw
}

/// Parses and checks a mark.
///
/// # Errors
/// If it is none, damaged, or of another stream.
pub fn decode(magic: [u8; 4], stream: StreamId, raw: &[u8; MARK]) -> Result<Position, MarkError> {
    let found = array(raw, at::MAGIC);
    if found != magic {
        return Err(MarkError::Magic { found, expected: magic });
    }
    let (found, computed) = (u32::from_le_bytes(array(raw, at::CRC)), crc32fast::hash(&raw[..at::CRC]));
    if found != computed {
        return Err(MarkError::Crc { found, computed });
    }
    // After the checksum: a flipped bit is damage, not another version.
    if raw[at::VERSION] != VERSION {
        return Err(MarkError::Version(raw[at::VERSION]));
    }
    let owner = StreamId(uuid::Uuid::from_bytes(array(raw, at::STREAM)));
    if owner != stream {
        return Err(MarkError::Stream(owner));
    }
    let position = Position {
        seq: Seq(u64::from_le_bytes(array(raw, at::SEQ))),
        epoch: Epoch(u64::from_le_bytes(array(raw, at::EPOCH))),
        chain: Digest(array(raw, at::CHAIN)),
    };
    let reserved = (array::<3>(raw, at::RESERVED), array::<4>(raw, at::RESERVED2));
    if reserved != ([0; 3], [0; 4]) || !position.is_sensible() {
        return Err(MarkError::Malformed);
    }
    Ok(position)
}

/// The `N` bytes at `at`, which must lie within `raw`.
fn array<const N: usize>(raw: &[u8], at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&raw[at..at + N]);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: StreamId = StreamId(uuid::Uuid::from_u128(0x1234));

    fn position() -> Position {
        Position { seq: Seq(41), epoch: Epoch(7), chain: Digest::of(b"before") }
    }

    #[test]
    fn a_mark_says_what_was_written_and_notices_every_flipped_bit() {
        let good = encode(magic::SEGMENT, STREAM, &position());
        assert_eq!(decode(magic::SEGMENT, STREAM, &good), Ok(position()));
        assert!(decode(magic::DURABLE, STREAM, &good).is_err());
        assert!(decode(magic::SEGMENT, StreamId(uuid::Uuid::nil()), &good).is_err());
        for bit in 0..MARK * 8 {
            let mut bad = good;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(magic::SEGMENT, STREAM, &bad).is_err(), "bit {bit}");
        }
    }

    /// The bytes of a version 1 header, written out: what docs/formats.md says.
    #[test]
    fn version_1_is_still_read_and_written() {
        let raw = encode(magic::SEGMENT, STREAM, &position());
        assert_eq!(&raw[..8], b"HWSP\x01\0\0\0");
        assert_eq!(&raw[8..24], &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x12, 0x34]);
        assert_eq!(&raw[24..40], b"\x29\0\0\0\0\0\0\0\x07\0\0\0\0\0\0\0");
        assert_eq!(&raw[40..72], &Digest::of(b"before").0);
        assert_eq!(&raw[72..76], &[0; 4]);
    }

    #[test]
    fn names_are_read_back_and_strangers_are_not() {
        assert_eq!(segment_name(&position()), "00000000000000000042.seg");
        assert_eq!(first_of("00000000000000000042.seg"), Some(Seq(42)));
        for strange in
            ["42.seg", "0000000000000000004x.seg", "00000000000000000042", "99999999999999999999.seg"]
        {
            assert_eq!(first_of(strange), None, "{strange}");
        }
        assert_eq!(stream_of(&folder(STREAM).to_string_lossy()), Some(STREAM));
        for strange in ["", "lost+found", "00000000-0000-0000-0000-000000001234"] {
            assert_eq!(stream_of(strange), None, "{strange}");
        }
    }
}
