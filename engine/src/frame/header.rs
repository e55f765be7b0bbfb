//! A frame's header: raw bytes in, checked type out, and back.

use super::{
    FrameError,
    layout::{self, HEADER, at},
};
use crate::{
    limits,
    units::{Digest, DiskIndex, Epoch, Seq, StreamId},
};

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Blocks of a disk.
    Data,
    /// The end of an epoch, a recovery point.
    Seal,
    /// Leaf digests of a disk.
    Digests,
    /// A message between neighbours, outside the stream.
    Control,
}

impl Kind {
    /// Its number in the format.
    pub(super) const fn code(self) -> u8 {
        match self {
            Kind::Data => layout::kind::DATA,
            Kind::Seal => layout::kind::SEAL,
            Kind::Digests => layout::kind::DIGESTS,
            Kind::Control => layout::kind::CONTROL,
        }
    }
}

/// How a body is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    /// As it is.
    Stored,
    /// One zstd frame.
    Zstd,
}

/// A checked header: magic, version, checksum and limits hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// What the frame carries.
    pub kind: Kind,
    /// How its body is stored.
    pub codec: Codec,
    /// The stream it belongs to.
    pub stream: StreamId,
    /// The epoch it belongs to.
    pub epoch: Epoch,
    /// Its number in the stream.
    pub seq: Seq,
    /// Bytes of the stored body.
    pub body_len: u32,
    /// Bytes of the content.
    pub content_len: u32,
    /// Entries in the extent table, or digests.
    pub extents: u32,
    /// The disk that data or digests are of.
    pub disk: DiskIndex,
    /// CRC-32 of the stored body.
    pub body_crc: u32,
    /// Chain digest up to and with this frame.
    pub chain: Digest,
}

impl Header {
    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER] {
        let mut raw = [0; HEADER];
        let mut put = |at: usize, bytes: &[u8]| raw[at..at + bytes.len()].copy_from_slice(bytes);
        put(at::MAGIC, &layout::MAGIC);
        put(at::VERSION, &[layout::VERSION]);
        put(at::KIND, &[self.kind.code()]);
        put(
            at::CODEC,
            &[match self.codec {
                Codec::Stored => layout::codec::STORED,
                Codec::Zstd => layout::codec::ZSTD,
            }],
        );
        put(at::STREAM, self.stream.0.as_bytes());
        put(at::EPOCH, &self.epoch.0.to_le_bytes());
        put(at::SEQ, &self.seq.0.to_le_bytes());
        put(at::BODY_LEN, &self.body_len.to_le_bytes());
        put(at::CONTENT_LEN, &self.content_len.to_le_bytes());
        put(at::EXTENTS, &self.extents.to_le_bytes());
        put(at::DISK, &self.disk.0.to_le_bytes());
        put(at::BODY_CRC, &self.body_crc.to_le_bytes());
        put(at::CHAIN, &self.chain.0);
        let crc = crc32fast::hash(&raw[..at::HEADER_CRC]);
        raw[at::HEADER_CRC..].copy_from_slice(&crc.to_le_bytes());
        raw
    }

    /// Parses and checks a header.
    pub fn decode(raw: &[u8; HEADER]) -> Result<Self, FrameError> {
        let magic = array(raw, at::MAGIC);
        if magic != layout::MAGIC {
            return Err(FrameError::Magic(magic));
        }
        if raw[at::VERSION] != layout::VERSION {
            return Err(FrameError::Version { found: raw[at::VERSION] });
        }
        let (found, computed) = (u32_at(raw, at::HEADER_CRC), crc32fast::hash(&raw[..at::HEADER_CRC]));
        if found != computed {
            return Err(FrameError::HeaderCrc { found, computed });
        }
        let header = Self {
            kind: match raw[at::KIND] {
                layout::kind::DATA => Kind::Data,
                layout::kind::SEAL => Kind::Seal,
                layout::kind::DIGESTS => Kind::Digests,
                layout::kind::CONTROL => Kind::Control,
                _ => return Err(FrameError::Malformed("unknown kind")),
            },
            codec: match raw[at::CODEC] {
                layout::codec::STORED => Codec::Stored,
                layout::codec::ZSTD => Codec::Zstd,
                _ => return Err(FrameError::Malformed("unknown codec")),
            },
            stream: StreamId(uuid::Uuid::from_bytes(array(raw, at::STREAM))),
            epoch: Epoch(u64::from_le_bytes(array(raw, at::EPOCH))),
            seq: Seq(u64::from_le_bytes(array(raw, at::SEQ))),
            body_len: u32_at(raw, at::BODY_LEN),
            content_len: u32_at(raw, at::CONTENT_LEN),
            extents: u32_at(raw, at::EXTENTS),
            disk: DiskIndex(u16::from_le_bytes(array(raw, at::DISK))),
            body_crc: u32_at(raw, at::BODY_CRC),
            chain: Digest(array(raw, at::CHAIN)),
        };
        if raw[at::RESERVED] != 0 || array::<2>(raw, at::RESERVED2) != [0; 2] {
            return Err(FrameError::Malformed("reserved bytes are not zero"));
        }
        header.check()?;
        Ok(header)
    }

    fn check(&self) -> Result<(), FrameError> {
        let content_limit = match self.kind {
            Kind::Data => limits::FRAME_CONTENT,
            Kind::Seal | Kind::Digests | Kind::Control => limits::CONTROL_BODY,
        };
        within("content", u64::from(self.content_len), content_limit)?;
        within("extent count", u64::from(self.extents), limits::FRAME_EXTENTS)?;
        // A body that does not shrink is stored as it is.
        within("body", u64::from(self.body_len), self.content_len as usize)?;
        if self.codec == Codec::Stored && self.body_len != self.content_len {
            return Err(FrameError::Malformed("stored body and content differ in length"));
        }
        if self.seq.0 >= limits::STREAM_NUMBER || self.epoch.0 >= limits::STREAM_NUMBER {
            return Err(FrameError::Malformed("number of frame or epoch over the limit"));
        }
        match self.kind {
            Kind::Data | Kind::Digests if self.seq == Seq(0) || self.extents == 0 => {
                Err(FrameError::Malformed("data or digests frame without number or entries"))
            }
            Kind::Data | Kind::Digests if usize::from(self.disk.0) >= limits::DISKS_PER_VM => {
                Err(FrameError::Malformed("disk index over the limit"))
            }
            Kind::Seal if self.seq == Seq(0) || self.extents != 0 || self.disk.0 != 0 => {
                Err(FrameError::Malformed("seal without number, or with extents or disk"))
            }
            Kind::Control if self.seq != Seq(0) || self.extents != 0 || self.disk.0 != 0 => {
                Err(FrameError::Malformed("control frame with number, extents or disk"))
            }
            _ => Ok(()),
        }
    }
}

fn within(field: &'static str, found: u64, limit: usize) -> Result<(), FrameError> {
    let limit = limit as u64;
    if found > limit { Err(FrameError::TooLarge { field, found, limit }) } else { Ok(()) }
}

/// The `N` bytes at `at`, which must lie within `raw`.
pub(super) fn array<const N: usize>(raw: &[u8], at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&raw[at..at + N]);
    bytes
}

pub(super) fn u32_at(raw: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array(raw, at))
}
