//! The promise: `kill -9` of agent, process server and master target at any moment loses no sealed point and makes
//! no wrong one, replication goes on by itself, and nothing is copied that need not be.
//!
//! 12 rounds; the full count of 200 is `HOMEWARD_ROUNDS=17 cargo test --release -p homeward-tests --test kill --
//! --nocapture`. `HOMEWARD_SEED=N` kills the same services after the same times; the moments within them are
//! the machine's.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{thread, time::Duration};

use engine::units::BLOCK_BYTES;
use homeward::lab::{image, is_down, isolate, let_pass};
use homeward_tests::{
    ground::{Had, had, logs},
    load::{Load, Plan},
    proxy::Proxy,
    rig::Rig,
    settings,
};
use rand::{RngExt, rngs::StdRng};

const TEST: &str = "kill";

/// 128 MiB, all of it in use and incompressible.
const BLOCKS: u64 = 32 << 10;

/// What a round may send at most over one hop: a full copy, or a good part of one, would be more.
const WIRE_BYTES: u64 = BLOCKS * BLOCK_BYTES / 3;

const ROUNDS: u64 = 12;

/// Rounds between two looks at all points.
const CHECK_EVERY: u64 = 50;

#[test]
fn nothing_is_lost_or_copied_anew() {
    if !settings::is_root(TEST) {
        return;
    }
    isolate().unwrap();
    let mut rng = settings::rng(TEST);
    let rig = Rig::new(TEST, BLOCKS, |_| {});
    let mut points = vec![rig.start()];
    let plan = Plan { threads: 2, blocks: 0..BLOCKS, pace: Duration::from_millis(4) };
    let load = Load::start(&rig.disks, &plan, &mut rng);
    let rounds = settings::rounds(ROUNDS);
    let mut most = 0;
    for round in 1..=rounds {
        let kills = Kills::draw(&mut rng);
        let before = wire_bytes(&rig.hops);
        points.extend(kills.round(&rig));
        let sent: Vec<u64> =
            wire_bytes(&rig.hops).iter().zip(before).map(|(now, before)| now - before).collect();
        most = most.max(*sent.iter().max().unwrap());
        assert!(most < WIRE_BYTES, "round {round}, {kills:?}: {sent:?} bytes were sent\n{}", logs(&rig.lab));
        if round % CHECK_EVERY == 0 {
            check(&rig, &points);
            // What was written meanwhile was not sent for nothing: the next round does not answer for it.
            points.push(rig.had());
        }
    }
    load.stop();
    points.push(rig.had());
    check(&rig, &points);

    rig.lab.restore(TEST, "latest", |_| {}).unwrap();
    let flat = &rig.lab.vmdks(TEST).unwrap()[0].flat;
    assert_eq!(
        image::first_difference(rig.device.path(), flat, &rig.stop).unwrap(),
        None,
        "the newest point"
    );
    println!(
        "{TEST}: {rounds} rounds, {} points exact, at most {most} bytes on a hop in a round, {} writes",
        points.len(),
        rig.disks.history.writes()
    );
}

fn wire_bytes(hops: &[Proxy; 2]) -> [u64; 2] {
    hops.each_ref().map(Proxy::bytes_up)
}

/// All points so far are there and exact, also after one more `kill -9`.
fn check(rig: &Rig, points: &[Had]) {
    rig.lab.master_target().kill().unwrap();
    rig.check(points);
}

/// One round: who is killed, when, and for how long.
#[derive(Debug)]
struct Kills {
    /// Indices into [`Lab::services`], each with the time before it is killed and that until it is started again.
    kills: Vec<(usize, Duration, Duration)>,
}

impl Kills {
    fn draw(rng: &mut StdRng) -> Self {
        let victims = if rng.random_bool(0.25) { 2 } else { 1 };
        let mut millis = |most| Duration::from_millis(rng.random_range(0..most));
        let times: Vec<_> = (0..victims).map(|_| (millis(400), millis(300))).collect();
        let kill = |(before, down)| (rng.random_range(0..3), before, down);
        Self { kills: times.into_iter().map(kill).collect() }
    }

    fn round(&self, rig: &Rig) -> Vec<Had> {
        let Rig { lab, stop, .. } = rig;
        thread::scope(|scope| {
            // A point is under way while services are killed. It may come to nothing if the agent is one of them.
            let asking = scope.spawn(|| had(lab, TEST));
            for (victim, before, down) in &self.kills {
                let service = lab.services().nth(*victim).unwrap();
                let_pass(stop, *before).unwrap();
                service.kill().unwrap();
                let_pass(stop, *down).unwrap();
                service.start().unwrap();
            }
            let after = rig.had();
            let during = match asking.join().expect("asking panicked") {
                Ok(had) => Some(had),
                Err(error) if is_down(&error) => None,
                Err(error) => panic!("{error}\n{}", logs(lab)),
            };
            during.into_iter().chain([after]).collect()
        })
    }
}
