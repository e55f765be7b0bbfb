//! Threads that write stamped blocks as fast as told, each write caused by the one before it.

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::stamped::Disks;

/// What is written.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Writers; each waits for one write before the next, which goes to the next disk in turn.
    pub threads: u64,
    /// Blocks that are written, on each disk.
    pub blocks: Range<u64>,
    /// Time from one write of a writer to its next, at least.
    pub pace: Duration,
}

/// Writers at work, until they are stopped or dropped.
pub struct Load {
    stop: Arc<AtomicBool>,
    writers: Vec<JoinHandle<()>>,
}

impl Load {
    /// Starts the writers.
    #[must_use]
    pub fn start(disks: &Arc<Disks>, plan: &Plan, rng: &mut StdRng) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let writer = |number| {
            let (disks, plan, stop) = (Arc::clone(disks), plan.clone(), Arc::clone(&stop));
            let rng = StdRng::from_rng(rng);
            thread::spawn(move || write(&disks, &plan, number, &stop, rng))
        };
        let writers = (0..plan.threads).map(writer).collect();
        Self { stop, writers }
    }

    /// Stops them; every write has been acknowledged when it returns.
    ///
    /// # Panics
    /// If a writer has.
    pub fn stop(mut self) {
        self.stop.store(true, Relaxed);
        self.writers.drain(..).for_each(|writer| writer.join().expect("a writer panicked"));
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        // Their disks may be about to go.
        self.writers.drain(..).for_each(|writer| drop(writer.join()));
    }
}

fn write(disks: &Disks, plan: &Plan, number: u64, stop: &AtomicBool, mut rng: StdRng) {
    let (mut disk, mut cause) = (number as usize % disks.count(), None);
    let mine = (plan.blocks.end - plan.blocks.start) / plan.threads;
    while !stop.load(Relaxed) {
        let due = Instant::now() + plan.pace;
        // Blocks of different writers differ, and are not apart from each other.
        let block = plan.blocks.start + rng.random_range(0..mine) * plan.threads + number;
        cause = Some(disks.write(disk, block, cause).expect("the disk can be written"));
        disk = (disk + 1) % disks.count();
        thread::sleep(due.saturating_duration_since(Instant::now()));
    }
}
