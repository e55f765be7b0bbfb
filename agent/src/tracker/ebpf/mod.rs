//! The `ebpf` tracker: the kernel marks each write as it is issued, and knows which are in flight.
//!
//! `../bpf/tracker.bpf.c` explains how a mark finds its generation. Maps and programs are pinned, so tracking
//! goes on while the agent is not running; whether it did without a gap is proven when they are opened again.
//! Writes that reach a disk past its request queue (pass-through commands) are not seen.

mod continuity;
mod control;
mod flight;
pub mod layout;
mod misses;
mod pins;
mod programs;
mod set;

#[cfg(test)]
mod tests;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::atomic::{Ordering::*, fence},
    thread,
    time::{Duration, Instant},
};

use engine::{
    dirty_map::DirtyMap,
    extent_set::ExtentSet,
    units::{Block, DiskIndex, StreamId},
};

use self::{
    control::Purpose,
    layout::{DISKS, Event},
    misses::Misses,
    pins::Pins,
    set::Set,
};
use super::{
    Continuity, DiskMaps, LostReason, Tracker, TrackerError, Words, block_device::BlockDevice, boot_id,
};

/// How long a flip waits for programs that are in the midst of a mark. They take microseconds, unless the
/// hypervisor takes the CPU away from one.
const STILL_WITHIN: Duration = Duration::from_secs(1);

/// How long a flip waits for writes of the generation before.
const DRAINED_WITHIN: Duration = Duration::from_secs(2);

/// Time after a flip in which writes in flight are waited for without asking the disks whether they have any.
const ASK_AFTER: Duration = Duration::from_millis(5);

/// Marks of writes to whole disks, set by the kernel.
#[derive(Debug)]
pub struct EbpfTracker {
    set: Set,
    misses: Misses,
    flipped: Instant,
    disks: Vec<Disk>,
    active: usize,
    cpus: usize,
    _pins: Pins,
}

#[derive(Debug)]
struct Disk {
    device: BlockDevice,
    maps: DiskMaps,
    issued: [DirtyMap<Words>; 2],
    /// Marks of the generation that the last flip ended are still to be taken.
    untaken: bool,
}

impl EbpfTracker {
    /// Starts tracking `disks`, or continues what a process before this one started under the same `name`. Says for
    /// each disk whether every write since was marked; where not, the whole disk is now marked dirty.
    pub fn open(
        name: &str,
        stream: StreamId,
        disks: &[PathBuf],
    ) -> Result<(Self, Vec<Continuity>), TrackerError> {
        programs::check_machine()?;
        let cpus = programs::possible_cpus()?;
        let devices = disks.iter().map(|path| whole_disk(path)).collect::<Result<Vec<_>, _>>()?;
        let ids: BTreeSet<_> = devices.iter().map(|device| device.id).collect();
        if ids.len() < devices.len() {
            return Err(TrackerError::TooMuch { reason: "one of them is listed twice".into() });
        }
        if devices.len() > DISKS {
            let reason =
                format!("{} disks are more than the {DISKS} that one tracker follows", devices.len());
            return Err(TrackerError::TooMuch { reason });
        }
        let pins = Pins::open(name)?;
        let purpose = Purpose { boot: boot_id()?, stream: stream.0.as_u128() };
        let old = continuity::find(&pins.sets(), purpose)?;
        let verdicts = continuity::judge(&old, &devices);
        let set = continue_or_build(&pins, old, purpose, &devices, &verdicts)?;
        remove_others(&pins, &set.dir)?;

        let verdict = |(disk, verdict): (usize, &Result<usize, LostReason>)| match *verdict {
            Ok(_) => Continuity::Proven,
            Err(reason) => Continuity::Lost { disk: DiskIndex(disk as u16), reason },
        };
        let continuity = verdicts.iter().enumerate().map(verdict).collect();
        let disk = |(index, device)| Disk {
            device,
            maps: set.maps(index),
            issued: [0, 1].map(|generation| set.plane(index, Event::Issued, generation)),
            untaken: true,
        };
        let disks: Vec<Disk> = devices.into_iter().enumerate().map(disk).collect();
        let misses = programs::attached(&set.dir)?.ok_or_else(|| TrackerError::Unsupported {
            reason: "somebody removes its pins below /sys/fs/bpf".into(),
        })?;
        let (active, flipped) = (set.control.active(), Instant::now());
        let mut tracker = Self { active, flipped, set, misses, disks, cpus, _pins: pins };
        // The process before may have died between a flip and taking what it ended.
        for disk in 0..tracker.disks.len() {
            tracker.take(DiskIndex(disk as u16), 0)?;
        }
        Ok((tracker, continuity))
    }

    /// Stops the tracking that was started under `name` and forgets its marks.
    pub fn forget(name: &str) -> Result<(), TrackerError> {
        Pins::open(name)?.remove()
    }

    /// The generation that the last flip ended.
    fn ended(&self) -> usize {
        1 - self.active
    }

    /// Whether no write of before the last flip is in flight. A completion that was not seen may leave one in the table
    /// for long, so after a while the disks are asked: if none of them has a write in flight, those are complete.
    fn none_in_flight(&self) -> Result<bool, TrackerError> {
        let flight = self.set.flight();
        if flight.is_empty(self.ended()) {
            return Ok(true);
        }
        if self.flipped.elapsed() < ASK_AFTER || !self.are_quiet()? {
            return Ok(false);
        }
        flight.free(self.ended());
        Ok(true)
    }

    /// Whether each disk was seen without a write in flight.
    fn are_quiet(&self) -> Result<bool, TrackerError> {
        for disk in &self.disks {
            if !disk.device.is_quiet()? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// From the next take on everything is dirty.
    fn take_all_for_written(&self) {
        (0..self.disks.len()).for_each(|disk| self.set.control.overflow(disk, self.active).store(1, SeqCst));
    }

    fn wait_still(&self, generation: usize) -> Result<(), TrackerError> {
        match wait_until(STILL_WITHIN, || self.set.control.is_still(generation, self.cpus)) {
            true => Ok(()),
            false => Err(TrackerError::NotStill { after_ms: STILL_WITHIN.as_millis() }),
        }
    }

    fn disk(&self, disk: DiskIndex) -> &Disk {
        &self.disks[usize::from(disk.0)]
    }
}

impl Tracker for EbpfTracker {
    fn flip(&mut self) -> Result<(), TrackerError> {
        if let Some(disk) = self.disks.iter().position(|disk| disk.untaken) {
            return Err(TrackerError::NotTaken(DiskIndex(disk as u16)));
        }
        let (ending, next) = (self.active, self.ended());
        // There must be no writes in flight of what becomes active again, or two epochs would mix in it.
        if !wait_until(DRAINED_WITHIN, || self.set.flight().is_empty(next)) && !self.none_in_flight()? {
            let (writes, after_ms) = (self.set.flight().count(next), DRAINED_WITHIN.as_millis());
            return Err(TrackerError::StillInFlight { writes, after_ms });
        }
        self.set.control.flip();
        (self.active, self.flipped) = (next, Instant::now());
        self.disks.iter_mut().for_each(|disk| disk.untaken = true);
        self.wait_still(ending)
    }

    /// While writes may be in flight that the programs could not count (those from before they were attached, and
    /// more than there is room for), the answer is no until the disks were seen without a write in flight.
    fn drained(&self) -> Result<bool, TrackerError> {
        let control = &self.set.control;
        let unknown = control.unknown().load(Acquire);
        if unknown > 0 {
            if !self.are_quiet()? {
                return Ok(false);
            }
            // They were marked as they completed, if all completions were seen.
            if self.misses.completions()? > 0 {
                self.take_all_for_written();
            }
            control.unknown().fetch_sub(unknown, AcqRel);
        }
        self.none_in_flight()
    }

    /// Writes that the programs could not count do not keep from reading: they are marked as they complete.
    fn may_read(&self) -> Result<bool, TrackerError> {
        self.none_in_flight()
    }

    fn saw_all(&self) -> Result<bool, TrackerError> {
        let (missed, known) = (self.misses.issues()?, self.set.control.missed());
        if missed != known.load(Acquire) {
            tracing::error!(missed, "the kernel let writes pass unmarked: all disks are taken for written");
            self.take_all_for_written();
            known.store(missed, Release);
        }
        let overflow = |disk| self.set.control.overflow(disk, self.active).load(Acquire) != 0;
        Ok(!(0..self.disks.len()).any(overflow))
    }

    fn seems_quiet(&self) -> bool {
        self.set.flight().is_empty(self.active)
    }

    fn take(&mut self, disk: DiskIndex, limit: u64) -> Result<Option<ExtentSet>, TrackerError> {
        if !self.disk(disk).untaken {
            return Ok(Some(ExtentSet::new()));
        }
        let ended = self.ended();
        self.wait_still(ended)?;
        let index = usize::from(disk.0);
        let found = self.set.harvest(index, ended, &self.disks[index].maps.dirty, limit);
        self.disks[index].untaken = false;
        Ok(found)
    }

    fn written_since_flip(&self, disk: DiskIndex, first: Block, blocks: u32) -> bool {
        // What the caller read before must not be newer than the marks looked at here.
        fence(SeqCst);
        let end = Block(first.0 + u64::from(blocks));
        self.set.control.overflow(usize::from(disk.0), self.active).load(Acquire) != 0
            || self.disk(disk).issued[self.active].any(first, end)
    }

    fn maps(&self, disk: DiskIndex) -> &DiskMaps {
        &self.disk(disk).maps
    }
}

/// Takes over `old` as it is if it fits, else builds a set beside it and brings the marks of its disks over.
fn continue_or_build(
    pins: &Pins,
    old: Result<Set, LostReason>,
    purpose: Purpose,
    devices: &[BlockDevice],
    verdicts: &[Result<usize, LostReason>],
) -> Result<Set, TrackerError> {
    let [first, second] = pins.sets();
    let Ok(old) = old else {
        pins::remove_set(&first)?;
        pins::remove_set(&second)?;
        let set = Set::build(&first, 1, purpose, devices, |_| true)?;
        set.control.complete();
        return Ok(set);
    };
    let same_disks = verdicts.iter().enumerate().all(|(index, verdict)| *verdict == Ok(index))
        && old.control.disks().is_some_and(|disks| disks.len() == devices.len());
    if same_disks && old.control.object() == programs::object_digest() {
        return Ok(old);
    }
    let dir = if old.dir == first { &second } else { &first };
    pins::remove_set(dir)?;
    let serial = old.control.serial() + 1;
    let set = Set::build(dir, serial, purpose, devices, |index| verdicts[index].is_err())?;
    // No write is missed: one that completes from now on is marked by the new programs at its completion. One that
    // completed earlier was issued earlier still, and the old programs had marked it before the disk was given it.
    for (index, verdict) in verdicts.iter().enumerate() {
        if let Ok(before) = *verdict {
            merge(&old, before, &set, index);
        }
    }
    set.control.complete();
    Ok(set)
}

/// Marks as dirty, or as sent, in the new set what is so in the old one.
fn merge(old: &Set, before: usize, new: &Set, index: usize) {
    let (from, to) = (old.maps(before), new.maps(index));
    to.dirty.merge(&from.dirty);
    for generation in [0, 1] {
        to.sent[generation].merge(&from.sent[generation]);
        to.dirty.merge(&old.plane(before, Event::Issued, generation));
        to.dirty.merge(&old.plane(before, Event::Completed, generation));
        if old.control.overflow(before, generation).load(Acquire) != 0 {
            to.dirty.set_all();
        }
    }
}

fn remove_others(pins: &Pins, keep: &Path) -> Result<(), TrackerError> {
    pins.sets().iter().filter(|dir| *dir != keep).try_for_each(|dir| pins::remove_set(dir))
}

fn whole_disk(path: &Path) -> Result<BlockDevice, TrackerError> {
    let wrong = |reason| Err(TrackerError::WrongDevice { path: path.to_owned(), reason });
    let Some(device) = BlockDevice::find(path)? else {
        return wrong("it is no block device: use the scan tracker");
    };
    if device.is_partition() {
        return wrong("it is a partition: name the whole disk");
    }
    if !device.makes_requests() {
        return wrong("it is a stacked device (device mapper, RAID, multipath): name the disks below it");
    }
    if device.bytes == 0 {
        return wrong("its size is 0: attach a medium first");
    }
    Ok(device)
}

/// Waits for `done`, first spinning, since it mostly takes microseconds; false if it does not come in time.
fn wait_until(limit: Duration, done: impl Fn() -> bool) -> bool {
    for _ in 0..1000 {
        if done() {
            return true;
        }
        std::hint::spin_loop();
    }
    let start = Instant::now();
    while !done() {
        if start.elapsed() > limit {
            return done();
        }
        thread::yield_now();
    }
    true
}
