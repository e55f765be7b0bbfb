//! The promise: bytes that change on their way or at rest are noticed, named by their place, and never applied; what
//! they stood for is sent again, or said to be lost.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use engine::units::Digest;
use homeward::lab::{Look, isolate};
use homeward_tests::{
    ground::Had,
    load::{Load, Plan},
    rig::Rig,
    settings,
    shelf::Shelf,
};
use rand::{RngExt, rngs::StdRng};
use serde_json::json;

const BLOCKS: u64 = 4096;

/// Root, mounts of its own, random numbers.
fn begin(test: &str) -> Option<StdRng> {
    settings::is_root(test).then(|| {
        isolate().unwrap();
        settings::rng(test)
    })
}

fn load(rig: &Rig, rng: &mut StdRng) -> Load {
    let plan = Plan { threads: 2, blocks: 0..BLOCKS, pace: Duration::from_millis(2) };
    Load::start(&rig.disks, &plan, rng)
}

/// Flips a bit.
fn spoil(path: &Path, at: u64) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
    file.sync_all().unwrap();
}

/// Files with that ending below `dir`.
fn files_below(dir: &Path, ending: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let below = |path: PathBuf| match path.is_dir() {
        true => files_below(&path, ending),
        false => Vec::from_iter(path.to_str().unwrap().ends_with(ending).then_some(path)),
    };
    entries.flat_map(below).collect()
}

#[test]
fn on_the_wire() {
    const VM: &str = "wire";
    let Some(mut rng) = begin(VM) else { return };
    let rig = Rig::new(VM, BLOCKS, |_| {});
    let mut points = vec![rig.start()];
    let load = load(&rig, &mut rng);
    let receivers = [rig.lab.process_server(), rig.lab.master_target()];
    for _ in 0..settings::rounds(2) {
        for (hop, receiver) in rig.hops.iter().zip(receivers) {
            let before = hop.spoiled();
            hop.spoil_after(rng.random_range(0..50_000));
            while hop.spoiled() == before {
                points.push(rig.had());
            }
            // What comes after it came over another connection.
            points.push(rig.had());
            rig.wait_for_log(receiver, &["decrypt"]);
        }
    }
    load.stop();
    points.push(rig.had());
    rig.check(&points);
}

#[test]
fn in_the_spool_while_it_is_forwarded() {
    in_the_spool("spool-forward", false);
}

#[test]
fn in_the_spool_while_nobody_looks() {
    in_the_spool("spool-restart", true);
}

fn in_the_spool(vm: &str, restart: bool) {
    let Some(mut rng) = begin(vm) else { return };
    let rig = Rig::new(vm, BLOCKS, |_| {});
    let mut points = vec![rig.start()];
    let (relay, target) = (rig.lab.process_server(), rig.lab.master_target());
    target.stop().unwrap();
    rig.disks.rewrite().unwrap();
    let had = thread::scope(|scope| {
        // What it takes waits in the spool.
        let asking = scope.spawn(|| rig.had());
        let segment = rig.wait("there is something in the spool", || {
            let segments = files_below(&rig.lab.layout().dir("spool"), ".seg");
            let long = segments.into_iter().find(|path| fs::metadata(path).unwrap().len() > 2 << 20);
            Ok(long.map_or(Look::NotYet("no segment of 2 MiB".into()), Look::Done))
        });
        if restart {
            relay.kill().unwrap();
        }
        spoil(&segment, rng.random_range(1 << 20..2 << 20));
        if restart {
            relay.start().unwrap();
        }
        target.start().unwrap();
        let name = segment.file_name().unwrap().to_str().unwrap();
        rig.wait_for_log(relay, &["damage", name, "at byte"]);
        rig.wait_for_count(relay, "homeward_spool_losses_total");
        asking.join().expect("there is a point")
    });
    points.push(had);
    rig.check(&points);
}

#[test]
fn in_the_journal() {
    const VM: &str = "journal";
    let Some(mut rng) = begin(VM) else { return };
    let rig = Rig::new(VM, BLOCKS, |_| {});
    let mut points = vec![rig.start()];
    let load = load(&rig, &mut rng);
    points.extend((0..4).map(|_| rig.had()));
    load.stop();
    points.push(rig.had());

    let target = rig.lab.master_target();
    target.stop().unwrap();
    let layer = Shelf::open(target, VM).layer(points[2].point.id);
    let log = files_below(&rig.lab.layout().dir("journal"), &format!("{layer:010}.undo")).remove(0);
    spoil(&log, rng.random_range(40..fs::metadata(&log).unwrap().len()));
    target.start().unwrap();

    let flat = &rig.lab.vmdks(VM).unwrap()[0].flat;
    let before = Digest::of(&fs::read(flat).unwrap());
    let to = |had: &Had| rig.lab.restore(VM, &had.point.id.to_string(), |_| {});
    let name = log.file_name().unwrap().to_str().unwrap();
    // The point before that layer needs all of its log.
    let error = to(&points[1]).unwrap_err().to_string();
    assert!(error.contains(name) && error.contains("damaged at byte"), "{error}");
    assert_eq!(Digest::of(&fs::read(flat).unwrap()), before, "something was applied");
    // Replication is none the worse for it, and newer points need nothing of that log.
    points.push(rig.had());
    for had in &points[2..5] {
        to(had).unwrap();
        rig.disks.history.check(&[fs::read(flat).unwrap()], had.from..=had.until).unwrap();
    }
    rig.lab.undo(VM, |_| {}).unwrap();
    points.push(rig.had());
    rig.check(&points[2..]);
}

#[test]
fn in_a_descriptor() {
    const VM: &str = "descriptor";
    let Some(mut rng) = begin(VM) else { return };
    let rig = Rig::new(VM, BLOCKS, |_| {});
    let mut points = vec![rig.start()];
    let target = rig.lab.master_target();
    let vmdk = rig.lab.vmdks(VM).unwrap().remove(0);
    // The kind of access, and the number of sectors.
    for (number, after) in ["RW", "RW 3"].into_iter().enumerate() {
        target.stop().unwrap();
        let good = fs::read_to_string(&vmdk.descriptor).unwrap();
        let before = Digest::of(&fs::read(&vmdk.flat).unwrap());
        let at = good.find(&format!("\n{after}")).unwrap_or_else(|| panic!("no {after:?} in\n{good}"));
        spoil(&vmdk.descriptor, (at + after.len()) as u64);
        let load = load(&rig, &mut rng);
        target.start().unwrap();
        let name = vmdk.descriptor.file_name().unwrap().to_str().unwrap();
        rig.wait("the process server is told", || {
            let answer: serde_json::Value = rig.lab.process_server().ask(json!({ "ask": "status" }))?;
            let status = &answer["status"];
            let trouble = status["streams"][0]["trouble"].as_str().unwrap_or_default();
            Ok(if trouble.contains(name) { Look::Done(()) } else { Look::NotYet(trouble.into()) })
        });
        rig.wait_for_log(target, &[name]);
        assert_eq!(Digest::of(&fs::read(&vmdk.flat).unwrap()), before, "{number}: something was applied");
        fs::write(&vmdk.descriptor, good).unwrap();
        points.push(rig.had());
        load.stop();
    }
    rig.check(&points);
}
