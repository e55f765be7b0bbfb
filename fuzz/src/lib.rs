//! What fuzz targets share: giving bytes the checksums that let them pass, so that what lies behind is reached.

use engine::{
    frame::layout::{HEADER, MAGIC, VERSION, at, codec},
    units::StreamId,
};

/// Makes frames of `bytes`, back to back: puts magic, version, lengths and checksums right, and the stream if one is
/// given. What does not fit at the end stays as it is.
pub fn mend_frames(bytes: &mut [u8], stream: Option<StreamId>) {
    let mut rest = bytes;
    while let Some((header, body)) = rest.split_first_chunk_mut::<HEADER>() {
        put(header, at::MAGIC, &MAGIC);
        put(header, at::VERSION, &[VERSION]);
        put(header, at::RESERVED, &[0]);
        put(header, at::RESERVED2, &[0; 2]);
        if let Some(stream) = stream {
            put(header, at::STREAM, stream.0.as_bytes());
        }
        let len = (u32_at(header, at::BODY_LEN) as usize).min(body.len());
        put(header, at::BODY_LEN, &(len as u32).to_le_bytes());
        if header[at::CODEC] == codec::STORED {
            put(header, at::CONTENT_LEN, &(len as u32).to_le_bytes());
        }
        let (body, later) = body.split_at_mut(len);
        put(header, at::BODY_CRC, &crc32fast::hash(body).to_le_bytes());
        let crc = crc32fast::hash(&header[..at::HEADER_CRC]);
        put(header, at::HEADER_CRC, &crc.to_le_bytes());
        rest = later;
    }
}

/// Writes `value` at `at`.
pub fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..][..value.len()].copy_from_slice(value);
}

/// The little-endian number at `at`.
#[must_use]
pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}
