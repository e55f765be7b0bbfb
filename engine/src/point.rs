//! The recovery point: what the agent observed when it made it. A label is never more than that.

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

impl std::fmt::Display for PointId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// What a restored disk is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Consistency {
    /// As after a power cut at that instant.
    CrashConsistent,
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
}

impl Point {
    /// As JSON, the content of its seal frame.
    #[must_use]
    pub fn to_json(&self) -> String {
        // Plain data with string keys: serialising it cannot fail.
        #[allow(clippy::expect_used)]
        serde_json::to_string(self).expect("points serialise")
    }
}
