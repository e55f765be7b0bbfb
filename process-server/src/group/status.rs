//! What a group tells of itself: to operators and to metrics.

use std::{collections::BTreeMap, time::Instant};

use engine::{
    point::{GroupMark, PointId},
    units::StreamId,
};
use serde::{Deserialize, Serialize};

use super::{Group, Partial, Sealed};

/// Counts since the service started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupCounts {
    /// Common points that the members were told to seal.
    pub sealed: u64,
    /// Of these, those without some member.
    pub partial: u64,
    /// Those that every member has confirmed to be durable.
    pub durable: u64,
    /// Times that there was none, or not confirmed.
    pub failures: u64,
    /// Times that a hold failed and was tried again.
    pub retries: u64,
}

/// How far a common point got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GroupPointState {
    /// On its way to the master target.
    Sealed,
    /// Durable there, of every member.
    Durable,
    /// Some member never said that it is.
    Unconfirmed,
}

/// A common point.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupPoint {
    /// What each member's point is marked with.
    #[serde(flatten)]
    pub mark: GroupMark,
    /// How far it got.
    pub state: GroupPointState,
    /// The members' points, as far as they are durable.
    pub points: BTreeMap<String, PointId>,
}

/// A VM of a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberStatus {
    /// Its name.
    pub vm: String,
    /// Whether its agent is connected.
    pub connected: bool,
}

/// A group as it stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GroupStatus {
    /// Its name.
    pub name: String,
    /// Its VMs.
    pub members: Vec<MemberStatus>,
    /// Seconds from one common point to the next; `None` if they are made on demand only.
    pub interval_s: Option<f64>,
    /// Whether applications are held for the points of the interval.
    pub application: bool,
    /// What happens when a member is missing.
    pub partial: Partial,
    /// What it is doing.
    pub activity: String,
    /// The newest common point.
    pub last: Option<GroupPoint>,
    /// Seconds since it was sealed, or became durable if it did.
    pub last_s: Option<f64>,
    /// Why there was none the last time.
    pub failure: Option<String>,
    /// Counts since the service started.
    pub counts: GroupCounts,
}

impl Sealed {
    pub(super) fn to_point(&self, state: GroupPointState) -> GroupPoint {
        GroupPoint { mark: self.mark.clone(), state, points: self.points.clone() }
    }
}

impl Group {
    pub(super) fn status(&self, connected: &BTreeMap<String, StreamId>, now: Instant) -> GroupStatus {
        let member = |vm: &String| MemberStatus { vm: vm.clone(), connected: connected.contains_key(vm) };
        let newest = match self.sealed.back() {
            Some(sealed) => Some((sealed.at, sealed.to_point(GroupPointState::Sealed))),
            None => self.last.clone(),
        };
        let (at, last) = newest.unzip();
        GroupStatus {
            name: self.settings.name.clone(),
            members: self.settings.vms.iter().map(member).collect(),
            interval_s: self.settings.interval.map(|interval| interval.as_secs_f64()),
            application: self.settings.application,
            partial: self.settings.partial,
            activity: self.round.as_ref().map_or("waiting", |round| round.phase().name()).into(),
            last,
            last_s: at.map(|at: Instant| now.saturating_duration_since(at).as_secs_f64()),
            failure: self.failure.clone(),
            counts: self.counts,
        }
    }
}
