//! Memory of the three services during a full copy, and then while the disk is written and points are made.
//!
//! Peaks are the kernel's own (VmHWM), so nothing between two looks is missed. The maps of the kernel tracker belong to
//! the kernel and are not in them. The disk is full of bytes that do not compress: buffers are as full as they get.

use std::{fmt, time::Duration};

use engine::service::{
    quantity::{Period, Size},
    shutdown::Shutdown,
};
use homeward::lab::{self, Lab, LabError, Look, Options, Service, Tracker, Vm};
use serde::Serialize;

use crate::{
    disk::Scratch,
    fio::{self, CHURN, Load},
};

const VM: &str = "bench";

/// Time from one point to the next during churn.
const POINTS_EVERY: Duration = Duration::from_secs(5);

/// Longest full copy.
const COPY: Duration = Duration::from_secs(3600);

/// The figures.
#[derive(Debug, Serialize)]
pub struct Report {
    disk_bytes: u64,
    churn_seconds: u64,
    points: usize,
    services: Vec<Peaks>,
}

/// Most bytes that were ever resident.
#[derive(Debug, Serialize)]
struct Peaks {
    name: String,
    full_copy_bytes: u64,
    churn_bytes: u64,
}

/// One full copy, then churn for `time`.
pub fn run(scratch: &Scratch, time: Duration, stop: &Shutdown) -> anyhow::Result<Report> {
    let device = scratch.device()?;
    fio::fill(device.path(), scratch.bytes, stop)?;
    let vm = Vm {
        disks: vec![device.path().into()],
        point_interval: Period(POINTS_EVERY),
        ..Vm::new(VM, Tracker::Ebpf)
    };
    let options = Options::new(lab::build_services(lab::is_release())?);
    let lab = Lab::new(device.dir(), Options { vms: vec![vm], stop: stop.clone(), ..options })?;
    lab.start()?;
    lab.wait("the full copy", COPY, || {
        let copied = lab.agent_status(VM)?.copy.is_none() && !lab.points(VM)?.is_empty();
        Ok(if copied { Look::Done(()) } else { Look::NotYet("copying".into()) })
    })?;
    let after_copy = peaks(&lab)?;

    let load = Load::start(device.path(), scratch.bytes, &CHURN)?;
    lab::let_pass(stop, time)?;
    load.stop()?;
    lab.services().try_for_each(Service::check_alive)?;
    let services = after_copy
        .into_iter()
        .zip(peaks(&lab)?)
        .map(|((name, full_copy_bytes), (_, churn_bytes))| Peaks { name, full_copy_bytes, churn_bytes });
    Ok(Report {
        disk_bytes: scratch.bytes,
        churn_seconds: time.as_secs(),
        points: lab.points(VM)?.len(),
        services: services.collect(),
    })
}

fn peaks(lab: &Lab) -> Result<Vec<(String, u64)>, LabError> {
    lab.services().map(|service| Ok((service.name().to_owned(), service.memory()?.peak))).collect()
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (disk, seconds, points) = (Size(self.disk_bytes), self.churn_seconds, self.points);
        writeln!(
            f,
            "most memory ever resident; {disk}, then {seconds} s of 20 MB/s random writes; {points} points"
        )?;
        for Peaks { name, full_copy_bytes, churn_bytes } in &self.services {
            let (copy, churn) = (Size(*full_copy_bytes), Size(*churn_bytes));
            writeln!(f, "  {name:<16} full copy {copy:>12}   with churn {churn:>12}")?;
        }
        Ok(())
    }
}
