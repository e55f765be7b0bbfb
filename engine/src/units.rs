//! Numbers with a unit. Blocks, epochs and sequence numbers are all `u64` underneath and never mix.
//!
//! It does no I/O and knows no format; how each is written to disk or wire stands in the layout files.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Bytes in one block: the granule of extents, of the journal and (for disks up to 1 TiB) of tracking.
pub const BLOCK_BYTES: u64 = 4096;

/// Whether all of `bytes` are zero: then none of them need be stored or sent.
#[must_use]
pub fn is_zero(bytes: &[u8]) -> bool {
    // Whole blocks compare at memory speed.
    static ZEROS: [u8; BLOCK_BYTES as usize] = [0; BLOCK_BYTES as usize];
    bytes.chunks(ZEROS.len()).all(|chunk| chunk == &ZEROS[..chunk.len()])
}

macro_rules! counter {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// The one after this.
            #[must_use]
            pub const fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($what, " {}"), self.0)
            }
        }
    };
}

counter!(
    /// Index of a 4 KiB block of a disk, from 0.
    Block,
    "block"
);
counter!(
    /// The stretch of a stream between two recovery points. The first, [`Epoch::FIRST`], holds the full copy.
    Epoch,
    "epoch"
);
counter!(
    /// Number of a frame in its stream. The first frame is 1; 0 means "none yet".
    Seq,
    "frame"
);

impl Epoch {
    /// The epoch a new stream starts in.
    pub const FIRST: Epoch = Epoch(1);
}

impl Block {
    /// The block that holds byte `offset`.
    #[must_use]
    pub const fn containing(offset: u64) -> Block {
        Block(offset / BLOCK_BYTES)
    }

    /// Offset of its first byte on the disk.
    #[must_use]
    pub const fn offset(self) -> u64 {
        self.0 * BLOCK_BYTES
    }
}

/// How many blocks a disk of `bytes` has; the last may be short.
#[must_use]
pub const fn blocks_in(bytes: u64) -> u64 {
    bytes.div_ceil(BLOCK_BYTES)
}

/// Position of a disk among the disks of its VM, as listed in the stream's description. From 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DiskIndex(pub u16);

impl fmt::Display for DiskIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "disk {}", self.0)
    }
}

/// Identity of one replication of one VM, from its full copy to its commit. Random.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct StreamId(pub uuid::Uuid);

impl StreamId {
    /// A new one, unlike every other.
    #[must_use]
    pub fn random() -> Self {
        Self(uuid::Uuid::new_v4())
    }
}

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.simple().fmt(f)
    }
}

impl fmt::Debug for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StreamId({self})")
    }
}

/// A BLAKE3 hash.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// The chain before the first frame.
    pub const ZERO: Digest = Digest([0; 32]);

    /// Hash of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

impl Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        let wrong = || serde::de::Error::custom("a digest is 64 hexadecimal digits");
        if text.len() != 64 || !text.is_ascii() {
            return Err(wrong());
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            let digit = |d: u8| (d as char).to_digit(16).map(|v| v as u8).ok_or_else(wrong);
            *byte = digit(pair[0])? << 4 | digit(pair[1])?;
        }
        Ok(Self(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_bit_anywhere_is_not_zero() {
        for len in [1, BLOCK_BYTES as usize, BLOCK_BYTES as usize + 1, 3 * BLOCK_BYTES as usize] {
            let mut bytes = vec![0; len];
            assert!(is_zero(&bytes));
            for at in [0, len / 2, len - 1] {
                bytes[at] = 1;
                assert!(!is_zero(&bytes), "byte {at} of {len}");
                bytes[at] = 0;
            }
        }
        assert!(is_zero(&[]));
    }
}
