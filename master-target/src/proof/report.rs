//! What operators are told of a verification.

use engine::{point::PointId, units::Epoch};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::certificate::{Certificate, Coverage};

/// A verification as it stands.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// The point that is verified.
    pub point: PointId,
    /// When it began.
    pub begun_at: Timestamp,
    /// How far it is.
    pub phase: Phase,
    /// Leaves compared and equal so far.
    pub coverage: Coverage,
    /// Points it took so far: from the first as of which something was compared to the last.
    pub points: u64,
    /// What differs, or did until it was sent again. At most [`super::DIFFERENCES`] of them.
    pub differences: Vec<Difference>,
    /// Leaves that were found different, all of them.
    pub different_leaves: u64,
    /// The certificate, when there is one.
    pub certificate: Option<Box<Certificate>>,
}

/// How far a verification is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Digests are compared as they arrive.
    Comparing,
    /// Everything was compared; the roots are computed.
    Computing,
    /// Everything was equal.
    Proven,
    /// Something differed, and was sent again: everything is equal since.
    Different,
    /// It was given up, for this reason.
    Failed(String),
}

/// A run of bytes that differed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// Name of the disk.
    pub disk: String,
    /// First byte.
    pub offset: u64,
    /// How many, in whole leaves.
    pub bytes: u64,
    /// The point of whose source this is not.
    pub found: Epoch,
    /// The first point as of which it was equal again.
    pub repaired: Option<Epoch>,
    /// Why the bytes at home could not be read, if that is the difference.
    pub unreadable: Option<String>,
}

impl Report {
    /// Whether it is over, one way or another.
    #[must_use]
    pub fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Proven | Phase::Different | Phase::Failed(_))
    }
}

impl Difference {
    /// Whether `next` lies right behind it and is the same kind of difference.
    pub(super) fn goes_on_in(&self, next: &Difference) -> bool {
        self.disk == next.disk
            && self.offset + self.bytes == next.offset
            && (self.found, self.repaired, &self.unreadable) == (next.found, next.repaired, &next.unreadable)
    }
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes {}..{}", self.disk, self.offset, self.offset + self.bytes)?;
        match (&self.unreadable, self.repaired) {
            (Some(why), _) => write!(f, " cannot be read: {why}")?,
            (None, _) => write!(f, " differ from the source at the point of {}", self.found)?,
        }
        match self.repaired {
            Some(epoch) => write!(f, "; equal again at the point of {epoch}"),
            None => write!(f, "; they are sent again"),
        }
    }
}
