//! The applications of the simulated VM: its writers, who finish what they have under way and hold when asked to,
//! unless the hook that asks them fails.

use std::time::{Duration, Instant};

use engine::{
    limits,
    point::{Application, FailedStep, Outcome, PointId, Stage},
};
use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::SimVm;
use crate::capture::{
    Clock,
    quiesce::{Quiesce, Quiescer},
};

/// What a hook takes at most.
const HOOK: Duration = Duration::from_millis(50);

/// Holds and lets go on; one hook in five fails.
pub struct SimApplications {
    vm: SimVm,
    rng: StdRng,
    phase: Phase,
    held_at: Option<Instant>,
    failed: Option<FailedStep>,
}

enum Phase {
    Free,
    Pre { until: Instant },
    Held { until: Instant },
    Post { until: Instant },
}

impl SimApplications {
    pub(super) fn new(vm: SimVm, seed: u64) -> Self {
        // Whoever was held by an agent before this one was let go on when it ended.
        vm.lock().held = false;
        Self { vm, rng: StdRng::seed_from_u64(seed), phase: Phase::Free, held_at: None, failed: None }
    }

    fn soon(&mut self) -> Instant {
        self.vm.now() + HOOK.mul_f64(self.rng.random())
    }

    fn fail(&mut self, stage: Stage, outcome: Outcome) {
        self.failed.get_or_insert(FailedStep { step: "hook".into(), stage, outcome });
    }

    fn go_on(&mut self) {
        self.vm.lock().held = false;
        self.phase = Phase::Post { until: self.soon() };
    }
}

impl Quiescer for SimApplications {
    fn hold(&mut self, _id: PointId) {
        assert!(matches!(self.phase, Phase::Free), "asked to hold twice");
        self.phase = Phase::Pre { until: self.soon() };
    }

    fn release(&mut self) {
        if matches!(self.phase, Phase::Pre { .. } | Phase::Held { .. }) {
            self.go_on();
        }
    }

    fn poll(&mut self) -> Quiesce {
        let now = self.vm.now();
        match self.phase {
            Phase::Pre { until } if now >= until => {
                if self.rng.random_bool(0.2) {
                    self.fail(Stage::Pre, Outcome::Exited(1));
                    self.go_on();
                    return Quiesce::Working;
                }
                let mut world = self.vm.lock();
                world.held = true;
                world.finish();
                drop(world);
                self.held_at = Some(now);
                self.phase = Phase::Held { until: now + limits::HOLD };
                Quiesce::Held
            }
            Phase::Held { until } if now >= until => {
                self.fail(Stage::Freeze, Outcome::TimedOut(limits::HOLD.as_millis() as u64));
                self.go_on();
                Quiesce::Working
            }
            Phase::Held { .. } => Quiesce::Held,
            Phase::Post { until } if now >= until => {
                if self.rng.random_bool(0.2) {
                    self.fail(Stage::Post, Outcome::Killed(9));
                }
                self.phase = Phase::Free;
                let held = self.held_at.take().map(|since| now.duration_since(since));
                let hold_us = held.unwrap_or_default().as_micros() as u64;
                Quiesce::Over(Application { hold_us, failed: self.failed.take(), not_frozen: Vec::new() })
            }
            Phase::Free | Phase::Pre { .. } | Phase::Post { .. } => Quiesce::Working,
        }
    }
}
