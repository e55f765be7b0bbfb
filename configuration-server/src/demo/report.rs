//! What the demo found, for programs and for people.

use std::{fmt, time::Instant};

use engine::{
    point::{Consistency, Method, Point, PointId},
    service::quantity::{Rate, Size},
};
use jiff::Timestamp;
use serde::Serialize;

use crate::lab::{SealedPoint, Tracker};

/// The account of a demo. Bytes, and seconds or milliseconds as fractions.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Whether every check held.
    pub ok: bool,
    /// How writes were found.
    pub tracker: Tracker,
    /// Why it was not the eBPF tracker, if it was not.
    pub why_scan: Option<String>,
    /// Size of the disk.
    pub disk_bytes: u64,
    /// Real files on it, and their bytes.
    pub files: usize,
    /// Bytes of them.
    pub file_bytes: u64,
    /// Disk bytes that were replicated.
    pub logical_bytes: u64,
    /// What of that went over the wire.
    pub wire_bytes: u64,
    /// All of the demo.
    pub seconds: f64,
    /// The full copy of the disk.
    pub full_copy: FullCopy,
    /// Services killed and started again, in this order.
    pub killed: Vec<String>,
    /// Every recovery point there was, oldest first.
    pub points: Vec<PointReport>,
    /// Checks made, those of the points included.
    pub checks: usize,
    /// What did not hold, apart from the points.
    pub problems: Vec<String>,
    /// Checks that were left out, and why.
    pub skipped: Vec<String>,
}

/// The full copy, while the disk was written.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct FullCopy {
    /// Disk bytes sent.
    pub logical_bytes: u64,
    /// What of that went over the wire.
    pub wire_bytes: u64,
    /// Until everything had been sent once.
    pub seconds: f64,
}

/// A recovery point, restored and verified.
#[derive(Clone, Debug, Serialize)]
pub struct PointReport {
    /// Its identity.
    pub id: PointId,
    /// What a restored disk is like.
    pub kind: Consistency,
    /// How the instant was held.
    pub method: Method,
    /// The instant it holds.
    pub taken_at: Timestamp,
    /// When it could be restored.
    pub sealed_at: Timestamp,
    /// How long file systems were frozen for it.
    pub frozen_ms: f64,
    /// Attempts at the barrier.
    pub barrier_tries: u32,
    /// From the instant until what was left had been read.
    pub window_ms: f64,
    /// Bytes of what was left.
    pub residual_bytes: u64,
    /// Whether the demo's writers paused, so that there is a copy to compare with.
    pub paused: bool,
    /// Records of the demo's writer in it.
    pub records: usize,
    /// How long it took to restore it.
    pub restore_seconds: f64,
    /// Whether every check held.
    pub verified: bool,
    /// What did not.
    pub problems: Vec<String>,
}

impl PointReport {
    pub(super) fn new(sealed: &SealedPoint, paused: bool) -> Self {
        let Point { id, taken_at, consistency, method, barrier_tries, residual_bytes, .. } = sealed.point;
        Self {
            id,
            kind: consistency,
            method,
            taken_at,
            sealed_at: sealed.sealed_at,
            frozen_ms: sealed.point.frozen_us as f64 / 1000.0,
            barrier_tries,
            window_ms: sealed.point.window_us as f64 / 1000.0,
            residual_bytes,
            paused,
            records: 0,
            restore_seconds: 0.0,
            verified: false,
            problems: Vec::new(),
        }
    }

    /// A line of the table.
    pub(super) fn describe(&self, number: usize) -> String {
        let writers = if self.paused { "paused" } else { "running" };
        let verdict = if self.verified { "exact" } else { "WRONG" };
        let frozen =
            if self.frozen_ms > 0.0 { format!(", frozen {:.1} ms", self.frozen_ms) } else { String::new() };
        let tries =
            if self.barrier_tries == 1 { "1 try".into() } else { format!("{} tries", self.barrier_tries) };
        format!(
            "point {number}, writers {writers}: {tries}, window {:.1} ms, residual {}{frozen}; restored in {:.1} s, \
             {} records: {verdict}",
            self.window_ms,
            Size(self.residual_bytes),
            self.restore_seconds,
            self.records
        )
    }
}

/// The last lines: what it was, and whether it held.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ratio = self.logical_bytes as f64 / self.wire_bytes.max(1) as f64;
        let (logical, wire) = (Size(self.logical_bytes), Size(self.wire_bytes));
        writeln!(f, "\nIn all {logical} replicated, {wire} on the wire ({ratio:.1} to 1).")?;
        self.skipped.iter().try_for_each(|skipped| writeln!(f, "Left out: {skipped}."))?;
        self.problems.iter().try_for_each(|problem| writeln!(f, "Wrong: {problem}."))?;
        let (points, seconds) = (self.points.len(), self.seconds);
        if self.ok {
            let checks = self.checks;
            return writeln!(
                f,
                "Everything held: {points} points restored exactly, {checks} checks, {seconds:.1} s."
            );
        }
        let wrong = self.points.iter().filter(|point| !point.verified).count();
        let others = self.problems.len();
        writeln!(f, "IT DID NOT HOLD: {wrong} of {points} points are wrong, {others} other checks failed.")
    }
}

/// How bytes and time relate, for people: "640.0 MiB in 6.0 s (106.7 MiB/s), 320.0 MiB on the wire (2.0 to 1)".
pub(super) fn describe_traffic(copy: &FullCopy) -> String {
    let FullCopy { logical_bytes, wire_bytes, seconds } = *copy;
    let rate = Rate((logical_bytes as f64 / seconds.max(1e-3)) as u64);
    let ratio = logical_bytes as f64 / wire_bytes.max(1) as f64;
    format!(
        "{} in {seconds:.1} s ({rate}), {} on the wire ({ratio:.1} to 1)",
        Size(logical_bytes),
        Size(wire_bytes)
    )
}

/// Tells people what happens, with the time since the start; nothing with `--json`.
pub struct Teller {
    began: Instant,
    quiet: bool,
}

impl Teller {
    /// Begins now.
    #[must_use]
    pub fn new(quiet: bool) -> Self {
        Self { began: Instant::now(), quiet }
    }

    pub(super) fn say(&self, text: impl AsRef<str>) {
        if !self.quiet {
            println!("[{:6.1} s] {}", self.seconds(), text.as_ref());
        }
    }

    pub(super) fn seconds(&self) -> f64 {
        self.began.elapsed().as_secs_f64()
    }

    pub(super) fn is_quiet(&self) -> bool {
        self.quiet
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traffic_reads_well_and_nothing_divides_by_zero() {
        let copy = FullCopy { logical_bytes: 640 << 20, wire_bytes: 320 << 20, seconds: 4.0 };
        assert_eq!(
            describe_traffic(&copy),
            "640.0 MiB in 4.0 s (160.0 MiB/s), 320.0 MiB on the wire (2.0 to 1)"
        );
        assert!(describe_traffic(&FullCopy::default()).contains("(0.0 to 1)"));
    }
}
