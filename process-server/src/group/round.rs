//! One attempt at a common point, from `prepare` to `seal`.
//!
//! Invariant: every member is told the same steps in the same order, and a step is ordered only when each member has
//! reported the one before. A member that fails is told to forget the barrier, and is none any more.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use engine::{
    frame::{GroupOrder, GroupReport},
    point::{BarrierId, GroupMark},
    units::StreamId,
};

use super::{Around, Partial, RequestId, Sealed, Settings};
use crate::limits;

/// What the members are doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Preparing,
    Quiescing,
    Holding,
    Releasing,
}

impl Phase {
    /// How long the slowest member may take.
    fn bound(self, patience: Duration) -> Duration {
        match self {
            Phase::Preparing | Phase::Quiescing => patience,
            Phase::Holding => limits::GROUP_HOLD,
            Phase::Releasing => limits::GROUP_RELEASE,
        }
    }

    fn is_answer(self, report: &GroupReport) -> bool {
        matches!(
            (self, report),
            (Phase::Preparing, GroupReport::Ready)
                | (Phase::Quiescing, GroupReport::Quiesced)
                | (Phase::Holding, GroupReport::Held)
                | (Phase::Releasing, GroupReport::Released { .. })
        )
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Phase::Preparing => "preparing",
            Phase::Quiescing => "quiescing",
            Phase::Holding => "holding",
            Phase::Releasing => "releasing",
        }
    }
}

/// What came of an event.
pub(super) enum Outcome {
    GoesOn,
    /// The point exists; the round is over.
    Sealed(Sealed),
    /// A hold failed, and may succeed with the same members: see [`Round::retry`].
    Retry,
    Failed {
        requests: Vec<RequestId>,
        reason: String,
    },
}

pub(super) struct Round {
    settings: Settings,
    barrier: BarrierId,
    application: bool,
    phase: Phase,
    deadline: Instant,
    tries: u32,
    members: BTreeMap<String, Member>,
    /// Those of the group that are no members, and why.
    missing: BTreeMap<String, String>,
    skew: Duration,
    requests: Vec<RequestId>,
}

struct Member {
    stream: StreamId,
    /// When it reported this phase's step.
    answered: Option<Instant>,
}

type NoRound = (Vec<RequestId>, String);

impl Round {
    /// Tells all that are connected to prepare.
    pub(super) fn begin(
        settings: &Settings,
        application: bool,
        requests: Vec<RequestId>,
        around: &mut Around,
        now: Instant,
    ) -> Result<Self, NoRound> {
        let mut round = Self {
            settings: settings.clone(),
            barrier: (around.new_id)(),
            application,
            phase: Phase::Preparing,
            deadline: now,
            tries: 0,
            members: BTreeMap::new(),
            missing: BTreeMap::new(),
            skew: Duration::ZERO,
            requests,
        };
        round.prepare(around, now)?;
        Ok(round)
    }

    /// Begins again, with a new barrier, without those that are missing already.
    pub(super) fn retry(&mut self, around: &mut Around, now: Instant) -> Result<(), NoRound> {
        self.barrier = (around.new_id)();
        self.phase = Phase::Preparing;
        self.prepare(around, now)
    }

    /// Takes care of another wish, if what it will capture is later than now.
    pub(super) fn join(&mut self, request: RequestId, application: bool) -> bool {
        let joins =
            matches!(self.phase, Phase::Preparing | Phase::Quiescing) && (self.application || !application);
        if joins {
            self.requests.push(request);
        }
        joins
    }

    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }

    pub(super) fn phase(&self) -> Phase {
        self.phase
    }

    pub(super) fn has(&self, vm: &str, stream: StreamId) -> bool {
        self.members.get(vm).is_some_and(|member| member.stream == stream)
    }

    pub(super) fn knows(&self, stream: StreamId, barrier: BarrierId) -> bool {
        self.barrier == barrier && self.members.values().any(|member| member.stream == stream)
    }

    pub(super) fn handle_report(
        &mut self,
        stream: StreamId,
        report: &GroupReport,
        around: &mut Around,
        now: Instant,
    ) -> Outcome {
        let phase = self.phase;
        let Some((vm, member)) = self.members.iter_mut().find(|(_, member)| member.stream == stream) else {
            return Outcome::GoesOn;
        };
        if phase.is_answer(report) {
            member.answered.get_or_insert(now);
            return self.advance(around, now);
        }
        let vm = vm.clone();
        match report {
            GroupReport::Failed { reason } => self.drop_member(&vm, reason, around, now),
            _ => {
                self.drop_member(&vm, &format!("it reported out of turn while {}", phase.name()), around, now)
            }
        }
    }

    /// The member's connection is gone.
    pub(super) fn lose(&mut self, vm: &str, reason: &str, around: &mut Around, now: Instant) -> Outcome {
        self.drop_member(vm, reason, around, now)
    }

    /// Somebody is too slow.
    pub(super) fn handle_timeout(&mut self, around: &mut Around, now: Instant) -> Outcome {
        let late = |(_, member): &(&String, &Member)| member.answered.is_none();
        let Some(vm) = self.members.iter().find(late).map(|(vm, _)| vm.clone()) else {
            return Outcome::GoesOn;
        };
        let bound = self.phase.bound(self.settings.patience);
        let reason = format!("it took longer than {} ms {}", bound.as_millis(), self.phase.name());
        // The others that are late come after it: the deadline is over still.
        self.drop_member(&vm, &reason, around, now)
    }

    fn prepare(&mut self, around: &mut Around, now: Instant) -> Result<(), NoRound> {
        self.tries += 1;
        self.members.clear();
        for vm in self.settings.vms.iter().filter(|vm| !self.missing.contains_key(*vm)) {
            if let Some(&stream) = around.connected.get(vm) {
                self.members.insert(vm.clone(), Member { stream, answered: None });
            }
        }
        for vm in &self.settings.vms {
            if !self.members.contains_key(vm) {
                self.missing.entry(vm.clone()).or_insert_with(|| "its agent is not connected".into());
            }
        }
        if self.members.is_empty() || (self.settings.partial == Partial::Refuse && !self.missing.is_empty()) {
            return Err((std::mem::take(&mut self.requests), self.why_missing()));
        }
        let (group, application) = (self.settings.name.clone(), self.application);
        self.order(&GroupOrder::Prepare { group, application }, around, now);
        Ok(())
    }

    fn order(&mut self, order: &GroupOrder, around: &mut Around, now: Instant) {
        self.deadline = now + self.phase.bound(self.settings.patience);
        for member in self.members.values_mut() {
            member.answered = None;
            around.order(member.stream, self.barrier, order.clone());
        }
    }

    /// Orders the next step, if all members have reported the one before.
    fn advance(&mut self, around: &mut Around, now: Instant) -> Outcome {
        let answers = self.members.values().map(|member| member.answered);
        let Some(answers) = answers.collect::<Option<Vec<Instant>>>() else { return Outcome::GoesOn };
        let order = match self.phase {
            Phase::Preparing => {
                self.phase = Phase::Quiescing;
                GroupOrder::Quiesce
            }
            Phase::Quiescing => {
                self.phase = Phase::Holding;
                GroupOrder::Hold
            }
            Phase::Holding => {
                let (first, last) = (answers.iter().min(), answers.iter().max());
                self.skew = first.zip(last).map_or(Duration::ZERO, |(first, last)| *last - *first);
                self.phase = Phase::Releasing;
                GroupOrder::Release
            }
            Phase::Releasing => return self.seal(around, now),
        };
        self.order(&order, around, now);
        Outcome::GoesOn
    }

    fn seal(&mut self, around: &mut Around, now: Instant) -> Outcome {
        let mark = GroupMark {
            group: self.settings.name.clone(),
            barrier: self.barrier,
            members: self.members.keys().cloned().collect(),
            missing: self.missing.keys().cloned().collect(),
            skew_us: self.skew.as_micros() as u64,
        };
        self.order(&GroupOrder::Seal { mark: mark.clone() }, around, now);
        let streams = self.members.iter().map(|(vm, member)| (vm.clone(), member.stream)).collect();
        let requests = std::mem::take(&mut self.requests);
        Outcome::Sealed(Sealed { mark, streams, points: BTreeMap::new(), requests, at: now })
    }

    /// A member cannot go on: a new try with all of them, or on without it, or no point.
    fn drop_member(&mut self, vm: &str, reason: &str, around: &mut Around, now: Instant) -> Outcome {
        let Some(member) = self.members.remove(vm) else { return Outcome::GoesOn };
        if around.connected.get(vm) == Some(&member.stream) {
            around.abort(member.stream, self.barrier, reason);
        }
        tracing::info!(group = self.settings.name, barrier = %self.barrier, vm, reason, phase = self.phase.name(),
            tries = self.tries, "a member makes no common point");
        let was_held = matches!(self.phase, Phase::Holding | Phase::Releasing);
        if !was_held || self.tries >= limits::GROUP_TRIES {
            self.missing.insert(vm.to_owned(), reason.to_owned());
            if self.settings.partial == Partial::Refuse || self.members.is_empty() {
                let reason = self.why_missing();
                self.abort_all(&reason, around);
                return Outcome::Failed { requests: std::mem::take(&mut self.requests), reason };
            }
        }
        if was_held {
            // The others may have been frozen for as long as they may be.
            self.abort_all(&format!("{vm}: {reason}"), around);
            return Outcome::Retry;
        }
        self.advance(around, now)
    }

    fn abort_all(&mut self, reason: &str, around: &mut Around) {
        for member in self.members.values() {
            around.abort(member.stream, self.barrier, reason);
        }
    }

    fn why_missing(&self) -> String {
        let whys: Vec<String> = self.missing.iter().map(|(vm, why)| format!("{vm}: {why}")).collect();
        whys.join("; ")
    }
}
