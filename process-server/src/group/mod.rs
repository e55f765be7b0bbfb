//! Common points of groups of VMs: who is told what when, so that all of them share one instant.
//!
//! A [`Round`] leads the members through the steps of [`engine::frame::GroupOrder`]. At the moment when the last
//! member's `held` is here every one of them is frozen. Each one that then says that it stayed so until its `release`
//! arrived was frozen at that moment: together they are a *cut* in which no effect stands without its cause, because
//! whatever one member did after its capture, it did after that moment, and so after the capture of all.
//! The others are missing, and whether there is a point without them the group's policy decides.
//!
//! It decides, and the driver does: no sockets, threads or clock here. Orders do not pass through the streams' nodes,
//! where they would wait for the spool's disk while VMs are frozen. It does not know what a point holds.

mod round;
mod status;

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use engine::{
    frame::{GroupOrder, GroupReport},
    point::{BarrierId, GroupMark, PointId},
    units::StreamId,
};
use serde::{Deserialize, Serialize};

use self::round::{Outcome, Round};
pub use self::status::{GroupCounts, GroupPoint, GroupPointState, GroupStatus, MemberStatus};
use crate::limits;

/// What a group is.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Its name.
    pub name: String,
    /// Its VMs; no VM is in two groups.
    pub vms: Vec<String>,
    /// Time from one common point to the next; `None` if they are made on demand only.
    pub interval: Option<Duration>,
    /// Whether applications are held for the points of the interval.
    pub application: bool,
    /// How long a member may take to get ready, and then to hold applications, before it counts as missing; at most
    /// [`limits::GROUP_PATIENCE`].
    pub patience: Duration,
    /// What happens when a member is missing.
    pub partial: Partial,
}

/// Whether there are points without all members.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Partial {
    /// None.
    #[default]
    Refuse,
    /// Of those that can; the point names the others.
    Allow,
}

/// A wish for a point, to be answered when it is durable at every member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// What the coordinator wants done, in this order.
#[derive(Clone, Debug)]
pub enum Output {
    /// Tell the agent of this stream.
    Order(StreamId, BarrierId, GroupOrder),
    /// The point is durable at every member, or there is none, for this reason.
    Answer(RequestId, Result<GroupPoint, String>),
}

/// All groups.
pub struct Coordinator {
    groups: Vec<Group>,
    around: Around,
    requests: u64,
}

/// What is there for all groups alike.
struct Around {
    /// The agents that are connected, by VM.
    connected: BTreeMap<String, StreamId>,
    new_id: Box<dyn FnMut() -> BarrierId + Send>,
    outputs: VecDeque<Output>,
}

struct Group {
    settings: Settings,
    /// When the next point of the interval is due.
    due: Option<Instant>,
    /// Wishes that no round takes care of yet, and whether applications are to be held.
    wanted: Vec<(RequestId, bool)>,
    round: Option<Round>,
    /// Rounds whose points are sealed; the newest last. At most [`limits::GROUP_UNCONFIRMED`].
    sealed: VecDeque<Sealed>,
    /// The last that became durable, or did not in time.
    last: Option<(Instant, GroupPoint)>,
    failure: Option<String>,
    counts: GroupCounts,
}

/// A common point that is on its way to the master target.
struct Sealed {
    mark: GroupMark,
    streams: BTreeMap<String, StreamId>,
    points: BTreeMap<String, PointId>,
    requests: Vec<RequestId>,
    at: Instant,
}

impl Sealed {
    /// Whether this member has not said yet that its point is durable.
    fn awaits(&self, stream: StreamId) -> bool {
        self.streams.iter().any(|(vm, known)| *known == stream && !self.points.contains_key(vm))
    }
}

impl Coordinator {
    /// For `groups`, none of which has a VM of another. `new_id` makes ids of barriers.
    #[must_use]
    pub fn new(groups: Vec<Settings>, new_id: Box<dyn FnMut() -> BarrierId + Send>, now: Instant) -> Self {
        let around = Around { connected: BTreeMap::new(), new_id, outputs: VecDeque::new() };
        let groups = groups.into_iter().map(|settings| Group::new(settings, now)).collect();
        Self { groups, around, requests: 0 }
    }

    /// What to do next.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.around.outputs.pop_front()
    }

    /// Someone wants a common point of what is on the disks from now on, answered by [`Output::Answer`]. `None` if
    /// there is no such group.
    pub fn handle_request(&mut self, group: &str, application: bool, now: Instant) -> Option<RequestId> {
        let group = self.groups.iter_mut().find(|known| known.settings.name == group)?;
        self.requests += 1;
        let request = RequestId(self.requests);
        if !group.round.as_mut().is_some_and(|round| round.join(request, application)) {
            group.wanted.push((request, application));
        }
        group.go_on(&mut self.around, now);
        Some(request)
    }

    /// The agent of `vm` is connected, by `stream`.
    pub fn handle_connected(&mut self, vm: &str, stream: StreamId, now: Instant) {
        let before = self.around.connected.insert(vm.to_owned(), stream);
        if let Some(before) = before {
            self.lose(vm, before, now);
        }
        // The order, or the report that it is durable, may be lost, and the agent may know nothing any more.
        for sealed in
            self.groups.iter().flat_map(|group| &group.sealed).filter(|sealed| sealed.awaits(stream))
        {
            self.around.order(stream, sealed.mark.barrier, GroupOrder::Seal { mark: sealed.mark.clone() });
        }
    }

    /// It is not any more.
    pub fn handle_disconnected(&mut self, vm: &str, stream: StreamId, now: Instant) {
        if self.around.connected.get(vm) == Some(&stream) {
            self.around.connected.remove(vm);
            self.lose(vm, stream, now);
        }
    }

    /// The agent of `stream` reports.
    pub fn handle_report(&mut self, stream: StreamId, barrier: BarrierId, report: GroupReport, now: Instant) {
        for group in &mut self.groups {
            if group.handle_report(stream, barrier, &report, &mut self.around, now) {
                return;
            }
        }
        // Who waits for the next order would wait in vain.
        if !matches!(report, GroupReport::Failed { .. } | GroupReport::Durable { .. }) {
            self.around.abort(stream, barrier, "this barrier is over");
        }
    }

    /// When [`Self::handle_timeout`] should be called next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.groups.iter().filter_map(Group::poll_timeout).min()
    }

    /// Does what is due at `now`.
    pub fn handle_timeout(&mut self, now: Instant) {
        for group in &mut self.groups {
            group.handle_timeout(&mut self.around, now);
        }
    }

    /// The groups as they stand.
    #[must_use]
    pub fn status(&self, now: Instant) -> Vec<GroupStatus> {
        self.groups.iter().map(|group| group.status(&self.around.connected, now)).collect()
    }

    fn lose(&mut self, vm: &str, stream: StreamId, now: Instant) {
        for group in &mut self.groups {
            let Some(round) = group.round.as_mut().filter(|round| round.has(vm, stream)) else { continue };
            let outcome = round.lose(vm, "its agent's connection was lost", &mut self.around, now);
            group.settle(outcome, &mut self.around, now);
        }
    }
}

impl Around {
    fn order(&mut self, stream: StreamId, barrier: BarrierId, order: GroupOrder) {
        self.outputs.push_back(Output::Order(stream, barrier, order));
    }

    fn abort(&mut self, stream: StreamId, barrier: BarrierId, reason: &str) {
        self.order(stream, barrier, GroupOrder::Abort { reason: reason.to_owned() });
    }

    fn answer(&mut self, requests: Vec<RequestId>, answer: &Result<GroupPoint, String>) {
        self.outputs.extend(requests.into_iter().map(|request| Output::Answer(request, answer.clone())));
    }
}

impl Group {
    fn new(settings: Settings, now: Instant) -> Self {
        Self {
            due: settings.interval.map(|interval| now + interval),
            settings,
            wanted: Vec::new(),
            round: None,
            sealed: VecDeque::new(),
            last: None,
            failure: None,
            counts: GroupCounts::default(),
        }
    }

    fn poll_timeout(&self) -> Option<Instant> {
        let round = match &self.round {
            Some(round) => Some(round.deadline()),
            None => self.due,
        };
        let sealed = self.sealed.front().map(|sealed| sealed.at + limits::GROUP_CONFIRM);
        [round, sealed].into_iter().flatten().min()
    }

    fn handle_timeout(&mut self, around: &mut Around, now: Instant) {
        if self.sealed.front().is_some_and(|sealed| sealed.at + limits::GROUP_CONFIRM <= now) {
            self.give_up(0, "nothing was heard of it in time", around);
        }
        if let Some(round) = self.round.as_mut().filter(|round| round.deadline() <= now) {
            let outcome = round.handle_timeout(around, now);
            self.settle(outcome, around, now);
        }
        self.go_on(around, now);
    }

    /// Begins a round, if one is due and none under way.
    fn go_on(&mut self, around: &mut Around, now: Instant) {
        let due = self.due.is_some_and(|due| due <= now);
        if self.round.is_some() || (!due && self.wanted.is_empty()) {
            return;
        }
        self.due = self.settings.interval.map(|interval| now + interval);
        let application = (due && self.settings.application) || self.wanted.iter().any(|(_, wish)| *wish);
        let requests = self.wanted.drain(..).map(|(request, _)| request).collect();
        match Round::begin(&self.settings, application, requests, around, now) {
            Ok(round) => self.round = Some(round),
            Err((requests, reason)) => self.fail(requests, reason, around, now),
        }
    }

    /// Returns whether the barrier is one of this group's.
    fn handle_report(
        &mut self,
        stream: StreamId,
        barrier: BarrierId,
        report: &GroupReport,
        around: &mut Around,
        now: Instant,
    ) -> bool {
        if let Some(round) = self.round.as_mut().filter(|round| round.knows(stream, barrier)) {
            let outcome = round.handle_report(stream, report, around, now);
            self.settle(outcome, around, now);
            return true;
        }
        let Some(index) = self.sealed.iter().position(|sealed| sealed.mark.barrier == barrier) else {
            return false;
        };
        let sealed = &self.sealed[index];
        match report {
            GroupReport::Durable { point } => self.confirm(index, stream, *point, around, now),
            GroupReport::Failed { reason } if sealed.awaits(stream) => {
                self.give_up(index, reason, around);
            }
            GroupReport::Failed { .. } => {}
            _ => return false,
        }
        true
    }

    /// Goes on after what happened in the round.
    fn settle(&mut self, outcome: Outcome, around: &mut Around, now: Instant) {
        match outcome {
            Outcome::GoesOn => return,
            Outcome::Sealed(sealed) => {
                self.round = None;
                if self.sealed.len() == limits::GROUP_UNCONFIRMED {
                    self.give_up(0, "too many later ones wait", around);
                }
                self.counts.sealed += 1;
                self.counts.partial += u64::from(!sealed.mark.missing.is_empty());
                self.sealed.push_back(sealed);
            }
            Outcome::Retry => {
                self.counts.retries += 1;
                if let Some(round) = self.round.as_mut()
                    && let Err((requests, reason)) = round.retry(around, now)
                {
                    self.fail(requests, reason, around, now);
                }
            }
            Outcome::Failed { requests, reason } => self.fail(requests, reason, around, now),
        }
        self.go_on(around, now);
    }

    fn fail(&mut self, requests: Vec<RequestId>, reason: String, around: &mut Around, now: Instant) {
        tracing::warn!(group = self.settings.name, reason, "no common point was made; trying again later");
        self.round = None;
        self.counts.failures += 1;
        self.due = self.settings.interval.map(|interval| now + interval.min(limits::GROUP_RETRY));
        around.answer(requests, &Err(reason.clone()));
        self.failure = Some(reason);
    }

    fn confirm(&mut self, index: usize, stream: StreamId, point: PointId, around: &mut Around, now: Instant) {
        let sealed = &mut self.sealed[index];
        let Some((vm, _)) = sealed.streams.iter().find(|(_, known)| **known == stream) else { return };
        sealed.points.insert(vm.clone(), point);
        if sealed.points.len() < sealed.mark.members.len() {
            return;
        }
        let Some(sealed) = self.sealed.remove(index) else { return };
        self.counts.durable += 1;
        self.failure = None;
        let point = sealed.to_point(GroupPointState::Durable);
        tracing::info!(group = point.mark.group, barrier = %point.mark.barrier, skew_us = point.mark.skew_us,
            missing = point.mark.missing.len(), "a common point is durable");
        around.answer(sealed.requests, &Ok(point.clone()));
        self.last = Some((now, point));
    }

    /// A sealed point is no longer waited for.
    fn give_up(&mut self, index: usize, why: &str, around: &mut Around) {
        let Some(sealed) = self.sealed.remove(index) else { return };
        let open = sealed.mark.members.iter().filter(|vm| !sealed.points.contains_key(*vm)).cloned();
        let open = open.collect::<Vec<_>>().join(", ");
        let barrier = sealed.mark.barrier;
        let reason =
            format!("barrier {barrier} was sealed, but {open} did not confirm that it is durable: {why}");
        tracing::warn!(group = self.settings.name, reason, "a common point may be incomplete");
        self.counts.failures += 1;
        self.last = Some((sealed.at, sealed.to_point(GroupPointState::Unconfirmed)));
        around.answer(sealed.requests, &Err(reason.clone()));
        self.failure = Some(reason);
    }
}
