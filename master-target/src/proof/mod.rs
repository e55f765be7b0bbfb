//! Proof: whether the disks at home hold what the source's disks hold.
//!
//! The operator names a point; the agent is asked for digests of the source's leaves, which arrive in the stream, each at
//! the place where the disks here must have the same ([`engine::frame::LeafDigests`]). What is equal is counted, what
//! differs is named, its point marked, and sent again. If nothing differed, a signed [`Certificate`] says so.
//! It decides nothing about restore or commit.

mod answer;
mod certificate;
mod disk;
mod report;
mod run;
mod scrub;
mod verdicts;

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Instant};

use engine::{frame::Control, io::write_file_atomically, point::PointId, units::Epoch};
use jiff::Timestamp;

pub use self::{
    answer::Verified,
    certificate::{Certificate, CertificateError, Coverage, DiskProof, Sign, Statement},
    report::{Difference, Phase, Report},
    run::DIFFERENCES,
    scrub::{Finding, ScrubPlan, ScrubStatus},
    verdicts::{Verdict, Verdicts},
};
use self::{
    run::{Done, Run},
    scrub::Scrub,
};
use crate::{
    journal::{JournalError, SealedPoint},
    replica::{Observed, Replica, ReplicaError},
};

/// Everything about proof of one stream.
pub struct Proof {
    run: Option<Run>,
    /// Of the last verification that ended, since the stream was opened.
    last: Option<Report>,
    verdicts: Verdicts,
    scrub: Option<Scrub>,
}

impl Proof {
    /// Of a stream whose replica stands open.
    #[must_use]
    pub fn new(replica: &Replica) -> Self {
        run::sweep(replica);
        Self {
            run: None,
            last: None,
            verdicts: Verdicts::open(replica.storage(), replica.dir()),
            scrub: None,
        }
    }

    /// From now on, disks and journal are read again as `plan` says.
    pub fn scrub(&mut self, plan: ScrubPlan, now: Instant) {
        self.scrub = Some(Scrub::new(plan, now));
    }

    /// How the scrub stands; `None` without one.
    #[must_use]
    pub fn scrub_status(&self) -> Option<ScrubStatus> {
        self.scrub.as_ref().map(Scrub::status)
    }

    /// Begins to verify a point, in place of what was being verified. If that one is, it goes on.
    ///
    /// # Errors
    /// If the point cannot be read or is not the source's, or the disks are restored to another.
    pub fn begin(
        &mut self,
        replica: &mut Replica,
        point: &SealedPoint,
        signer: Arc<dyn Sign>,
        wall: Timestamp,
        now: Instant,
    ) -> Result<(), ReplicaError> {
        if self.run.as_ref().is_some_and(|run| run.point().point.id == point.point.id) {
            return Ok(());
        }
        if point.point.is_before_failback() {
            let why = "the disks before failback are what was found at home, and the source never held them: there is \
                       nothing to compare them with; verify a point of the VM";
            return Err(JournalError::Refused(why.into()).into());
        }
        if replica.state().restore.is_some() {
            let why = "the disks are restored to a point: undo that, so that they follow the source again";
            return Err(JournalError::Refused(why.into()).into());
        }
        self.give_up(replica, "another point was to be verified");
        self.run = Some(Run::begin(replica, point.clone(), signer, wall, now)?);
        tracing::info!(point = %point.point.id, "verification begins");
        Ok(())
    }

    /// Ends what is under way without a result.
    pub fn give_up(&mut self, replica: &mut Replica, reason: &str) {
        if let Some(run) = self.run.take() {
            tracing::warn!(point = %run.point().point.id, reason, "verification given up");
            self.last = Some(Report { phase: Phase::Failed(reason.to_owned()), ..run.report() });
            run.end(replica);
        }
    }

    /// Takes what happened while frames were applied.
    pub fn observe(&mut self, replica: &mut Replica, now: Instant) {
        let observed: Vec<Observed> = replica.take_observed();
        let Some(run) = self.run.as_mut().filter(|_| !observed.is_empty()) else { return };
        match run.observe(observed, now) {
            Ok(wrong) => wrong.into_iter().for_each(|epoch| self.mark_different(replica, epoch)),
            Err(error) => self.give_up(replica, &error.to_string()),
        }
    }

    fn mark_different(&mut self, replica: &Replica, epoch: Epoch) {
        let of_epoch = |sealed: &&SealedPoint| sealed.point.epoch == epoch;
        if let Some(sealed) = replica.state().points.values().rev().find(of_epoch) {
            self.add_verdict(replica, sealed.point.id, Verdict::Different);
        }
    }

    fn add_verdict(&mut self, replica: &Replica, point: PointId, verdict: Verdict) {
        if let Err(error) = self.verdicts.add(point, verdict, replica.state()) {
            tracing::error!(%point, %verdict, %error, "a verdict could not be written down");
        }
    }

    /// The process server has connected.
    pub fn handle_connected(&mut self, now: Instant) {
        self.run.iter_mut().for_each(|run| run.handle_connected(now));
    }

    /// What the agent should be told now.
    pub fn wishes(&mut self, now: Instant) -> Vec<Control> {
        self.run.as_mut().map_or_else(Vec::new, |run| run.wishes(now))
    }

    /// When [`Self::wishes`] should be asked for next.
    #[must_use]
    pub fn ask_at(&self) -> Option<Instant> {
        self.run.as_ref().and_then(Run::ask_at)
    }

    /// When [`Self::step`] has something to do.
    #[must_use]
    pub fn work_at(&self, now: Instant) -> Option<Instant> {
        let settled = self.run.as_ref().filter(|run| run.is_settled()).map(|_| now);
        settled.into_iter().chain(self.scrub.as_ref().and_then(Scrub::due)).min()
    }

    /// Does a bounded piece of what is due: of the scrub, and of what follows when everything was compared.
    pub fn step(&mut self, replica: &mut Replica, now: Instant, wall: Timestamp) {
        if let Some(scrub) = self.scrub.as_mut().filter(|scrub| scrub.due().is_some_and(|due| now >= due)) {
            scrub.step(replica, now, wall);
        }
        self.step_run(replica, wall);
    }

    fn step_run(&mut self, replica: &mut Replica, wall: Timestamp) {
        let Some(run) = self.run.as_mut().filter(|run| run.is_settled()) else { return };
        let done = match run.step(replica, wall) {
            Ok(Done::NotYet) => return,
            Ok(done) => done,
            Err(error) => return self.give_up(replica, &error.to_string()),
        };
        if let Done::Proven(certificate) = &done
            && let Some(reason) = self.why_not_proven(replica, certificate.statement.coverage())
        {
            return self.give_up(replica, &reason);
        }
        let Some(run) = self.run.take() else { return };
        let (point, mut report) = (run.point().point.id, run.report());
        if let Done::Proven(certificate) = done {
            report.phase = Phase::Proven;
            if let Err(error) = keep(replica, &certificate) {
                tracing::error!(%point, %error, "the certificate could not be kept beside the journal");
            }
            tracing::info!(%point, direct = report.coverage.direct, later = report.coverage.later, "point is proven");
            self.add_verdict(replica, point, Verdict::Proven(report.coverage));
            report.certificate = Some(certificate);
        } else {
            report.phase = Phase::Different;
            tracing::error!(%point, leaves = report.different_leaves, "verification ends: there were differences, and what differed was sent again");
        }
        run.end(replica);
        self.last = Some(report);
    }

    /// Why the point that is verified is not proven although all was equal: it differed before, or a later one did. What
    /// was wrong there, and sent again, may have been wrong in this one, too; comparing as of later points cannot tell.
    fn why_not_proven(&self, replica: &Replica, coverage: Coverage) -> Option<String> {
        let verified = self.run.as_ref()?.point();
        let differs = |point: &PointId| self.verdicts().get(point) == Some(&Verdict::Different);
        let mut points = replica.state().points.range(verified.layer..).map(|(_, sealed)| sealed.point.id);
        let id = points.find(differs).filter(|id| coverage.later > 0 || *id == verified.point.id)?;
        Some(format!(
            "point {id} differed from the source, and what was wrong in it was overwritten, so that it cannot be told any more whether point {} had it, too: use a newer one, or one with a certificate",
            verified.point.id
        ))
    }

    /// What is under way, or was last.
    #[must_use]
    pub fn report(&self) -> Option<Report> {
        self.run.as_ref().map(Run::report).or_else(|| self.last.clone())
    }

    /// What is known of a point.
    #[must_use]
    pub fn of_point(&self, replica: &Replica, point: PointId) -> Verified {
        let certificate = kept_certificate(replica, point).unwrap_or_else(|error| {
            tracing::warn!(%point, %error, "the certificate is there, but cannot be read");
            None
        });
        Verified {
            point,
            report: self.report().filter(|report| report.point == point),
            verdict: self.verdicts().get(&point).copied(),
            certificate: certificate.map(Box::new),
        }
    }

    /// The point that is being verified.
    #[must_use]
    pub fn under_way(&self) -> Option<&SealedPoint> {
        self.run.as_ref().map(Run::point)
    }

    /// Which points were verified.
    #[must_use]
    pub fn verdicts(&self) -> &BTreeMap<PointId, Verdict> {
        self.verdicts.all()
    }
}

/// Where the certificate of a point is kept.
fn certificate_path(replica: &Replica, point: PointId) -> PathBuf {
    replica.dir().join(format!("certificate-{point}.json"))
}

/// Keeps a certificate, and none of points that are gone.
fn keep(replica: &Replica, certificate: &Certificate) -> Result<(), JournalError> {
    let (storage, dir) = (replica.storage().as_ref(), replica.dir());
    for name in storage.list(dir).map_err(JournalError::io("list", dir))? {
        let point = name.strip_prefix("certificate-").and_then(|rest| rest.strip_suffix(".json"));
        let id = point.and_then(|point| point.parse().ok()).map(PointId);
        if id.is_some_and(|id| replica.state().point(id).is_none()) {
            let path = dir.join(&name);
            storage.remove(&path).map_err(JournalError::io("remove", &path))?;
        }
    }
    let path = certificate_path(replica, certificate.statement.point);
    write_file_atomically(replica.storage().as_ref(), &path, certificate.to_json().as_bytes())
        .map_err(JournalError::io("write", &path))
}

/// The certificate of a point, if there is one.
fn kept_certificate(replica: &Replica, point: PointId) -> Result<Option<Certificate>, JournalError> {
    let path = certificate_path(replica, point);
    let failed = JournalError::io("read", &path);
    if !replica.storage().exists(&path).map_err(&failed)? {
        return Ok(None);
    }
    let file = replica.storage().open(&path).map_err(&failed)?;
    let mut bytes = vec![0; file.len().map_err(&failed)? as usize];
    file.read_exact_at(&mut bytes, 0).map_err(&failed)?;
    let text = String::from_utf8_lossy(&bytes);
    Certificate::parse(&text)
        .map(Some)
        .map_err(|error| JournalError::Refused(format!("{}: {error}; verify again", path.display())))
}
