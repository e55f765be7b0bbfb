//! What the demo begins with: a disk, services for it, and which tracker this machine allows.

use std::{fs, path::Path};

use engine::service::{quantity::Size, shutdown::Shutdown};

use super::{SPOOL, disk::Ground};
use crate::lab::{self, Lab, LabError, Tracker, Vm, tool};

/// Name of the VM.
pub(super) const VM: &str = "demo";

/// A disk to be filled, and services for it that do not run yet.
pub(super) struct Setup {
    // Dropped in this order.
    pub(super) lab: Lab,
    pub(super) ground: Ground,
    /// Why the tracker is not eBPF, if it is not.
    pub(super) why_scan: Option<String>,
}

impl Setup {
    /// Below the folder `dir`: with eBPF if that can be, else with the scan tracker.
    pub(super) fn new(dir: &Path, binaries: &Path, bytes: u64, stop: &Shutdown) -> Result<Self, LabError> {
        let why_scan = match live(dir, binaries, bytes, stop)? {
            Ok(setup) => return Ok(setup),
            Err(reason) => Some(reason),
        };
        // What the try left; without root there is nothing.
        let _ = fs::remove_dir_all(dir.join("lab"));
        let ground = Ground::file(dir, bytes)?;
        let lab = new_lab(dir, binaries, Tracker::Scan, ground.path(), stop)?;
        Ok(Self { lab, ground, why_scan })
    }
}

/// A mounted disk and an agent that tracks it by eBPF; or why that cannot be here.
fn live(dir: &Path, binaries: &Path, bytes: u64, stop: &Shutdown) -> Result<Result<Setup, String>, LabError> {
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
        Ok(Setup { lab, ground, why_scan: None })
    };
    match started() {
        Err(LabError::Interrupted) => Err(LabError::Interrupted),
        // An error that brings a log ends with what that says last.
        Err(error) => Ok(Err(error.to_string().lines().last().unwrap_or_default().trim().into())),
        Ok(setup) => Ok(Ok(setup)),
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
