//! The promise: VMs of a group share their points. Five machines, each in a network of its own, write what they have
//! heard from each other; on no common point does one know of what another has not written. With one of them away or
//! stuck the policy decides, and the label says it; whoever is killed meanwhile, nobody stays frozen, and no point is
//! wrong.
//!
//! 20 common points, and 2 kills; the full count of 500 is `HOMEWARD_ROUNDS=25 cargo test --release -p homeward-tests
//! --test groups -- --nocapture`.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod applications;
mod five;
mod kills;
mod policy;

use std::{collections::HashMap, path::PathBuf, time::Duration};

use engine::point::{Method, Point, PointId};
use homeward::lab::{isolate, tool::Tool};
use homeward_tests::{
    checkers::{Copy, FileSystem},
    gossip,
    ground::had,
    settings,
};
use process_server::group::GroupPoint;

use crate::five::{Five, GROUP, MEMBERS, TEST, Tally, vm};

/// Common points between two looks at them.
const BATCH: u64 = 20;

/// One test, since each part wants the machine for itself.
#[test]
fn no_effect_without_its_cause_on_another_machine() {
    if !settings::is_root(TEST) {
        return;
    }
    isolate().unwrap();
    let five = Five::start();
    common_points(&five);
    single_points_do_show_effects_without_causes(&five);
    restores_whole(&five);
    applications::hold_or_the_label_says_it(&five);
    policy::decides_without_one(&five);
    policy::decides_with_one_that_is_stuck(&five);
    kills::leave_nobody_frozen_and_no_point_wrong(&five);
    println!("{TEST}: {} writes", five.writes());
    five.stop();
}

fn common_points(five: &Five) {
    let mut tally = Tally::default();
    for _ in 0..settings::rounds(1) {
        let points: Vec<GroupPoint> = (0..BATCH).map(|_| five.point(false, &mut tally)).collect();
        let all: Vec<HashMap<PointId, Point>> = (0..MEMBERS).map(|member| five.points_of(member)).collect();
        for point in &points {
            assert_eq!(point.mark.members, (0..MEMBERS).map(vm).collect::<Vec<_>>());
            assert!(point.mark.missing.is_empty());
            tally.skew_us.push(point.mark.skew_us);
            for (member, known) in all.iter().enumerate() {
                let sealed = &known[&point.points[&vm(member)]];
                assert_eq!(sealed.group.as_deref(), Some(&point.mark), "members say different things");
                assert_eq!(sealed.method, Method::Frozen);
                let frozen = Duration::from_micros(sealed.frozen_us);
                assert!(frozen <= engine::limits::GROUP_FREEZE, "{sealed:?}");
                tally.frozen_us.push(sealed.frozen_us);
            }
        }
        five.check(&points);
        tally.points += points.len();
    }
    tally.print();
}

/// What the machines write would show it: points of their own, made one right after the other, are no common point.
fn single_points_do_show_effects_without_causes(five: &Five) {
    let point = |member| Some(had(&five.lab, &vm(member)).unwrap().point.id);
    let points: Vec<_> = (0..3).map(|_| (0..MEMBERS).map(point).collect()).collect();
    let wrong = five.records(&points).iter().filter(|newest| gossip::check(newest).is_err()).count();
    assert_eq!(wrong, points.len(), "the machines do not write enough to show anything");
}

/// A restore proper of the whole group, to a moment that all have.
fn restores_whole(five: &Five) {
    let target = five.lab.master_target();
    let restore = |what: &[&str]| {
        let tool = Tool::new(&target.program().to_string_lossy()).arg("--config").arg(target.config());
        tool.args(["restore", "--group", GROUP]).args(what).run().unwrap_or_else(|error| panic!("{error}"));
    };
    let barrier = five.point(false, &mut Tally::default()).mark.barrier.to_string();
    restore(&["--point", &barrier]);
    let mut newest = Vec::new();
    for member in 0..MEMBERS {
        let flat: PathBuf = five.lab.vmdks(&vm(member)).unwrap()[0].flat.clone();
        let copy = Copy::of(&flat, five.dir(), FileSystem::Ext4).unwrap();
        // Clean, as it was frozen: nothing to replay.
        copy.check().unwrap();
        newest.push(Some(gossip::newest_on(&std::fs::read(&flat).unwrap(), member).unwrap()));
    }
    gossip::check(&newest).unwrap();
    restore(&["--undo"]);
    five.wait_until_well();
}
