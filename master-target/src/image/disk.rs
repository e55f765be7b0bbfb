//! One disk of a point, or another disk that does not change: what a drill or an export reads.

use std::sync::Arc;

use engine::units::DiskIndex;

use super::PointImage;
use crate::replica::ReplicaError;

/// A disk that does not change: a disk of a point.
pub trait Image: Send + Sync {
    /// Size in bytes.
    fn bytes(&self) -> u64;

    /// Fills `buf` with what is at `offset`; any offset and length within the disk.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReplicaError>;

    /// Cuts a range into what is known to be zeros and what may be data: lengths and whether it is zeros, in order.
    fn holes(&self, offset: u64, len: u64) -> Result<Vec<(u64, bool)>, ReplicaError>;
}

/// One disk of a point.
pub struct PointDisk {
    /// All disks of the point.
    pub image: Arc<PointImage>,
    /// Which of them.
    pub disk: DiskIndex,
}

impl Image for PointDisk {
    fn bytes(&self) -> u64 {
        self.image.bytes(self.disk)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReplicaError> {
        self.image.read_at(self.disk, offset, buf)
    }

    fn holes(&self, offset: u64, len: u64) -> Result<Vec<(u64, bool)>, ReplicaError> {
        self.image.holes(self.disk, offset, len)
    }
}
