//! What the running service answers to `status`.

use engine::service::quantity::Size;
use serde::{Deserialize, Serialize};

use crate::{
    group::{GroupPoint, GroupStatus},
    node::StreamStatus,
};

/// A question to the service.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "kebab-case")]
pub enum Request {
    /// How everything stands.
    Status,
    /// A common point of a group, of what the disks hold from now on.
    Point {
        /// The group's name.
        group: String,
        /// Whether applications are to be held, too.
        application: bool,
        /// Answer only when it is durable at every member.
        wait: bool,
    },
}

/// Its answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Response {
    /// To [`Request::Status`].
    Status(ServerStatus),
    /// To [`Request::Point`] without waiting.
    Requested,
    /// To [`Request::Point`].
    Durable(GroupPoint),
}

/// The service as it stands.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ServerStatus {
    /// Where the master target is.
    pub target: String,
    /// Bytes of spool files.
    pub spool_used: Size,
    /// What they may take.
    pub spool_limit: Size,
    /// Bandwidth limit towards the master target, bytes a second.
    pub rate_limit: Option<u64>,
    /// Connections refused before they belonged to a stream, since the service started.
    pub refused_connections: u64,
    /// Streams in memory; others have nothing to do.
    pub streams: Vec<StreamReport>,
    /// Groups of VMs that share points.
    pub groups: Vec<GroupStatus>,
}

/// A stream as it stands, and how fast it is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StreamReport {
    /// As it stands.
    #[serde(flatten)]
    pub status: StreamStatus,
    /// Frame bytes a second from the agent, over the last seconds.
    pub bytes_per_second_in: u64,
    /// Frame bytes a second to the master target, over the last seconds.
    pub bytes_per_second_out: u64,
}
