//! Whose stream it is, kept beside its segments as the frame in which the agent said so: a frame has checksums.

use std::path::Path;

use bytes::Bytes;
use engine::{
    frame::{Control, Frame, FrameError, StreamInfo},
    io::Storage,
    limits,
    units::StreamId,
};

use super::{Flaw, Loss, SpoolError, layout};

/// What stands for the conversation's version in the file, where it means nothing.
const VERSION: u16 = 1;

/// Whose stream it is, and what it replicates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// Name of the agent that owns it.
    pub agent: String,
    /// The VM and its disks.
    pub stream: StreamInfo,
}

impl Description {
    /// As it is kept: the agent's Hello, whose two checksums guard it.
    pub(super) fn to_frame(&self) -> Frame {
        let Description { agent, stream } = self.clone();
        let id = stream.id;
        Control::Hello { protocol: VERSION, agent, stream }.to_frame(id)
    }

    fn from_bytes(bytes: Bytes, stream: StreamId) -> Result<Self, Flaw> {
        let frame = Frame::parse(bytes)?;
        match Control::from_frame(&frame)? {
            Control::Hello { agent, stream: info, .. } if info.id == stream => {
                Ok(Self { agent, stream: info })
            }
            _ => Err(Flaw::Frame(FrameError::Malformed("not this stream's Hello"))),
        }
    }
}

/// Reads the description of `stream`, or says why it cannot be used.
pub(super) fn read_description(
    storage: &dyn Storage,
    dir: &Path,
    stream: StreamId,
) -> Result<Result<Description, Loss>, SpoolError> {
    let path = dir.join(layout::DESCRIPTION);
    let file = storage.open(&path).map_err(SpoolError::io("open", &path))?;
    let len = file.len().map_err(SpoolError::io("read", &path))?;
    let most = (engine::frame::layout::HEADER + limits::CONTROL_BODY) as u64;
    let mut bytes = vec![0; len.min(most) as usize];
    file.read_exact_at(&mut bytes, 0).map_err(SpoolError::io("read", &path))?;
    Ok(Description::from_bytes(Bytes::from(bytes), stream).map_err(|flaw| Loss {
        path,
        offset: 0,
        bytes: len,
        in_the_middle: true,
        flaw,
    }))
}
