//! Test support: a virtual machine whose writes are in flight for a while, with the tracker that watches them.
//!
//! A simulated write goes through every step that matters to a barrier, one at a time: it is marked as issued
//! (counting in and out under a generation, as the real marks do), takes effect in two halves, is marked as
//! completed, and only then does its writer know. Whenever the agent touches tracker, disk or clock, a random
//! number of such steps happens first, so that every interleaving can come up; the same seed gives the same.
//!
//! Writers write block versions ([`version_at`]) and keep to the order that matters to applications: a write may
//! depend on another, on any disk, that was acknowledged before it was issued. [`SimVm::at_last_flip`] knows what
//! the disks may look like at the last flip.
//!
//! It is part of the library and not behind `cfg(test)`, so that the tests of other crates can use it.

mod applications;
mod device;
mod image;
mod tracker;
mod writers;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use engine::{
    dirty_map::Granularity,
    io::Device,
    units::{BLOCK_BYTES, Block, DiskIndex},
};
use jiff::Timestamp;
use rand::{RngExt, SeedableRng, rngs::StdRng};

pub use self::{
    applications::SimApplications,
    device::SimDisk,
    image::{History, version_at},
    tracker::SimTracker,
};
use self::{tracker::Marks, writers::Writer};
use crate::{
    capture::{Clock, FreezeError, Freezer, Source},
    tracker::DiskMaps,
};

const BLOCK: usize = BLOCK_BYTES as usize;

/// What is simulated.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Blocks of each disk.
    pub disks: Vec<u64>,
    /// log2 of blocks per granule of the dirty maps.
    pub shift: u32,
    /// Writers, each with one write at a time.
    pub writers: usize,
    /// Steps of writers that happen at most whenever the agent does something; 0 keeps the VM still.
    pub activity: u32,
}

/// A simulated VM. Clones are the same one.
#[derive(Clone)]
pub struct SimVm {
    world: Arc<Mutex<World>>,
    maps: Arc<Vec<DiskMaps>>,
    epoch: Instant,
}

struct World {
    rng: StdRng,
    activity: u32,
    disks: Vec<Vec<u8>>,
    writers: Vec<Writer>,
    marks: Marks,
    history: History,
    frozen: bool,
    /// Writers hold, as applications do.
    held: bool,
    now: Duration,
}

impl SimVm {
    /// A VM with disks of zeros that were never tracked: everything is dirty.
    #[must_use]
    pub fn new(plan: &Plan, seed: u64) -> Self {
        let map = |&blocks| DiskMaps::in_memory(Granularity { blocks, shift: plan.shift });
        let maps: Vec<DiskMaps> = plan.disks.iter().map(map).collect();
        maps.iter().for_each(|maps| maps.dirty.set_all());
        let world = World {
            rng: StdRng::seed_from_u64(seed),
            activity: plan.activity,
            disks: plan.disks.iter().map(|blocks| vec![0; *blocks as usize * BLOCK]).collect(),
            writers: (0..plan.writers).map(|_| Writer::default()).collect(),
            marks: Marks::new(plan.disks.len()),
            history: History::new(&plan.disks),
            frozen: false,
            held: false,
            now: Duration::ZERO,
        };
        Self { world: Arc::new(Mutex::new(world)), maps: Arc::new(maps), epoch: Instant::now() }
    }

    /// What a capture needs, with a tracker that has gone on marking whoever asked before: a restarted agent
    /// calls this again.
    #[must_use]
    pub fn source(&self) -> Source {
        // What an agent before left frozen its watchdog has thawed.
        self.lock().frozen = false;
        let disk = |index| Arc::new(SimDisk::new(self.clone(), index)) as Arc<dyn Device>;
        Source {
            tracker: Box::new(SimTracker::open(self.clone())),
            disks: (0..self.maps.len() as u16).map(|index| disk(DiskIndex(index))).collect(),
            clock: Box::new(self.clone()),
        }
    }

    /// Those who hold the writers; an agent that is started again calls this again.
    #[must_use]
    pub fn applications(&self, seed: u64) -> SimApplications {
        SimApplications::new(self.clone(), seed)
    }

    /// Whether the agent has the writers frozen.
    #[must_use]
    pub fn is_frozen(&self) -> bool {
        self.lock().frozen
    }

    /// How busy the writers are from now on.
    pub fn set_activity(&self, activity: u32) {
        self.lock().activity = activity;
    }

    /// Bytes of a disk as they are now.
    #[must_use]
    pub fn bytes(&self, disk: DiskIndex) -> Vec<u8> {
        self.lock().disks[usize::from(disk.0)].clone()
    }

    /// What the disks may look like at the last flip.
    #[must_use]
    pub fn at_last_flip(&self) -> History {
        self.lock().history.clone()
    }

    /// Panics unless every block in which `target` differs from the disks is in a map, marked by the tracker, or
    /// being written: invariant 2, when nothing is in flight that `target` does not hold.
    pub fn check_accounted(&self, target: &[Vec<u8>]) {
        let world = self.lock();
        for (index, (disk, target)) in world.disks.iter().zip(target).enumerate() {
            let DiskMaps { dirty, sent } = &self.maps[index];
            for (block, (is, was)) in disk.chunks(BLOCK).zip(target.chunks(BLOCK)).enumerate() {
                let (start, end) = (Block(block as u64), Block(block as u64 + 1));
                let known = [dirty, &sent[0], &sent[1]].iter().any(|map| map.any(start, end))
                    || world.marks.is_marked(index, start.0)
                    || world.writers.iter().any(|writer| writer.is_writing(index, start.0));
                assert!(is == was || known, "disk {index} {start} differs and nobody knows");
            }
        }
    }

    /// Writes every block once, marking none: for disks that are dirty anyway.
    pub fn fill(&self) {
        self.quiesced(|| ());
        let World { disks, history, .. } = &mut *self.lock();
        for (index, disk) in disks.iter_mut().enumerate() {
            for (block, bytes) in (0..).zip(disk.chunks_mut(BLOCK)) {
                let version = history.begin(index, block, None);
                history.acknowledge(index, block, version);
                [false, true].into_iter().for_each(|half| image::stamp(bytes, half, version));
            }
        }
    }

    /// Lets the writers work, as they do whenever the agent does something.
    pub fn work(&self) {
        self.lock().work();
    }

    /// As a reboot, of the machine or of what tracks it: all writes in flight end, no mark is left, and everything is dirty.
    /// An agent that is to see this is started after it.
    pub fn reboot(&self) {
        self.quiesced(|| {
            self.lock().marks.forget();
            for DiskMaps { dirty, sent } in self.maps.iter() {
                sent.iter().for_each(|half| half.clear_all());
                dirty.set_all();
            }
        });
    }

    /// Lets every write in flight finish and no other begin while `f` runs.
    pub fn quiesced<T>(&self, f: impl FnOnce() -> T) -> T {
        self.lock().quiesce();
        let result = f();
        self.lock().frozen = false;
        result
    }

    /// Sets the time that has passed since the VM was made; never back.
    pub fn advance_to(&self, now: Duration) {
        let mut world = self.lock();
        world.now = world.now.max(now);
    }

    fn lock(&self) -> MutexGuard<'_, World> {
        // A poisoned lock means that a test has failed already.
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn maps(&self, disk: DiskIndex) -> &DiskMaps {
        &self.maps[usize::from(disk.0)]
    }
}

impl World {
    /// A random number of steps of random writers.
    fn work(&mut self) {
        let steps = self.rng.random_range(0..=self.activity);
        (0..steps).for_each(|_| self.step());
    }

    fn step(&mut self) {
        self.now += Duration::from_micros(1);
        if !self.writers.is_empty() {
            let writer = self.rng.random_range(0..self.writers.len());
            writers::step(self, writer);
        }
    }

    fn quiesce(&mut self) {
        self.frozen = true;
        self.finish();
    }

    /// Every write under way ends.
    fn finish(&mut self) {
        while self.writers.iter().any(Writer::is_busy) {
            self.step();
        }
    }
}

impl Clock for SimVm {
    fn now(&self) -> Instant {
        self.epoch + self.lock().now
    }

    fn wall(&self) -> Timestamp {
        Timestamp::UNIX_EPOCH + self.lock().now
    }

    fn pause(&self, time: Duration) {
        let mut world = self.lock();
        let until = world.now + time;
        world.work();
        world.now = world.now.max(until);
    }
}

impl Freezer for SimVm {
    fn sync(&mut self) -> Result<(), FreezeError> {
        self.work();
        Ok(())
    }

    fn freeze(&mut self, _within: Duration) -> Result<(), FreezeError> {
        self.lock().quiesce();
        Ok(())
    }

    fn thaw(&mut self) -> Result<(), FreezeError> {
        self.lock().frozen = false;
        Ok(())
    }
}
