//! The coordinator against members that are slow, fail, lose connections and messages, and thaw when they please.

mod model;

use std::{collections::BTreeSet, time::Duration};

use engine::limits::GROUP_FREEZE;
use proptest::prelude::*;

use self::model::{Faults, World};
use super::*;

const MS: Duration = Duration::from_millis(1);

fn settings(members: usize, partial: Partial, interval: Option<Duration>) -> Settings {
    let vms = (0..members).map(|index| format!("vm{index}")).collect();
    let patience = limits::GROUP_PATIENCE;
    Settings { name: "shop".into(), vms, interval, application: false, patience, partial }
}

/// A group whose members do at once what they are told.
fn healthy(members: usize, partial: Partial) -> World {
    let mut world = World::new(settings(members, partial, None), 1);
    world.connect_all();
    world
}

proptest! {
    #[test]
    fn whatever_happens_members_of_a_point_were_frozen_together_and_wishes_are_answered(
        seed: u64,
        members in 1usize..6,
        allow: bool,
        with_interval: bool,
        faults in (0u32..8, 0u32..8, 0u32..6, 0u32..4),
    ) {
        let partial = if allow { Partial::Allow } else { Partial::Refuse };
        let interval = with_interval.then_some(Duration::from_secs(3));
        let mut world = World::new(settings(members, partial, interval), seed);
        let (slow, fail, cut, kill) = faults;
        world.faults = Faults { slow, fail, cut, kill };
        for _ in 0..400 {
            world.mischief();
            world.pass();
            world.check();
        }
        // Once all is well, points are made of all members, and no wish stays open.
        world.faults = Faults::default();
        world.run_for(Duration::from_secs(5));
        world.connect_all();
        world.run_for(Duration::from_secs(200));
        world.ask(false);
        world.run_for(Duration::from_secs(5));
        world.check();
        prop_assert!(world.open.is_empty(), "unanswered: {:?}", world.open);
        let (_, answer) = world.answers.last().unwrap();
        let point = answer.as_ref().unwrap();
        prop_assert_eq!(point.mark.members.len(), members);
        prop_assert_eq!(point.points.len(), members);
        prop_assert_eq!(point.state, GroupPointState::Durable);
    }
}

#[test]
fn all_members_seal_the_same_mark_and_the_skew_is_what_was_seen() {
    let mut world = healthy(3, Partial::Refuse);
    world.members[1].hold_takes = 30 * MS;
    world.ask(false);
    world.run_for(Duration::from_secs(2));
    world.check();
    let (_, answer) = world.answers.pop().unwrap();
    let point = answer.unwrap();
    assert_eq!(point.mark.members, ["vm0", "vm1", "vm2"]);
    assert!(point.mark.missing.is_empty());
    assert_eq!(point.mark.skew_us, 30_000);
    assert!(world.members.iter().all(|member| member.seals.values().next() == Some(&point.mark)));
    let status = &world.coordinator.status(world.now)[0];
    assert_eq!((status.counts.durable, status.counts.failures), (1, 0));
    assert_eq!(status.last.as_ref(), Some(&point));
}

#[test]
fn without_a_member_the_policy_decides_and_the_label_says_it() {
    let mut world = healthy(5, Partial::Allow);
    world.cut(2);
    world.ask(false);
    world.run_for(Duration::from_secs(2));
    world.check();
    let point = world.answers.pop().unwrap().1.unwrap();
    assert_eq!(point.mark.missing, ["vm2"]);
    assert_eq!(point.mark.members, ["vm0", "vm1", "vm3", "vm4"]);

    let mut world = healthy(5, Partial::Refuse);
    world.cut(2);
    world.ask(false);
    world.run_for(Duration::from_secs(2));
    let reason = world.answers.pop().unwrap().1.unwrap_err();
    assert_eq!(reason, "vm2: its agent is not connected");
    assert!(world.members.iter().all(|member| member.seals.is_empty()));
}

#[test]
fn a_member_that_is_slow_to_prepare_is_left_behind_if_that_is_allowed() {
    for partial in [Partial::Allow, Partial::Refuse] {
        let mut world = healthy(3, partial);
        world.members[0].prepare_takes = limits::GROUP_PATIENCE * 2;
        world.ask(false);
        world.run_for(limits::GROUP_PATIENCE + Duration::from_secs(2));
        world.check();
        let answer = world.answers.pop().unwrap().1;
        match partial {
            Partial::Allow => assert_eq!(answer.unwrap().mark.missing, ["vm0"]),
            Partial::Refuse => assert!(answer.unwrap_err().contains("vm0: it took longer than 60000 ms")),
        }
    }
}

#[test]
fn a_hold_that_is_overrun_is_tried_again_a_bounded_number_of_times() {
    for partial in [Partial::Allow, Partial::Refuse] {
        let mut world = healthy(3, partial);
        world.members[2].hold_takes = GROUP_FREEZE * 2;
        world.ask(false);
        world.run_for(Duration::from_secs(10));
        world.check();
        let holds: BTreeSet<BarrierId> =
            world.members[0].freezes.iter().map(|freeze| freeze.barrier).collect();
        // Once more without it.
        assert_eq!(holds.len() as u32, limits::GROUP_TRIES + u32::from(partial == Partial::Allow));
        let answer = world.answers.pop().unwrap().1;
        match partial {
            Partial::Allow => assert_eq!(answer.unwrap().mark.missing, ["vm2"]),
            Partial::Refuse => assert!(answer.is_err()),
        }

        // One that can at last is in again.
        world.members[2].hold_takes = MS;
        world.ask(false);
        world.run_for(Duration::from_secs(10));
        assert!(world.answers.pop().unwrap().1.unwrap().mark.missing.is_empty());
    }
}

#[test]
fn a_wish_is_never_answered_with_a_moment_before_it() {
    let mut world = healthy(2, Partial::Refuse);
    world.ask(false);
    // Held by now, but not yet released.
    world.members[0].hold_takes = 50 * MS;
    while !world.members[1].is_frozen() {
        world.pass();
    }
    let late = world.ask(false);
    world.run_for(Duration::from_secs(5));
    let barrier = |index: usize| world.answers[index].1.as_ref().unwrap().mark.barrier;
    assert_eq!(world.answers.len(), 2);
    assert_eq!(world.answers[1].0, late);
    assert_ne!(barrier(0), barrier(1));
}

/// Whether its connection or its agent is lost just when all was held: whoever asked need not wait for long.
#[test]
fn a_member_that_comes_back_says_what_became_of_its_point() {
    for killed in [false, true] {
        let mut world = healthy(2, Partial::Refuse);
        world.delay = 5 * MS;
        world.ask(false);
        while world.members[1].seals.is_empty() {
            world.pass();
        }
        // What it reported is on its way still.
        if killed {
            world.kill_member(1);
        } else {
            world.cut(1);
        }
        world.run_for(Duration::from_secs(1));
        assert!(world.answers.is_empty());
        world.connect(1);
        world.run_for(Duration::from_secs(1));
        let answer = world.answers.pop().unwrap().1;
        if killed {
            assert!(
                answer.unwrap_err().contains("vm1 did not confirm that it is durable: never heard of it")
            );
        } else {
            assert_eq!(answer.unwrap().state, GroupPointState::Durable);
        }
    }
}

#[test]
fn points_come_at_the_interval_and_nobody_else_is_known() {
    let mut world = World::new(settings(2, Partial::Refuse, Some(Duration::from_secs(10))), 3);
    world.connect_all();
    world.run_for(Duration::from_secs(55));
    world.check();
    assert_eq!(world.coordinator.status(world.now)[0].counts.durable, 5);
    assert!(world.coordinator.handle_request("bakery", false, world.now).is_none());
}
