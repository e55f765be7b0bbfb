//! The services and the disk together, and what the demo does with them.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    time::{Duration, Instant},
};

use engine::{
    point::{Point, PointId},
    service::{
        progress::{Progress, Show, Step},
        quantity::Size,
        shutdown::Shutdown,
    },
};

use super::{
    disk::{self, Disk},
    report::{FullCopy, PointReport, Report, Teller, describe_traffic},
    setup::{Setup, VM},
    verify::{Expected, Found, verify},
    work::Work,
};
use crate::lab::{Lab, LabError, Look, SealedPoint, Totals, Tracker, image, tool};

/// The full copy, however large the disk.
const COPY: Duration = Duration::from_secs(6 * 3600);

/// Attempts at a point of a disk that is at rest.
const ATTEMPTS: u32 = 3;

/// Everything that was started and found out.
pub(super) struct Stage<'a> {
    // Dropped in this order: the services use the disk, all use the folder.
    lab: Lab,
    disk: Disk,
    stop: &'a Shutdown,
    tell: &'a Teller,
    tracker: Tracker,
    why_scan: Option<String>,
    /// Copies of the disk, for points at which the writers paused.
    references: BTreeMap<PointId, PathBuf>,
    full_copy: FullCopy,
    /// Sums of agents that were killed.
    spent: Totals,
    killed: Vec<String>,
    points: Vec<PointReport>,
    checks: usize,
    problems: Vec<String>,
    work: Work,
}

impl<'a> Stage<'a> {
    /// Keys and a disk in use; the services do not run yet.
    pub(super) fn set(
        work: Work,
        binaries: PathBuf,
        bytes: u64,
        stop: &'a Shutdown,
        tell: &'a Teller,
    ) -> Result<Self, LabError> {
        let dir = work.path().to_owned();
        let Setup { lab, ground, why_scan } = Setup::new(&dir, &binaries, bytes, stop)?;
        let tracker = if why_scan.is_none() { Tracker::Ebpf } else { Tracker::Scan };
        let size = Size(bytes);
        match &why_scan {
            None => tell.say(format!("disk: {size}, a loop device with ext4, mounted; tracker: ebpf")),
            Some(why) => tell.say(format!("disk: {size}, a file with ext4; tracker: scan, because {why}")),
        }
        let disk = Disk::fill(ground, &dir, bytes, rand::random(), stop)?;
        let manifest = &disk.manifest;
        let mut writers = format!("{} records/s", disk::RECORDS);
        if disk.is_live() {
            writers += &format!(" and {} files/s", disk::FILES);
        }
        let (files, file_bytes) = (manifest.len(), Size(manifest.bytes));
        tell.say(format!(
            "filled: {files} files of this machine, {file_bytes}; now being written: {writers}"
        ));
        Ok(Self {
            lab,
            disk,
            stop,
            tell,
            tracker,
            why_scan,
            references: BTreeMap::new(),
            full_copy: FullCopy::default(),
            spent: Totals::default(),
            killed: Vec::new(),
            points: Vec::new(),
            checks: 0,
            problems: Vec::new(),
            work,
        })
    }

    /// Copies everything, while the disk is written; on the way the process server is killed.
    pub(super) fn full_copy(&mut self) -> Result<(), LabError> {
        let began = Instant::now();
        self.lab.start()?;
        self.tell.say("three services run, with keys of their own; the full copy begins");
        let mut progress: Option<Progress> = None;
        let mut killed = None;
        let quarter = self.disk.manifest.bytes / 4;
        let what = "the full copy";
        let totals = self.lab.wait(what, COPY, || {
            if killed.is_none()
                && self.lab.target_status(VM)?.is_some_and(|found| found.logical_bytes > quarter)
            {
                self.lab.process_server().restart()?;
                killed = Some(began.elapsed());
            }
            let status = self.lab.agent_status(VM)?;
            match status.copy {
                Some(copy) => progress
                    .get_or_insert_with(|| {
                        Progress::new(Show::detect(self.tell.is_quiet()), "copying", copy.total)
                    })
                    .update(Step { what: "copying".into(), done: copy.done, total: copy.total }),
                None if killed.is_some() && status.totals.logical_bytes > quarter => {
                    return Ok(Look::Done(status.totals));
                }
                None => {}
            }
            Ok(Look::NotYet(status.describe()))
        })?;
        drop(progress);
        let seconds = began.elapsed().as_secs_f64();
        let Totals { logical_bytes, wire_bytes, .. } = totals;
        self.full_copy = FullCopy { logical_bytes, wire_bytes, seconds };
        self.killed.push("process-server".into());
        let at = killed.unwrap_or_default().as_secs_f64();
        self.tell.say(format!("full copy: {}", describe_traffic(&self.full_copy)));
        self.tell
            .say(format!("  {at:.1} s into it the process server was killed (kill -9) and started again"));
        Ok(())
    }

    /// The disk is written for a while.
    pub(super) fn let_write(&self, records: usize) -> Result<(), LabError> {
        self.disk.let_write(records, self.stop)
    }

    /// `kill -9`; the disk is written on while nobody is there.
    pub(super) fn kill_agent(&mut self, records: usize) -> Result<(), LabError> {
        let before = self.lab.agent_status(VM)?.totals;
        let agent = self.lab.agent(VM)?;
        agent.kill()?;
        self.spent += before;
        self.disk.let_write(records, self.stop)?;
        agent.start()?;
        self.killed.push("agent".into());
        let status = self.lab.agent_status(VM)?;
        let continuity =
            status.disks.iter().map(|disk| disk.continuity.as_str()).collect::<Vec<_>>().join(", ");
        let kept = match self.tracker {
            Tracker::Ebpf => "the kernel had gone on tracking",
            Tracker::Scan => "it knows what the target holds",
        };
        self.tell.say(format!(
            "the agent was killed, the disk written on, and the agent started again; {kept}: {continuity}"
        ));
        self.check(continuity == "proven", || format!("tracking over a restart is {continuity}"));
        Ok(())
    }

    /// `kill -9`; the disk is written on meanwhile.
    pub(super) fn kill_master_target(&mut self, records: usize) -> Result<(), LabError> {
        self.lab.master_target().kill()?;
        self.disk.let_write(records, self.stop)?;
        self.lab.master_target().start()?;
        self.killed.push("master-target".into());
        self.tell.say("the master target was killed, and started again");
        Ok(())
    }

    /// Makes a point: with the writers paused, and a copy of the disk to compare with; or while they run, where the
    /// tracker can do that.
    pub(super) fn point(&mut self, paused: bool) -> Result<(), LabError> {
        if !paused && self.disk.is_live() {
            let point = self.lab.point_now(VM)?;
            self.tell.say(format!("point {} made, writers running", point.id));
            return Ok(());
        }
        let (lab, stop, tracker) = (&self.lab, self.stop, self.tracker);
        let dir = self.work.path().to_owned();
        let (point, reference) = self.disk.at_rest(&dir, stop, |disk| {
            let point = point_at_rest(lab, tracker)?;
            let reference = dir.join(format!("reference-{}.raw", point.id));
            image::copy(disk, &reference, stop)?;
            Ok((point, reference))
        })?;
        self.references.insert(point.id, reference);
        self.tell.say(format!("point {} made, writers paused; the disk copied to compare with", point.id));
        Ok(())
    }

    /// Restores the oldest point, verifies it, and lets replication go on.
    pub(super) fn restore_and_go_on(&mut self) -> Result<(), LabError> {
        let oldest = self.lab.points(VM)?.into_iter().next();
        let oldest = oldest.ok_or_else(|| LabError::Unexpected {
            service: "master-target".into(),
            what: "has no points, although one was durable".into(),
        })?;
        let report = self.restore(&oldest)?;
        self.tell
            .say(format!("the oldest point restored: {}", if report.verified { "exact" } else { "WRONG" }));
        self.check(report.verified, || format!("restored for a moment: {}", report.problems.join("; ")));
        let mut progress = self.progress();
        self.lab.undo(VM, |step| progress.update(step))?;
        self.tell.say("restore undone; replication goes on");
        Ok(())
    }

    /// Restores and verifies every point.
    pub(super) fn verify_all(&mut self) -> Result<(), LabError> {
        let sealed = self.lab.points(VM)?;
        let missing: Vec<String> = self
            .references
            .keys()
            .filter(|id| sealed.iter().all(|one| one.point.id != **id))
            .map(ToString::to_string)
            .collect();
        self.check(missing.is_empty(), || {
            format!("points were durable and are gone: {}", missing.join(", "))
        });
        let after = self.lab.agent_status(VM)?.totals.logical_bytes;
        let again = Size(after);
        self.check(after < self.full_copy.logical_bytes / 2, || {
            format!("after its restart the agent sent {again}, which is no small part of the disk")
        });
        for (index, one) in sealed.iter().enumerate() {
            let report = self.restore(one)?;
            self.tell.say(report.describe(index + 1));
            report.problems.iter().for_each(|problem| self.tell.say(format!("  {problem}")));
            self.points.push(report);
        }
        Ok(())
    }

    fn restore(&mut self, sealed: &SealedPoint) -> Result<PointReport, LabError> {
        let id = sealed.point.id;
        let began = Instant::now();
        let mut progress = self.progress();
        self.lab.restore(VM, &id.to_string(), |step| progress.update(step))?;
        drop(progress);
        let restore_seconds = began.elapsed().as_secs_f64();
        let vmdks = self.lab.vmdks(VM)?;
        let expected = Expected {
            taken_at: sealed.point.taken_at,
            reference: self.references.get(&id).map(PathBuf::as_path),
            histories: &self.disk.histories(),
            manifest: &self.disk.manifest,
        };
        let paused = expected.reference.is_some();
        let scratch = self.work.path().join("check");
        let Found { checks, problems, records } = verify(&vmdks[0], &expected, &scratch, self.stop)?;
        self.checks += checks;
        let verified = problems.is_empty();
        Ok(PointReport { restore_seconds, records, verified, problems, ..PointReport::new(sealed, paused) })
    }

    fn progress(&self) -> Progress {
        Progress::new(Show::detect(self.tell.is_quiet()), "restoring", 0)
    }

    fn check(&mut self, holds: bool, problem: impl FnOnce() -> String) {
        self.checks += 1;
        if !holds {
            self.problems.push(problem());
        }
    }

    /// Stops everything and makes the report.
    pub(super) fn finish(mut self, bytes: u64) -> Result<Report, LabError> {
        let mut totals = self.spent;
        totals += self.lab.agent_status(VM)?.totals;
        for service in self.lab.services() {
            let ended = service.stop()?;
            self.checks += 1;
            if !ended.is_some_and(|status| status.success()) {
                self.problems.push(format!("{} did not end in order: {ended:?}", service.name()));
            }
        }
        drop(self.lab);
        let manifest = self.disk.finish()?;
        let mut skipped = Vec::new();
        if tool::find("qemu-img").is_none() {
            skipped.push("qemu-img info and compare: qemu-img is not installed (package qemu-utils)".into());
        }
        Ok(Report {
            ok: self.problems.is_empty()
                && !self.points.is_empty()
                && self.points.iter().all(|point| point.verified),
            tracker: self.tracker,
            why_scan: self.why_scan,
            disk_bytes: bytes,
            files: manifest.len(),
            file_bytes: manifest.bytes,
            logical_bytes: totals.logical_bytes,
            wire_bytes: totals.wire_bytes,
            seconds: self.tell.seconds(),
            full_copy: self.full_copy,
            killed: self.killed,
            points: self.points,
            checks: self.checks,
            problems: self.problems,
            skipped,
        })
    }
}

/// An attempt of the scan tracker that began before the disk was at rest fails, and takes later wishes with it.
fn point_at_rest(lab: &Lab, tracker: Tracker) -> Result<Point, LabError> {
    let attempts = if tracker == Tracker::Scan { ATTEMPTS } else { 1 };
    for _ in 1..attempts {
        match lab.point_now(VM) {
            Err(LabError::Admin { .. }) => {}
            other => return other,
        }
    }
    lab.point_now(VM)
}
