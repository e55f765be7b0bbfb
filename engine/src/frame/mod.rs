//! The frame: one record format from the source disk through wire and spool to the target, sealed once.
//!
//! A sender builds a content ([`ContentBuilder`]), packs it ([`Packed`]: compress and hash, which may run on many
//! threads) and seals it into its place in the stream ([`Packed::seal`]: chain the hash, which is cheap).
//! A relay checks only the two CRCs ([`Deframer`]). The target opens it: decompresses, checks the chain against
//! the frame before, checks the table. A relay may recompress a body: the chain covers the content, not its
//! encoding. Frames know nothing of windows, acknowledgements or files.

mod body;
mod codec;
mod compare;
mod control;
mod deframer;
mod digests;
mod error;
mod group;
mod header;
pub mod layout;
mod name;
mod packed;

#[cfg(test)]
mod tests;

pub use body::{Content, ContentBuilder, Payload};
pub use compare::{Compare, Compared, Span, SpanLeaves, digest_of_all};
pub use control::{Control, DiskInfo, LeafRange, PROTOCOL, Refusal, StreamInfo};
pub use deframer::Deframer;
pub use digests::LeafDigests;
pub use error::FrameError;
pub use group::{GroupOrder, GroupReport};
pub use header::{Codec, Header, Kind};
pub use name::is_name;
pub use packed::Packed;

use bytes::Bytes;

use crate::{
    limits,
    point::Point,
    units::{Digest, Epoch, Seq},
};

/// Where a stream stands: the last frame held, the chain up to it, and the epoch that is open after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Position {
    /// Number of the last frame; 0 at the start.
    pub seq: Seq,
    /// The epoch that the next frame belongs to.
    pub epoch: Epoch,
    /// Chain digest up to that frame.
    pub chain: Digest,
}

impl Position {
    /// Before the first frame.
    pub const START: Position = Position { seq: Seq(0), epoch: Epoch::FIRST, chain: Digest::ZERO };

    /// The position after `header`'s frame.
    #[must_use]
    pub fn after(header: &Header) -> Self {
        let epoch = if header.kind == Kind::Seal { header.epoch.next() } else { header.epoch };
        Self { seq: header.seq, epoch, chain: header.chain }
    }

    /// Whether a stream can get there. What others claim must be asked this before it is counted on from.
    #[must_use]
    pub fn is_sensible(&self) -> bool {
        self.seq.0 < limits::STREAM_NUMBER && self.epoch.0 < limits::STREAM_NUMBER
    }
}

/// A whole frame whose two checksums hold.
#[derive(Clone, Debug)]
pub struct Frame {
    header: Header,
    bytes: Bytes,
}

impl Frame {
    /// Takes `bytes`, which must be one whole frame.
    pub fn parse(bytes: Bytes) -> Result<Self, FrameError> {
        let Some((raw, body)) = bytes.split_first_chunk() else {
            return Err(FrameError::Malformed("shorter than a header"));
        };
        let header = Header::decode(raw)?;
        if body.len() != header.body_len as usize {
            return Err(FrameError::Malformed("length differs from the header's"));
        }
        let computed = crc32fast::hash(body);
        if computed != header.body_crc {
            return Err(FrameError::BodyCrc { frame: header.seq, found: header.body_crc, computed });
        }
        Ok(Self { header, bytes })
    }

    /// Its header.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Header and body, as they travel.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Decompresses the body and checks that content and place are what the sender sealed after `before`.
    pub fn open(&self, before: Digest) -> Result<Opened, FrameError> {
        self.clone().unpack().open(before)
    }

    /// Decompresses and hashes the body: all that opening it takes and that does not depend on the frames before.
    #[must_use]
    pub fn unpack(self) -> Unpacked {
        let content = self.content().map(|content| (Digest::of(&content), content));
        Unpacked { header: self.header, content }
    }

    fn content(&self) -> Result<Vec<u8>, FrameError> {
        let body = &self.bytes[layout::HEADER..];
        let expected = self.header.content_len as usize;
        debug_assert!(expected <= limits::FRAME_CONTENT);
        match self.header.codec {
            Codec::Stored => Ok(body.to_vec()),
            Codec::Zstd => {
                let decompress = |reason| FrameError::Decompress { frame: self.header.seq, reason };
                let content = codec::decompress(body, expected).map_err(|e| decompress(e.to_string()))?;
                if content.len() != expected {
                    return Err(decompress(format!("{} bytes instead of {expected}", content.len())));
                }
                Ok(content)
            }
        }
    }
}

/// A frame whose place in the stream is still to be checked.
#[derive(Debug)]
pub struct Unpacked {
    header: Header,
    content: Result<(Digest, Vec<u8>), FrameError>,
}

impl Unpacked {
    /// The frame's header.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Checks that content and place are what the sender sealed after `before`.
    pub fn open(self, before: Digest) -> Result<Opened, FrameError> {
        let Self { header, content } = self;
        let (digest, content) = content?;
        let computed = packed::chain(before, &header, digest);
        if computed != header.chain {
            return Err(FrameError::Chain { frame: header.seq, found: header.chain, computed });
        }
        match header.kind {
            Kind::Data => Ok(Opened::Data(Content::parse(content, header.extents)?)),
            Kind::Seal => {
                let point: Point = serde_json::from_slice(&content)
                    .map_err(|e| FrameError::Body { what: "seal", reason: e.to_string() })?;
                if point.epoch != header.epoch {
                    return Err(FrameError::Malformed("seal of another epoch than its frame's"));
                }
                if point.is_before_failback() {
                    return Err(FrameError::Malformed("seal of a point that no agent can make"));
                }
                point.group.as_ref().map_or(Ok(()), |mark| mark.check())?;
                Ok(Opened::Seal(point))
            }
            Kind::Digests => Ok(Opened::Digests(LeafDigests::parse(&content, header.extents)?)),
            Kind::Control => Err(FrameError::Malformed("control frame within the stream")),
        }
    }
}

/// The checked inside of a frame of the stream.
#[derive(Debug)]
pub enum Opened {
    /// Blocks of the header's disk.
    Data(Content),
    /// The recovery point that ends the epoch.
    Seal(Point),
    /// Digests of the header's disk, as of the point before.
    Digests(LeafDigests),
}
