//! Points under load: how many are made without a freeze, in how many tries, how long the window is.
//!
//! The agent's own parts do everything: eBPF tracker, node, pre-copy, barrier, freezer, watchdog, packing. Only the
//! connection is cut short: [`sink`] stands in for process server and master target and confirms at once. After each
//! load the disk is frozen for one more point, and every block at the sink is compared with it.

mod probe;
mod report;
mod sink;
mod vm;

use std::time::{Duration, Instant};

use engine::service::shutdown::Shutdown;
use homeward::lab;

use self::{
    report::{LoadReport, Report},
    vm::Vm,
};
use crate::{
    disk::{Mounted, Scratch},
    fio::{self, Load},
};

/// A load: its name, what it is, and fio's options for it.
type Spec = (&'static str, &'static str, &'static [&'static str]);

const DIRECT: [&str; 3] = ["--ioengine=libaio", "--direct=1", "--iodepth=32"];

const LOADS: [Spec; 4] = [
    ("random", "random direct, 2,000/s", &[DIRECT[0], DIRECT[1], DIRECT[2], "--rate_iops=2000"]),
    (
        "zipf",
        "zipf 1.2 direct, 4,000/s",
        &[DIRECT[0], DIRECT[1], DIRECT[2], "--rate_iops=4000", "--random_distribution=zipf:1.2"],
    ),
    (
        "fsync",
        "zipf 1.2 buffered, fsync after each",
        &["--ioengine=psync", "--fsync=1", "--random_distribution=zipf:1.2"],
    ),
    ("full", "random direct, as fast as it goes", &DIRECT),
];

/// Their names.
pub const NAMES: [&str; 4] = [LOADS[0].0, LOADS[1].0, LOADS[2].0, LOADS[3].0];

/// Lets a load settle in before its first point.
const WARM_UP: Duration = Duration::from_secs(3);

/// What to measure.
pub struct Plan<'a> {
    /// Under each load.
    pub points: u32,
    /// Between a point and the request for the next.
    pub every: Duration,
    /// Names; all if empty.
    pub loads: &'a [String],
}

/// Measures one load after the other, each on a fresh disk.
pub fn run(scratch: &Scratch, plan: &Plan, stop: &Shutdown) -> anyhow::Result<Report> {
    let wanted = |spec: &&Spec| plan.loads.is_empty() || plan.loads.iter().any(|name| name == spec.0);
    let loads = LOADS.iter().filter(wanted).map(|spec| measure(scratch, plan, spec, stop));
    Ok(Report::new(loads.collect::<anyhow::Result<_>>()?))
}

fn measure(scratch: &Scratch, plan: &Plan, spec: &Spec, stop: &Shutdown) -> anyhow::Result<LoadReport> {
    let (name, what, options) = *spec;
    eprintln!("{name}: {what}");
    let Mounted { mount, device } = &scratch.mounted()?;
    let (file, bytes) = (mount.point().join("data"), scratch.bytes / 2);
    fio::fill(&file, bytes, stop)?;
    mount.sync()?;

    let mut vm = Vm::start(device.path(), &device.dir().join("agent"))?;
    vm.copy(stop)?;
    let load = Load::start(&file, bytes, options)?;
    vm.work(WARM_UP, stop)?;
    let (writes, began) = (device.writes()?, Instant::now());
    let mut points = Vec::new();
    for number in 1..=plan.points {
        vm.work(plan.every, stop)?;
        points.push(vm.point(stop)?);
        if number % 20 == 0 {
            eprintln!("  {number} of {}", plan.points);
        }
    }
    let writes_per_s = (device.writes()? - writes) as f64 / began.elapsed().as_secs_f64();
    let probed = vm.probed();
    load.stop()?;

    let frozen = mount.freeze()?;
    vm.point(stop)?.made?;
    let different = vm.finish(device.path())?;
    drop(frozen);
    anyhow::ensure!(
        different == 0,
        "{name}: {different} blocks of the last point differ from the still disk"
    );
    lab::check(stop)?;
    Ok(LoadReport::new(name, what, device.is_direct(), writes_per_s, &points, &probed))
}
