//! The promise: when tracking was lost, as by a reboot of the VM, only what differs travels: of an unchanged disk less
//! than a thousandth of its size, both ways and over each hop. And the points are as exact as ever.
//!
//! `HOMEWARD_ROUNDS=N` loses it N times as often.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{collections::BTreeSet, time::Duration};

use engine::{digest::LEAF_BYTES, units::BLOCK_BYTES};
use homeward::lab::{image, isolate, let_pass, tool::Tool};
use homeward_tests::{ground::logs, rig::Rig, settings};
use rand::{RngExt, rngs::StdRng};

const TEST: &str = "resync";

/// 256 MiB, all of it in use and incompressible.
const BLOCKS: u64 = 64 << 10;

/// What may travel of a disk that has not changed.
const UNCHANGED: u64 = BLOCKS * BLOCK_BYTES / 1000;

/// Blocks written while the agent is away.
const CHANGED: u64 = 200;

#[test]
fn what_has_not_changed_does_not_travel() {
    if !settings::is_root(TEST) {
        return;
    }
    isolate().unwrap();
    let mut rng = settings::rng(TEST);
    let rig = Rig::new(TEST, BLOCKS, |_| {});
    let mut points = vec![rig.start()];
    for _ in 0..settings::rounds(1) {
        let before = wire_bytes(&rig);
        lose_tracking(&rig, || ());
        points.push(rig.had());
        let most = sent_since(&rig, before);
        println!("{TEST}: {most} bytes for a disk of {} that has not changed", BLOCKS * BLOCK_BYTES);
        assert!(most < UNCHANGED, "{most} bytes\n{}", logs(&rig.lab));

        // Killed while it compares, it finds out what is left to compare by itself.
        let before = wire_bytes(&rig);
        lose_tracking(&rig, || ());
        let_pass(&rig.stop, Duration::from_millis(rng.random_range(0..600))).unwrap();
        rig.lab.agent(TEST).unwrap().kill().unwrap();
        rig.lab.agent(TEST).unwrap().start().unwrap();
        points.push(rig.had());
        let most = sent_since(&rig, before);
        assert!(most < UNCHANGED, "killed on the way: {most} bytes\n{}", logs(&rig.lab));

        let before = wire_bytes(&rig);
        let mut leaves = BTreeSet::new();
        lose_tracking(&rig, || leaves = write_some(&rig, &mut rng));
        points.push(rig.had());
        let (most, differ) = (sent_since(&rig, before), leaves.len() as u64 * LEAF_BYTES);
        println!("{TEST}: {most} bytes for {} leaves, {differ} bytes, that differ", leaves.len());
        assert!(most > CHANGED / 2 * BLOCK_BYTES, "{most} bytes cannot be all that differs");
        assert!(most < differ * 11 / 10 + UNCHANGED, "{most} bytes, {differ} differ\n{}", logs(&rig.lab));
    }
    rig.check(&points);
    rig.lab.restore(TEST, "latest", |_| {}).unwrap();
    let flat = &rig.lab.vmdks(TEST).unwrap()[0].flat;
    let difference = image::first_difference(rig.device.path(), flat, &rig.stop).unwrap();
    assert_eq!(difference, None, "the newest point");
}

/// What a reboot leaves of tracking: nothing. `meanwhile` happens while no agent runs.
fn lose_tracking(rig: &Rig, meanwhile: impl FnOnce()) {
    let agent = rig.lab.agent(TEST).unwrap();
    agent.stop().unwrap();
    let program = agent.program().display().to_string();
    Tool::new(&program).arg("--config").arg(agent.config()).arg("untrack").run().unwrap();
    meanwhile();
    agent.start().unwrap();
}

/// Writes blocks all over the disk; returns the leaves that they are in.
fn write_some(rig: &Rig, rng: &mut StdRng) -> BTreeSet<u64> {
    let blocks = (0..CHANGED).map(|_| rng.random_range(0..BLOCKS));
    let write = |block: u64| {
        rig.disks.write(0, block, None).unwrap();
        block * BLOCK_BYTES / LEAF_BYTES
    };
    blocks.map(write).collect()
}

/// Bytes that went over each hop, both ways.
fn wire_bytes(rig: &Rig) -> [u64; 2] {
    rig.hops.each_ref().map(|hop| hop.bytes_up() + hop.bytes_down())
}

/// The same since `before`, over the hop that had more.
fn sent_since(rig: &Rig, before: [u64; 2]) -> u64 {
    wire_bytes(rig).iter().zip(before).map(|(now, before)| now - before).max().unwrap()
}
