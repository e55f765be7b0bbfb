//! Which point an operator means.

use engine::point::PointId;
use jiff::Timestamp;

use crate::{
    journal::{JournalError, SealedPoint, State},
    replica::ReplicaError,
};

/// Which point an operator means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Select {
    /// The newest sealed one.
    Latest,
    /// The newest that is application-consistent.
    LatestApplicationConsistent,
    /// By id.
    Id(PointId),
    /// The newest that was taken at or before this time.
    At(Timestamp),
    /// The disks as they were found, before the first frame. None of the others means that: it was never the source's.
    BeforeFailback,
}

impl std::str::FromStr for Select {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "latest" => return Ok(Self::Latest),
            "latest-application-consistent" => return Ok(Self::LatestApplicationConsistent),
            "before-failback" => return Ok(Self::BeforeFailback),
            _ => {}
        }
        let id = text.parse().map(|id| Self::Id(PointId(id)));
        let at = || text.parse().map(Self::At);
        id.or_else(|_| at()).map_err(|_| {
            format!(
                "'{text}' is neither 'latest', nor 'latest-application-consistent', nor 'before-failback', nor a \
                 point's id, nor a time like 2026-11-23T02:00:00Z"
            )
        })
    }
}

impl Select {
    /// The point that is meant.
    pub fn among(&self, state: &State) -> Result<SealedPoint, ReplicaError> {
        let newest =
            |wanted: &dyn Fn(&SealedPoint) -> bool| state.replicated().rev().find(|sealed| wanted(sealed));
        let found = match self {
            Self::Latest => newest(&|_| true),
            Self::LatestApplicationConsistent => newest(&SealedPoint::is_application_consistent),
            Self::Id(id) => state.point(*id),
            Self::At(time) => newest(&|sealed| sealed.point.taken_at <= *time),
            Self::BeforeFailback => state.before_failback(),
        };
        found.cloned().ok_or_else(|| {
            let what = format!("no such point: {} are kept; list them with `points`", state.points.len());
            JournalError::Refused(what).into()
        })
    }
}
