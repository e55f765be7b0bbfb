//! Restore of the oldest point against the disk's sequential write rate, on one file system, in turns; and a restore
//! that is killed at random moments.
//!
//! The restored bytes of a second count: a restore also reads the before-images and what it overwrites, and writes that
//! to the journal, so that it can be undone. Nothing of disk and journal is in the kernel's memory when it begins.

mod command;
mod images;

use std::{fmt, time::Duration};

use engine::service::{quantity::Size, shutdown::Shutdown};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde::Serialize;

use self::{
    command::{Program, Way},
    images::Images,
};
use crate::{disk::Scratch, figures::Spread, fio};

/// What is written to learn the disk's rate.
const SEQUENTIAL: u64 = 4 << 30;

/// The figures.
#[derive(Debug, Serialize)]
pub struct Report {
    image_bytes: u64,
    journal_bytes: u64,
    rounds: u32,
    /// Restored bytes per second to the disk's sequential write rate just before and after: the median.
    ratio: f64,
    /// The same of undoing it.
    undo_ratio: f64,
    /// The same of fio, doing sequentially what such a restore does: the most that there can be on one disk.
    limit_ratio: f64,
    ratios: Spread,
    restored_bytes_per_second: Spread,
    undone_bytes_per_second: Spread,
    sequential_bytes_per_second: Spread,
    limit_bytes_per_second: Spread,
    /// Times that restore or undo was killed.
    kills: u32,
    /// Restores and undos that came to their end all the same, each exact.
    survived: u32,
}

/// `rounds` restores and undos measured, then `kills` kills.
pub fn run(
    scratch: &Scratch,
    bytes: u64,
    rounds: u32,
    kills: u32,
    stop: &Shutdown,
) -> anyhow::Result<Report> {
    let program = Program::find()?;
    let images = Images::make(&scratch.dir, bytes, stop)?;
    let rate = || fio::sequential_writes(images.dir(), SEQUENTIAL.min(images.bytes), stop);
    let (mut sequential, mut ratios, mut undo_ratios) = (vec![rate()?], Vec::new(), Vec::new());
    let (mut restored, mut undone) = (Vec::new(), Vec::new());
    let (mut limits, mut limit_ratios) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        for (way, rates, ratios) in
            [(Way::Back, &mut restored, &mut ratios), (Way::Forward, &mut undone, &mut undo_ratios)]
        {
            images.forget_cached()?;
            let (seconds, _) = program.run(&images, way, stop)?;
            check_exact(&images, way, stop)?;
            let before = sequential[sequential.len() - 1];
            let after = rate()?;
            sequential.push(after);
            rates.push(images.bytes as f64 / seconds);
            ratios.push(images.bytes as f64 / seconds / ((before + after) / 2.0));
        }
        let limit = fio::like_a_restore(images.dir(), SEQUENTIAL.min(images.bytes) / 4, stop)?;
        limits.push(limit);
        limit_ratios.push(limit / sequential[sequential.len() - 1]);
    }
    let survived = if kills > 0 { kill(&program, &images, kills, stop)? } else { 0 };
    let ratios = Spread::of(ratios);
    Ok(Report {
        image_bytes: images.bytes,
        journal_bytes: images.journal_bytes,
        rounds,
        ratio: ratios.median,
        undo_ratio: Spread::of(undo_ratios).median,
        limit_ratio: Spread::of(limit_ratios).median,
        ratios,
        restored_bytes_per_second: Spread::of(restored),
        undone_bytes_per_second: Spread::of(undone),
        sequential_bytes_per_second: Spread::of(sequential),
        limit_bytes_per_second: Spread::of(limits),
        kills,
        survived,
    })
}

/// Restores and undoes, killed after random times up to what the first took, until that was `kills` times; the last way
/// is gone to its end. How often an end was reached.
fn kill(program: &Program, images: &Images, kills: u32, stop: &Shutdown) -> anyhow::Result<u32> {
    let (longest, _) = program.run(images, Way::Back, stop)?;
    check_exact(images, Way::Back, stop)?;
    let mut rng = StdRng::seed_from_u64(3);
    let (mut way, mut survived, mut killed) = (Way::Forward, 1, 0);
    while killed < kills {
        let after = Duration::from_secs_f64(rng.random_range(0.0..longest));
        if program.kill(images, way, after, stop)? {
            killed += 1;
            if killed < kills {
                continue;
            }
            program.run(images, way, stop)?;
        }
        check_exact(images, way, stop)?;
        survived += 1;
        way = if way == Way::Back { Way::Forward } else { Way::Back };
    }
    Ok(survived)
}

fn check_exact(images: &Images, way: Way, stop: &Shutdown) -> anyhow::Result<()> {
    match images.first_difference(way == Way::Back, stop)? {
        None => Ok(()),
        Some(at) => anyhow::bail!("{way:?}: the disk is wrong at byte {at}"),
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |spread: &Spread| spread.median / 1048576.0;
        let (bytes, journal) = (Size(self.image_bytes), Size(self.journal_bytes));
        writeln!(f, "Restore of the oldest point, {bytes} of before-images in a journal of {journal}:")?;
        if self.rounds > 0 {
            writeln!(
                f,
                "  {:.2} of the disk's sequential write rate ({:.2} to {:.2}, {} rounds): {:.0} of {:.0} MiB/s",
                self.ratio,
                self.ratios.min,
                self.ratios.max,
                self.rounds,
                mib(&self.restored_bytes_per_second),
                mib(&self.sequential_bytes_per_second),
            )?;
            let undone = mib(&self.undone_bytes_per_second);
            writeln!(f, "  undone at {:.2} of it: {undone:.0} MiB/s", self.undo_ratio)?;
            let limit = mib(&self.limit_bytes_per_second);
            writeln!(
                f,
                "  fio reading and writing as much: {:.2} of it, {limit:.0} MiB/s",
                self.limit_ratio
            )?;
        }
        if self.kills > 0 {
            writeln!(f, "  killed {} times, {} ends reached, each exact", self.kills, self.survived)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// CI's share; `homeward-bench restore --kills 50` does it with more and faster.
    #[test]
    fn a_restore_that_is_killed_at_random_moments_finishes_right() {
        let (dir, stop) = (tempfile::tempdir().unwrap(), Shutdown::manual());
        let program = Program::find().unwrap();
        let images = Images::make(dir.path(), 48 << 20, &stop).unwrap();
        assert!(kill(&program, &images, 8, &stop).unwrap() > 1);
    }
}
