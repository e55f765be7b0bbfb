//! `kill -9` of the process server or an agent at any moment of a common point: nobody stays frozen, and whatever
//! points there are of a barrier belong together.

use std::{
    collections::{BTreeMap, BTreeSet},
    thread,
    time::Duration,
};

use engine::{
    point::{BarrierId, PointId},
    service::shutdown::Shutdown,
};
use homeward::lab::{is_down, let_pass};
use homeward_tests::{gossip, settings};
use rand::RngExt;

use crate::five::{Five, MEMBERS, TEST, Tally, vm};

const KILLS: u64 = 2;

/// A common point takes about this long.
const MOMENTS: Duration = Duration::from_millis(400);

pub(crate) fn leave_nobody_frozen_and_no_point_wrong(five: &Five) {
    let mut rng = settings::rng(TEST);
    let before = barriers(five);
    let (mut made, kills) = (0, settings::rounds(KILLS));
    for round in 0..kills {
        let moment = MOMENTS.mul_f64(rng.random());
        let member = rng.random_range(0..MEMBERS);
        let victim = match round % 2 {
            0 => five.lab.process_server(),
            _ => five.lab.agent(&vm(member)).unwrap(),
        };
        thread::scope(|scope| {
            let asking = scope.spawn(|| five.ask(false));
            let_pass(&Shutdown::manual(), moment).unwrap();
            victim.restart().unwrap();
            match asking.join().unwrap() {
                Ok(point) => made += u64::from(point.is_ok()),
                Err(error) => assert!(is_down(&error), "{error}"),
            }
        });
        five.wait_until_well();
        assert!(five.point(false, &mut Tally::default()).mark.missing.is_empty());
    }
    let barriers: Vec<_> =
        barriers(five).into_iter().filter(|(barrier, _)| !before.contains_key(barrier)).collect();
    let points: Vec<Vec<_>> = barriers.iter().map(|(_, points)| points.clone()).collect();
    for ((barrier, _), newest) in barriers.iter().zip(five.records(&points)) {
        gossip::check(&newest).unwrap_or_else(|error| panic!("{barrier}: {error}"));
    }
    let of = |points: &Vec<Option<PointId>>| points.iter().flatten().count();
    let sizes: BTreeSet<usize> = points.iter().map(of).collect();
    println!(
        "{TEST}: {kills} kills, {made} points were made all the same; {} barriers have points of {sizes:?} members",
        points.len()
    );
    assert!(points.len() as u64 >= kills);
}

/// All barriers that any member has a point of, and each member's.
fn barriers(five: &Five) -> BTreeMap<BarrierId, Vec<Option<PointId>>> {
    let mut barriers = BTreeMap::new();
    for member in 0..MEMBERS {
        for (id, point) in five.points_of(member) {
            if let Some(mark) = point.group {
                let points = barriers.entry(mark.barrier).or_insert_with(|| vec![None; MEMBERS]);
                points[member] = Some(id);
            }
        }
    }
    barriers
}
