//! What a digests frame contains: leaf digests of the source, for the target to compare with what it holds.
//!
//! It says: at the point that ended the epoch before this frame's, the leaf had this digest, and no frame since that
//! point holds a block of it. So the disk at home, with every frame before this one applied, must have it too.

use super::{
    FrameError,
    header::array,
    layout::{DIGEST, digest_at},
};
use crate::{digest::leaves_in, limits, units::Digest};

/// The checked content of a digests frame: ascending leaves, each with its digest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeafDigests(Vec<(u64, Digest)>);

impl LeafDigests {
    /// Digests of a disk's leaves.
    ///
    /// # Panics
    /// If there are none, too many for a frame, or leaves do not ascend: errors of the caller, not of input.
    #[must_use]
    pub fn new(entries: Vec<(u64, Digest)>) -> Self {
        assert!((1..=limits::FRAME_EXTENTS).contains(&entries.len()), "a frame holds 1 to 1024 digests");
        assert!(entries.is_sorted_by(|a, b| a.0 < b.0), "leaves must ascend");
        Self(entries)
    }

    /// Leaves and their digests, in order.
    #[must_use]
    pub fn entries(&self) -> &[(u64, Digest)] {
        &self.0
    }

    /// The content of its frame.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        self.0.iter().flat_map(|(leaf, digest)| leaf.to_le_bytes().into_iter().chain(digest.0)).collect()
    }

    /// Checks `bytes` as a content with `count` digests.
    pub(super) fn parse(bytes: &[u8], count: u32) -> Result<Self, FrameError> {
        if bytes.len() != count as usize * DIGEST {
            return Err(FrameError::Malformed("content of a digests frame is not as long as its count says"));
        }
        let entry =
            |raw| (u64::from_le_bytes(array(raw, digest_at::LEAF)), Digest(array(raw, digest_at::DIGEST)));
        let entries: Vec<_> = bytes.chunks_exact(DIGEST).map(entry).collect();
        if !entries.is_sorted_by(|a, b| a.0 < b.0) {
            return Err(FrameError::Malformed("leaves of a digests frame do not ascend"));
        }
        if entries.last().is_some_and(|(leaf, _)| *leaf >= leaves_in(limits::DISK_BYTES)) {
            return Err(FrameError::Malformed("leaf beyond the largest disk"));
        }
        Ok(Self(entries))
    }
}
