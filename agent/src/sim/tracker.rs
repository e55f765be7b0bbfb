//! The simulated tracker: marks in generations, counted in and out, exactly as docs/barrier.md defines them.

use std::collections::{BTreeMap, BTreeSet};

use engine::{
    extent_set::ExtentSet,
    units::{Block, DiskIndex},
};

use super::{SimVm, World, writers::Writer};
use crate::tracker::{DiskMaps, Tracker, TrackerError};

/// What the kernel holds of it: outlives the agent.
#[derive(Debug)]
pub(super) struct Marks {
    /// Number of the active generation. The marks of it and of the one before are kept.
    active: u64,
    /// Marking programs that are in the midst of it, by generation.
    inside: BTreeMap<u64, u32>,
    /// Writes in flight, by the generation they were issued under.
    flight: BTreeMap<u64, u32>,
    /// Per disk: blocks marked under the active generation and under the ended one.
    issued: Vec<BTreeSet<u64>>,
    ended: Vec<BTreeSet<u64>>,
    untaken: Vec<bool>,
}

impl Marks {
    pub(super) fn new(disks: usize) -> Self {
        let sets = || vec![BTreeSet::new(); disks];
        let (inside, flight) = (BTreeMap::new(), BTreeMap::new());
        let untaken = vec![false; disks];
        Self { active: 0, inside, flight, issued: sets(), ended: sets(), untaken }
    }

    pub(super) fn count_in(&mut self) -> u64 {
        *self.inside.entry(self.active).or_default() += 1;
        self.active
    }

    pub(super) fn count_out(&mut self, generation: u64) {
        decrement(&mut self.inside, generation);
    }

    pub(super) fn is_active(&self, generation: u64) -> bool {
        self.active == generation
    }

    pub(super) fn mark(&mut self, generation: u64, disk: usize, block: u64) {
        let marked = if generation + 1 == self.active { &mut self.ended } else { &mut self.issued };
        assert!(generation + 1 >= self.active, "the flip waits for marks under the generation it ends");
        marked[disk].insert(block);
    }

    pub(super) fn is_marked(&self, disk: usize, block: u64) -> bool {
        [&self.issued, &self.ended].iter().any(|marks| marks[disk].contains(&block))
    }

    pub(super) fn enter_flight(&mut self, generation: u64) {
        *self.flight.entry(generation).or_default() += 1;
    }

    pub(super) fn leave_flight(&mut self, generation: u64) {
        decrement(&mut self.flight, generation);
    }

    /// There are no marks any more; no write is in flight.
    pub(super) fn forget(&mut self) {
        self.issued.iter_mut().chain(&mut self.ended).for_each(BTreeSet::clear);
        self.untaken.fill(false);
    }

    fn flip(&mut self) {
        assert!(self.untaken.iter().all(|untaken| !untaken), "the generation before was not taken");
        self.active += 1;
        for disk in 0..self.ended.len() {
            self.ended[disk] = std::mem::take(&mut self.issued[disk]);
            self.untaken[disk] = true;
        }
    }
}

fn decrement(counts: &mut BTreeMap<u64, u32>, generation: u64) {
    let count = counts.entry(generation).or_default();
    *count -= 1;
    if *count == 0 {
        counts.remove(&generation);
    }
}

/// The agent's side of the tracker.
pub struct SimTracker(SimVm);

impl SimTracker {
    pub(super) fn open(vm: SimVm) -> Self {
        let mut tracker = Self(vm);
        for disk in 0..tracker.0.maps.len() as u16 {
            tracker.take_marks(DiskIndex(disk));
        }
        tracker
    }

    fn take_marks(&mut self, disk: DiskIndex) -> ExtentSet {
        let mut world = self.0.lock();
        world.work();
        let index = usize::from(disk.0);
        let dirty = &self.0.maps(disk).dirty;
        let mut taken = ExtentSet::new();
        for block in &world.marks.ended[index] {
            let granularity = dirty.granularity();
            let (from, to) = granularity.granules_of(Block(*block), Block(block + 1));
            let (start, end) = granularity.blocks_of(from, to);
            dirty.set(start, end);
            taken.insert(start, end);
        }
        world.marks.ended[index].clear();
        world.marks.untaken[index] = false;
        world.work();
        taken
    }
}

impl Tracker for SimTracker {
    fn flip(&mut self) -> Result<(), TrackerError> {
        let mut world = self.0.lock();
        world.work();
        world.marks.flip();
        let held = world.held;
        world.history.flip(held);
        let ended = world.marks.active - 1;
        while world.marks.inside.contains_key(&ended) {
            world.step();
        }
        Ok(())
    }

    fn drained(&self) -> Result<bool, TrackerError> {
        let mut world = self.0.lock();
        world.work();
        settle_unseen(&mut world);
        let active = world.marks.active;
        Ok(world.marks.flight.range(..active).next().is_none())
    }

    fn may_read(&self) -> Result<bool, TrackerError> {
        self.drained()
    }

    fn take(&mut self, disk: DiskIndex, limit: u64) -> Result<Option<ExtentSet>, TrackerError> {
        let taken = self.take_marks(disk);
        Ok((taken.blocks() <= limit).then_some(taken))
    }

    fn written_since_flip(&self, disk: DiskIndex, first: Block, blocks: u32) -> bool {
        let mut world = self.0.lock();
        world.work();
        let range = first.0..first.0 + u64::from(blocks);
        world.marks.issued[usize::from(disk.0)].range(range).next().is_some()
    }

    fn maps(&self, disk: DiskIndex) -> &DiskMaps {
        self.0.maps(disk)
    }
}

/// Asks the disks, as the tracker does for completions that it did not see.
fn settle_unseen(world: &mut World) {
    if world.writers.iter().any(Writer::is_busy) {
        return;
    }
    let World { writers, marks, .. } = world;
    writers
        .iter_mut()
        .filter_map(Writer::forget_unseen)
        .for_each(|generation| marks.leave_flight(generation));
}
