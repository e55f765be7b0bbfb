//! The promise: the disks of a VM share each point. Writers on two disks write a record only after its cause on the
//! other disk was acknowledged; no point shows an effect without its cause, nor anything else that no one instant
//! explains, and nobody is stopped for it.
//!
//! 60 points; the full count of 1,000 is `HOMEWARD_ROUNDS=17 cargo test --release -p homeward-tests --test
//! cross_disk -- --nocapture`.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{sync::Arc, time::Duration};

use engine::{point::Method, service::shutdown::Shutdown, units::BLOCK_BYTES};
use homeward::lab::{Lab, LoopDevice, Options, Tracker, Vm, isolate};
use homeward_tests::{
    ground::{Had, had_within, options},
    load::{Load, Plan},
    settings,
    shelf::Shelf,
    stamped::Disks,
};
use rand::seq::IndexedRandom;

const VM: &str = "cross-disk";
const BLOCKS: u64 = 4096;

/// Points between two looks at them.
const BATCH: u64 = 60;

const POINT: Duration = Duration::from_secs(300);

#[test]
fn no_effect_without_its_cause() {
    const TEST: &str = "cross_disk";
    if !settings::is_root(TEST) {
        return;
    }
    isolate().unwrap();
    let mut rng = settings::rng(TEST);
    let stop = Shutdown::manual();
    let dir = tempfile::tempdir().unwrap();
    let device = |name| LoopDevice::create(&dir.path().join(name), BLOCKS * BLOCK_BYTES).unwrap();
    let devices = [device("a.img"), device("b.img")];
    let paths = devices.each_ref().map(LoopDevice::path);
    let disks = Arc::new(Disks::open(&paths, BLOCKS).unwrap());
    disks.fill().unwrap();
    let vm = Vm { disks: paths.map(Into::into).to_vec(), ..Vm::new(VM, Tracker::Ebpf) };
    let lab = Lab::new(dir.path(), Options { vms: vec![vm], ..options(&stop) }).unwrap();
    lab.start().unwrap();

    let plan = Plan { threads: 4, blocks: 0..BLOCKS, pace: Duration::ZERO };
    let load = Load::start(&disks, &plan, &mut rng);
    let mut tally = Tally::default();
    for _ in 0..settings::rounds(1) {
        let points: Vec<Had> = (0..BATCH).map(|_| had_within(&lab, &stop, VM, POINT)).collect();
        tally.made(&points);
        lab.master_target().stop().unwrap();
        let checked = Shelf::open(lab.master_target(), VM).check(&disks.history, &points);
        checked.unwrap_or_else(|error| panic!("{error}"));
        lab.master_target().start().unwrap();
        restores_alike(&lab, &disks, points.choose(&mut rng).unwrap(), &stop);
    }
    load.stop();
    println!("{TEST}: {tally:?}, {} writes", disks.history.writes());
}

/// What came of it.
#[derive(Debug, Default)]
struct Tally {
    points: usize,
    frozen: usize,
    tries_max: u32,
    window_us_max: u64,
}

impl Tally {
    fn made(&mut self, points: &[Had]) {
        self.points += points.len();
        for Had { point, .. } in points {
            self.frozen += usize::from(point.method != Method::Barrier);
            self.tries_max = self.tries_max.max(point.barrier_tries);
            self.window_us_max = self.window_us_max.max(point.window_us);
        }
    }
}

/// A restore proper gives what the shelf shows: the disks at one instant.
fn restores_alike(lab: &Lab, disks: &Disks, had: &Had, stop: &Shutdown) {
    lab.restore(VM, &had.point.id.to_string(), |_| {}).unwrap();
    let vmdks = lab.vmdks(VM).unwrap();
    let image: Vec<Vec<u8>> = vmdks.iter().map(|vmdk| std::fs::read(&vmdk.flat).unwrap()).collect();
    disks.history.check(&image, had.from..=had.until).unwrap();
    lab.undo(VM, |_| {}).unwrap();
    // Replication goes on.
    let _ = had_within(lab, stop, VM, POINT);
}
