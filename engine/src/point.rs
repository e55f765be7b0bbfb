//! The recovery point: what the agent observed when it made it. A label is never more than that. One point the agent has
//! no part in: the disks at home as they were found, before the first frame.
//!
//! What was wished for and not reached is told beside the label: see [`Application`].

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::units::Epoch;

/// Identity of a point. Random.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PointId(pub uuid::Uuid);

impl PointId {
    /// A new one.
    #[must_use]
    pub fn random() -> Self {
        Self(uuid::Uuid::new_v4())
    }
}

/// Identity of a moment that the VMs of a group share. Random.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BarrierId(pub uuid::Uuid);

impl BarrierId {
    /// A new one.
    #[must_use]
    pub fn random() -> Self {
        Self(uuid::Uuid::new_v4())
    }
}

impl std::fmt::Display for BarrierId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// What a point shares with those of other VMs: at one instant all of `members` were frozen, and each one's point
/// of this barrier is its disks at that instant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupMark {
    /// The group's name.
    pub group: String,
    /// Which of its moments.
    pub barrier: BarrierId,
    /// The VMs that share it, in order. A restore must ask whether each has a point of this barrier.
    pub members: Vec<String>,
    /// Those of the group that do not, in order.
    pub missing: Vec<String>,
    /// Microseconds from the first member's word that it was frozen to the last one's, at the process server's clock.
    pub skew_us: u64,
}

impl std::fmt::Display for PointId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// What a restored disk is like; the stronger is the greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Consistency {
    /// As the disks at home were before the first frame. Nobody observed what that is like: it says only that nothing
    /// of it came from the VM.
    BeforeFailback,
    /// As after a power cut at that instant.
    CrashConsistent,
    /// As its applications made it for that instant: every hook did its part in time, and file systems were frozen.
    ApplicationConsistent,
}

impl std::fmt::Display for Consistency {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::BeforeFailback => "before-failback",
            Self::CrashConsistent => "crash-consistent",
            Self::ApplicationConsistent => "application-consistent",
        })
    }
}

/// How the instant was held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// The converging barrier: nobody was stopped.
    Barrier,
    /// File systems were frozen for the copy of the residual.
    Frozen,
    /// The disk was observed to be quiet while it was compared.
    Quiet,
    /// It was not: the disks were found so.
    Found,
}

/// What became of the wish for an application-consistent point.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Application {
    /// Microseconds that applications may have been held: from the end of the first pre hook to the end of the last
    /// post hook.
    pub hold_us: u64,
    /// Why the point is crash-consistent only; `None` if it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<FailedStep>,
    /// Mount points of file systems that know no freezing: they were written out, their writers not stopped.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_frozen: Vec<String>,
}

impl std::fmt::Display for Application {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "held {:.1} ms", self.hold_us as f64 / 1000.0)?;
        if let Some(step) = &self.failed {
            write!(f, ", {step}")?;
        }
        if !self.not_frozen.is_empty() {
            write!(f, ", not frozen: {}", self.not_frozen.join(" "))?;
        }
        Ok(())
    }
}

/// The first step that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedStep {
    /// The hook's path, or `freeze`.
    pub step: String,
    /// When.
    pub stage: Stage,
    /// How.
    pub outcome: Outcome,
}

/// A stage of an application-consistent point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// Hooks ask applications to hold.
    Pre,
    /// File systems are frozen and what is left is captured.
    Freeze,
    /// Hooks let applications go on.
    Post,
}

/// How a step failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It ended with this exit status.
    Exited(i32),
    /// This signal ended it.
    Killed(i32),
    /// It took longer than this many milliseconds, and was killed with its process group.
    TimedOut(u64),
    /// It could not be started, or not be done, for this reason.
    Failed(String),
}

impl std::fmt::Display for FailedStep {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let step = &self.step;
        match self.stage {
            Stage::Pre => write!(f, "{step} --pre ")?,
            Stage::Freeze => write!(f, "{step} ")?,
            Stage::Post => write!(f, "{step} --post ")?,
        }
        match &self.outcome {
            Outcome::Exited(status) => write!(f, "ended with exit status {status}"),
            Outcome::Killed(signal) => write!(f, "was ended by signal {signal}"),
            Outcome::TimedOut(ms) => write!(f, "was ended after its time limit of {ms} ms"),
            Outcome::Failed(reason) => write!(f, "failed: {reason}"),
        }
    }
}

/// A recovery point, as its seal frame carries it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Point {
    /// Its identity.
    pub id: PointId,
    /// The epoch it ends.
    pub epoch: Epoch,
    /// The instant whose bytes it holds, by the agent's clock.
    pub taken_at: Timestamp,
    /// What a restored disk is like.
    pub consistency: Consistency,
    /// How the instant was held.
    pub method: Method,
    /// Barrier attempts it took, the successful one included.
    pub barrier_tries: u32,
    /// Microseconds from the instant until the residual had been read.
    pub window_us: u64,
    /// Bytes of the residual.
    pub residual_bytes: u64,
    /// Microseconds that file systems were frozen; 0 if none was.
    pub frozen_us: u64,
    /// What became of the wish for an application-consistent point, if there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub application: Option<Application>,
    /// What it shares with points of other VMs, if it was made for a group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<Box<GroupMark>>,
}

impl Point {
    /// Whether it is the disks at home as they were before the first frame: a point that no agent makes.
    #[must_use]
    pub fn is_before_failback(&self) -> bool {
        self.consistency == Consistency::BeforeFailback || self.method == Method::Found
    }

    /// As JSON, the content of its seal frame.
    #[must_use]
    pub fn to_json(&self) -> String {
        // Plain data with string keys: serialising it cannot fail.
        #[allow(clippy::expect_used)]
        serde_json::to_string(self).expect("points serialise")
    }
}
