//! Stopwatches around the agent's tracker and freezer: what a point does not tell of itself.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use agent::{
    capture::{FreezeError, Freezer},
    tracker::{DiskMaps, Tracker, TrackerError},
};
use engine::{
    extent_set::ExtentSet,
    units::{Block, DiskIndex},
};

/// What was seen.
#[derive(Clone, Debug, Default)]
pub struct Probed {
    /// How long each flip took.
    pub flips: Vec<Duration>,
    /// How long file systems were frozen, each time, whether it gave a point or not. From before the first is frozen
    /// until after the last is thawed.
    pub freezes: Vec<Duration>,
}

/// Shared by the stopwatches.
#[derive(Clone, Debug, Default)]
pub struct Probe(Arc<Mutex<Probed>>);

impl Probe {
    pub fn take(&self) -> Probed {
        std::mem::take(&mut *self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, Probed> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn tracker(&self, tracker: Box<dyn Tracker>) -> Box<dyn Tracker> {
        Box::new(TimedTracker { tracker, probe: self.clone() })
    }

    pub fn freezer(&self, freezer: Box<dyn Freezer>) -> Box<dyn Freezer> {
        Box::new(TimedFreezer { freezer, probe: self.clone(), since: Instant::now() })
    }
}

struct TimedTracker {
    tracker: Box<dyn Tracker>,
    probe: Probe,
}

impl Tracker for TimedTracker {
    fn flip(&mut self) -> Result<(), TrackerError> {
        let began = Instant::now();
        self.tracker.flip()?;
        self.probe.lock().flips.push(began.elapsed());
        Ok(())
    }

    fn drained(&self) -> Result<bool, TrackerError> {
        self.tracker.drained()
    }

    fn take(&mut self, disk: DiskIndex, limit: u64) -> Result<Option<ExtentSet>, TrackerError> {
        self.tracker.take(disk, limit)
    }

    fn written_since_flip(&self, disk: DiskIndex, first: Block, blocks: u32) -> bool {
        self.tracker.written_since_flip(disk, first, blocks)
    }

    fn note_read(&mut self, disk: DiskIndex, first: Block, bytes: &[u8]) {
        self.tracker.note_read(disk, first, bytes);
    }

    fn maps(&self, disk: DiskIndex) -> &DiskMaps {
        self.tracker.maps(disk)
    }
}

struct TimedFreezer {
    freezer: Box<dyn Freezer>,
    probe: Probe,
    /// When the last freeze began.
    since: Instant,
}

impl Freezer for TimedFreezer {
    fn sync(&mut self) -> Result<(), FreezeError> {
        self.freezer.sync()
    }

    fn freeze(&mut self, within: Duration) -> Result<(), FreezeError> {
        self.since = Instant::now();
        let frozen = self.freezer.freeze(within);
        if frozen.is_err() {
            self.probe.lock().freezes.push(self.since.elapsed());
        }
        frozen
    }

    fn thaw(&mut self) -> Result<(), FreezeError> {
        let thawed = self.freezer.thaw();
        self.probe.lock().freezes.push(self.since.elapsed());
        thawed
    }

    fn not_frozen(&self) -> &[String] {
        self.freezer.not_frozen()
    }
}
