//! One VM with one disk of stamped blocks, in a lab with proxies: what most tests of mishaps begin with.

use std::{fs, path::Path, sync::Arc, time::Duration};

use engine::{service::shutdown::Shutdown, units::BLOCK_BYTES};
use homeward::lab::{Lab, LabError, Look, LoopDevice, Options, Service, Tracker, Vm};
use tempfile::TempDir;

use crate::{
    ground::{Had, had_within, logs, options},
    proxy::Proxy,
    shelf::Shelf,
    stamped::Disks,
    wiring,
};

/// How long anything may take.
pub const WAIT: Duration = Duration::from_secs(90);

/// Dropped in this order.
pub struct Rig {
    /// The services.
    pub lab: Lab,
    /// Before the process server, and before the master target.
    pub hops: [Proxy; 2],
    /// The disk, all of it in use.
    pub disks: Arc<Disks>,
    /// The VM.
    pub vm: String,
    /// Interrupts the lab.
    pub stop: Shutdown,
    /// Below the disk.
    pub device: LoopDevice,
    /// Where everything is.
    pub dir: TempDir,
}

impl Rig {
    /// One with a disk of `blocks` blocks; nothing runs yet.
    ///
    /// # Panics
    /// If it cannot be made.
    #[must_use]
    pub fn new(vm: &str, blocks: u64, change: impl FnOnce(&mut Options)) -> Self {
        let stop = Shutdown::manual();
        let dir = tempfile::tempdir().unwrap();
        let device = LoopDevice::create(&dir.path().join("disk.img"), blocks * BLOCK_BYTES).unwrap();
        let disks = Arc::new(Disks::open(&[device.path()], blocks).unwrap());
        disks.fill().unwrap();
        let protected = Vm { disks: vec![device.path().into()], ..Vm::new(vm, Tracker::Ebpf) };
        let mut options = Options { vms: vec![protected], ..options(&stop) };
        change(&mut options);
        let lab = Lab::new(dir.path(), options).unwrap();
        let hops = wiring::proxies(&lab);
        Self { lab, hops, disks, vm: vm.into(), stop, device, dir }
    }

    /// Starts everything; returns the first point.
    ///
    /// # Panics
    /// If there is none.
    #[must_use]
    pub fn start(&self) -> Had {
        self.lab.start().unwrap();
        self.had()
    }

    /// A point.
    ///
    /// # Panics
    /// If there is none in time.
    #[must_use]
    pub fn had(&self) -> Had {
        had_within(&self.lab, &self.stop, &self.vm, WAIT)
    }

    /// Waits for a condition.
    ///
    /// # Panics
    /// If it does not come true, with the logs.
    pub fn wait<T>(&self, what: &str, look: impl FnMut() -> Result<Look<T>, LabError>) -> T {
        self.lab.wait(what, WAIT, look).unwrap_or_else(|error| panic!("{error}\n{}", logs(&self.lab)))
    }

    /// Waits until a service's log has a line with all of `words`.
    ///
    /// # Panics
    /// If there comes none.
    pub fn wait_for_log(&self, service: &Service, words: &[&str]) {
        self.wait(&format!("the log of {} says {words:?}", service.name()), || {
            let found = has_line(service.log(), words);
            Ok(if found { Look::Done(()) } else { Look::NotYet("it does not".into()) })
        });
    }

    /// Waits until a service counts something, in a sum of all its series.
    ///
    /// # Panics
    /// If it does not.
    pub fn wait_for_count(&self, service: &Service, metric: &str) {
        self.wait(&format!("{} counts {metric}", service.name()), || {
            let value = service.metric(metric)?;
            Ok(if value >= 1.0 { Look::Done(()) } else { Look::NotYet(value.to_string()) })
        });
    }

    /// Stops the master target, checks that all of `points` are there and exact, and starts it.
    ///
    /// # Panics
    /// If not.
    pub fn check(&self, points: &[Had]) {
        self.lab.master_target().stop().unwrap();
        let shelf = Shelf::open(self.lab.master_target(), &self.vm);
        shelf
            .check(&self.disks.history, points)
            .unwrap_or_else(|error| panic!("{error}\n{}", logs(&self.lab)));
        drop(shelf);
        self.lab.master_target().start().unwrap();
    }
}

fn has_line(log: &Path, words: &[&str]) -> bool {
    let log = fs::read(log).unwrap_or_default();
    String::from_utf8_lossy(&log).lines().any(|line| words.iter().all(|word| line.contains(word)))
}
