//! What an operator who asks for a verification is told.

use engine::point::PointId;
use serde::{Deserialize, Serialize};

use super::{certificate::Certificate, report::Report, verdicts::Verdict};

/// What is known of a point.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Verified {
    /// The point.
    pub point: PointId,
    /// The verification that is under way, or was just done.
    pub report: Option<Report>,
    /// What is written down of the point.
    pub verdict: Option<Verdict>,
    /// Its certificate.
    pub certificate: Option<Box<Certificate>>,
}
