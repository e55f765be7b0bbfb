//! Retention and merging: whatever is dropped and merged, whenever the power goes, every kept point is exact, and no
//! more space is taken than the kept points need.

use std::sync::Arc;

use engine::{
    frame::Frame,
    io::{Storage, sim::SimStorage},
    point::PointId,
};
use jiff::Timestamp;
use master_target::{replica::Replica, retention::Policy};
use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::{
    admit, apply, rounds,
    scenario::{Images, Source, check_points, home as make_home, stream},
};

/// Does tasks until there are none; in between somebody may look.
pub fn work(replica: &mut Replica, mut look: impl FnMut(&mut Replica)) {
    while let Some(task) = replica.task() {
        let done = task.run(&mut |_| true).unwrap();
        look(replica);
        replica.finish_task(done).unwrap();
    }
}

/// Drops random points, never the newest.
pub fn drop_some(replica: &mut Replica, rng: &mut StdRng) {
    let kept: Vec<_> = replica.state().points.values().cloned().collect();
    for point in &kept {
        if rng.random_range(0..3) > 0 {
            replica.pin(point, true).unwrap();
        }
    }
    let policy = Policy { points: 1, ..Policy::everything() };
    replica.retire(&policy, Timestamp::UNIX_EPOCH).unwrap();
    let pinned: Vec<_> = replica.state().points.values().cloned().collect();
    for point in &pinned {
        replica.pin(point, false).unwrap();
    }
}

fn kept(replica: &Replica, source: &Source) -> Vec<(PointId, Images)> {
    let is_kept = |(id, _): &&(PointId, Images)| replica.state().point(*id).is_some();
    source.points.iter().filter(is_kept).cloned().collect()
}

#[test]
fn random_epochs_and_random_merges_keep_every_kept_point_exact() {
    for seed in 0..rounds(25) {
        let storage = Arc::new(SimStorage::new());
        let home = make_home(&storage);
        let mut source = Source::new(seed);
        let mut rng = StdRng::seed_from_u64(seed);
        let mut replica = admit(&home);
        for _ in 0..rng.random_range(10..40) {
            let frames: Vec<Frame> = (0..rng.random_range(1..8)).map(|_| source.next()).collect();
            apply(&mut replica, &frames);
            match rng.random_range(0..8) {
                0 | 1 => drop_some(&mut replica, &mut rng),
                2 | 3 => {
                    // A task that was begun before may end after anything.
                    if let Some(task) = replica.task() {
                        let done = task.run(&mut |_| true).unwrap();
                        apply(&mut replica, &[source.next()]);
                        if rng.random_range(0..2) == 0 {
                            drop_some(&mut replica, &mut rng);
                        }
                        replica.finish_task(done).unwrap();
                    }
                }
                4 => work(&mut replica, |_| {}),
                5 => {
                    drop(replica);
                    replica = admit(&home);
                }
                6 => check_kept(&storage, &mut replica, &source),
                _ => {}
            }
        }
        work(&mut replica, |_| {});
        check_kept(&storage, &mut replica, &source);
    }
}

fn check_kept(storage: &SimStorage, replica: &mut Replica, source: &Source) {
    let kept = kept(replica, source);
    check_points(storage, replica, &kept);
}

#[test]
fn a_power_cut_at_every_write_of_dropping_and_merging_loses_nothing() {
    for seed in 0..rounds(2) {
        let storage = Arc::new(SimStorage::new());
        let mut source = Source::new(seed);
        let mut rng = StdRng::seed_from_u64(seed);
        let mut replica = admit(&make_home(&storage));
        while source.points.len() < 10 {
            apply(&mut replica, &[source.next()]);
        }
        let begin = storage.log_len();
        // Of these some are dropped, so a power cut may find them or not; the others it must find.
        let before = kept(&replica, &source);
        drop_some(&mut replica, &mut rng);
        work(&mut replica, |_| {});
        apply(&mut replica, &[source.seal()]);
        let after = kept(&replica, &source);
        let end = storage.log_len();
        assert!(end > begin + 10, "nothing was merged");
        for at in begin..=end {
            for subset in 0..3 {
                let cut = Arc::new(match subset {
                    0 => storage.power_cut_none_kept(at),
                    1 => storage.power_cut_all_kept(at),
                    _ => storage.power_cut(at, seed * 1000 + at as u64),
                });
                let mut replica = make_home(&cut).open(stream().id).unwrap();
                let there = kept(&replica, &source);
                let last_of_all = source.points.last().unwrap().0;
                assert!(
                    after
                        .iter()
                        .all(|(id, _)| *id == last_of_all || there.iter().any(|(found, _)| found == id)),
                    "a point that was not dropped is lost: cut at {at}"
                );
                assert!(
                    there
                        .iter()
                        .all(|(id, _)| *id == last_of_all || before.iter().any(|(known, _)| known == id))
                );
                check_points(&cut, &mut replica, &there);
                work(&mut replica, |_| {});
                check_points(&cut, &mut replica, &there);
                let names = cut.list(stream().id.to_string().as_ref()).unwrap();
                let logs = names.iter().filter(|name| name.ends_with(".undo")).count();
                assert!(logs <= replica.state().layers.len() + 1, "leftovers: {names:?}");
            }
        }
    }
}
