//! The `scan` tracker: no tracking at all; changes are found by reading the whole disk and comparing digests.
//!
//! It needs no root and works on files, too. A digest says what was last read for sending, so what differs from it
//! must be sent, however often it changed in between. Writes in flight are not seen: [`Tracker::written_since_flip`]
//! is false only while there is evidence that nobody wrote anywhere on the disk, so points are made while the
//! disk is quiet by other means.
//!
//! Digests outlive the agent in a file per disk ([`saved`]), within one boot of the machine. The file never claims
//! more than the target holds, whenever the agent ends: before blocks are given out as dirty, their digests are
//! taken out of it. So it must not stand on a scanned disk itself.

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
    io::{Access, Backend, Device, Op, Storage, open_device},
    limits,
    units::{Block, DiskIndex, StreamId},
};

pub use self::saved::forget;
use self::{
    evidence::{Evidence, Witness},
    leaves::{Division, LeafHasher},
    saved::DigestFile,
};
use super::{Continuity, DiskMaps, LostReason, Tracker, TrackerError, boot_id};

/// Finds changes by comparing digests.
pub struct ScanTracker {
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
    file: DigestFile,
    witness: Witness,
    /// Of the last flip; `None` if the disk was being written.
    evidence: Option<Evidence>,
    untaken: bool,
}

impl ScanTracker {
    /// Tracks `disks`, files or block devices, with the digests kept in the folder `state` as far as they are theirs;
    /// says for each disk whether they are. Other disks are marked dirty as a whole.
    ///
    /// # Errors
    /// If a disk cannot be opened.
    pub fn open(
        stream: StreamId,
        disks: &[PathBuf],
        state: &Arc<dyn Storage>,
    ) -> Result<(Self, Vec<Continuity>), TrackerError> {
        let purpose = (stream, boot_id()?);
        let mut continuity = Vec::new();
        let mut tracker = Self { disks: Vec::new() };
        for (index, path) in disks.iter().enumerate() {
            let (disk, verdict) = Disk::open(path, purpose, state.clone())?;
            tracker.disks.push(disk);
            continuity.push(match verdict {
                Ok(()) => Continuity::Proven,
                Err(reason) => Continuity::Lost { disk: DiskIndex(index as u16), reason },
            });
        }
        Ok((tracker, continuity))
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

    fn note_durable(&mut self) -> Result<(), TrackerError> {
        self.disks.iter_mut().try_for_each(Disk::save)
    }

    fn distrust(&mut self) -> Result<(), TrackerError> {
        self.disks.iter_mut().try_for_each(|disk| {
            disk.digests.fill(0);
            disk.save()
        })
    }

    fn maps(&self, disk: DiskIndex) -> &DiskMaps {
        &self.disks[usize::from(disk.0)].maps
    }
}

impl Disk {
    fn open(
        path: &Path,
        purpose: (StreamId, u128),
        state: Arc<dyn Storage>,
    ) -> Result<(Self, Result<(), LostReason>), TrackerError> {
        let device = open_device(path, Access::ReadOnly, Backend::Auto)
            .map_err(|error| TrackerError::io("open", path)(error.into()))?;
        let division = Division::of_disk(device.size());
        let maps = DiskMaps::in_memory(division.granularity());
        let file = DigestFile::new(state, path, purpose, device.size());
        let (digests, verdict) = match file.load(division.leaves()) {
            Ok(digests) => (digests, Ok(())),
            Err(reason) => (vec![0; division.leaves()], Err(reason)),
        };
        let disk = Self {
            path: path.to_owned(),
            device,
            division,
            maps,
            digests,
            sending: LeafHasher::new(division),
            file,
            witness: Witness::of(path)?,
            evidence: None,
            untaken: false,
        };
        disk.mark_unknown();
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
                self.digests[leaf] = 0;
                found = found.take().and_then(|mut set| {
                    set.insert(start, end);
                    (set.blocks() <= limit).then_some(set)
                });
            });
        });
        outcome.map_err(TrackerError::io("read", &self.path))?;
        // In this order: nothing may be sent that the file says is known. If it fails, the next scan finds it again.
        self.save()?;
        self.mark_unknown();
        Ok(found)
    }

    fn mark_unknown(&self) {
        let unknown = self.digests.iter().enumerate().filter(|(_, digest)| **digest == 0);
        for (start, end) in unknown.map(|(leaf, _)| self.division.blocks_of(leaf)) {
            self.maps.dirty.set(start, end);
        }
    }

    /// Saves the digests of what is durable at the target: of all that is neither dirty nor just sent.
    fn save(&mut self) -> Result<(), TrackerError> {
        let DiskMaps { dirty, sent: [one, other] } = &self.maps;
        let durable = self.digests.iter().enumerate().map(|(leaf, digest)| {
            let (start, end) = self.division.blocks_of(leaf);
            if [dirty, one, other].iter().any(|map| map.any(start, end)) { 0 } else { *digest }
        });
        self.file.save(durable).map_err(TrackerError::io("save the digests of", &self.path))
    }
}
