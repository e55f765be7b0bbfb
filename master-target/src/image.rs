//! The disks of a point, readable while replication goes on: what a drill serves, a proof reads and an export writes out.
//!
//! For every block the oldest before-image since the point counts; a block without one has not changed, and is on
//! the disk. An image is synced in the journal before its block is overwritten, so whoever reads the disk first and
//! then looks for images that were saved meanwhile cannot miss the change. It changes nothing.

mod disk;

use std::sync::Arc;

pub use disk::{Image, PointDisk};
use engine::{
    extent::Extent,
    extent_set::ExtentSet,
    frame::DiskInfo,
    io::{Device, read_exact_at},
    units::{BLOCK_BYTES, Block, DiskIndex},
};

use crate::{
    journal::{JournalError, Overlay, SealedPoint, View},
    replica::{Replica, ReplicaError},
};

/// The disks of one VM at one point. Shared between threads; stays what it is whatever replication, retention or a
/// restore do meanwhile.
pub struct PointImage {
    disks: Vec<DiskInfo>,
    devices: Vec<Arc<dyn Device>>,
    view: View,
    /// What was saved since.
    overlay: Arc<Overlay>,
}

impl Replica {
    /// The disks at `point`.
    pub fn open_image(&mut self, point: &SealedPoint) -> Result<PointImage, ReplicaError> {
        let view = View::at(&self.logs, self.state(), point.layer)?;
        let disks = self.state().stream.disks.clone();
        let devices = self.targets.iter().map(|target| Arc::clone(&target.device)).collect();
        let overlay = self.watchers.watch(&self.logs);
        Ok(PointImage { disks, devices, view, overlay })
    }
}

impl PointImage {
    /// The disks, in the stream's order.
    #[must_use]
    pub fn disks(&self) -> &[DiskInfo] {
        &self.disks
    }

    /// Size of a disk in bytes; 0 for one that the VM does not have.
    #[must_use]
    pub fn bytes(&self, disk: DiskIndex) -> u64 {
        self.disks.get(usize::from(disk.0)).map_or(0, |disk| disk.bytes)
    }

    /// Fills `buf` with what the disk held from byte `offset` on. Any offset and length within the disk.
    pub fn read_at(&self, disk: DiskIndex, offset: u64, buf: &mut [u8]) -> Result<(), ReplicaError> {
        let Some(range) = self.blocks(disk, offset, buf.len() as u64)? else { return Ok(()) };
        let old = self.view.find(disk, range.start, range.end())?;
        let mut covered: ExtentSet = old.iter().map(|found| found.extent).collect();
        for gap in covered.gaps(range.start, range.end()) {
            self.read_disk(disk, gap, offset, buf)?;
        }
        let since = self.overlay.find(disk, range.start, range.end())?;
        for found in old {
            place(&self.view.read(&found)?, found.extent.offset(), offset, buf);
        }
        for found in since {
            let gaps = covered.gaps(found.extent.start, found.extent.end());
            if gaps.is_empty() {
                continue;
            }
            let bytes = self.view.read(&found)?;
            for gap in gaps {
                let from = (gap.offset() - found.extent.offset()) as usize;
                place(&bytes[from..][..gap.bytes() as usize], gap.offset(), offset, buf);
            }
            covered.insert_extent(found.extent);
        }
        Ok(())
    }

    /// Cuts `len` bytes from `offset` on into runs, in order: length, and whether they are known to be zeros.
    pub fn holes(&self, disk: DiskIndex, offset: u64, len: u64) -> Result<Vec<(u64, bool)>, ReplicaError> {
        let mut zeros = ExtentSet::new();
        if let Some(range) = self.blocks(disk, offset, len)? {
            // The disk first, then what was saved of it: as for reading.
            let on_disk = self.disk_holes(disk, range)?;
            let old = self.view.find(disk, range.start, range.end())?;
            let mut covered: ExtentSet = old.iter().map(|found| found.extent).collect();
            zeros = old.iter().filter(|found| found.image.zeros).map(|found| found.extent).collect();
            for found in self.overlay.find(disk, range.start, range.end())? {
                let gaps = covered.gaps(found.extent.start, found.extent.end());
                gaps.into_iter().filter(|_| found.image.zeros).for_each(|gap| zeros.insert_extent(gap));
                covered.insert_extent(found.extent);
            }
            for hole in on_disk.extents() {
                let gaps = covered.gaps(hole.start, hole.end());
                gaps.into_iter().for_each(|gap| zeros.insert_extent(gap));
            }
        }
        let (mut runs, mut at, end) = (Vec::new(), offset, offset + len);
        for hole in zeros.extents() {
            let (from, to) = (hole.offset().max(offset), hole.end().offset().min(end));
            runs.extend([(from - at, false), (to - from, true)]);
            at = to;
        }
        runs.push((end - at, false));
        runs.retain(|(len, _)| *len > 0);
        Ok(runs)
    }

    /// The blocks that hold a range of bytes; `None` if it is empty.
    fn blocks(&self, disk: DiskIndex, offset: u64, len: u64) -> Result<Option<Extent>, ReplicaError> {
        let size = self.bytes(disk);
        let end = offset.checked_add(len).filter(|end| *end <= size).ok_or_else(|| {
            JournalError::Refused(format!("{len} bytes at {offset} of {disk} lie beyond its end at {size}"))
        })?;
        let (start, blocks) = (offset / BLOCK_BYTES, end.div_ceil(BLOCK_BYTES) - offset / BLOCK_BYTES);
        Ok((len > 0).then_some(Extent::new(start, blocks as u32)))
    }

    /// The whole blocks of `range` that are holes on the disk.
    fn disk_holes(&self, disk: DiskIndex, range: Extent) -> Result<ExtentSet, ReplicaError> {
        let (device, size) = (&self.devices[usize::from(disk.0)], self.bytes(disk));
        let (mut at, len) = (range.offset(), range.bytes_within(size));
        let parts = device.holes(at, len).map_err(|source| {
            let disk = device.name().to_owned();
            ReplicaError::Disk { action: "look for holes in", disk, offset: at, source }
        })?;
        let mut holes = ExtentSet::new();
        for (len, hole) in parts {
            let end = at + len;
            if hole {
                let last = if end == size { end.div_ceil(BLOCK_BYTES) } else { end / BLOCK_BYTES };
                holes.insert(Block(at.div_ceil(BLOCK_BYTES)), Block(last));
            }
            at = end;
        }
        Ok(holes)
    }

    fn read_disk(
        &self,
        disk: DiskIndex,
        extent: Extent,
        offset: u64,
        buf: &mut [u8],
    ) -> Result<(), ReplicaError> {
        let device = &self.devices[usize::from(disk.0)];
        let (from, len) = (extent.offset(), extent.bytes_within(self.bytes(disk)));
        let bytes = read_exact_at(device.as_ref(), from, len as usize).map_err(|source| {
            let disk = device.name().to_owned();
            ReplicaError::Disk { action: "read", disk, offset: from, source }
        })?;
        place(&bytes, from, offset, buf);
        Ok(())
    }
}

/// Copies what of `bytes`, which begin at byte `from` of the disk, belongs into `buf`, which begins at `offset`.
fn place(bytes: &[u8], from: u64, offset: u64, buf: &mut [u8]) {
    let start = from.max(offset);
    let end = (from + bytes.len() as u64).min(offset + buf.len() as u64);
    if start < end {
        buf[(start - offset) as usize..(end - offset) as usize]
            .copy_from_slice(&bytes[(start - from) as usize..(end - from) as usize]);
    }
}
