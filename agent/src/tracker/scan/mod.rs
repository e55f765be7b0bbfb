//! The `scan` tracker: no tracking at all; changes are found by reading the whole disk and comparing digests.
//!
//! It needs no root and works on files, too. A digest says what was last read for sending, so what differs from it
//! must be sent, however often it changed in between. Writes in flight are not seen: [`Tracker::written_since_flip`]
//! is false only while there is evidence that nobody wrote anywhere on the disk, so points are made while the
//! disk is quiet by other means.

mod evidence;
mod leaves;
mod saved;

#[cfg(test)]
mod tests;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use engine::{
    extent_set::ExtentSet,
    io::{Access, Backend, Device, Op, open_device},
    limits,
    units::{Block, DiskIndex, StreamId},
};
use serde_json::Value;

pub use self::saved::Place;
use self::{
    evidence::{Evidence, Witness},
    leaves::{Division, LeafHasher},
    saved::{DiskDigests, Saved},
};
use super::{Continuity, DiskMaps, LostReason, Tracker, TrackerError};

/// Finds changes by comparing digests.
pub struct ScanTracker {
    stream: StreamId,
    disks: Vec<Disk>,
}

struct Disk {
    path: PathBuf,
    device: Arc<dyn Device>,
    division: Division,
    maps: DiskMaps,
    /// By leaf, of what was last read for sending; 0 if that is not known.
    digests: Vec<u128>,
    sending: LeafHasher,
    witness: Witness,
    /// Of the last flip; `None` if the disk was being written.
    evidence: Option<Evidence>,
    untaken: bool,
}

/// A tracker just opened.
pub struct Opened {
    /// The tracker.
    pub tracker: ScanTracker,
    /// By disk: whether its digests were saved.
    pub continuity: Vec<Continuity>,
    /// The position that [`ScanTracker::save`] was given. If the target has taken in anything after it, the caller
    /// must [`ScanTracker::distrust`] the digests.
    pub position: Option<Value>,
}

impl ScanTracker {
    /// Tracks `disks`, files or block devices, with the digests from the file `saved` as far as they are theirs.
    /// Other disks are marked dirty as a whole.
    pub fn open(stream: StreamId, disks: &[PathBuf], saved: Option<Place>) -> Result<Opened, TrackerError> {
        let mut saved = saved.map_or(Err(LostReason::New), |place| saved::load(place, stream));
        let mut continuity = Vec::new();
        let mut tracker = Self { stream, disks: Vec::new() };
        for (index, path) in disks.iter().enumerate() {
            let (disk, verdict) = Disk::open(path, &mut saved)?;
            tracker.disks.push(disk);
            continuity.push(match verdict {
                Ok(()) => Continuity::Proven,
                Err(reason) => Continuity::Lost { disk: DiskIndex(index as u16), reason },
            });
        }
        Ok(Opened { tracker, continuity, position: saved.ok().map(|saved| saved.position) })
    }

    /// Saves the digests of what is durable at the target, which is all that is neither dirty nor just sent.
    /// `position` is whatever the caller needs to know later whether the target is still as it is now.
    pub fn save(&self, place: Place, position: &Value) -> Result<(), TrackerError> {
        let disks: Vec<_> = self.disks.iter().map(Disk::durable).collect();
        saved::save(place, self.stream, position, &disks)
            .map_err(TrackerError::io("save digests to", place.1))
    }

    /// Forgets all digests and marks every disk dirty as a whole.
    pub fn distrust(&mut self) {
        for disk in &mut self.disks {
            disk.digests.fill(0);
            disk.maps.dirty.set_all();
        }
    }
}

impl Tracker for ScanTracker {
    fn flip(&mut self) -> Result<(), TrackerError> {
        if let Some(disk) = self.disks.iter().position(|disk| disk.untaken) {
            return Err(TrackerError::NotTaken(DiskIndex(disk as u16)));
        }
        for disk in &mut self.disks {
            disk.evidence = disk.witness.begin(&disk.path)?;
        }
        self.disks.iter_mut().for_each(|disk| disk.untaken = true);
        Ok(())
    }

    fn drained(&self) -> Result<bool, TrackerError> {
        for disk in &self.disks {
            if !disk.witness.is_quiet()? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Reads the whole disk.
    fn take(&mut self, disk: DiskIndex, limit: u64) -> Result<Option<ExtentSet>, TrackerError> {
        let disk = &mut self.disks[usize::from(disk.0)];
        if !disk.untaken {
            return Ok(Some(ExtentSet::new()));
        }
        let found = disk.scan(limit)?;
        disk.untaken = false;
        Ok(found)
    }

    fn written_since_flip(&self, disk: DiskIndex, _first: Block, _blocks: u32) -> bool {
        let disk = &self.disks[usize::from(disk.0)];
        !disk.evidence.as_ref().is_some_and(|before| disk.witness.still(before))
    }

    fn note_read(&mut self, disk: DiskIndex, first: Block, bytes: &[u8]) {
        let disk = &mut self.disks[usize::from(disk.0)];
        let digests = &mut disk.digests;
        disk.sending.add(first.offset(), bytes, |leaf, digest| digests[leaf] = digest);
    }

    fn maps(&self, disk: DiskIndex) -> &DiskMaps {
        &self.disks[usize::from(disk.0)].maps
    }
}

impl Disk {
    fn open(
        path: &Path,
        saved: &mut Result<Saved, LostReason>,
    ) -> Result<(Self, Result<(), LostReason>), TrackerError> {
        let device = open_device(path, Access::ReadOnly, Backend::Auto)
            .map_err(|error| TrackerError::io("open", path)(error.into()))?;
        let division = Division::of_disk(device.size());
        let maps = DiskMaps::in_memory(division.granularity());
        let digests = match saved {
            Ok(saved) => saved.take(path, device.size(), division.leaves()),
            Err(reason) => Err(*reason),
        };
        let (digests, verdict) = match digests {
            Ok(digests) => (digests, Ok(())),
            Err(reason) => {
                maps.dirty.set_all();
                (vec![0; division.leaves()], Err(reason))
            }
        };
        let disk = Self {
            path: path.to_owned(),
            device,
            division,
            maps,
            digests,
            sending: LeafHasher::new(division),
            witness: Witness::of(path)?,
            evidence: None,
            untaken: false,
        };
        Ok((disk, verdict))
    }

    /// Reads everything and marks the leaves whose digest is not that of what was last read for sending.
    fn scan(&mut self, limit: u64) -> Result<Option<ExtentSet>, TrackerError> {
        let size = self.device.size();
        let read = |offset| Op::read(offset, (limits::IO_BYTES as u64).min(size - offset) as usize, offset);
        let mut reads = (0..size).step_by(limits::IO_BYTES).map(read);
        let mut hasher = LeafHasher::new(self.division);
        let mut found = Some(ExtentSet::new());
        let mut outcome = Ok(());
        self.device.run(&mut reads, &mut |op, result| {
            if let Err(error) = result {
                outcome = Err(error);
                return;
            }
            hasher.add(op.offset, &op.buf, |leaf, digest| {
                if digest == 0 || digest == self.digests[leaf] {
                    return;
                }
                let (start, end) = self.division.blocks_of(leaf);
                self.maps.dirty.set(start, end);
                self.digests[leaf] = 0;
                found = found.take().and_then(|mut set| {
                    set.insert(start, end);
                    (set.blocks() <= limit).then_some(set)
                });
            });
        });
        outcome.map_err(TrackerError::io("read", &self.path))?;
        Ok(found)
    }

    fn durable(&self) -> DiskDigests<'_> {
        let pending = |leaf| {
            let (start, end) = self.division.blocks_of(leaf);
            let DiskMaps { dirty, sent: [one, other] } = &self.maps;
            [dirty, one, other].iter().any(|map| map.any(start, end))
        };
        let digests = self.digests.iter().enumerate();
        let digests = digests.map(|(leaf, digest)| if pending(leaf) { 0 } else { *digest }).collect();
        DiskDigests { path: &self.path, bytes: self.device.size(), digests }
    }
}
