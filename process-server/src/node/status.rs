//! What a stream tells of itself: to operators and to metrics.

use engine::{
    service::quantity::Size,
    units::{Epoch, Seq, StreamId},
};
use serde::{Deserialize, Serialize};

/// Counts since the service started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Frames from the agent that are safe in the spool.
    pub frames_in: u64,
    /// Their bytes as they travelled.
    pub wire_bytes_in: u64,
    /// Their content, before compression.
    pub logical_bytes_in: u64,
    /// Frames sent to the master target, repetitions included.
    pub frames_out: u64,
    /// Their bytes as they travelled.
    pub wire_bytes_out: u64,
    /// Times the agent was told to wait.
    pub holds: u64,
    /// Agents refused.
    pub refused: u64,
    /// Agent connections ended by an error of theirs.
    pub agent_errors: u64,
    /// Failed tries and broken connections to the master target.
    pub target_errors: u64,
    /// Failures of the spool's storage.
    pub spool_errors: u64,
    /// Places where spool files were found damaged or torn.
    pub spool_losses: u64,
    /// Times the spool was discarded because the master target stood elsewhere.
    pub discards: u64,
}

/// How the connection to the master target stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TargetStatus {
    /// Not needed now, or waiting for the next try.
    Idle,
    /// Being made.
    Connecting,
    /// Up.
    Connected,
    /// The master target will not have the stream.
    Refused,
}

/// A stream as it stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamStatus {
    /// Its identity.
    pub stream: StreamId,
    /// The VM; unknown until its agent or the spool has told.
    pub vm: Option<String>,
    /// The agent that owns it.
    pub agent: Option<String>,
    /// Whether that is connected.
    pub agent_connected: bool,
    /// The way on.
    pub target: TargetStatus,
    /// The last frame safe in the spool.
    pub spooled: Seq,
    /// The epoch that is open after it.
    pub epoch: Epoch,
    /// The last frame known to be durable at the master target.
    pub durable: Seq,
    /// Bytes of spool files.
    pub spool_bytes: Size,
    /// Bytes on their way to the master target.
    pub in_flight: Size,
    /// Why the agent was told to wait, if it was.
    pub hold: Option<String>,
    /// The last trouble, if it is not over.
    pub trouble: Option<String>,
    /// Counts since the service started.
    pub counts: Counts,
}

impl StreamStatus {
    /// Of a stream whose spool is still being read.
    #[must_use]
    pub fn at_start(stream: StreamId) -> Self {
        Self {
            stream,
            vm: None,
            agent: None,
            agent_connected: false,
            target: TargetStatus::Idle,
            spooled: Seq(0),
            epoch: Epoch::FIRST,
            durable: Seq(0),
            spool_bytes: Size(0),
            in_flight: Size(0),
            hold: None,
            trouble: None,
            counts: Counts::default(),
        }
    }
}
