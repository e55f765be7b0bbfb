//! What tracking costs: the rate of 4 KiB random writes with and without the tracker, in turns of a fraction of a second.
//!
//! Twice: with one write at a time, which waits for the disk, and with 32, which on a quick disk waits for the CPU alone,
//! so that every instruction of the tracker shows. One fio writes all along, while the tracker is attached and
//! detached. Two slices next to each other make one ratio, and which of the two comes first changes from pair to pair,
//! so that what drifts on the machine (other guests, the cache) falls out; between runs of fio it does not. Nothing
//! harvests or reads: that is the barrier's cost.

use std::{
    fmt,
    path::PathBuf,
    time::{Duration, Instant},
};

use agent::tracker::ebpf::EbpfTracker;
use engine::{service::shutdown::Shutdown, units::StreamId};
use homeward::lab;
use serde::Serialize;

use crate::{
    disk::{Device, Scratch},
    figures::Spread,
    fio::{self, Load},
};

/// Writes in flight, and fio's option for it.
const DEPTHS: [(u32, &str); 2] = [(1, "--iodepth=1"), (32, "--iodepth=32")];

const WARM_UP: Duration = Duration::from_secs(3);

/// After the programs were loaded or removed, which takes the CPU for a moment.
const SETTLE: Duration = Duration::from_millis(60);

/// Name of the tracker's pins, which no agent has.
const TRACKER: &str = "bench-overhead";

/// The figures.
#[derive(Debug, Serialize)]
pub struct Report {
    direct_io: bool,
    /// Of the load that suffers most.
    iops_ratio_median: f64,
    loads: Vec<LoadReport>,
}

/// One load. `ratio` is with the tracker to without; over 1 is noise.
#[derive(Debug, Serialize)]
struct LoadReport {
    depth: u32,
    rounds: usize,
    iops_ratio_median: f64,
    iops_ratio: Spread,
    iops_without: Spread,
    iops_with: Spread,
}

/// Measures `rounds` pairs of `slice` each, under each load.
pub fn run(scratch: &Scratch, rounds: u32, slice: Duration, stop: &Shutdown) -> anyhow::Result<Report> {
    let device = scratch.device()?;
    fio::fill(device.path(), scratch.bytes, stop)?;
    let loads = DEPTHS.iter().map(|(depth, option)| {
        eprintln!("depth {depth}");
        let load = Load::start(device.path(), scratch.bytes, &["--ioengine=libaio", "--direct=1", option])?;
        lab::let_pass(stop, WARM_UP)?;
        let report = measure(&device, *depth, rounds, slice, stop)?;
        load.stop()?;
        Ok(report)
    });
    let loads: Vec<LoadReport> = loads.collect::<anyhow::Result<_>>()?;
    let worst = loads.iter().map(|load| load.iops_ratio_median).fold(f64::INFINITY, f64::min);
    Ok(Report { direct_io: device.is_direct(), iops_ratio_median: worst, loads })
}

fn measure(
    device: &Device,
    depth: u32,
    rounds: u32,
    slice: Duration,
    stop: &Shutdown,
) -> anyhow::Result<LoadReport> {
    let disks = [device.path().to_owned()];
    let rate = |tracked: bool| -> anyhow::Result<f64> {
        let tracker = if tracked { Some(Tracked::start(&disks)?) } else { None };
        lab::let_pass(stop, SETTLE)?;
        let (writes, began) = (device.writes()?, Instant::now());
        lab::let_pass(stop, slice)?;
        let rate = (device.writes()? - writes) as f64 / began.elapsed().as_secs_f64();
        drop(tracker);
        Ok(rate)
    };
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for round in 1..=rounds {
        for tracked in if round % 2 == 0 { [true, false] } else { [false, true] } {
            let of = if tracked { &mut with } else { &mut without };
            of.push(rate(tracked)?);
        }
        if round % 20 == 0 {
            eprintln!("  {round} of {rounds}");
        }
    }
    let ratio = Spread::of(with.iter().zip(&without).map(|(with, without)| with / without));
    Ok(LoadReport {
        depth,
        rounds: without.len(),
        iops_ratio_median: ratio.median,
        iops_ratio: ratio,
        iops_without: Spread::of(without),
        iops_with: Spread::of(with),
    })
}

/// Tracks disks until it is dropped.
struct Tracked(Option<EbpfTracker>);

impl Tracked {
    fn start(disks: &[PathBuf]) -> anyhow::Result<Self> {
        Ok(Self(Some(EbpfTracker::open(TRACKER, StreamId::random(), disks)?.0)))
    }
}

impl Drop for Tracked {
    fn drop(&mut self) {
        // Its pins are locked while it lives.
        self.0 = None;
        if let Err(error) = EbpfTracker::forget(TRACKER) {
            tracing::error!(%error, "the tracker stays attached until this process ends");
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for LoadReport { depth, rounds, iops_ratio, iops_without, iops_with, .. } in &self.loads {
            let Spread { min, q1, median, q3, max, .. } = iops_ratio;
            writeln!(f, "4 KiB random writes, direct, {depth} at a time, {rounds} pairs of slices")?;
            writeln!(f, "  with tracking / without: median {median:.4}")?;
            writeln!(f, "  min {min:.4}, quartiles {q1:.4} and {q3:.4}, max {max:.4}")?;
            let (without, with) = (iops_without.median, iops_with.median);
            writeln!(f, "  writes/s: {without:.0} without, {with:.0} with (medians)")?;
        }
        Ok(())
    }
}
