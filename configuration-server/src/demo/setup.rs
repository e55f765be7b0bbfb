//! What the demo begins with: a folder, a disk, services for it, and which tracker this machine allows.

use std::{
    fs,
    path::{Path, PathBuf},
};

use engine::{
    point::Point,
    service::{quantity::Size, shutdown::Shutdown},
};

use super::{SPOOL, disk::Ground};
use crate::lab::{self, Lab, LabError, Tracker, Vm, tool};

/// Name of the VM.
pub(super) const VM: &str = "demo";

/// Attempts at a point of a disk that is at rest.
const ATTEMPTS: u32 = 3;

/// A mounted disk and an agent that tracks it by eBPF; or why that cannot be here.
fn live(
    dir: &Path,
    binaries: &Path,
    bytes: u64,
    stop: &Shutdown,
) -> Result<Result<(Ground, Lab), String>, LabError> {
    if !rustix::process::geteuid().is_root() {
        return Ok(Err("this is not root".into()));
    }
    let started = || {
        tool::require(&["losetup", "mount", "umount", "fsfreeze"])?;
        lab::isolate().map_err(LabError::io("make mounts of our own below", "/"))?;
        let ground = Ground::live(dir, bytes, stop)?;
        let lab = new_lab(dir, binaries, Tracker::Ebpf, ground.path(), stop)?;
        // From here on the kernel tracks, also while no agent runs.
        lab.agent(VM)?.start()?;
        lab.agent(VM)?.stop()?;
        Ok((ground, lab))
    };
    match started() {
        Err(LabError::Interrupted) => Err(LabError::Interrupted),
        // An error that brings a log ends with what that says last.
        Err(error) => Ok(Err(error.to_string().lines().last().unwrap_or_default().trim().into())),
        Ok(live) => Ok(Ok(live)),
    }
}

fn new_lab(
    dir: &Path,
    binaries: &Path,
    tracker: Tracker,
    disk: &Path,
    stop: &Shutdown,
) -> Result<Lab, LabError> {
    let dir = dir.join("lab");
    fs::create_dir(&dir).map_err(LabError::io("create", &dir))?;
    let vm = Vm { disks: vec![disk.into()], ..Vm::new(VM, tracker) };
    let options = lab::Options::new(binaries.into());
    Lab::new(&dir, lab::Options { vms: vec![vm], spool: Size(SPOOL), stop: stop.clone(), ..options })
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
