//! Messages between neighbours: who replicates what, where the receiver stands, how far it got; what the master
//! target wants of the agent, and what the agent asks it, which the process server passes on.
//!
//! They travel as frames of kind control with a JSON body, outside the stream's numbering.

use serde::{Deserialize, Serialize};

use super::{
    Frame, FrameError, Kind, Position,
    compare::{Compare, Compared},
    group::{GroupOrder, GroupReport},
    name::is_name,
    packed::Packed,
};
use crate::{
    digest::leaves_in,
    limits,
    point::BarrierId,
    units::{DiskIndex, Seq, StreamId},
};

/// Version of the conversation. 1, 2026-11: the first. 2, 2026-11: verification (`verify`, `resend`, digests frames);
/// orders and reports of groups. 3, 2026-11: resync (`compare`, `compared`,
/// `adopted` in `welcome`).
pub const PROTOCOL: u16 = 3;

/// What is being replicated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamInfo {
    /// Identity of this replication.
    pub id: StreamId,
    /// The protected VM's name; also names its folder and disks at home.
    pub vm: String,
    /// Its disks; the position in this list is the [`DiskIndex`] of data frames.
    pub disks: Vec<DiskInfo>,
}

/// One disk of the VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskInfo {
    /// Its name within the VM, e.g. `sda`.
    pub name: String,
    /// Size in bytes.
    pub bytes: u64,
    /// Bytes in use as far as the agent can tell, for the space check; the size if it cannot.
    pub used_bytes: u64,
}

/// A run of leaves ([`crate::digest`]) of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeafRange {
    /// Which disk.
    pub disk: DiskIndex,
    /// The first.
    pub first: u64,
    /// How many.
    pub count: u64,
}

/// Why a receiver will not take a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Refusal {
    /// The peers speak different versions.
    Protocol,
    /// The VM, or this stream, belongs to another agent.
    NotYours,
    /// The description makes no sense or differs from the one known.
    BadRequest,
    /// Not enough space where it should go.
    NoSpace,
    /// The disk was restored to a point: replication waits until the operator decides.
    Restored,
    /// The next node cannot be reached, or is too busy: try later.
    Unavailable,
    /// The receiver's own record is damaged: only a new replication helps.
    Lost,
    /// A frame is not what its agent sealed: whoever keeps it must drop it, and the agent send anew.
    Damaged,
}

/// A message between neighbours.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum Control {
    /// First message of the side that dials.
    Hello {
        /// Must be [`PROTOCOL`].
        protocol: u16,
        /// Name of the agent that owns the stream, as its certificate says.
        agent: String,
        /// What it wants to send.
        stream: StreamInfo,
    },
    /// Answer to `Hello`: go on after `position`.
    Welcome {
        /// The last frame the receiver holds safely.
        position: Position,
        /// The last frame that is durable at the master target.
        durable: Seq,
        /// Frame bytes that may be unacknowledged.
        window: u64,
        /// Whether the disks at home held content before the first frame: then also an agent that begins at the
        /// beginning compares before it sends.
        adopted: bool,
    },
    /// Answer to `Hello`: no.
    Refused {
        /// The kind of no.
        why: Refusal,
        /// For people: what, where, what to do.
        reason: String,
    },
    /// How far the receiver got. Both only grow; `durable` ≤ `spooled`.
    Ack {
        /// Safe at the receiver.
        spooled: Seq,
        /// Safe at the master target.
        durable: Seq,
    },
    /// The receiver goes on only when something is mended, or goes on again.
    Hold {
        /// For people; `None` when it goes on.
        reason: Option<String>,
    },
    /// From master target to agent: send digests of these leaves, each of some point from the last one on. Those who
    /// asked before are not forgotten. It may be lost on the way, and is then said again.
    Verify {
        /// At most [`limits::LEAF_RANGES`].
        leaves: Vec<LeafRange>,
    },
    /// From master target to agent: these leaves differ; send them again, and then their digests. It may be lost on
    /// the way, and is then said again.
    Resend {
        /// At most [`limits::LEAF_RANGES`].
        leaves: Vec<LeafRange>,
    },
    /// From agent to master target: does it hold these leaves already?
    Compare(Compare),
    /// The answer, from master target to agent.
    Compared(Compared),
    /// The process server tells a member of a group what to do for a common point.
    GroupOrder {
        /// Which point.
        barrier: BarrierId,
        /// What.
        #[serde(flatten)]
        order: GroupOrder,
    },
    /// A member tells how far it is.
    GroupReport {
        /// With which point.
        barrier: BarrierId,
        /// How far.
        #[serde(flatten)]
        report: GroupReport,
    },
    /// Keeps an idle connection alive.
    Ping,
}

impl Control {
    /// As a frame of `stream`'s connection.
    #[must_use]
    pub fn to_frame(&self, stream: StreamId) -> Frame {
        // Plain data with string keys: serialising it cannot fail.
        #[allow(clippy::expect_used)]
        let json = serde_json::to_vec(self).expect("control messages serialise");
        debug_assert!(json.len() <= limits::CONTROL_BODY);
        Packed::new(Kind::Control, DiskIndex(0), 0, &json, 0).unchained(stream)
    }

    /// Parses a control frame's body.
    pub fn from_frame(frame: &Frame) -> Result<Self, FrameError> {
        let content = frame.content()?;
        let message: Control = serde_json::from_slice(&content)
            .map_err(|e| FrameError::Body { what: "control message", reason: e.to_string() })?;
        let sensible = |seq: &Seq| seq.0 < limits::STREAM_NUMBER;
        match &message {
            Control::Hello { stream, .. } => stream.check()?,
            Control::Welcome { position, durable, .. } if position.is_sensible() && sensible(durable) => {}
            Control::Ack { spooled, durable } if sensible(spooled) && sensible(durable) => {}
            Control::Welcome { .. } | Control::Ack { .. } => {
                return Err(FrameError::Malformed("a position that no stream reaches"));
            }
            Control::Verify { leaves } | Control::Resend { leaves } => check_leaves(leaves)?,
            Control::Compare(compare) => compare.check()?,
            Control::Compared(compared) => compared.check()?,
            Control::GroupOrder { order, .. } => order.check()?,
            Control::Refused { .. } | Control::Hold { .. } | Control::GroupReport { .. } | Control::Ping => {}
        }
        Ok(message)
    }
}

/// Checks what a peer claims to be ranges of leaves. Whether the VM has them is the agent's to see.
fn check_leaves(leaves: &[LeafRange]) -> Result<(), FrameError> {
    let largest = leaves_in(limits::DISK_BYTES);
    let fits = |range: &LeafRange| {
        usize::from(range.disk.0) < limits::DISKS_PER_VM
            && range.count > 0
            && range.first.checked_add(range.count).is_some_and(|end| end <= largest)
    };
    if leaves.len() > limits::LEAF_RANGES || !leaves.iter().all(fits) {
        return Err(FrameError::Malformed("leaves that no disk has, or too many ranges of them"));
    }
    Ok(())
}

impl StreamInfo {
    /// Checks what a peer, or a file, claims: some disks, not too many, each of a sensible size and name.
    ///
    /// # Errors
    /// [`FrameError::Malformed`] with the rule that is broken.
    pub fn check(&self) -> Result<(), FrameError> {
        let malformed = |what| Err(FrameError::Malformed(what));
        if !is_name(&self.vm) {
            return malformed(
                "VM name must be 1 to 63 letters, digits, '.', '_', '-', not starting with '.' or '-'",
            );
        }
        if self.disks.is_empty() || self.disks.len() > limits::DISKS_PER_VM {
            return malformed("a VM has 1 to 60 disks");
        }
        for (index, disk) in self.disks.iter().enumerate() {
            if !is_name(&disk.name) || self.disks[..index].iter().any(|other| other.name == disk.name) {
                return malformed("disk names must be unique, of 1 to 63 letters, digits, '.', '_', '-'");
            }
            if disk.bytes == 0 || disk.bytes > limits::DISK_BYTES || disk.bytes % 512 != 0 {
                return malformed("disk size must be whole 512-byte sectors, at most 62 TiB");
            }
        }
        Ok(())
    }
}
