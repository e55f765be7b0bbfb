//! What a restore would do and how long it would take, without doing it.

use std::time::{Duration, Instant};

use engine::frame::DiskInfo;
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
    /// The same of each disk, in the stream's order.
    pub disks: Vec<DiskEstimate>,
    /// Layers of the journal that lead there.
    pub layers: usize,
    /// Runs that they are in.
    pub runs: u64,
    /// Bytes that are free for the journal, which needs up to `bytes` to be able to undo it.
    pub free: u64,
    /// Seconds that it would take, by the speed of a sample.
    pub seconds: f64,
}

/// What a restore would do with one disk.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DiskEstimate {
    /// The VM's name for it.
    pub disk: String,
    /// Its size in bytes.
    pub size: u64,
    /// Bytes that it looks at and writes where they differ.
    pub bytes: u64,
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
        let of_disk = |disk: &DiskInfo| DiskEstimate { disk: disk.name.clone(), size: disk.bytes, bytes: 0 };
        let mut disks: Vec<DiskEstimate> = self.state().stream.disks.iter().map(of_disk).collect();
        let (mut sampled, mut journal, mut disk) = (0, Duration::ZERO, Duration::ZERO);
        for piece in view.pieces() {
            let piece = piece?;
            disks[usize::from(piece.disk().0)].bytes += piece.extent.bytes();
            if sampled >= SAMPLE_BYTES {
                continue;
            }
            let began = Instant::now();
            view.read(&piece)?;
            journal += began.elapsed();
            let began = Instant::now();
            read_extents(&self.targets[usize::from(piece.disk().0)], std::iter::once(piece.extent))?;
            disk += began.elapsed();
            sampled += piece.extent.bytes();
        }
        let write = self.logs.time_to_write(sampled.min(SAMPLE_BYTES))?;
        // What a disk and a journal on one device take, one after the other; it may be less.
        let sample = journal + disk + 2 * write;
        let seconds = sample.as_secs_f64() * view.bytes() as f64 / (sampled as f64).max(1.0);
        let free = self.logs.free_space()?;
        let layers = self.state().layers.range(point.layer + 1..).count();
        let (bytes, runs) = (view.bytes(), view.runs());
        Ok(Estimate { point: point.clone(), bytes, disks, layers, runs, free, seconds })
    }
}
