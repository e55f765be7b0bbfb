//! The figures of `barrier`, as a table and as JSON.

use std::fmt;

use engine::{
    point::{Method, Point},
    units::BLOCK_BYTES,
};
use serde::Serialize;

use super::{probe::Probed, vm::Asked};
use crate::figures::Spread;

/// All loads.
#[derive(Debug, Serialize)]
pub struct Report {
    loads: Vec<LoadReport>,
}

/// What one load showed. Times in the unit that the name says; `took` is from request to confirmation.
#[derive(Debug, Serialize)]
pub struct LoadReport {
    name: &'static str,
    what: &'static str,
    direct_io: bool,
    writes_per_s: f64,
    points: usize,
    without_freeze: usize,
    with_freeze: usize,
    failed: usize,
    failures: Vec<String>,
    tries_median: f64,
    tries_p99: f64,
    tries_max: f64,
    window_ms_median: f64,
    window_ms_p99: f64,
    residual_blocks_median: f64,
    residual_blocks_p99: f64,
    freezes: usize,
    frozen_ms_median: f64,
    frozen_ms_max: f64,
    flip_us_median: f64,
    flip_us_p99: f64,
    took_ms_median: f64,
    took_ms_p99: f64,
    last_point_verified: bool,
}

impl LoadReport {
    /// Of points whose last one was verified.
    pub fn new(
        name: &'static str,
        what: &'static str,
        direct_io: bool,
        writes_per_s: f64,
        asked: &[Asked],
        probed: &Probed,
    ) -> Self {
        let made: Vec<&Point> = asked.iter().filter_map(|asked| asked.made.as_ref().ok()).collect();
        let spread = |value: fn(&Point) -> f64| Spread::of(made.iter().map(|point| value(point)));
        let count = |method| made.iter().filter(|point| point.method == method).count();
        let tries = spread(|point| f64::from(point.barrier_tries));
        let window = spread(|point| point.window_us as f64 / 1e3);
        let residual = spread(|point| (point.residual_bytes / BLOCK_BYTES) as f64);
        let frozen = Spread::of(probed.freezes.iter().map(|time| time.as_secs_f64() * 1e3));
        let flip = Spread::of(probed.flips.iter().map(|time| time.as_secs_f64() * 1e6));
        let took = Spread::of(asked.iter().map(|asked| asked.took.as_secs_f64() * 1e3));
        let failures = asked.iter().filter_map(|asked| Some(asked.made.as_ref().err()?.to_string()));
        Self {
            name,
            what,
            direct_io,
            writes_per_s,
            points: asked.len(),
            without_freeze: count(Method::Barrier),
            with_freeze: count(Method::Frozen),
            failed: asked.len() - made.len(),
            failures: failures.collect(),
            tries_median: tries.median,
            tries_p99: tries.p99,
            tries_max: tries.max,
            window_ms_median: window.median,
            window_ms_p99: window.p99,
            residual_blocks_median: residual.median,
            residual_blocks_p99: residual.p99,
            freezes: probed.freezes.len(),
            frozen_ms_median: frozen.median,
            frozen_ms_max: frozen.max,
            flip_us_median: flip.median,
            flip_us_p99: flip.p99,
            took_ms_median: took.median,
            took_ms_p99: took.p99,
            last_point_verified: true,
        }
    }
}

impl Report {
    /// Of all loads.
    pub fn new(loads: Vec<LoadReport>) -> Self {
        Self { loads }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "| load (fio, 4 KiB) | writes/s | points without freeze | tries (median, p99, max) | window ms (median, p99) \
             | residual blocks (median, p99) | freezes (longest, ms) | flip µs (median, p99) | request to durable ms \
             (median, p99) |\n|---|---|---|---|---|---|---|---|---|"
        )?;
        for load in &self.loads {
            writeln!(
                f,
                "| {} | {:.0} | {} of {} | {}, {}, {} | {:.2}, {:.2} | {}, {} | {} ({:.1}) | {:.1}, {:.1} | {:.0}, {:.0} |",
                load.what,
                load.writes_per_s,
                load.without_freeze,
                load.points,
                load.tries_median,
                load.tries_p99,
                load.tries_max,
                load.window_ms_median,
                load.window_ms_p99,
                load.residual_blocks_median,
                load.residual_blocks_p99,
                load.freezes,
                load.frozen_ms_max,
                load.flip_us_median,
                load.flip_us_p99,
                load.took_ms_median,
                load.took_ms_p99,
            )?;
        }
        for load in &self.loads {
            for failure in &load.failures {
                writeln!(f, "{}: no point: {failure}", load.name)?;
            }
        }
        writeln!(
            f,
            "Under each load the last point, of a still disk, was compared with it: no block differed."
        )
    }
}
