//! Header and pages of a file of leaf digests: raw bytes to checked types and back. Opens nothing.

use engine::units::{Digest, DiskIndex, StreamId, is_zero};

use super::layout::{self, DIGEST, DIGESTS, PAGE, at, page_at, state};

/// What a file is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Whose disk.
    pub stream: StreamId,
    /// Which disk.
    pub disk: DiskIndex,
    /// Its size.
    pub bytes: u64,
    /// The layer at whose end the digests held.
    pub layer: u64,
    /// Whether all pages are whole.
    pub is_whole: bool,
}

impl Header {
    /// Its page.
    #[must_use]
    pub fn encode(&self) -> [u8; PAGE] {
        let mut raw = [0; PAGE];
        raw[at::MAGIC..][..4].copy_from_slice(&layout::MAGIC);
        raw[at::VERSION] = layout::VERSION;
        raw[at::STATE] = if self.is_whole { state::WHOLE } else { state::BEING_WRITTEN };
        raw[at::DISK..][..2].copy_from_slice(&self.disk.0.to_le_bytes());
        raw[at::STREAM..][..16].copy_from_slice(self.stream.0.as_bytes());
        raw[at::BYTES..][..8].copy_from_slice(&self.bytes.to_le_bytes());
        raw[at::LAYER..][..8].copy_from_slice(&self.layer.to_le_bytes());
        let crc = crc32fast::hash(&raw[..at::CRC]);
        raw[at::CRC..][..4].copy_from_slice(&crc.to_le_bytes());
        raw
    }

    /// Parses and checks a header; `None` if it is none of this version, or damaged.
    #[must_use]
    pub fn decode(raw: &[u8; PAGE]) -> Option<Self> {
        let is_whole = match raw[at::STATE] {
            state::WHOLE => true,
            state::BEING_WRITTEN => false,
            _ => return None,
        };
        let header = Self {
            stream: StreamId(uuid::Uuid::from_bytes(array(raw, at::STREAM))),
            disk: DiskIndex(u16::from_le_bytes(array(raw, at::DISK))),
            bytes: u64::from_le_bytes(array(raw, at::BYTES)),
            layer: u64::from_le_bytes(array(raw, at::LAYER)),
            is_whole,
        };
        // Nothing in it may be other than it would be written.
        (*raw == header.encode()).then_some(header)
    }
}

/// The digests of [`DIGESTS`] leaves, as far as they are known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    digests: Vec<Digest>,
}

impl Default for Page {
    fn default() -> Self {
        Self { digests: vec![Digest::ZERO; DIGESTS] }
    }
}

impl Page {
    /// Its bytes, as page `number`.
    #[must_use]
    pub fn encode(&self, number: u64) -> [u8; PAGE] {
        let mut raw = [0; PAGE];
        for (at, digest) in raw.chunks_exact_mut(DIGEST).zip(&self.digests) {
            at.copy_from_slice(&digest.0);
        }
        raw[page_at::NUMBER..][..8].copy_from_slice(&number.to_le_bytes());
        let crc = crc32fast::hash(&raw[..page_at::CRC]);
        raw[page_at::CRC..].copy_from_slice(&crc.to_le_bytes());
        raw
    }

    /// Parses and checks page `number`; `None` if it is damaged.
    #[must_use]
    pub fn decode(raw: &[u8; PAGE], number: u64) -> Option<Self> {
        if is_zero(raw) {
            return Some(Self::default());
        }
        let digest = |at| Digest(array(raw, at * DIGEST));
        let page = Self { digests: (0..DIGESTS).map(digest).collect() };
        (*raw == page.encode(number)).then_some(page)
    }

    /// One of its digests, if it is known.
    #[must_use]
    pub fn get(&self, index: usize) -> Option<Digest> {
        self.digests.get(index).copied().filter(|digest| *digest != Digest::ZERO)
    }

    /// Knows a digest from now on, or not any more.
    pub fn set(&mut self, index: usize, digest: Option<Digest>) {
        if let Some(at) = self.digests.get_mut(index) {
            *at = digest.unwrap_or(Digest::ZERO);
        }
    }
}

fn array<const N: usize>(raw: &[u8], at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&raw[at..at + N]);
    bytes
}
