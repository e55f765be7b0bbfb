//! What capturing teaches about the disks: which blocks are hot, and how fast residuals are read.
//!
//! Kept between points; being wrong costs time, never a point.

use std::time::Duration;

use engine::{extent_set::ExtentSet, units::DiskIndex};

use super::heat::Heat;

/// Reads of less than this tell of latency, not of pace.
const TELLING: u64 = 64 << 10;

/// What was learned so far.
#[derive(Debug)]
pub struct Learned {
    heat: Heat,
    /// Bytes of scattered blocks read per second.
    pace: f64,
}

impl Default for Learned {
    fn default() -> Self {
        Self { heat: Heat::default(), pace: 100e6 }
    }
}

impl Learned {
    /// Notes blocks that were found marked.
    pub fn note_marked(&mut self, disk: DiskIndex, marked: &ExtentSet) {
        self.heat.note(disk, marked);
    }

    /// Notes how long reading a residual took.
    pub fn note_read(&mut self, bytes: u64, took: Duration) {
        if bytes >= TELLING && !took.is_zero() {
            self.pace = (self.pace + bytes as f64 / took.as_secs_f64()) / 2.0;
        }
    }

    /// Which blocks are hot.
    #[must_use]
    pub fn heat(&self) -> &Heat {
        &self.heat
    }

    /// Bytes of a residual that can probably be read within `time`.
    #[must_use]
    pub fn bytes_within(&self, time: Duration) -> u64 {
        (self.pace * time.as_secs_f64()) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pace_follows_what_was_seen() {
        let mut learned = Learned::default();
        (0..10).for_each(|_| learned.note_read(1 << 20, Duration::from_millis(100)));
        let expected = 10.0 * f64::from(1 << 20);
        assert!((learned.bytes_within(Duration::from_secs(1)) as f64 / expected - 1.0).abs() < 0.05);
        learned.note_read(4096, Duration::from_secs(1));
        assert!(learned.bytes_within(Duration::from_secs(1)) as f64 > 0.9 * expected);
    }
}
