//! What the tasks of connections tell a stream's thread. Its inbox holds a bounded number of these.

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::{greeting::Hello, node::ConnectionId};

/// Something happened on a connection.
pub(super) enum Event {
    AgentConnected {
        conn: ConnectionId,
        hello: Box<Hello>,
        answers: mpsc::Sender<Bytes>,
    },
    AgentBytes {
        conn: ConnectionId,
        bytes: Bytes,
    },
    AgentClosed {
        conn: ConnectionId,
    },
    TargetConnected {
        conn: ConnectionId,
    },
    TargetBytes {
        conn: ConnectionId,
        bytes: Bytes,
    },
    /// There is room for frames again.
    TargetRoom,
    TargetClosed {
        conn: ConnectionId,
        reason: String,
    },
}
