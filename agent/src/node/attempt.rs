//! One attempt at a point: what it waits for, which round of the barrier comes next, and what becomes of it.
//!
//! For a crash-consistent point there are only rounds. For an application-consistent one:
//! 1. *Approach*: what file systems hold back is written out and pre-copied, so that nobody has to hold for long.
//! 2. Applications are asked to hold. Hooks may take long; pre-copy goes on meanwhile.
//! 3. *Held*: written out once more, frozen, captured, thawed ([`Barrier::hold`], [`Barrier::release`]).
//! 4. Applications are let go on, while what was captured is on its way. How they fared is part of the label, so the
//!    seal waits for it ([`super::work`]).
//!
//! If anything of this fails, applications are let go on at once, and the same attempt makes a crash-consistent point
//! that says what failed.

use std::time::{Duration, Instant};

use engine::{
    limits,
    point::{Application, Consistency, GroupMark, PointId},
};

use super::{
    Node, Output, Step, Waiting,
    applications::Phase,
    verify::Verification,
    work::{FOLLOW_EVERY, Sealing, Work},
};
use crate::{
    capture::{
        CaptureError, FreezeError,
        barrier::{Barrier, Captured, Round, Rules},
    },
    tracker::Kind,
};

/// Freezes tried for one point.
const FREEZES: u32 = 4;

/// Passes of an approach; a busy disk has as much dirty after the third as after the second.
pub(super) const PASSES: u32 = 2;

/// What may be dirty when applications are asked to hold: it is read within the time that asking takes.
const APPROACHED: u64 = limits::CAPTURE_BYTES as u64 / 8;

/// Time between two harvests while applications take theirs.
const HARVEST_EVERY: Duration = Duration::from_secs(1);

pub(super) struct Attempt {
    /// What the point will be called; hooks are told.
    id: PointId,
    wanted: Consistency,
    pub(super) barrier: Barrier,
    freezes: u32,
    passes: u32,
    /// Whether applications were asked to hold for it.
    asked: bool,
    /// How they fared, once it is known that they held in vain.
    in_vain: Option<Application>,
}

impl Attempt {
    /// Whether applications are still to hold, or hold, for it.
    fn needs_applications(&self) -> bool {
        self.wanted == Consistency::ApplicationConsistent && self.in_vain.is_none()
    }
}

pub(super) fn new_barrier(kind: Kind, verification: Option<&Verification>) -> Barrier {
    Barrier::new(Rules::of(kind), verification.map_or_else(Vec::new, Verification::witnesses))
}

impl Node {
    /// Begins an attempt, if a point is due.
    pub(super) fn begin_attempt(&mut self, now: Instant) {
        let Some(wanted) = self.points.due(now) else { return };
        let barrier = new_barrier(self.kind, self.verification.as_deref());
        self.attempt = Some(Attempt {
            id: (self.new_id)(),
            wanted,
            barrier,
            freezes: 0,
            passes: 0,
            asked: false,
            in_vain: None,
        });
    }

    /// Goes on with the attempt. Everything known to be dirty was sent.
    pub(super) fn pursue(&mut self, now: Instant) -> Step {
        let Some(attempt) = &mut self.attempt else { return Step::Worked };
        if attempt.needs_applications() {
            match self.applications.phase() {
                Phase::Free => self.approach(now),
                Phase::Asked | Phase::LetGo => return self.harvest_meanwhile(now, now + FOLLOW_EVERY),
                Phase::Held => self.work = Work::Rounds,
                Phase::Over => {
                    // Of an attempt before this one it does not matter any more.
                    let report = self.applications.take_report().filter(|_| attempt.asked);
                    attempt.in_vain = report;
                    attempt.freezes = 0;
                    attempt.barrier = new_barrier(self.kind, self.verification.as_deref());
                }
            }
        } else {
            self.work = Work::Rounds;
        }
        Step::Worked
    }

    fn approach(&mut self, now: Instant) {
        let Some(attempt) = &mut self.attempt else { return };
        let may_pass = attempt.passes < PASSES && self.harvest_every.is_some();
        attempt.passes += 1;
        if may_pass && !self.send_ahead(now) {
            return;
        }
        if let Some(attempt) = &mut self.attempt {
            attempt.asked = true;
            self.applications.hold(attempt.id);
        }
    }

    /// Finds out what was written, what file systems hold back included. Returns whether it is little; if not, it is
    /// sent ahead.
    pub(super) fn send_ahead(&mut self, now: Instant) -> bool {
        // What cannot be written out cannot be frozen, which the freeze will say.
        let _ = self.freezer.as_mut().map(|freezer| freezer.sync());
        if let Err(error) = self.harvest(now) {
            self.fail(&error, now);
            return false;
        }
        self.source.dirty_bytes() <= APPROACHED
    }

    /// Others take their time: what is written meanwhile goes ahead. To be called again at `again` at the latest.
    pub(super) fn harvest_meanwhile(&mut self, now: Instant, again: Instant) -> Step {
        if self.harvest_every.is_none() || now < self.harvest_at {
            return Step::Waits(Waiting::Until(again));
        }
        self.harvest_at = now + HARVEST_EVERY;
        if let Err(error) = self.harvest(now) {
            self.fail(&error, now);
        }
        Step::Worked
    }

    pub(super) fn step_rounds(&mut self, now: Instant) {
        debug_assert!(self.resync.is_none(), "no marks are taken while leaves are compared");
        let Some(mut attempt) = self.attempt.take() else { return };
        let held = attempt.needs_applications();
        if held && self.applications.phase() != Phase::Held {
            self.attempt = Some(attempt); // They went on by themselves.
            return;
        }
        let (tries, frozen) = (attempt.barrier.tries(), attempt.barrier.frozen());
        let round = if held { self.held_round(&mut attempt) } else { self.round(&mut attempt) };
        self.totals.barrier_tries += u64::from(attempt.barrier.tries() - tries);
        self.totals.frozen_us += (attempt.barrier.frozen() - frozen).as_micros() as u64;
        match round {
            Some(Ok(Round::Conflict)) => (self.work, self.attempt) = (Work::Rounds, Some(attempt)),
            Some(Ok(Round::TooMuch)) => self.attempt = Some(attempt),
            Some(Ok(Round::Settled(captured))) => self.captured(attempt, captured, held),
            // It may have taken too long, and take less the next time.
            Some(Err(CaptureError::Freeze(error))) if held && attempt.freezes < FREEZES => {
                tracing::info!(%error, "trying again");
                (self.work, self.attempt) = (Work::Rounds, Some(attempt));
            }
            Some(Err(CaptureError::Freeze(error))) if held => {
                self.applications.give_up(error.to_string());
                self.attempt = Some(attempt);
            }
            Some(Err(error)) => {
                if !matches!(error, CaptureError::Freeze(_)) {
                    self.fail(&error, now);
                }
                self.applications.give_up(error.to_string());
                self.no_point(error.to_string(), now);
            }
            None if held => {
                self.applications.give_up(self.why_no_point().into());
                self.attempt = Some(attempt);
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

    /// The next round while applications hold; `None` if there is none left.
    fn held_round(&mut self, attempt: &mut Attempt) -> Option<Result<Round, CaptureError>> {
        let (source, learned) = (&mut self.source, &mut self.learned);
        if !attempt.barrier.may_freeze() {
            // They hold, and the round finds out whether anybody else wrote.
            return attempt.barrier.may_try().then(|| attempt.barrier.round(source, learned));
        }
        let Some(freezer) = self.freezer.as_deref_mut() else {
            attempt.freezes = FREEZES;
            return Some(Err(FreezeError(
                "nothing can be frozen here; the log of the start says why".into(),
            )
            .into()));
        };
        if attempt.freezes >= FREEZES {
            return None;
        }
        let mut freeze = || {
            freezer.sync()?;
            if !attempt.barrier.shrink(source, learned)? {
                return Ok(Round::TooMuch);
            }
            // What was written meanwhile would else be written out while everybody waits.
            freezer.sync()?;
            attempt.freezes += 1;
            match attempt.barrier.hold(source, learned, freezer, limits::FREEZE)? {
                Round::Settled(captured) => {
                    attempt.barrier.release(source, freezer, captured).map(Round::Settled)
                }
                other => Ok(other),
            }
        };
        Some(freeze())
    }

    fn captured(&mut self, attempt: Attempt, captured: Captured, held: bool) {
        self.points.captured(attempt.wanted, captured.instant);
        if held {
            let not_frozen = self.freezer.as_ref().map_or(&[][..], |freezer| freezer.not_frozen());
            self.applications.let_go(not_frozen);
        }
        let Attempt { id, in_vain, .. } = attempt;
        self.begin_sealing(id, captured, in_vain, held, None);
    }

    /// What was captured is a point, and goes on its way.
    pub(super) fn begin_sealing(
        &mut self,
        id: PointId,
        captured: Captured,
        application: Option<Application>,
        awaits_applications: bool,
        group: Option<Box<GroupMark>>,
    ) {
        self.harvested = captured.instant;
        if let Some(verification) = &mut self.verification {
            let digests = captured.witnesses.digests(&self.source.divisions(), &captured.buffer);
            verification.captured(captured.witnesses.asked(), digests);
        }
        let sealing = Sealing { id, captured, application, awaits_applications, group };
        self.work = Work::Sealing(Box::new(sealing));
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

    fn no_point(&mut self, reason: String, now: Instant) {
        tracing::warn!(reason, "no point was made; trying again later");
        self.totals.point_failures += 1;
        let answers = self.points.failed(now);
        self.answers.extend(answers.into_iter().map(|request| Output::Answer(request, Err(reason.clone()))));
        self.point_failure = Some(reason);
    }
}
