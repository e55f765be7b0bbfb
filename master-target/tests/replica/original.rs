//! Disks that were at home before: what they held is a point from the start, whatever happens, until nobody wants it.

use std::{path::Path, sync::Arc};

use engine::io::{Storage, sim::SimStorage, write_all_at};
use jiff::Timestamp;
use master_target::{
    home::{Home, Original},
    journal::SealedPoint,
    replica::Replica,
    restore::Select,
    retention::Policy,
    vmdk::{
        flat::{self, NewDisk, Provisioning},
        geometry::{AdapterType, Capacity, DiskUuid},
    },
};
use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::{
    admit, apply, cut_everywhere,
    merging::work,
    record_at, rounds,
    scenario::{DISK_BYTES, Source, check_points, home as make_home, images, stream},
};

/// A home that adopts the disks which others would be created as.
fn home(storage: &Arc<SimStorage>) -> Home {
    let original = |disk: &str, name: &str| Original {
        vm: stream().vm,
        disk: disk.into(),
        datastore: "ds1".into(),
        descriptor: Path::new("web-01").join(name),
    };
    Home {
        originals: vec![original("sda", "web-01.vmdk"), original("sdb", "web-01_1.vmdk")],
        ..make_home(storage)
    }
}

/// Disks that hold something, and a source that goes on from there: its first point is what they held.
fn adopted(seed: u64) -> (Arc<SimStorage>, Source) {
    let storage = Arc::new(SimStorage::new());
    let (mut source, mut rng) = (Source::new(seed), StdRng::seed_from_u64(seed));
    for (name, image) in ["web-01", "web-01_1"].into_iter().zip(&mut source.images) {
        let new = NewDisk {
            name: name.parse().unwrap(),
            capacity: Capacity::for_bytes(DISK_BYTES).unwrap(),
            provisioning: Provisioning::Thin,
            adapter: AdapterType::default(),
            uuid: DiskUuid::random(&mut rng),
        };
        let disk = flat::create(storage.as_ref(), Path::new("web-01"), &new, &mut rng, &mut |_, _| {});
        rng.fill(&mut image[..]);
        let device = storage.device(&disk.unwrap().flat).unwrap();
        write_all_at(device.as_ref(), 0, image).unwrap();
        device.sync().unwrap();
    }
    // They were there long before.
    storage.forget_log();
    let found = SealedPoint::before_failback(stream().id, Timestamp::UNIX_EPOCH);
    source.points.push((found.point.id, source.images.clone()));
    (storage, source)
}

#[test]
fn a_power_cut_at_every_write_and_sync_loses_neither_them_nor_a_point() {
    for seed in 0..rounds(1) {
        let (storage, source) = adopted(seed);
        cut_everywhere(&record_at(home, storage, source, seed, 7), seed);
    }
}

/// Before the first seal there is a way back already, and from there forward again.
#[test]
fn they_are_restored_before_there_is_another_point() {
    let (storage, mut source) = adopted(1);
    let mut replica = admit(&home(&storage));
    check_points(&storage, &mut replica, &source.points);
    apply(&mut replica, &[source.data(), source.data()]);
    assert!(images(&storage) == source.images);
    check_points(&storage, &mut replica, &source.points);
    drop(replica);
    check_points(&storage, &mut admit(&home(&storage)), &source.points);
}

#[test]
fn retention_leaves_them_alone_until_they_are_unpinned() {
    for seed in 0..rounds(10) {
        let (storage, mut source) = adopted(seed);
        let home = home(&storage);
        let mut replica = admit(&home);
        let policy = Policy { points: 3, bytes: 100 << 10, ..Policy::everything() };
        let go_on = |replica: &mut Replica, source: &mut Source| {
            for _ in 0..30 {
                apply(replica, &[source.next()]);
                replica.retire(&policy, Timestamp::UNIX_EPOCH).unwrap();
                work(replica, |_| {});
            }
            let kept: Vec<_> = replica.state().points.values().map(|point| point.point.id).collect();
            source.points.retain(|(id, _)| kept.contains(id));
        };
        go_on(&mut replica, &mut source);
        assert!(replica.state().before_failback().is_some() && source.points.len() <= 3);
        drop(replica);
        let mut replica = admit(&home);
        check_points(&storage, &mut replica, &source.points);

        let found = replica.select(&Select::BeforeFailback).unwrap();
        replica.pin(&found, false).unwrap();
        go_on(&mut replica, &mut source);
        assert!(replica.state().before_failback().is_none() && replica.state().oldest > 0);
        check_points(&storage, &mut replica, &source.points);
    }
}

#[test]
fn disks_that_are_to_stay_as_they_were_can_be_accepted_so() {
    let (storage, mut source) = adopted(7);
    let mut replica = admit(&home(&storage));
    apply(&mut replica, &[source.data(), source.seal(), source.data()]);
    let found = replica.select(&Select::BeforeFailback).unwrap();
    replica.restore(&found, &mut |_, _| true).unwrap();
    replica.accept_restore().unwrap();
    drop(replica);
    assert!(images(&storage) == source.points[0].1);
    let state = home(&storage).state(stream().id).unwrap();
    assert!(state.accepted && state.points.keys().copied().eq([0]));
    assert!(home(&storage).admit("agent-1", &stream()).is_err());
}
