//! Requests: parsed, and checked against what was agreed on.

use super::{
    ProtocolError,
    layout::{REQUEST, REQUEST_MAGIC, command, command_flag},
};
use crate::drill::limits;

/// An error that a request is answered with; the protocol's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Errno {
    /// The export takes no writes.
    NotPermitted = 1,
    /// The disk, the journal or the overlay failed.
    Io = 5,
    /// A request that makes no sense, or was not agreed on.
    Invalid = 22,
    /// The overlay is full.
    NoSpace = 28,
    /// Too much for one chunk.
    Overflow = 75,
    /// It would not be fast.
    NotSupported = 95,
}

/// What was agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Session {
    /// Bytes of the disk.
    pub bytes: u64,
    /// Whether it takes writes.
    pub writable: bool,
    /// Whether replies are structured.
    pub structured: bool,
    /// Whether block status may be asked for.
    pub base_allocation: bool,
}

/// A request as it came. A write's bytes follow it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// The client's name for it.
    pub cookie: u64,
    /// Bytes that follow it: of a write.
    pub payload: usize,
    command: u16,
    flags: u16,
    offset: u64,
    length: u32,
}

/// What to do. Ranges lie within the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Answer with the bytes of a range.
    Read {
        /// First byte.
        offset: u64,
        /// How many.
        len: usize,
        /// Whether they may come in several chunks.
        may_split: bool,
    },
    /// Write the payload.
    Write {
        /// First byte.
        offset: u64,
    },
    /// Make a range zeros.
    Zero {
        /// First byte.
        offset: u64,
        /// How many.
        len: u64,
        /// Whether it must keep its space.
        keep_space: bool,
        /// Whether to refuse rather than be slow.
        fast: bool,
    },
    /// A range is needed no more.
    Trim {
        /// First byte.
        offset: u64,
        /// How many.
        len: u64,
    },
    /// Everything that was answered is to be durable.
    Flush,
    /// Answer with what is where.
    Status {
        /// First byte.
        offset: u64,
        /// How many.
        len: u64,
        /// Whether one extent is enough.
        one: bool,
    },
    /// End the session.
    Disconnect,
}

impl Request {
    /// Reads one.
    pub fn parse(header: &[u8; REQUEST]) -> Result<Self, ProtocolError> {
        let u32_at =
            |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let u16_at = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
        let u64_at = |at: usize| u64::from(u32_at(at)) << 32 | u64::from(u32_at(at + 4));
        if u32_at(0) != REQUEST_MAGIC {
            return Err(ProtocolError::Magic { what: "request" });
        }
        let (flags, command, cookie) = (u16_at(4), u16_at(6), u64_at(8));
        let (offset, length) = (u64_at(16), u32_at(24));
        let payload = if command == command::WRITE { length } else { 0 };
        if payload > limits::REQUEST_BYTES {
            return Err(ProtocolError::WriteTooLong { bytes: payload });
        }
        Ok(Self { cookie, payload: payload as usize, command, flags, offset, length })
    }

    /// What it asks for, or the error to answer with.
    pub fn check(&self, session: &Session) -> Result<Action, Errno> {
        use command_flag::*;
        let (offset, len) = (self.offset, u64::from(self.length));
        let action = match self.command {
            command::DISCONNECT => return Ok(Action::Disconnect),
            command::FLUSH => return Ok(Action::Flush),
            command::READ if self.length > limits::REQUEST_BYTES => return Err(Errno::Overflow),
            command::READ => {
                Action::Read { offset, len: self.length as usize, may_split: self.flags & DF == 0 }
            }
            command::WRITE => Action::Write { offset },
            command::TRIM => Action::Trim { offset, len },
            command::WRITE_ZEROES => {
                let (keep_space, fast) = (self.flags & NO_HOLE != 0, self.flags & FAST_ZERO != 0);
                Action::Zero { offset, len, keep_space, fast }
            }
            command::BLOCK_STATUS if session.base_allocation => {
                Action::Status { offset, len, one: self.flags & REQ_ONE != 0 }
            }
            _ => return Err(Errno::Invalid),
        };
        let known = match action {
            Action::Read { .. } if session.structured => FUA | DF,
            Action::Zero { .. } => FUA | NO_HOLE | FAST_ZERO,
            Action::Status { .. } => FUA | REQ_ONE,
            _ => FUA,
        };
        if self.flags & !known != 0 {
            return Err(Errno::Invalid);
        }
        let writes = matches!(action, Action::Write { .. } | Action::Zero { .. } | Action::Trim { .. });
        if writes && !session.writable {
            return Err(Errno::NotPermitted);
        }
        if offset.checked_add(len).is_none_or(|end| end > session.bytes) {
            return Err(if writes { Errno::NoSpace } else { Errno::Invalid });
        }
        if len == 0 && matches!(action, Action::Status { .. }) {
            return Err(Errno::Invalid);
        }
        Ok(action)
    }
}
