//! What a drill reads: a disk that does not change.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use engine::units::DiskIndex;
use rustix::{
    fs::{SeekFrom, seek},
    io::Errno,
};

use crate::{image::PointImage, replica::ReplicaError};

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

/// A raw image in a file, which nobody writes: what tests and measurements serve.
#[derive(Debug)]
pub struct FileImage {
    file: File,
    path: PathBuf,
    bytes: u64,
}

impl FileImage {
    /// Opens it.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let bytes = file.metadata()?.len();
        Ok(Self { file, path: path.to_owned(), bytes })
    }

    fn error(&self, action: &'static str, offset: u64, source: io::Error) -> ReplicaError {
        ReplicaError::Disk { action, disk: self.path.display().to_string(), offset, source }
    }

    /// The next data or hole at or after `offset`; the end if there is none.
    fn next(&self, offset: u64, hole: bool) -> Result<u64, ReplicaError> {
        let from = if hole { SeekFrom::Hole(offset) } else { SeekFrom::Data(offset) };
        match seek(&self.file, from) {
            Ok(at) => Ok(at),
            Err(Errno::NXIO) => Ok(self.bytes),
            Err(error) => Err(self.error("seek", offset, error.into())),
        }
    }
}

impl Image for FileImage {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReplicaError> {
        self.file.read_exact_at(buf, offset).map_err(|e| self.error("read", offset, e))
    }

    fn holes(&self, offset: u64, len: u64) -> Result<Vec<(u64, bool)>, ReplicaError> {
        let (mut at, end) = (offset, offset + len);
        let mut parts = Vec::new();
        while at < end {
            let data = self.next(at, false)?.min(end);
            if data > at {
                parts.push((data - at, true));
            }
            let hole = if data < end { self.next(data, true)?.min(end) } else { end };
            if hole > data {
                parts.push((hole - data, false));
            }
            at = hole;
        }
        Ok(parts)
    }
}
