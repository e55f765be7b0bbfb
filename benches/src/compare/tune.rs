//! Which settings suit this machine and its link: the first copy of a disk with each, and which to choose.
//!
//! One setting after the other, not every combination: first the compression, then its threads with the best of the
//! first. Only what the agent's configuration has is tried.

use std::{fmt, path::Path, thread};

use agent::capture::level::{
    ADAPTIVE,
    Compression::{self, Adaptive, Level},
};
use engine::service::{
    quantity::{Rate, Size},
    shutdown::Shutdown,
};
use homeward::lab::LoopDevice;
use serde::Serialize;

use super::{
    Place,
    ground::Ground,
    link::Link,
    ours::{Ours, Setup, VM},
    report::Run,
    tracker,
    work::Work,
};
use crate::figures::Spread;

/// What `compression` is tried with; level 0 does not compress.
const COMPRESSIONS: [Compression; 6] = [Adaptive, Level(0), Level(1), Level(2), Level(3), Level(6)];

/// A copy that takes so much longer than the quickest is as good, if it takes less CPU time.
const AS_GOOD: f64 = 1.03;

/// What is tried, as it stands in `agent.toml`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
struct Settings {
    compression: Compression,
    threads: usize,
}

/// How they did: medians.
#[derive(Clone, Debug, Serialize)]
struct Tried {
    #[serde(flatten)]
    settings: Settings,
    seconds: f64,
    wire_bytes: u64,
    cpu_seconds: f64,
    verified: bool,
}

/// What was found.
#[derive(Debug, Serialize)]
pub struct Report {
    ok: bool,
    disk_bytes: u64,
    link_bits_per_second: Option<u64>,
    tried: Vec<Tried>,
    recommended: Settings,
}

/// Tries settings over a link with this rate, and each `rounds` times.
pub fn run(
    dir: &Path,
    bytes: u64,
    rate: Option<Rate>,
    rounds: u32,
    stop: &Shutdown,
) -> anyhow::Result<Report> {
    let work = Work::open(dir)?;
    let ground = Ground::get(&work, bytes.next_multiple_of(1 << 20), stop)?;
    let tracker = tracker(&ground, &mut Vec::new())?;
    let bits = rate.map(|Rate(bytes)| bytes * 8);
    let place = Place { work: &work, ground: &ground, tracker, rate: bits, rounds, peers: false, stop };
    let device = LoopDevice::over(&ground.image)?;

    let cpus = thread::available_parallelism().map_or(1, usize::from);
    let mut tried = Vec::new();
    for compression in COMPRESSIONS {
        // As many as the agent takes by itself.
        tried.push(medians(&place, &device, Settings { compression, threads: cpus.min(2) })?);
    }
    let compression = best(&tried).compression;
    for threads in (1..=cpus).filter(|threads| *threads != cpus.min(2)) {
        tried.push(medians(&place, &device, Settings { compression, threads })?);
    }
    let ok = tried.iter().all(|tried| tried.verified);
    Ok(Report {
        ok,
        disk_bytes: ground.about.bytes,
        link_bits_per_second: bits,
        recommended: best(&tried),
        tried,
    })
}

/// The least CPU time of those that are about as quick as the quickest.
fn best(tried: &[Tried]) -> Settings {
    let quickest = tried.iter().map(|tried| tried.seconds).fold(f64::INFINITY, f64::min);
    let good = tried.iter().filter(|tried| tried.seconds <= quickest * AS_GOOD);
    let best = good.min_by(|a, b| a.cpu_seconds.total_cmp(&b.cpu_seconds));
    // The quickest is as quick as itself.
    best.map_or(Settings { compression: Adaptive, threads: 1 }, |best| best.settings)
}

fn medians(place: &Place, device: &LoopDevice, settings: Settings) -> anyhow::Result<Tried> {
    let runs = (1..=place.rounds).map(|round| once(place, device, settings, round));
    let runs = runs.collect::<anyhow::Result<Vec<Run>>>()?;
    let median = |figure: fn(&Run) -> f64| Spread::of(runs.iter().map(figure)).median;
    Ok(Tried {
        settings,
        seconds: median(|run| run.seconds),
        wire_bytes: median(|run| run.wire_bytes as f64) as u64,
        cpu_seconds: median(|run| run.cpu_seconds),
        verified: runs.iter().all(|run| run.verified),
    })
}

fn once(place: &Place, device: &LoopDevice, settings: Settings, round: u32) -> anyhow::Result<Run> {
    let (dir, link) = (place.work.run()?, Link::new(place.rate, place.stop)?);
    let setup = Setup { link: &link, delay: None, disk: device.path(), dir: dir.path() };
    let ours = Ours::start(place, setup, |_| {})?;
    let Settings { compression, threads } = settings;
    ours.lab.agent(VM)?.configure(|table| {
        let compression = match compression {
            Adaptive => ADAPTIVE.into(),
            Level(level) => i64::from(level).into(),
        };
        table.insert("compression".into(), compression);
        table.insert("threads".into(), (threads as i64).into());
    })?;
    let name = format!("compression {compression}, {threads} threads");
    Ok(place.told(ours.run(&name, round, &place.ground.image)?))
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let link = self
            .link_bits_per_second
            .map_or("no limit".into(), |bits| format!("{} Mbit/s", bits / 1_000_000));
        writeln!(f, "the first copy of a disk of {} over a link with {link}:", Size(self.disk_bytes))?;
        writeln!(f, "  compression  threads   seconds     wire MB     CPU s")?;
        for Tried { settings, seconds, wire_bytes, cpu_seconds, .. } in &self.tried {
            let Settings { compression, threads } = settings;
            let compression = compression.to_string();
            let wire = *wire_bytes as f64 / 1e6;
            writeln!(
                f,
                "  {compression:>11}  {threads:>7}  {seconds:>8.2}  {wire:>10.1}  {cpu_seconds:>8.1}"
            )?;
        }
        let Settings { compression, threads } = self.recommended;
        writeln!(f, "recommended for agent.toml (least CPU time of the quickest):")?;
        writeln!(f, "  compression = {compression}\n  threads = {threads}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_those_that_are_as_quick_the_cheapest_is_best() {
        let tried = [(1, 10.0, 30.0), (3, 10.2, 20.0), (6, 14.0, 1.0)];
        let tried = tried.map(|(compression, seconds, cpu_seconds)| Tried {
            settings: Settings { compression: Level(compression), threads: 2 },
            seconds,
            wire_bytes: 1,
            cpu_seconds,
            verified: true,
        });
        assert_eq!(best(&tried).compression, Level(3));
    }
}
