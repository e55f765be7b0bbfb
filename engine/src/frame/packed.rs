//! The sending side of a frame: pack (compress, hash), then seal (chain, checksum).

use bytes::Bytes;

use super::{Codec, Frame, Header, Kind, LeafDigests, Position, codec, layout::HEADER};
use crate::{
    point::Point,
    units::{Digest, DiskIndex, Epoch, Seq, StreamId},
};

/// A body that only needs its place in the stream.
#[derive(Debug)]
pub struct Packed {
    kind: Kind,
    codec: Codec,
    disk: DiskIndex,
    extents: u32,
    content_len: u32,
    content_digest: Digest,
    /// Room for the header, then the stored body.
    bytes: Vec<u8>,
}

impl Packed {
    /// Packs the content of a data frame with `extents` extents for `disk`. zstd `level` 0 stores it as it is.
    #[must_use]
    pub fn data(disk: DiskIndex, content: &[u8], extents: u32, level: i32) -> Self {
        Self::new(Kind::Data, disk, extents, content, level)
    }

    /// Packs a recovery point.
    #[must_use]
    pub fn seal_of(point: &Point) -> Self {
        Self::new(Kind::Seal, DiskIndex(0), 0, point.to_json().as_bytes(), 0)
    }

    /// Packs leaf digests of `disk`.
    #[must_use]
    pub fn digests(disk: DiskIndex, digests: &LeafDigests) -> Self {
        Self::new(Kind::Digests, disk, digests.entries().len() as u32, &digests.to_bytes(), 0)
    }

    pub(super) fn new(kind: Kind, disk: DiskIndex, extents: u32, content: &[u8], level: i32) -> Self {
        let compressed = if level == 0 { None } else { codec::compress(HEADER, content, level) };
        let (codec, bytes) = match compressed {
            Some(bytes) => (Codec::Zstd, bytes),
            None => (Codec::Stored, [&[0; HEADER][..], content].concat()),
        };
        let content_digest = Digest::of(content);
        Self { kind, codec, disk, extents, content_len: content.len() as u32, content_digest, bytes }
    }

    /// Gives it its place: the frame after `before` in `stream`.
    #[must_use]
    pub fn seal(self, stream: StreamId, before: &Position) -> Frame {
        self.place(stream, before.epoch, before.seq.next(), |header, digest| {
            chain(before.chain, header, digest)
        })
    }

    /// A frame outside the stream's order.
    pub(super) fn unchained(self, stream: StreamId) -> Frame {
        self.place(stream, Epoch(0), Seq(0), |_, _| Digest::ZERO)
    }

    fn place(
        mut self,
        stream: StreamId,
        epoch: Epoch,
        seq: Seq,
        chain: impl FnOnce(&Header, Digest) -> Digest,
    ) -> Frame {
        let mut header = Header {
            kind: self.kind,
            codec: self.codec,
            stream,
            epoch,
            seq,
            body_len: (self.bytes.len() - HEADER) as u32,
            content_len: self.content_len,
            extents: self.extents,
            disk: self.disk,
            body_crc: crc32fast::hash(&self.bytes[HEADER..]),
            chain: Digest::ZERO,
        };
        header.chain = chain(&header, self.content_digest);
        self.bytes[..HEADER].copy_from_slice(&header.encode());
        Frame { header, bytes: Bytes::from(self.bytes) }
    }
}

/// The chain digest of `header`'s frame, whose content hashes to `content`, after `before`.
/// It covers what a frame says and where it stands, not how its body is stored.
pub(super) fn chain(before: Digest, header: &Header, content: Digest) -> Digest {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"homeward frame 1");
    hasher.update(&before.0);
    hasher.update(header.stream.0.as_bytes());
    hasher.update(&[header.kind.code()]);
    hasher.update(&header.epoch.0.to_le_bytes());
    hasher.update(&header.seq.0.to_le_bytes());
    hasher.update(&header.disk.0.to_le_bytes());
    hasher.update(&header.extents.to_le_bytes());
    hasher.update(&header.content_len.to_le_bytes());
    hasher.update(&content.0);
    Digest(*hasher.finalize().as_bytes())
}
