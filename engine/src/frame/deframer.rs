//! Cuts a byte stream into frames, however the bytes arrive.

use bytes::{Buf, BytesMut};

use super::{Frame, FrameError, Header, layout::HEADER};

/// Collects bytes until a frame is whole. Holds at most one frame of the largest size and what was fed since.
/// After an error it has lost its place and gives the same error for ever.
#[derive(Debug, Default)]
pub struct Deframer {
    buffer: BytesMut,
    failed: Option<FrameError>,
}

impl Deframer {
    /// Adds bytes in the order they arrived.
    pub fn feed(&mut self, bytes: &[u8]) {
        if self.failed.is_none() {
            self.buffer.extend_from_slice(bytes);
        }
    }

    /// The next whole frame, if it is there.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let result = self.try_next();
        if let Err(error) = &result {
            self.failed = Some(error.clone());
            self.buffer.clear();
        }
        result
    }

    fn try_next(&mut self) -> Result<Option<Frame>, FrameError> {
        let Some(raw) = self.buffer.first_chunk::<HEADER>() else { return Ok(None) };
        let whole = HEADER + Header::decode(raw)?.body_len as usize;
        if self.buffer.remaining() < whole {
            self.buffer.reserve(whole - self.buffer.remaining());
            return Ok(None);
        }
        Frame::parse(self.buffer.split_to(whole).freeze()).map(Some)
    }
}
