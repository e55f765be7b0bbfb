//! How a stream stands, as operators and metrics see it.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use engine::units::StreamId;

use crate::{
    journal::{Phase, SealedPoint, State, TargetDisk},
    node::StreamNode,
    proof::{Report, ScrubStatus},
};

/// One VM's replication.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StreamStatus {
    /// The VM.
    pub vm: String,
    /// Its stream.
    pub stream: StreamId,
    /// Its agent.
    pub agent: String,
    /// Where its disks are.
    pub targets: Vec<TargetDisk>,
    /// Bytes of its disks.
    pub disk_bytes: u64,
    /// Whether a process server is connected.
    pub connected: bool,
    /// Last frame that is durable; `None` while nobody has it open.
    pub durable_frame: Option<u64>,
    /// Points kept.
    pub points: usize,
    /// The newest of them that is the VM's.
    pub latest: Option<SealedPoint>,
    /// Bytes of before-images; `None` while nobody has it open.
    pub journal_bytes: Option<u64>,
    /// Whether the journal takes so much that points will soon be dropped for it.
    #[serde(default)]
    pub journal_nearly_full: bool,
    /// Why replication waits, if it does.
    pub hold: Option<String>,
    /// Whether its disks are restored to a point.
    pub restore: Option<Phase>,
    /// Whether a restore was accepted: replication does not go on.
    #[serde(default)]
    pub accepted: bool,
    /// Frame bytes received since it was opened.
    pub wire_bytes: u64,
    /// Bytes of content applied since it was opened.
    pub logical_bytes: u64,
    /// Connections closed because of what the peer sent, since it was opened.
    pub peer_errors: u64,
    /// The verification under way, or the last one since it was opened.
    #[serde(default)]
    pub verification: Option<Report>,
    /// The scrub; `None` while nobody has it open.
    #[serde(default)]
    pub scrub: Option<ScrubStatus>,
}

/// A point that is kept.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PointStatus {
    /// What is known of it.
    #[serde(flatten)]
    pub sealed: SealedPoint,
    /// Bytes of the logs that lead back to it from the point after it; what dropping the oldest would free.
    pub cost_bytes: u64,
    /// Whether retention leaves it alone.
    pub pinned: bool,
}

impl PointStatus {
    /// All points of a stream, oldest first.
    #[must_use]
    pub fn all(state: &State) -> Vec<Self> {
        let costs = state.costs();
        let point = |(layer, sealed): (&u64, &SealedPoint)| Self {
            sealed: sealed.clone(),
            cost_bytes: costs.get(layer).copied().unwrap_or(0),
            pinned: state.pinned.contains(layer),
        };
        state.points.iter().map(point).collect()
    }
}

impl StreamStatus {
    /// Of a stream that is open.
    #[must_use]
    pub fn of(node: &StreamNode) -> Self {
        let (replica, counts) = (node.replica(), node.counts());
        Self {
            connected: node.is_connected(),
            durable_frame: Some(replica.position().seq.0),
            journal_bytes: Some(replica.journal_bytes()),
            journal_nearly_full: node.is_nearly_full(),
            hold: node.hold().map(str::to_owned),
            wire_bytes: counts.wire_bytes,
            logical_bytes: counts.logical_bytes,
            peer_errors: counts.peer_errors,
            verification: node.proof().report(),
            scrub: node.proof().scrub_status(),
            ..Self::at_rest(replica.state())
        }
    }

    /// Of a stream that nobody has open, from its catalogue.
    #[must_use]
    pub fn at_rest(state: &State) -> Self {
        Self {
            vm: state.stream.vm.clone(),
            stream: state.stream.id,
            agent: state.agent.clone(),
            targets: state.targets.clone(),
            disk_bytes: state.stream.disks.iter().map(|disk| disk.bytes).sum(),
            connected: false,
            durable_frame: None,
            points: state.points.len(),
            latest: state.replicated().next_back().cloned(),
            journal_bytes: None,
            journal_nearly_full: false,
            hold: None,
            accepted: state.accepted,
            restore: state.restore.map(|restore| restore.phase),
            wire_bytes: 0,
            logical_bytes: 0,
            peer_errors: 0,
            verification: None,
            scrub: None,
        }
    }

    /// Seconds since the newest point was taken.
    #[must_use]
    pub fn point_age_seconds(&self, now: Timestamp) -> Option<f64> {
        self.latest.as_ref().map(|latest| now.duration_since(latest.point.taken_at).as_secs_f64().max(0.0))
    }

    /// In a word, for people.
    #[must_use]
    pub fn state_word(&self) -> &'static str {
        match (self.restore, &self.hold, self.connected) {
            (Some(Phase::Restoring), ..) => "restoring",
            (Some(Phase::Restored), ..) => "restored",
            (Some(Phase::Undoing), ..) => "undoing",
            (None, ..) if self.accepted => "restored for good",
            (None, Some(_), _) => "waiting",
            (None, None, true) => "replicating",
            (None, None, false) => "disconnected",
        }
    }
}
