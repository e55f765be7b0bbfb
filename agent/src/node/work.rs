//! The node's work: what is read, captured and sealed next, one bounded piece at a time.

use std::time::{Duration, Instant};

use engine::{
    frame::Packed,
    point::{Consistency, Point},
};

use super::{Node, Output, PIPELINE, Step, Waiting};
use crate::{
    capture::{
        CaptureError,
        barrier::{Barrier, Captured, Round, Rules},
        contents::FrameContent,
        precopy::granule_blocks,
    },
    tracker::Kind,
};

/// How long after an error of a disk or the tracker work goes on.
const PAUSE: Duration = Duration::from_secs(2);

/// Least time between two times that sent maps are cleared, which costs a pass over them.
const FORGET_EVERY: Duration = Duration::from_secs(2);

/// How long a harvest waits for writes in flight; then it is left for the next time.
const HARVEST_DRAIN: Duration = Duration::from_millis(100);

/// Blocks of a harvest that are worth noting as often written; more tell nothing.
const NOTED_BLOCKS: u64 = 16 << 10;

/// Freezes tried for one point.
const FREEZES: u32 = 4;

/// What [`Node::step`] goes on with.
pub(super) enum Work {
    /// To be decided.
    Idle,
    /// A pass over everything dirty; over when all of it was read.
    Precopy { over: bool },
    /// Rounds of the barrier: see [`Node::attempt`].
    Rounds,
    /// A captured point on its way into frames.
    Sealing(Box<Captured>),
}

pub(super) struct Attempt {
    pub(super) barrier: Barrier,
    freezes: u32,
    wanted: Consistency,
}

impl Node {
    /// Does one bounded piece of work, if there is any and it can be sent.
    pub fn step(&mut self, now: Instant) -> Step {
        if now >= self.forget_at {
            self.forget_at = now + FORGET_EVERY;
            self.ledger.forget(&self.source, self.durable);
        }
        let Some(sender) = self.uplink.sender() else { return Step::Waits(Waiting::Connection) };
        if let Some(until) = self.paused_until.filter(|until| now < *until) {
            return Step::Waits(Waiting::Until(until));
        }
        // While the window is full nothing is read either: what is read later is newer.
        if !sender.has_room() {
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
            Work::Precopy { over } => self.step_precopy(over, now),
            Work::Rounds => self.step_rounds(now),
            Work::Sealing(captured) => self.step_sealing(captured, now),
        }
        Step::Worked
    }

    /// Nothing is under way and nothing is being packed: what next?
    fn decide(&mut self, now: Instant) -> Step {
        debug_assert!(self.packing.is_empty());
        if !self.source.is_clean() {
            self.work = Work::Precopy { over: false };
            return Step::Worked;
        }
        if self.copying.take().is_some() {
            tracing::info!("everything was sent once");
        }
        self.lag.sent(self.last_seq(), self.harvested);
        self.lag.durable(self.durable);
        if self.attempt.is_none() {
            let barrier = || Barrier::new(Rules::of(self.kind));
            self.attempt =
                self.points.due(now).map(|wanted| Attempt { barrier: barrier(), freezes: 0, wanted });
        }
        if self.attempt.is_some() {
            self.work = Work::Rounds;
            return Step::Worked;
        }
        match self.harvest_every {
            Some(every) if now >= self.harvest_at => {
                self.harvest_at = now + every;
                if let Err(error) = self.harvest(now) {
                    self.fail(&error, now);
                }
                Step::Worked
            }
            Some(_) => Step::Waits(Waiting::Until(self.harvest_at.min(self.points.next_at()))),
            None => Step::Waits(Waiting::Until(self.points.next_at())),
        }
    }

    /// Moves what was written since the last time into the dirty maps.
    fn harvest(&mut self, now: Instant) -> Result<(), CaptureError> {
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

    fn step_precopy(&mut self, over: bool, now: Instant) {
        if over || self.packing.len() >= PIPELINE {
            if self.seal_next() {
                self.work = Work::Precopy { over };
            }
            return;
        }
        let batch = self.precopy.batch(&mut self.source);
        self.work = Work::Precopy { over: batch.is_none() };
        let Some(batch) = batch else { return };
        if let Some(error) = batch.error {
            self.fail(&error, now);
        } else {
            self.trouble = None;
        }
        self.submit(batch.contents);
    }

    fn step_rounds(&mut self, now: Instant) {
        let Some(mut attempt) = self.attempt.take() else { return };
        let (tries, frozen) = (attempt.barrier.tries(), attempt.barrier.frozen());
        let round = self.round(&mut attempt);
        self.totals.barrier_tries += u64::from(attempt.barrier.tries() - tries);
        self.totals.frozen_us += (attempt.barrier.frozen() - frozen).as_micros() as u64;
        match round {
            Some(Ok(Round::Conflict)) => (self.work, self.attempt) = (Work::Rounds, Some(attempt)),
            Some(Ok(Round::TooMuch)) => self.attempt = Some(attempt),
            Some(Ok(Round::Settled(captured))) => {
                self.harvested = captured.instant;
                self.points.captured(attempt.wanted, captured.instant);
                self.work = Work::Sealing(Box::new(captured));
            }
            Some(Err(error)) => {
                if !matches!(error, CaptureError::Freeze(_)) {
                    self.fail(&error, now);
                }
                self.no_point(error.to_string(), now);
            }
            None => {
                let tries = attempt.barrier.tries();
                self.no_point(format!("{} after {tries} tries", self.why_no_point()), now);
            }
        }
    }

    /// The next round of an attempt; `None` if it has none left.
    fn round(&mut self, attempt: &mut Attempt) -> Option<Result<Round, CaptureError>> {
        if attempt.barrier.may_try() {
            return Some(attempt.barrier.round(&mut self.source, &mut self.learned));
        }
        let freezer =
            self.freezer.as_mut().filter(|_| attempt.barrier.may_freeze() && attempt.freezes < FREEZES)?;
        attempt.freezes += 1;
        Some(attempt.barrier.frozen_round(&mut self.source, &mut self.learned, &mut **freezer))
    }

    fn why_no_point(&self) -> &'static str {
        match (self.kind, &self.freezer) {
            (Kind::Scan, _) => {
                "a disk was written while it was compared: stop its writers for a moment, or use ebpf"
            }
            (Kind::Ebpf, None) => {
                "the disks are written too fast for a point without a freeze, and there is nothing that can be frozen"
            }
            (Kind::Ebpf, Some(_)) => "the disks are written too fast, and a short freeze did not help",
        }
    }

    fn step_sealing(&mut self, mut captured: Box<Captured>, now: Instant) {
        if !captured.buffer.is_empty() && self.packing.len() < PIPELINE {
            let contents = captured.buffer.take_contents(|disk| granule_blocks(&self.source, disk));
            self.submit(contents);
        } else if !self.seal_next() {
            self.seal_point(&captured);
            self.trouble = None;
            self.harvest_at = now + self.harvest_every.unwrap_or_default();
            return;
        }
        self.work = Work::Sealing(captured);
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
        let frame = packed.seal(self.stream.id, &sender.last());
        self.ledger.sealed(self.source.tracker.maps(disk), &covers, frame.header().seq);
        self.totals.logical_bytes += covers.bytes();
        self.totals.wire_bytes += frame.bytes().len() as u64;
        if let Some(copying) = &mut self.copying {
            copying.advance(covers.bytes());
        }
        sender.push(frame);
        true
    }

    fn seal_point(&mut self, captured: &Captured) {
        let Some(sender) = self.uplink.sender() else { return };
        let point = Point {
            id: (self.new_id)(),
            epoch: sender.last().epoch,
            taken_at: captured.taken_at,
            consistency: Consistency::CrashConsistent,
            method: captured.method,
            barrier_tries: captured.tries,
            window_us: captured.window.as_micros() as u64,
            residual_bytes: captured.residual_bytes,
            frozen_us: captured.frozen.as_micros() as u64,
            application: None,
        };
        let frame = Packed::seal_of(&point).seal(self.stream.id, &sender.last());
        let seq = frame.header().seq;
        sender.push(frame);
        self.point_failure = None;
        tracing::info!(id = %point.id, tries = point.barrier_tries, window_us = point.window_us,
            residual_bytes = point.residual_bytes, frozen_us = point.frozen_us, "point sealed");
        self.points.sealed(point, seq);
    }

    fn fail(&mut self, error: &CaptureError, now: Instant) {
        tracing::error!(%error, "capture failed; going on soon");
        self.totals.capture_errors += 1;
        self.trouble = Some(error.to_string());
        self.paused_until = Some(now + PAUSE);
    }

    fn no_point(&mut self, reason: String, now: Instant) {
        tracing::warn!(reason, "no point was made; trying again later");
        self.totals.point_failures += 1;
        let answers = self.points.failed(now);
        self.answers.extend(answers.into_iter().map(|request| Output::Answer(request, Err(reason.clone()))));
        self.point_failure = Some(reason);
    }
}
