//! This VM's part in a common point of its group: it does what the process server orders
//! ([`engine::frame::GroupOrder`]) and reports.
//!
//! 1. *Prepare*: pre-copy, until little is left. Points of its own wait, until this one is made or given up.
//! 2. *Quiesce*: applications hold, if that is wanted; what file systems hold back is written out; what can be is
//!    captured by an ordinary round, so that little is left for the freeze. From here on nothing else is done.
//! 3. *Hold*: freeze, flip, capture; and stay frozen.
//! 4. *Release*: thaw. That it was frozen until the order arrived makes the point common to all who can say so.
//! 5. *Seal*: what was captured goes out as a point with the group's mark.
//!
//! A lost connection, silence, or anything that fails ends it: thaw, let applications go on, forget. What was captured
//! is still dirty. While frozen it neither logs nor touches a file.

use std::time::{Duration, Instant};

use engine::{
    frame::{GroupOrder, GroupReport},
    limits,
    point::{Application, BarrierId, Consistency, GroupMark, PointId},
};

use super::{
    Node, Step, Waiting,
    applications::Phase,
    attempt::{PASSES, new_barrier},
    points::PointState,
    work::{FOLLOW_EVERY, Work},
};
use crate::capture::{
    CaptureError,
    barrier::{Barrier, Captured, Round},
};

/// How long the next order is waited for, while others get ready.
const PATIENCE: Duration = Duration::from_secs(120);

/// How long it is waited for whether what was captured is a point.
const VERDICT: Duration = Duration::from_secs(10);

/// What of [`limits::GROUP_FREEZE`] is left for the thaw, so that the watchdog need not do it.
const MARGIN: Duration = Duration::from_millis(5);

/// Passes of pre-copy while applications hold or are about to.
const QUIESCE_PASSES: u32 = 8;

/// Taking part in one barrier.
pub(super) struct Membership {
    barrier: BarrierId,
    /// What the point will be called; hooks are told.
    id: PointId,
    /// Whether applications are to hold.
    application: bool,
    capture: Barrier,
    stage: Stage,
    /// It is given up then.
    until: Instant,
    passes: u32,
    /// Whether applications were asked to hold for it.
    asked: bool,
    /// How they fared, once it is known that they held in vain.
    in_vain: Option<Application>,
}

enum Stage {
    Preparing,
    Ready,
    Quiescing,
    Quiesced,
    /// Frozen.
    Held(Box<Captured>),
    Released(Box<Captured>),
}

impl Membership {
    fn needs_applications(&self) -> bool {
        self.application && self.in_vain.is_none()
    }

    fn enter(&mut self, stage: Stage, until: Instant) {
        (self.stage, self.until) = (stage, until);
    }

    /// Since when it is frozen, if it is.
    pub(super) fn frozen_since(&self) -> Option<Instant> {
        self.capture.frozen_since()
    }

    pub(super) fn until(&self) -> Instant {
        self.until
    }

    pub(super) fn activity(&self) -> &'static str {
        match self.stage {
            Stage::Preparing | Stage::Ready => "preparing a point with its group",
            _ => "making a point with its group",
        }
    }
}

impl Node {
    /// The process server orders something for a common point.
    pub(super) fn handle_order(&mut self, barrier: BarrierId, order: GroupOrder, now: Instant) {
        if let GroupOrder::Prepare { application, .. } = order {
            self.leave("a newer barrier takes its place");
            return self.join(barrier, application, now);
        }
        let Some(member) = self.member.as_mut().filter(|member| member.barrier == barrier) else {
            // Others that come for a barrier that is over here crossed with the report of that.
            if let GroupOrder::Seal { .. } = order {
                self.report_sealed(barrier, now);
            }
            return;
        };
        match (order, &member.stage) {
            (GroupOrder::Abort { reason }, _) => self.leave(&reason),
            (GroupOrder::Quiesce, Stage::Ready) => member.enter(Stage::Quiescing, now + PATIENCE),
            (GroupOrder::Hold, Stage::Quiesced) => self.hold_member(),
            (GroupOrder::Release, Stage::Held(_)) => self.release_member(),
            (GroupOrder::Seal { mark }, Stage::Released(_)) => self.seal_member(mark),
            _ => self.fail_member("an order came out of turn"),
        }
    }

    /// What comes before all other work: one that waits for an order does nothing else. `None` if that is not so.
    pub(super) fn step_member(&mut self, now: Instant) -> Option<Step> {
        let member = self.member.as_ref()?;
        if now >= member.until {
            self.fail_member("the next order did not come in time");
            return Some(Step::Worked);
        }
        match member.stage {
            Stage::Quiesced | Stage::Held(_) | Stage::Released(_) => {
                Some(Step::Waits(Waiting::Until(member.until)))
            }
            Stage::Preparing | Stage::Ready | Stage::Quiescing => None,
        }
    }

    /// Goes on towards the common point. Everything known to be dirty was sent.
    pub(super) fn pursue_member(&mut self, now: Instant) -> Step {
        let Some(member) = &mut self.member else { return Step::Worked };
        match member.stage {
            Stage::Preparing => {
                member.passes += 1;
                if member.passes > PASSES || self.send_ahead(now) {
                    self.progress(Stage::Ready, GroupReport::Ready, PATIENCE);
                }
                Step::Worked
            }
            Stage::Ready => self.harvest_meanwhile(now, self.harvest_at),
            Stage::Quiescing => self.quiesce(now),
            Stage::Quiesced | Stage::Held(_) | Stage::Released(_) => Step::Worked,
        }
    }

    /// Nothing is frozen any more, and nothing more comes of the barrier.
    pub(super) fn leave(&mut self, reason: &str) {
        let Some(mut member) = self.member.take() else { return };
        match member.stage {
            Stage::Held(captured) => {
                if let Some(freezer) = self.freezer.as_deref_mut() {
                    // Nothing frozen is counted on any more, so an early thaw does no harm.
                    let _ = member.capture.release(&self.source, freezer, *captured);
                }
                self.points.uncaptured(self.source.clock.now());
            }
            Stage::Released(_) => self.points.uncaptured(self.source.clock.now()),
            _ => {}
        }
        if member.asked {
            self.applications.give_up(reason.to_owned());
        }
        self.note_frozen(&member.capture);
        tracing::info!(barrier = %member.barrier, reason, "there will be no point with the group");
    }

    /// If the connection is gone, so are the orders that would come.
    pub(super) fn leave_if_disconnected(&mut self) {
        if self.member.is_some() && self.uplink.up_since().is_none() {
            self.leave("the connection was lost");
        }
    }

    fn join(&mut self, barrier: BarrierId, application: bool, now: Instant) {
        let capture = new_barrier(self.kind, self.verification.as_deref());
        let reason = if self.copying.is_some() {
            Some("not everything was sent once yet")
        } else if !capture.may_freeze() || self.freezer.is_none() {
            Some("its file systems cannot be frozen; the log of the agent's start says why")
        } else {
            None
        };
        self.member = Some(Membership {
            barrier,
            id: (self.new_id)(),
            // Where none can be held the point says that it is crash-consistent.
            application: application && self.applications.can_hold(),
            capture,
            stage: Stage::Preparing,
            until: now + PATIENCE,
            passes: 0,
            asked: false,
            in_vain: None,
        });
        if let Some(reason) = reason {
            self.fail_member(reason);
        }
    }

    /// Applications hold, if they are to; then all that can be written out and captured before the freeze is.
    fn quiesce(&mut self, now: Instant) -> Step {
        debug_assert!(self.resync.is_none(), "no marks are taken while leaves are compared");
        let Some(member) = &mut self.member else { return Step::Worked };
        if member.needs_applications() {
            match self.applications.phase() {
                Phase::Free => {
                    member.asked = true;
                    self.applications.hold(member.id);
                    return Step::Worked;
                }
                Phase::Asked | Phase::LetGo => return self.harvest_meanwhile(now, now + FOLLOW_EVERY),
                Phase::Held => {}
                Phase::Over => {
                    // Of what they held for before it does not matter any more.
                    let report = self.applications.take_report();
                    member.in_vain = report.filter(|_| member.asked);
                    return Step::Worked;
                }
            }
        }
        let Some(freezer) = self.freezer.as_deref_mut() else { return Step::Worked };
        let shrunk = freezer
            .sync()
            .map_err(CaptureError::from)
            .and_then(|()| member.capture.shrink(&mut self.source, &mut self.learned));
        member.passes += 1;
        match shrunk {
            Ok(true) => self.progress(Stage::Quiesced, GroupReport::Quiesced, PATIENCE),
            Ok(false) if member.passes < PASSES + QUIESCE_PASSES => {}
            Ok(false) => self.fail_member("its disks are written too fast"),
            Err(error) => self.fail_member(&error.to_string()),
        }
        Step::Worked
    }

    fn hold_member(&mut self) {
        debug_assert!(self.resync.is_none(), "no marks are taken while leaves are compared");
        self.applications.follow();
        let held = self.applications.phase() == Phase::Held;
        let (Some(member), Some(freezer)) = (&mut self.member, self.freezer.as_deref_mut()) else { return };
        if member.needs_applications() && !held {
            return self.fail_member("applications could not be held for so long");
        }
        let (source, learned) = (&mut self.source, &mut self.learned);
        match member.capture.hold(source, learned, freezer, limits::GROUP_FREEZE) {
            Ok(Round::Settled(captured)) => {
                let kind = match member.needs_applications() {
                    true => Consistency::ApplicationConsistent,
                    false => Consistency::CrashConsistent,
                };
                self.points.captured(kind, captured.instant);
                let frozen_since = member.frozen_since().unwrap_or(captured.instant);
                let left = (frozen_since + limits::GROUP_FREEZE - MARGIN)
                    .saturating_duration_since(self.source.clock.now());
                self.progress(Stage::Held(Box::new(captured)), GroupReport::Held, left);
            }
            Ok(Round::Conflict | Round::TooMuch) => {
                self.fail_member("more was written than can be captured while it is frozen");
            }
            Err(error) => self.fail_member(&error.to_string()),
        }
    }

    fn release_member(&mut self) {
        // What writes past the file systems, as swapping does, is not held by their freeze.
        let untouched = self.source.is_untouched();
        let (Some(member), Some(freezer)) = (&mut self.member, self.freezer.as_deref_mut()) else { return };
        let Stage::Held(captured) = std::mem::replace(&mut member.stage, Stage::Quiesced) else { return };
        let released = member.capture.release(&self.source, freezer, *captured);
        match released {
            Ok(captured) if untouched => {
                if member.needs_applications() {
                    self.applications.let_go(freezer.not_frozen());
                }
                let frozen_us = captured.frozen.as_micros() as u64;
                let report = GroupReport::Released { frozen_us };
                self.progress(Stage::Released(Box::new(captured)), report, VERDICT);
            }
            refused => {
                self.points.uncaptured(self.source.clock.now());
                let why = "a disk was written past its file systems while they were frozen".to_owned();
                self.fail_member(&refused.map_or_else(|error| error.to_string(), |_| why));
            }
        }
    }

    fn seal_member(&mut self, mark: GroupMark) {
        let Some(member) = self.member.take() else { return };
        self.note_frozen(&member.capture);
        let held = member.needs_applications();
        let Membership { id, stage: Stage::Released(captured), in_vain, .. } = member else { return };
        self.begin_sealing(id, *captured, in_vain, held, Some(Box::new(mark)));
    }

    /// After a lost connection the process server cannot know what became of a point: it orders the seal once more.
    fn report_sealed(&mut self, barrier: BarrierId, now: Instant) {
        let is_of = |mark: &GroupMark| mark.barrier == barrier;
        let sealing =
            matches!(&self.work, Work::Sealing(sealing) if sealing.group.as_deref().is_some_and(is_of));
        let report = match self.points.common(barrier) {
            Some((point, PointState::Durable)) => GroupReport::Durable { point },
            // That it is durable will be reported.
            Some((_, PointState::Sealed)) => return,
            None if sealing => return,
            Some((_, PointState::Unconfirmed)) | None => {
                let reason = "the agent was restarted, or the target set back, before the point was known to be durable";
                GroupReport::Failed { reason: reason.into() }
            }
        };
        self.uplink.report(barrier, report, now);
    }

    /// Enters the next stage, which may take `patience`, and reports it.
    fn progress(&mut self, stage: Stage, report: GroupReport, patience: Duration) {
        let now = self.source.clock.now();
        let Some(member) = &mut self.member else { return };
        member.enter(stage, now + patience);
        self.uplink.report(member.barrier, report, now);
    }

    fn fail_member(&mut self, reason: &str) {
        let Some(barrier) = self.member.as_ref().map(|member| member.barrier) else { return };
        self.leave(reason);
        self.totals.point_failures += 1;
        self.point_failure = Some(format!("with its group: {reason}"));
        let report = GroupReport::Failed { reason: reason.to_owned() };
        self.uplink.report(barrier, report, self.source.clock.now());
    }

    fn note_frozen(&mut self, capture: &Barrier) {
        self.totals.barrier_tries += u64::from(capture.tries());
        self.totals.frozen_us += capture.frozen().as_micros() as u64;
    }
}
