//! What the node tells of itself.

use std::time::{Duration, Instant};

use engine::{frame::Position, units::Seq};
use serde::{Deserialize, Serialize};

use super::points::PointRecord;
use crate::tracker::Kind;

/// The node at one moment. Bytes, and seconds as fractions.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeStatus {
    /// The protected VM.
    pub vm: String,
    /// Identity of the replication.
    pub stream: String,
    /// How writes are tracked.
    pub tracker: Kind,
    /// `connected`, or what it does instead.
    pub connection: String,
    /// Seconds since the connection was made; `None` without one.
    pub connected_s: Option<f64>,
    /// Why the last connection ended, or none came about.
    pub connection_error: Option<String>,
    /// Why the other side does not go on, as it says.
    pub hold: Option<String>,
    /// zstd level of what is packed now.
    #[serde(default)]
    pub compression_level: i32,
    /// The last frame made; `None` before the first connection.
    pub position: Option<Position>,
    /// The last frame that is durable at the target.
    pub durable: Seq,
    /// Bytes that the target may lack: dirty, or sent and not durable. Writes not yet harvested are not in it.
    pub lag_bytes: u64,
    /// How long ago the disks held what the target now holds of them at least.
    pub lag_s: f64,
    /// Bytes to be sent, as far as harvested.
    pub dirty_bytes: u64,
    /// Frame bytes that wait for an acknowledgement.
    pub window_bytes: usize,
    /// The copy of everything dirty that goes before the first point; `None` when it is over.
    pub copy: Option<CopyStatus>,
    /// The comparison of what the target may have already; `None` while there is none.
    #[serde(default)]
    pub resync: Option<ResyncStatus>,
    /// What is being done.
    pub activity: String,
    /// Leaves of 64 KiB whose digests the master target still wants; `None` while it wants none.
    #[serde(default)]
    pub verifying_leaves: Option<u64>,
    /// What went wrong last, if it was not mended since.
    pub trouble: Option<String>,
    /// Why the last attempt at a point made none; `None` after one that did.
    pub point_failure: Option<String>,
    /// The last points, oldest first.
    pub points: Vec<PointRecord>,
    /// Sums since the process started.
    pub totals: Totals,
}

/// Progress of the first copy.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct CopyStatus {
    /// Bytes sent.
    pub done: u64,
    /// Bytes to send, by what was dirty at its start.
    pub total: u64,
    /// Bytes per second, over all of it.
    pub rate: u64,
    /// Seconds left at that rate; `None` if unknown.
    pub eta_s: Option<f64>,
}

/// Progress of a resync.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ResyncStatus {
    /// Bytes to compare, at its start.
    pub total: u64,
    /// Bytes still to compare.
    pub left: u64,
    /// Bytes that the target has already.
    pub equal: u64,
    /// Seconds left at the rate so far; `None` if unknown.
    pub eta_s: Option<f64>,
}

/// Sums since the process started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Disk bytes in frames.
    pub logical_bytes: u64,
    /// Bytes of these frames.
    pub wire_bytes: u64,
    /// Barrier rounds.
    pub barrier_tries: u64,
    /// Microseconds that file systems were frozen.
    pub frozen_us: u64,
    /// Points that became durable.
    pub points: u64,
    /// Connections that ended, or never came about.
    pub connection_errors: u64,
    /// Captures and reads that failed.
    pub capture_errors: u64,
    /// Attempts that made no point.
    pub point_failures: u64,
    /// Leaves of 64 KiB whose digests were sent.
    #[serde(default)]
    pub verified_leaves: u64,
    /// Dirty bytes that the target turned out to have already, and that were not sent.
    #[serde(default)]
    pub equal_bytes: u64,
    /// How applications held.
    #[serde(default)]
    pub holds: Holds,
}

/// How applications held for points, in sum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holds {
    /// Times that they were asked to, and went on.
    pub count: u64,
    /// Microseconds from their first hook to their last.
    pub held_us: u64,
    /// In vain, since a hook failed or took too long.
    pub hook_failures: u64,
    /// In vain, since freezing failed or took too long.
    pub freeze_failures: u64,
}

/// The first copy, as it goes.
#[derive(Debug)]
pub(super) struct Copying {
    total: u64,
    done: u64,
    began: Instant,
}

impl Copying {
    pub(super) fn new(total: u64, now: Instant) -> Self {
        Self { total, done: 0, began: now }
    }

    pub(super) fn advance(&mut self, bytes: u64) {
        self.done += bytes;
    }

    pub(super) fn status(&self, now: Instant) -> CopyStatus {
        let elapsed = now.duration_since(self.began).as_secs_f64();
        let rate = if elapsed > 0.0 { self.done as f64 / elapsed } else { 0.0 };
        let left = self.total.saturating_sub(self.done);
        let eta_s = (rate > 0.0).then(|| left as f64 / rate);
        CopyStatus { done: self.done.min(self.total), total: self.total, rate: rate as u64, eta_s }
    }
}

/// How far behind the disks the target is, in time: from instants at which everything harvested was in frames.
#[derive(Debug)]
pub(super) struct Lag {
    /// Everything up to here is durable.
    covered: Instant,
    /// When the frame is durable, everything up to the instant is. Bounded; both ascend.
    awaited: std::collections::VecDeque<(Seq, Instant)>,
}

/// Instants remembered while the target is slow.
const AWAITED: usize = 64;

impl Lag {
    pub(super) fn new(now: Instant) -> Self {
        Self { covered: now, awaited: std::collections::VecDeque::new() }
    }

    /// Frames up to `seq` hold everything that was written before `instant`.
    pub(super) fn sent(&mut self, seq: Seq, instant: Instant) {
        if self.awaited.back().is_some_and(|(last, _)| *last == seq) {
            self.awaited.pop_back();
        }
        if self.awaited.len() < AWAITED {
            self.awaited.push_back((seq, instant));
        }
    }

    pub(super) fn durable(&mut self, durable: Seq) {
        while let Some((_, instant)) = self.awaited.pop_front_if(|(seq, _)| *seq <= durable) {
            self.covered = instant;
        }
    }

    /// What was sent is to be sent again.
    pub(super) fn reset(&mut self) {
        self.awaited.clear();
    }

    pub(super) fn at(&self, now: Instant) -> Duration {
        now.duration_since(self.covered)
    }
}
