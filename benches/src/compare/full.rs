//! The first copy of a whole disk: ours, and what an operator could use instead.

use std::{fs::File, time::Duration};

use engine::service::quantity::Size;
use homeward::lab::LoopDevice;

use super::{
    Figures, GIGABIT, Place, install,
    link::Link,
    ours::{Ours, Setup},
    peers::{Job, Peer},
    relay::Delay,
    report::{OURS, Run, median_seconds},
};

/// Those that copy whole disks.
const PEERS: [Peer; 4] = [Peer::Nbdcopy, Peer::QemuImg, Peer::Zstd(1), Peer::Zstd(3)];

/// Everything in turns.
pub(super) fn copies(place: &Place) -> anyhow::Result<Vec<Run>> {
    let peers = if place.peers { &PEERS[..] } else { &[] };
    let programs: Vec<&str> = peers.iter().flat_map(|peer| peer.programs()).copied().collect();
    install::ensure(&programs)?;
    let device = LoopDevice::over(&place.ground.image)?;
    let mut runs = Vec::new();
    for round in 1..=place.rounds {
        runs.push(place.told(ours(place, &device, None, OURS, round)?));
        for tool in peers {
            runs.push(place.told(peer(place, *tool, &device, round)?));
        }
    }
    Ok(runs)
}

/// Ours alone, without a round-trip time and with it.
pub(super) fn latency(
    place: &Place,
    round_trip: Duration,
    notes: &mut Vec<String>,
) -> anyhow::Result<(Vec<Run>, Figures)> {
    let device = LoopDevice::over(&place.ground.image)?;
    let bytes_on_the_way = place.rate.unwrap_or(GIGABIT) as f64 / 8.0 * round_trip.as_secs_f64();
    let buffer = 2 * bytes_on_the_way as usize;
    let late = format!("{OURS}, {} ms", round_trip.as_millis());
    let mut runs = Vec::new();
    for round in 1..=place.rounds {
        for (one_way, name) in [(Duration::ZERO, OURS), (round_trip / 2, late.as_str())] {
            let delay = Some(Delay { one_way, buffer });
            runs.push(place.told(ours(place, &device, delay, name, round)?));
        }
    }
    let buffer = Size(buffer as u64);
    notes.push(format!("both pass a relay, which delays in the one; it holds {buffer} each way at most"));
    let ratio = median_seconds(OURS, &runs) / median_seconds(&late, &runs);
    Ok((runs, Figures::from([("throughput_to_without_latency", ratio)])))
}

fn ours(
    place: &Place,
    device: &LoopDevice,
    delay: Option<Delay>,
    name: &str,
    round: u32,
) -> anyhow::Result<Run> {
    let (dir, link) = (place.work.run()?, Link::new(place.rate, place.stop)?);
    let setup = Setup { link: &link, delay, disk: device.path(), dir: dir.path() };
    Ours::start(place, setup, |_| {})?.run(name, round, &place.ground.image)
}

fn peer(place: &Place, peer: Peer, device: &LoopDevice, round: u32) -> anyhow::Result<Run> {
    let (dir, link) = (place.work.run()?, Link::new(place.rate, place.stop)?);
    let target = dir.path().join("target.img");
    File::create_new(&target)?.set_len(place.ground.about.bytes)?;
    let job = Job { link: &link, source: device.path(), target: &target, dir: dir.path(), stop: place.stop };
    peer.run(&job, round, &place.ground.image)
}
