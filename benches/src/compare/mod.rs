//! Homeward beside what an operator could use instead, on this machine, over links of its own making: to see what it is
//! worth, and to choose settings.
//!
//! Whatever the tool, it copies the same disk, full of this machine's own system files, over the same link, with cold
//! caches, until the copy is on stable storage; and the copy is compared. Layers: `work`, `content`, `blocks`, `link`,
//! `relay`, `meter`, `install` → `ground`, `report` → `peers`, `ours` → the scenarios → what is here.

mod blocks;
mod churn;
mod content;
mod full;
mod ground;
mod install;
mod link;
mod meter;
mod original;
mod ours;
mod peers;
mod relay;
mod report;
mod tracked;
pub mod tune;
mod work;

use std::{collections::BTreeMap, fmt, path::Path, time::Duration};

use agent::tracker::ebpf::EbpfTracker;
use clap::ValueEnum;
use engine::{
    service::{
        exit::{Code, Told},
        quantity::Size,
        shutdown::Shutdown,
    },
    units::StreamId,
};
use homeward::lab::{LoopDevice, Tracker};
use serde::Serialize;

use self::{
    ground::{About, Ground},
    report::{Comparison, Run},
    work::Work,
};

/// Where disks are kept between runs.
pub const DIR: &str = "/var/tmp/homeward-bench";

/// No single run takes longer.
const LONGEST: Duration = Duration::from_secs(4 * 3600);

const GIGABIT: u64 = 1_000_000_000;

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Scenario {
    /// First copy of a disk over 1 Gbit/s: also nbdcopy, qemu-img and zstd pipes.
    #[value(name = "full-1g")]
    Full1g,
    /// The same over 200 Mbit/s.
    #[value(name = "full-200m")]
    Full200m,
    /// The same over a link without a limit.
    #[value(name = "full-unlimited")]
    FullUnlimited,
    /// First copy over 1 Gbit/s with a round trip of 50 ms, and without.
    #[value(name = "latency-50ms")]
    Latency50ms,
    /// The target holds the disk as it was before 16 % of it changed, 1 Gbit/s: also rsync.
    #[value(name = "original-1g")]
    Original1g,
    /// 64 MiB of scattered 4 KiB writes on a disk that is tracked, and on one 64 times as large; 1 Gbit/s.
    Tracked,
    /// 20 MB/s of random writes, with a point every 5 s, 1 Gbit/s; see --minutes.
    Churn,
}

/// What to do.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Which comparison.
    pub scenario: Scenario,
    /// Size of the disk.
    pub bytes: u64,
    /// Runs of each tool.
    pub rounds: u32,
    /// Length of `churn`.
    pub minutes: u32,
    /// Whether other tools are tried, too.
    pub peers: bool,
}

/// What was found.
#[derive(Debug, Serialize)]
pub struct Report {
    ok: bool,
    scenario: String,
    disk: About,
    tracker: Tracker,
    rounds: u32,
    link_bits_per_second: Option<u64>,
    round_trip_ms: u64,
    notes: Vec<String>,
    #[serde(flatten)]
    comparison: Comparison,
    /// What only this scenario has.
    #[serde(flatten)]
    figures: Figures,
}

/// Figures by name; the names end in the unit.
type Figures = BTreeMap<&'static str, f64>;

/// What every scenario needs.
struct Place<'a> {
    work: &'a Work,
    /// The disk.
    ground: &'a Ground,
    /// How its writes are found.
    tracker: Tracker,
    /// Bits per second of the link.
    rate: Option<u64>,
    /// Runs of each tool.
    rounds: u32,
    /// Whether other tools are tried, too.
    peers: bool,
    stop: &'a Shutdown,
}

/// Compares, with disks that are kept in `dir`.
pub fn run(dir: &Path, plan: &Plan, stop: &Shutdown) -> anyhow::Result<Report> {
    let work = Work::open(dir)?;
    let ground = Ground::get(&work, plan.bytes.next_multiple_of(1 << 20), stop)?;
    let mut notes = Vec::new();
    let tracker = tracker(&ground, &mut notes)?;
    if ground.about.repeated_bytes > 0 {
        let repeated = Size(ground.about.repeated_bytes);
        notes.push(format!("{repeated} of the files are on the disk twice, which flatters deduplication"));
    }
    let (rate, round_trip) = plan.scenario.link();
    let place =
        Place { work: &work, ground: &ground, tracker, rate, rounds: plan.rounds, peers: plan.peers, stop };
    notes.push("the link is the hop from the agent to the process server; only Homeward encrypts".into());
    let (runs, figures) = match plan.scenario {
        Scenario::Full1g | Scenario::Full200m | Scenario::FullUnlimited => {
            (full::copies(&place)?, Figures::new())
        }
        Scenario::Latency50ms => full::latency(&place, round_trip, &mut notes)?,
        Scenario::Original1g => original::run(&place, &mut notes)?,
        Scenario::Tracked => tracked::run(&place, &mut notes)?,
        Scenario::Churn => churn::run(&place, plan.minutes, &mut notes)?,
    };
    Ok(Report {
        ok: runs.iter().all(|run| run.verified),
        scenario: plan.scenario.name(),
        disk: ground.about.clone(),
        tracker,
        rounds: plan.rounds,
        link_bits_per_second: rate,
        round_trip_ms: round_trip.as_millis() as u64,
        notes,
        comparison: Comparison::of(runs, rate.filter(|_| plan.scenario.is_bulk())),
        figures,
    })
}

impl Place<'_> {
    /// Says how a run went.
    fn told(&self, run: Run) -> Run {
        eprintln!("round {} of {}: {run}", run.round, self.rounds);
        run
    }
}

impl Scenario {
    fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// Bits per second, and the round-trip time.
    fn link(self) -> (Option<u64>, Duration) {
        match self {
            Self::Full200m => (Some(GIGABIT / 5), Duration::ZERO),
            Self::FullUnlimited => (None, Duration::ZERO),
            Self::Latency50ms => (Some(GIGABIT), Duration::from_millis(50)),
            Self::Full1g | Self::Original1g | Self::Tracked | Self::Churn => (Some(GIGABIT), Duration::ZERO),
        }
    }

    /// Whether the link is to be full.
    fn is_bulk(self) -> bool {
        self != Self::Churn
    }
}

impl Report {
    /// Whether every copy was equal to its source.
    ///
    /// # Errors
    /// If one was not; the report tells which.
    pub fn check(&self) -> anyhow::Result<()> {
        match self.comparison.runs.iter().find(|run| !run.verified) {
            None => Ok(()),
            Some(run) => {
                let message = format!("the copy made by {} is not equal to its source", run.tool);
                Err(Told { code: Code::Different, message }.into())
            }
        }
    }
}

/// The kernel's, if this machine can have it.
fn tracker(ground: &Ground, notes: &mut Vec<String>) -> anyhow::Result<Tracker> {
    const PROBE: &str = "bench-probe";
    let device = LoopDevice::over(&ground.image)?;
    match EbpfTracker::open(PROBE, StreamId::random(), &[device.path().to_owned()]) {
        Ok(opened) => {
            drop(opened);
            EbpfTracker::forget(PROBE)?;
            Ok(Tracker::Ebpf)
        }
        Err(error) => {
            notes.push(format!("writes are found by comparing, since the kernel cannot tell: {error}"));
            Ok(Tracker::Scan)
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let About { bytes, files, file_bytes, .. } = &self.disk;
        let (disk, content) = (Size(*bytes), Size(*file_bytes));
        writeln!(
            f,
            "{}: a disk of {disk} with {files} files, {content}; {} rounds",
            self.scenario, self.rounds
        )?;
        self.comparison.fmt(f)?;
        for (name, value) in &self.figures {
            writeln!(f, "  {}: {value:.3}", name.replace('_', " "))?;
        }
        self.notes.iter().try_for_each(|note| writeln!(f, "  note: {note}"))
    }
}

#[cfg(test)]
mod tests {
    use homeward::lab;

    use super::*;

    /// All of a comparison, with a disk so small that the figures mean nothing.
    #[test]
    fn every_tool_makes_an_equal_copy() {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: loop devices and network namespaces need root");
            return;
        }
        lab::isolate().unwrap();
        let (dir, stop) = (tempfile::tempdir().unwrap(), Shutdown::manual());
        let plan =
            Plan { scenario: Scenario::FullUnlimited, bytes: 64 << 20, rounds: 1, minutes: 1, peers: true };
        let report = run(dir.path(), &plan, &stop).unwrap();
        report.check().unwrap();
        let Comparison { runs, .. } = &report.comparison;
        let tools: Vec<&str> = runs.iter().map(|run| run.tool.as_str()).collect();
        assert_eq!(tools, [report::OURS, "nbdcopy", "qemu-img", "zstd -1 pipe", "zstd -3 pipe"]);
        for run in runs {
            let sensible = run.seconds > 0.0 && run.cpu_seconds > 0.0 && run.peak_rss_bytes > 1 << 20;
            assert!(sensible && run.wire_bytes > 4 << 20, "{run:?}");
        }
        // What is not compressed is at least as long as the files.
        assert!(runs[1].wire_bytes > report.disk.file_bytes * 9 / 10, "{:?}", runs[1]);
    }
}
