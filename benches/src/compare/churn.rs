//! A busy disk for a while: how far the newest point that can be restored is behind, and what the workload notices.

use std::time::{Duration, Instant};

use engine::service::quantity::Period;
use homeward::lab::{LoopDevice, Service, image};
use jiff::Timestamp;

use super::{
    Figures, Place,
    link::Link,
    ours::{Ours, Setup, VM},
    report::{OURS, Run},
};
use crate::fio::{self, CHURN};

/// Time from one point to the next.
const POINTS_EVERY: Duration = Duration::from_secs(5);

/// Longest that the workload runs without protection.
const UNPROTECTED: Duration = Duration::from_secs(120);

/// The workload alone, then beside replication for `minutes`.
pub(super) fn run(
    place: &Place,
    minutes: u32,
    notes: &mut Vec<String>,
) -> anyhow::Result<(Vec<Run>, Figures)> {
    let time = Duration::from_secs(60 * u64::from(minutes));
    let (dir, link) = (place.work.run()?, Link::new(place.rate, place.stop)?);
    let file = dir.path().join("disk.img");
    image::copy(&place.ground.image, &file, place.stop)?;
    let device = LoopDevice::over(&file)?;
    let load = |time| fio::run_for(device.path(), place.ground.about.bytes, time, &CHURN, place.stop);
    eprintln!("the workload alone");
    let alone = load(time.min(UNPROTECTED))?;

    let setup = Setup { link: &link, delay: None, disk: device.path(), dir: dir.path() };
    let ours = Ours::start(place, setup, |vm| vm.point_interval = Period(POINTS_EVERY))?;
    eprintln!("the first copy");
    ours.start_agent(None)?;
    let had = ours.lab.points(VM)?.len();
    eprintln!("the workload, protected");
    let (taken, began) = (ours.measure()?, Instant::now());
    let protected = load(time)?;
    let (seconds, ended) = (began.elapsed().as_secs_f64(), Timestamp::now());
    let points = ours.lab.points(VM)?;
    let (wire_bytes, usage) = taken.end(&ours)?;
    anyhow::ensure!((1..=points.len()).contains(&had), "points have been dropped: choose fewer minutes");
    ours.lab.services().try_for_each(Service::check_alive)?;

    // Just before a point is durable the one before it is the newest; at the end it is the last.
    let newer = points[had..].iter().map(|point| point.sealed_at).chain([ended]);
    let lags: Vec<f64> = points[had - 1..]
        .iter()
        .zip(newer)
        .map(|(newest, until)| until.duration_since(newest.point.taken_at).as_secs_f64())
        .collect();
    ours.lab.point_now(VM)?;
    let verified = ours.is_equal(&file)?;
    let run = place.told(Run::new(OURS, 1, seconds, wire_bytes, usage, verified));
    notes.push(
        "lag: the age of the newest point that could be restored, just before the next could, and at the end"
            .into(),
    );
    let figures = Figures::from([
        ("lag_seconds_max", lags.iter().copied().fold(0.0, f64::max)),
        ("lag_seconds_mean", lags.iter().sum::<f64>() / lags.len().max(1) as f64),
        ("points", (points.len() - had) as f64),
        ("workload_bytes_per_second", protected.bytes_per_second),
        ("workload_bytes_per_second_unprotected", alone.bytes_per_second),
        ("workload_to_unprotected", protected.bytes_per_second / alone.bytes_per_second),
        ("workload_latency_us", protected.latency_us),
        ("workload_latency_us_unprotected", alone.latency_us),
    ]);
    Ok((vec![run], figures))
}
