//! What a restore would do and how long it would take, without doing it.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::{
    journal::{SealedPoint, View},
    replica::{Replica, ReplicaError, read_extents},
};

/// Bytes that are read and written to learn how fast disks are.
const SAMPLE_BYTES: u64 = 32 << 20;

/// What a restore would do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// The point it goes to.
    pub point: SealedPoint,
    /// Bytes of the disks that it looks at and writes where they differ.
    pub bytes: u64,
    /// Runs that they are in.
    pub runs: u64,
    /// Bytes that are free for the journal, which needs up to `bytes` to be able to undo it.
    pub free: u64,
    /// Seconds that it would take, by the speed of a sample.
    pub seconds: f64,
}

impl Estimate {
    /// Whether the journal has room for the way forward.
    #[must_use]
    pub fn fits(&self) -> bool {
        self.bytes <= self.free
    }
}

impl Replica {
    /// What restoring `point` would do. Changes nothing.
    pub fn estimate(&self, point: &SealedPoint) -> Result<Estimate, ReplicaError> {
        let view = View::at(&self.logs, self.state(), point.layer)?;
        let (mut sampled, mut journal, mut disk) = (0, Duration::ZERO, Duration::ZERO);
        for piece in view.pieces() {
            let piece = piece?;
            let began = Instant::now();
            view.read(&piece)?;
            journal += began.elapsed();
            let began = Instant::now();
            read_extents(&self.targets[usize::from(piece.disk().0)], std::iter::once(piece.extent))?;
            disk += began.elapsed();
            sampled += piece.extent.bytes();
            if sampled >= SAMPLE_BYTES {
                break;
            }
        }
        let write = self.logs.time_to_write(sampled.min(SAMPLE_BYTES))?;
        // Read to check and once more, then saved while the disk is read and written.
        let sample = 2 * journal + disk + 2 * write;
        let seconds = sample.as_secs_f64() * view.bytes() as f64 / (sampled as f64).max(1.0);
        let free = self.logs.free_space()?;
        Ok(Estimate { point: point.clone(), bytes: view.bytes(), runs: view.runs(), free, seconds })
    }
}
