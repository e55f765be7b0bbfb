//! The node's work: what is read, captured and sealed next, one bounded piece at a time.

use std::time::{Duration, Instant};

use engine::{
    frame::Packed,
    point::{Application, Consistency, GroupMark, Method, Point, PointId},
};

use super::{Node, PIPELINE, READ_POLL, Step, Waiting, resync::Resync};
use crate::capture::{CaptureError, barrier::Captured, contents::FrameContent, precopy::granule_blocks};

/// How long after an error of a disk or the tracker work goes on.
const PAUSE: Duration = Duration::from_secs(2);

/// Time between two looks how far applications are.
pub(super) const FOLLOW_EVERY: Duration = Duration::from_millis(2);

/// Least time between two times that sent maps are cleared, which costs a pass over them.
const FORGET_EVERY: Duration = Duration::from_secs(2);

/// How long a harvest waits for writes in flight; then it is left for the next time.
const HARVEST_DRAIN: Duration = Duration::from_millis(100);

/// Blocks of a harvest that are worth noting as often written; more tell nothing.
const NOTED_BLOCKS: u64 = 16 << 10;

/// What [`Node::step`] goes on with.
pub(super) enum Work {
    /// To be decided.
    Idle,
    /// A pass over everything dirty; over when all of it was read.
    Precopy { over: bool },
    /// Rounds of the barrier: see [`super::attempt`].
    Rounds,
    /// A captured point on its way into frames.
    Sealing(Box<Sealing>),
}

/// A captured point.
pub(super) struct Sealing {
    pub(super) id: PointId,
    pub(super) captured: Captured,
    /// How applications fared, if they were to hold and did so in vain.
    pub(super) application: Option<Application>,
    /// They held, and how they fared is known only when all of them have gone on.
    pub(super) awaits_applications: bool,
    /// What it shares with points of other VMs.
    pub(super) group: Option<Box<GroupMark>>,
}

impl Node {
    /// Does one bounded piece of work, if there is any and it can be sent.
    pub fn step(&mut self, now: Instant) -> Step {
        if let Some(step) = self.step_member(now) {
            return step;
        }
        self.applications.follow();
        if now >= self.forget_at {
            self.forget_at = now + FORGET_EVERY;
            self.ledger.forget(&self.source, self.durable);
        }
        let Some(sender) = self.uplink.sender() else { return Step::Waits(Waiting::Connection) };
        if let Some(until) = self.paused_until.filter(|until| now < *until) {
            return Step::Waits(Waiting::Until(until));
        }
        // While the window is full nothing is read either: what is read later is newer.
        let room = sender.has_room();
        self.packer.has_room(room);
        if !room {
            return Step::Waits(Waiting::Window);
        }
        self.paused_until = None;
        if self.distrust {
            match self.source.tracker.distrust() {
                Ok(()) => self.distrust = false,
                Err(error) => self.fail(&error.into(), now),
            }
            return Step::Worked;
        }
        match std::mem::replace(&mut self.work, Work::Idle) {
            Work::Idle => return self.decide(now),
            Work::Precopy { over } => return self.step_precopy(over, now),
            Work::Rounds => self.step_rounds(now),
            Work::Sealing(sealing) => return self.step_sealing(sealing, now),
        }
        Step::Worked
    }

    /// Nothing is under way and nothing is being packed: what next?
    fn decide(&mut self, now: Instant) -> Step {
        debug_assert!(self.packing.is_empty());
        if !self.source.is_clean() {
            if self.resync.as_mut().is_some_and(|resync| !resync.take_turn_of_precopy()) {
                return self.step_resync(now);
            }
            self.work = Work::Precopy { over: false };
            return Step::Worked;
        }
        // From here on marks may be taken: what is suspect is dirty.
        debug_assert!(self.resync.is_none());
        if self.copying.take().is_some() {
            tracing::info!("everything was sent once");
        }
        self.lag.sent(self.last_seq(), self.harvested);
        self.lag.durable(self.durable);
        if self.attempt.is_none() && self.member.is_some() {
            return self.pursue_member(now);
        }
        if self.attempt.is_none() {
            self.begin_attempt(now);
        }
        if self.attempt.is_some() {
            return self.pursue(now);
        }
        let verify_at = self.verify_due();
        if verify_at.is_some_and(|due| now >= due) {
            self.step_verify(now);
            return Step::Worked;
        }
        let idle_until = verify_at.into_iter().chain([self.points.next_at()]).min().unwrap_or(now);
        match self.harvest_every {
            Some(every) if now >= self.harvest_at => {
                self.harvest_at = now + every;
                if let Err(error) = self.harvest(now) {
                    self.fail(&error, now);
                }
                Step::Worked
            }
            Some(_) => Step::Waits(Waiting::Until(self.harvest_at.min(idle_until))),
            None => Step::Waits(Waiting::Until(idle_until)),
        }
    }

    /// Moves what was written since the last time into the dirty maps.
    pub(super) fn harvest(&mut self, now: Instant) -> Result<(), CaptureError> {
        debug_assert!(self.resync.is_none(), "no marks are taken while leaves are compared");
        let disks = self.source.indices();
        // A flip that failed may have left marks to take.
        disks.clone().try_for_each(|disk| self.source.tracker.take(disk, 0).map(drop))?;
        // Rule 1 of the barrier. Where writes take so long there is little to harvest.
        if !self.source.drain(HARVEST_DRAIN)? {
            return Ok(());
        }
        self.source.tracker.flip()?;
        self.harvested = now;
        for disk in disks {
            if let Some(marked) = self.source.tracker.take(disk, NOTED_BLOCKS)? {
                self.learned.note_marked(disk, &marked);
            }
        }
        Ok(())
    }

    fn step_precopy(&mut self, over: bool, now: Instant) -> Step {
        if over || self.packing.len() >= PIPELINE {
            if self.seal_next() {
                self.work = Work::Precopy { over };
            }
            return Step::Worked;
        }
        self.work = Work::Precopy { over };
        match self.source.tracker.may_read() {
            Ok(true) => (),
            Ok(false) => return Step::Waits(Waiting::Until(now + READ_POLL)),
            Err(error) => {
                self.fail(&error.into(), now);
                return Step::Worked;
            }
        }
        let without = self.resync.as_ref().map_or(&[][..], Resync::suspect);
        let batch = self.precopy.batch(&mut self.source, without);
        self.work = Work::Precopy { over: batch.is_none() };
        let Some(batch) = batch else { return Step::Worked };
        if let Some(error) = batch.error {
            self.fail(&error, now);
        } else {
            self.trouble = None;
        }
        self.submit(batch.contents);
        Step::Worked
    }

    fn step_sealing(&mut self, mut sealing: Box<Sealing>, now: Instant) -> Step {
        let mut step = Step::Worked;
        if !sealing.captured.buffer.is_empty() && self.packing.len() < PIPELINE {
            let contents = sealing.captured.buffer.take_contents(|disk| granule_blocks(&self.source, disk));
            self.submit(contents);
        } else if !self.seal_next() {
            if sealing.awaits_applications {
                sealing.application = self.applications.take_report();
                sealing.awaits_applications = sealing.application.is_none();
            }
            if !sealing.awaits_applications {
                self.seal_point(*sealing);
                self.trouble = None;
                self.harvest_at = now + self.harvest_every.unwrap_or_default();
                return Step::Worked;
            }
            step = Step::Waits(Waiting::Until(now + FOLLOW_EVERY));
        }
        self.work = Work::Sealing(sealing);
        step
    }

    fn submit(&mut self, contents: Vec<FrameContent>) {
        for mut content in contents {
            self.packing.push_back((content.disk, std::mem::take(&mut content.covers)));
            self.packer.submit(content);
        }
    }

    /// Seals the oldest content in the packer and hands it to the sender; false if there is none.
    fn seal_next(&mut self) -> bool {
        let Some(sender) = self.uplink.sender() else { return false };
        let (Some(packed), Some((disk, covers))) = (self.packer.collect(), self.packing.pop_front()) else {
            return false;
        };
        debug_assert!(!self.resync.as_ref().is_some_and(|resync| resync.holds(disk, &covers)));
        let frame = packed.seal(self.stream.id, &sender.last());
        self.verification.iter_mut().for_each(|verification| verification.sent(disk, &covers));
        self.ledger.sealed(self.source.tracker.maps(disk), &covers, frame.header().seq);
        self.totals.logical_bytes += covers.bytes();
        self.totals.wire_bytes += frame.bytes().len() as u64;
        if let Some(copying) = &mut self.copying {
            copying.advance(covers.bytes());
        }
        sender.push(frame);
        true
    }

    fn seal_point(&mut self, sealing: Sealing) {
        let Some(sender) = self.uplink.sender() else { return };
        let Sealing { id, captured, application, group, .. } = sealing;
        let point = Point {
            id,
            epoch: sender.last().epoch,
            taken_at: captured.taken_at,
            consistency: consistency(captured.method, application.as_ref()),
            method: captured.method,
            barrier_tries: captured.tries,
            window_us: captured.window.as_micros() as u64,
            residual_bytes: captured.residual_bytes,
            frozen_us: captured.frozen.as_micros() as u64,
            application,
            group,
        };
        let frame = Packed::seal_of(&point).seal(self.stream.id, &sender.last());
        let seq = frame.header().seq;
        sender.push(frame);
        self.point_failure = None;
        tracing::info!(id = %point.id, consistency = %point.consistency, tries = point.barrier_tries, window_us = point.window_us,
            residual_bytes = point.residual_bytes, frozen_us = point.frozen_us, "point sealed");
        if let Some(step) = point.application.as_ref().and_then(|application| application.failed.as_ref()) {
            tracing::warn!(id = %point.id, "the point is crash-consistent only: {step}");
        }
        self.points.sealed(point, seq);
        self.verify_from_here();
    }

    pub(super) fn fail(&mut self, error: &CaptureError, now: Instant) {
        tracing::error!(%error, "capture failed; going on soon");
        self.totals.capture_errors += 1;
        self.trouble = Some(error.to_string());
        self.paused_until = Some(now + PAUSE);
    }
}

/// What a restored disk is like: what was observed, and no more.
fn consistency(method: Method, application: Option<&Application>) -> Consistency {
    let held = application.is_some_and(|application| application.failed.is_none());
    match method {
        Method::Frozen | Method::Quiet if held => Consistency::ApplicationConsistent,
        _ => Consistency::CrashConsistent,
    }
}
