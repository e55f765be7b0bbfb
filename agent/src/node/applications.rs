//! The applications of the VM: asked to hold for a point, held, let go on.
//!
//! Only follows how far they are; when they are asked and let go on, [`super::work`] decides. They are never held for
//! long: whoever holds them lets them go on by himself after [`engine::limits::HOLD`].

use engine::point::{Application, FailedStep, Outcome, PointId, Stage};

use super::status::Holds;
use crate::capture::quiesce::{Quiesce, Quiescer};

/// How far applications are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Nobody holds them.
    Free,
    /// They are about to hold.
    Asked,
    /// They hold.
    Held,
    /// They are about to go on.
    LetGo,
    /// They went on; [`Applications::take_report`] tells how it was.
    Over,
}

pub(super) struct Applications {
    quiescer: Option<Box<dyn Quiescer>>,
    phase: Phase,
    /// What failed on our side.
    failed: Option<FailedStep>,
    not_frozen: Vec<String>,
    report: Application,
    totals: Holds,
}

impl Applications {
    pub(super) fn new(quiescer: Option<Box<dyn Quiescer>>) -> Self {
        Self {
            quiescer,
            phase: Phase::Free,
            failed: None,
            not_frozen: Vec::new(),
            report: Application::default(),
            totals: Holds::default(),
        }
    }

    /// Whether there is anybody who can hold them.
    pub(super) fn can_hold(&self) -> bool {
        self.quiescer.is_some()
    }

    pub(super) fn totals(&self) -> Holds {
        self.totals
    }

    pub(super) fn phase(&self) -> Phase {
        self.phase
    }

    /// Asks them to hold for the point `id`. Only when they are free.
    pub(super) fn hold(&mut self, id: PointId) {
        debug_assert_eq!(self.phase, Phase::Free);
        let Some(quiescer) = &mut self.quiescer else { return };
        quiescer.hold(id);
        self.phase = Phase::Asked;
        self.failed = None;
        self.not_frozen.clear();
    }

    /// What they held for is captured: they go on. `not_frozen` could not be frozen for it.
    pub(super) fn let_go(&mut self, not_frozen: &[String]) {
        not_frozen.clone_into(&mut self.not_frozen);
        self.release();
    }

    /// What they hold for came to nothing, for this reason: they go on.
    pub(super) fn give_up(&mut self, reason: String) {
        if matches!(self.phase, Phase::Asked | Phase::Held) {
            tracing::warn!(reason, "applications were held in vain");
            self.failed = Some(FailedStep {
                step: "freeze".into(),
                stage: Stage::Freeze,
                outcome: Outcome::Failed(reason),
            });
            self.release();
        }
    }

    fn release(&mut self) {
        if let Some(quiescer) = &mut self.quiescer {
            quiescer.release();
            self.phase = Phase::LetGo;
        }
    }

    /// Looks how far they are.
    pub(super) fn follow(&mut self) {
        let Some(quiescer) = &mut self.quiescer else { return };
        if matches!(self.phase, Phase::Free | Phase::Over) {
            return;
        }
        match quiescer.poll() {
            Quiesce::Working => (),
            Quiesce::Held => {
                if self.phase == Phase::Asked {
                    self.phase = Phase::Held;
                }
            }
            Quiesce::Over(report) => {
                let (failed, not_frozen) = (self.failed.take(), std::mem::take(&mut self.not_frozen));
                self.report = Application { failed: failed.or(report.failed), not_frozen, ..report };
                self.phase = Phase::Over;
                self.totals.add(&self.report);
            }
        }
    }

    /// How it was, once; then they are free. `None` while it is not over.
    pub(super) fn take_report(&mut self) -> Option<Application> {
        (self.phase == Phase::Over).then(|| {
            self.phase = Phase::Free;
            std::mem::take(&mut self.report)
        })
    }
}

impl Holds {
    fn add(&mut self, report: &Application) {
        self.count += 1;
        self.held_us += report.hold_us;
        match report.failed.as_ref().map(|step| step.stage) {
            Some(Stage::Freeze) => self.freeze_failures += 1,
            Some(Stage::Pre | Stage::Post) => self.hook_failures += 1,
            None => (),
        }
    }
}
