//! What can be wrong with a frame. Every variant is the sender's or the medium's fault, never the reader's.

/// Why bytes are not a good frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Not a frame, or the reader lost its place.
    #[error("no frame here: it starts with {0:02x?} instead of \"HWFR\"")]
    Magic([u8; 4]),
    /// Written by another version.
    #[error("frame version {found} is unknown here (this is version {ours}); upgrade the older side", ours = super::layout::VERSION)]
    Version {
        /// What the header says.
        found: u8,
    },
    /// Damaged header.
    #[error("damaged frame header: checksum {found:08x}, computed {computed:08x}")]
    HeaderCrc {
        /// As stored.
        found: u32,
        /// As it should be.
        computed: u32,
    },
    /// Damaged body.
    #[error("damaged body of {frame}: checksum {found:08x}, computed {computed:08x}")]
    BodyCrc {
        /// Which frame.
        frame: crate::units::Seq,
        /// As stored.
        found: u32,
        /// As it should be.
        computed: u32,
    },
    /// A field beyond its limit.
    #[error("frame {field} of {found} is over the limit of {limit}")]
    TooLarge {
        /// Which field.
        field: &'static str,
        /// What the header says.
        found: u64,
        /// The limit.
        limit: u64,
    },
    /// Checksums hold, but a field makes no sense.
    #[error("malformed frame: {0}")]
    Malformed(&'static str),
    /// The body does not decompress.
    #[error("{frame} does not decompress: {reason}")]
    Decompress {
        /// Which frame.
        frame: crate::units::Seq,
        /// What zstd said.
        reason: String,
    },
    /// The content is not what the sender sealed.
    #[error("{frame} is not what was sealed: chain {found}, computed {computed}")]
    Chain {
        /// Which frame.
        frame: crate::units::Seq,
        /// As sealed.
        found: crate::units::Digest,
        /// As computed.
        computed: crate::units::Digest,
    },
    /// A control or seal body that does not parse.
    #[error("malformed {what}: {reason}")]
    Body {
        /// Which kind of body.
        what: &'static str,
        /// What the parser said.
        reason: String,
    },
}
