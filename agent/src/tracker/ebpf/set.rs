//! One set of pinned maps and programs: built, found again, and its marks read.

use std::{
    fs,
    ops::Range,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering::*},
};

use engine::{dirty_map::DirtyMap, extent_set::ExtentSet, units::Block};

use super::{
    super::{DiskMaps, LostReason, TrackerError, Words, block_device::BlockDevice},
    control::{Control, DiskRecord, Purpose},
    flight::Flight,
    layout::{DiskLayout, Event},
    pins,
    programs::{self, Loaded, Memory},
};

/// A set, mapped into this process.
#[derive(Debug)]
pub(super) struct Set {
    pub(super) dir: PathBuf,
    pub(super) control: Control,
    memory: Memory,
    disks: Vec<DiskLayout>,
}

impl Set {
    /// Builds a set in `dir` and attaches it. It is not complete yet: the caller brings over what older maps know
    /// and then says so. Disks start clean, except those that are `fresh`, which start wholly dirty: should this
    /// process die before anybody acted on it, nothing is forgotten.
    pub(super) fn build(
        dir: &Path,
        serial: u64,
        purpose: Purpose,
        devices: &[BlockDevice],
        fresh: impl Fn(usize) -> bool,
    ) -> Result<Self, TrackerError> {
        let (disks, words) = DiskLayout::of_disks(devices.iter().map(|device| device.bytes));
        let mut loaded = Loaded::new(words)?;
        let memory = loaded.memory.clone();
        let set = Self { dir: dir.to_owned(), control: Control::new(memory.control.clone()), memory, disks };
        let records: Vec<_> = devices.iter().map(record_of).collect();
        set.control.describe(serial, purpose, programs::object_digest(), &records);
        // Writes may be in flight that were issued before the programs were there to count them.
        set.control.unknown().store(1, SeqCst);
        for (index, device) in devices.iter().enumerate() {
            if fresh(index) {
                set.maps(index).dirty.set_all();
            }
            let dev = device.id.kernel_dev_t();
            loaded.add_disk(dev, set.disks[index].describe(dev, index))?;
        }
        fs::create_dir(dir).map_err(TrackerError::io("create", dir))?;
        if let Err(error) = loaded.attach(dir) {
            // The first error is the one to report.
            let _ = pins::remove_set(dir);
            return Err(error);
        }
        Ok(set)
    }

    /// Opens the set pinned in `dir`, whatever its state; `None` if there is none.
    pub(super) fn open(dir: &Path) -> Result<Option<Result<Self, LostReason>>, TrackerError> {
        if !dir.exists() {
            return Ok(None);
        }
        if ["control", "marks", "inflight"].iter().any(|map| !dir.join(map).exists()) {
            return Ok(Some(Err(LostReason::Damaged)));
        }
        let mut disks = Vec::new();
        let mut version = false;
        let memory = programs::open_pinned(dir, |control| {
            version = control.is_ours();
            let (layout, words) = DiskLayout::of_disks(control.disks()?.iter().map(|disk| disk.bytes));
            disks = layout;
            version.then_some(words)
        })?;
        Ok(Some(match memory {
            Some(memory) => {
                Ok(Self { dir: dir.to_owned(), control: Control::new(memory.control.clone()), memory, disks })
            }
            None if version => Err(LostReason::Damaged),
            None => Err(LostReason::OtherVersion),
        }))
    }

    /// The maps of user space for a disk.
    pub(super) fn maps(&self, disk: usize) -> DiskMaps {
        let layout = self.disks[disk];
        DiskMaps {
            dirty: self.map(disk, layout.dirty()),
            sent: [self.map(disk, layout.sent(0)), self.map(disk, layout.sent(1))],
        }
    }

    /// The marks of one kind as a map.
    pub(super) fn plane(&self, disk: usize, event: Event, generation: usize) -> DirtyMap<Words> {
        self.map(disk, self.disks[disk].plane(event, generation))
    }

    /// Moves a disk's marks of a still generation into `dirty`, and returns them if they are at most `limit`
    /// blocks. Each is set there before it is cleared here, so a crash at any point loses none.
    pub(super) fn harvest(
        &self,
        disk: usize,
        generation: usize,
        dirty: &DirtyMap<Words>,
        limit: u64,
    ) -> Option<ExtentSet> {
        let layout = self.disks[disk];
        let mut found = Some(ExtentSet::new());
        let mut mark = |start: Block, end: Block| {
            dirty.set(start, end);
            found = found.take().and_then(|mut set| {
                set.insert(start, end);
                (set.blocks() <= limit).then_some(set)
            });
        };
        let overflow = self.control.overflow(disk, generation);
        if overflow.load(Acquire) != 0 {
            mark(Block(0), Block(layout.granularity.blocks));
        }
        let words = (*self.memory.marks).as_ref();
        let both =
            |part: &dyn Fn(Event) -> Range<usize>| [Event::Issued, Event::Completed].map(|e| &words[part(e)]);
        let bits = both(&|event| layout.plane(event, generation));
        let summaries = both(&|event| layout.summary(event, generation));
        for group in 0..summaries[0].len() {
            for (first, count) in runs(either(summaries, group)) {
                for index in (group * 64 + first as usize..).take(count as usize) {
                    for (low, len) in runs(either(bits, index)) {
                        let granule = index as u64 * 64 + low;
                        let (start, end) = layout.granularity.blocks_of(granule, granule + len);
                        mark(start, end);
                    }
                    bits.iter().for_each(|plane| plane[index].store(0, Release));
                }
            }
            summaries.iter().for_each(|summary| summary[group].store(0, Release));
        }
        overflow.store(0, Release);
        found
    }

    /// Writes in flight.
    pub(super) fn flight(&self) -> &Flight {
        &self.memory.flight
    }

    fn map(&self, disk: usize, range: Range<usize>) -> DirtyMap<Words> {
        let words = Words::Shared { map: self.memory.marks.clone(), range };
        DirtyMap::over(words, self.disks[disk].granularity)
    }
}

pub(super) fn record_of(device: &BlockDevice) -> DiskRecord {
    DiskRecord {
        id: u64::from(device.id.major) << 32 | u64::from(device.id.minor),
        bytes: device.bytes,
        identity: device.identity,
    }
}

/// A word of which either plane has the bits.
fn either(planes: [&[AtomicU64]; 2], index: usize) -> u64 {
    planes[0][index].load(Acquire) | planes[1][index].load(Acquire)
}

/// Runs of ones in a word: position and length, lowest first.
fn runs(mut bits: u64) -> impl Iterator<Item = (u64, u64)> {
    std::iter::from_fn(move || {
        if bits == 0 {
            return None;
        }
        let low = bits.trailing_zeros();
        let len = (!(bits >> low)).trailing_zeros().min(64 - low);
        bits &= u64::MAX.checked_shl(low + len).unwrap_or(0);
        Some((u64::from(low), u64::from(len)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_the_ones_of_a_word() {
        let found = |bits| runs(bits).collect::<Vec<_>>();
        assert_eq!(found(0), []);
        assert_eq!(found(u64::MAX), [(0, 64)]);
        assert_eq!(found(0b1011 | 1 << 63), [(0, 2), (3, 1), (63, 1)]);
        assert_eq!(found(u64::MAX << 60), [(60, 4)]);
    }
}
