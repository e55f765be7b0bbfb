//! What an operator could use instead: each a program here that reads the disk, and one there that writes its copy.
//!
//! All of them are treated alike: nothing of the disk is in the kernel's memory when they begin; the clock runs from the
//! start of the program that reads until all have ended and the copy is on stable storage; and what they copied is
//! compared. None of them encrypts.

mod nbd;
mod pipe;
mod rsync;

use std::{fs::File, path::Path, time::Instant};

use anyhow::Context;
use engine::service::shutdown::Shutdown;
use homeward::lab::{Look, image, tool::Running, wait_until};

use super::{LONGEST, link::Link, meter::Meter, report::Run, work::forget_cached};

/// The port that the other end listens on.
const PORT: u16 = 10_809;

/// A tool that is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// `nbdcopy` to `qemu-nbd`.
    Nbdcopy,
    /// `qemu-img convert` to `qemu-nbd`.
    QemuImg,
    /// `zstd` at a level, through `socat`.
    Zstd(u8),
    /// `rsync --inplace`.
    Rsync,
}

/// What a tool is to do.
pub struct Job<'a> {
    /// Between the two ends.
    pub link: &'a Link,
    /// The device that is read.
    pub source: &'a Path,
    /// The file that it is copied to, which is there and as large.
    pub target: &'a Path,
    /// A folder for what else it needs.
    pub dir: &'a Path,
    /// Interrupts it.
    pub stop: &'a Shutdown,
}

/// The programs of the other end.
struct Servers {
    running: Vec<Running>,
    /// Whether they end when all is copied.
    end: bool,
}

impl Peer {
    /// As it is called in reports.
    pub fn name(self) -> String {
        match self {
            Self::Nbdcopy => "nbdcopy".into(),
            Self::QemuImg => "qemu-img".into(),
            Self::Zstd(level) => format!("zstd -{level} pipe"),
            Self::Rsync => "rsync".into(),
        }
    }

    /// The programs that it needs.
    pub fn programs(self) -> &'static [&'static str] {
        match self {
            Self::Nbdcopy => &["nbdcopy", "qemu-nbd"],
            Self::QemuImg => &["qemu-img", "qemu-nbd"],
            Self::Zstd(_) => &["zstd", "socat"],
            Self::Rsync => &["rsync"],
        }
    }

    /// Copies, and compares the target with `expected`.
    pub fn run(self, job: &Job, round: u32, expected: &Path) -> anyhow::Result<Run> {
        forget_cached()?;
        let servers = match self {
            Self::Nbdcopy | Self::QemuImg => nbd::serve(job)?,
            Self::Zstd(_) => pipe::serve(job)?,
            Self::Rsync => rsync::serve(job)?,
        };
        job.link.far.wait_for_listener(PORT, job.stop)?;
        let meter = Meter::start(servers.running.iter().map(Running::pid))?;
        let (before, began) = (job.link.bytes()?, Instant::now());
        let senders = match self {
            Self::Nbdcopy => nbd::copy(job)?,
            Self::QemuImg => nbd::convert(job)?,
            Self::Zstd(level) => pipe::send(job, level)?,
            Self::Rsync => rsync::send(job)?,
        };
        senders.iter().for_each(|sender| meter.add(sender.pid()));
        let ending: Vec<&Running> =
            senders.iter().chain(servers.running.iter().filter(|_| servers.end)).collect();
        wait_until(job.stop, &self.name(), LONGEST, || {
            for running in &ending {
                if !running.has_ended()? {
                    return Ok(Look::NotYet("it runs".into()));
                }
            }
            Ok(Look::Done(()))
        })?;
        let target = File::open(job.target).with_context(|| format!("{} made no copy", self.name()))?;
        target.sync_all()?;
        let seconds = began.elapsed().as_secs_f64();
        let wire_bytes = job.link.bytes()? - before;
        let usage = meter.usage();
        for running in senders.into_iter().chain(servers.running.into_iter().filter(|_| servers.end)) {
            running.wait(Some(job.stop))?;
        }
        let verified = image::first_difference(expected, job.target, job.stop)?.is_none();
        Ok(Run::new(&self.name(), round, seconds, wire_bytes, usage, verified))
    }
}
