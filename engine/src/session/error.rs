//! What ends a connection. Each names whose fault it is.

use crate::{
    frame::FrameError,
    units::{Epoch, Seq, StreamId},
};

/// Why a connection must be closed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// The peer sent bytes that are not good frames.
    #[error("bad bytes from the peer: {0}")]
    Frame(#[from] FrameError),
    /// The peer left out or repeated a frame.
    #[error("peer sent {found} where {expected} was due")]
    Gap {
        /// Number it should have had.
        expected: Seq,
        /// Number it had.
        found: Seq,
    },
    /// The peer put a frame into another epoch than the open one.
    #[error("peer sent {frame} for {found}, but {open} is open")]
    Epoch {
        /// Which frame.
        frame: Seq,
        /// As the peer says.
        found: Epoch,
        /// As it is.
        open: Epoch,
    },
    /// The peer sent more than it was allowed to.
    #[error("peer sent {bytes} unacknowledged bytes, over its window of {window}")]
    Window {
        /// Unacknowledged bytes.
        bytes: usize,
        /// What it was granted.
        window: usize,
    },
    /// A frame of another stream on this connection.
    #[error("peer sent a frame of stream {found} on the connection of {expected}")]
    Stream {
        /// The connection's stream.
        expected: StreamId,
        /// The frame's.
        found: StreamId,
    },
    /// An acknowledgement that cannot be.
    #[error("peer acknowledged spooled {spooled}, durable {durable}, but only {sent} was sent")]
    Ack {
        /// As claimed.
        spooled: Seq,
        /// As claimed.
        durable: Seq,
        /// Last frame sent.
        sent: Seq,
    },
    /// A message that does not belong here in the conversation.
    #[error("peer sent {0} out of turn")]
    OutOfTurn(&'static str),
    /// Nothing was heard for too long.
    #[error("nothing heard from the peer for {0} s")]
    Silent(u64),
}
