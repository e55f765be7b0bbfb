//! The spool against a model, and against power cuts, failing storage and damage at every place.

mod damage;
mod faults;
mod rig;
mod sample;

use engine::io::sim::SimStorage;
use proptest::prelude::*;

use self::rig::{Rig, Step, check_holds};
use super::*;

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1u64..8, 0u64..9).prop_map(|(count, kib)| Step::Append(count, kib)),
        4 => (0u64..=8).prop_map(Step::Retire),
        1 => Just(Step::Compact),
        1 => Just(Step::Adopt),
        2 => Just(Step::Kill),
    ]
}

proptest! {
    #[test]
    fn it_holds_what_the_model_holds(steps in prop::collection::vec(step(), 0..40)) {
        let mut rig = Rig::new(SimStorage::new(), None);
        for step in steps {
            let done = rig.step(step);
            prop_assert!(done || rig.spool.bytes() > rig::BOUNDS.per_stream / 2);
            prop_assert!(rig.spool.bytes() <= rig::BOUNDS.per_stream);
            prop_assert_eq!(rig.room.used(), rig.spool.bytes());
            let life = rig.life().clone();
            check_holds(&mut rig.spool, &life);
        }
        let on_disk: u64 = rig.storage.list(&rig.spool.dir).unwrap().iter()
            .filter(|name| layout::first_of(name).is_some())
            .map(|name| rig.storage.open(&rig.spool.dir.join(name)).unwrap().len().unwrap())
            .sum();
        prop_assert_eq!(on_disk, rig.spool.bytes(), "nothing is left behind");
    }
}

#[test]
fn full_is_full_until_something_is_retired() {
    let mut rig = Rig::new(SimStorage::new(), None);
    while rig.step(Step::Append(2, 8)) {}
    let held = rig.spool.position();
    assert!(!rig.step(Step::Append(2, 8)) && rig.spool.position() == held);
    let error = rig.spool.append(&[rig::frame(&held, 1, 200)]).unwrap_err();
    assert!(error.to_string().contains("256.0 KiB, is full"), "{error}");
    rig.step(Step::Retire(8));
    assert!(rig.step(Step::Append(2, 8)));
}

#[test]
fn a_segment_of_nothing_new_does_not_stand_in_the_way() {
    let mut rig = Rig::new(SimStorage::new(), None);
    // Larger than a segment, so that the last segment alone is nearly all the spool may take.
    assert!(rig.step(Step::Append(1, 200)));
    rig.step(Step::Retire(8));
    assert!(rig.spool.bytes() > 200 << 10);
    assert!(rig.step(Step::Append(1, 200)));
}

#[test]
fn the_file_system_keeps_its_share() {
    let storage = SimStorage::new();
    storage.set_quota(Some(100 << 10));
    let mut rig = Rig::new(storage, None);
    while rig.step(Step::Append(1, 4)) {}
    let error = rig.spool.append(&[rig::frame(&rig.spool.position(), 1, 8)]).unwrap_err();
    assert!(matches!(error, SpoolError::Full(Full::Disk)), "{error}");
    rig.storage.set_quota(None);
    assert!(rig.step(Step::Append(1, 8)));
    let life = rig.life().clone();
    check_holds(&mut rig.spool, &life);
}

#[test]
fn an_unknown_stream_is_unknown_and_a_known_one_is_remembered() {
    let rig = Rig::new(SimStorage::new(), None);
    let other = StreamId(uuid::Uuid::from_u128(7));
    assert!(Spool::open(rig.storage.clone(), other, rig.room.clone()).unwrap().spool.is_none());
    let found = Spool::open(rig.storage.clone(), rig::STREAM, rig.room.clone()).unwrap().spool.unwrap();
    assert_eq!(*found.description(), rig::description());
}
