//! A point that somebody looks at stays what it is, whatever the replica does meanwhile.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use engine::{
    frame::Frame,
    io::sim::{SimOp, SimStorage},
    units::DiskIndex,
};
use jiff::Timestamp;
use master_target::{image::PointImage, retention::Policy};
use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::{
    admit, apply, rounds,
    scenario::{DISK_BYTES, Images, Source, home as make_home},
};

/// Reads a random range of each disk and compares; what is said to be a hole must be zeros.
fn check(image: &PointImage, expected: &Images, rng: &mut StdRng) {
    for (disk, expected) in expected.iter().enumerate() {
        let from = rng.random_range(0..DISK_BYTES);
        let to = rng.random_range(from..=DISK_BYTES);
        let disk = DiskIndex(disk as u16);
        let mut bytes = vec![0xEE; (to - from) as usize];
        image.read_at(disk, from, &mut bytes).unwrap();
        assert!(bytes == expected[from as usize..to as usize], "{disk} {from}..{to} is not as of the point");
        let mut at = from as usize;
        for (len, hole) in image.holes(disk, from, to - from).unwrap() {
            assert!(len > 0);
            let run = &expected[at..at + len as usize];
            assert!(!hole || run.iter().all(|byte| *byte == 0), "{disk} at {at}: no hole");
            at += run.len();
        }
        assert_eq!(at as u64, to, "the runs are not the range");
    }
}

#[test]
fn an_open_image_stays_exact_while_the_replica_goes_on() {
    for seed in 0..rounds(30) {
        let storage = Arc::new(SimStorage::new());
        let mut source = Source::new(seed);
        let mut rng = StdRng::seed_from_u64(seed);
        let mut replica = admit(&make_home(&storage));
        let policy = Policy { points: 6, ..Policy::everything() };
        let mut open: Vec<(PointImage, Images)> = Vec::new();
        for _ in 0..40 {
            let frames: Vec<Frame> = (0..rng.random_range(1..6)).map(|_| source.next()).collect();
            apply(&mut replica, &frames);
            let kept: Vec<_> = replica.state().points.values().cloned().collect();
            if !kept.is_empty() {
                let point = &kept[rng.random_range(0..kept.len())];
                let (_, expected) = source.points.iter().find(|(id, _)| *id == point.point.id).unwrap();
                match rng.random_range(0..5) {
                    0 | 1 => open.push((replica.open_image(point).unwrap(), expected.clone())),
                    2 => {
                        replica.restore(point, &mut |_, _| true).unwrap();
                        open.iter().for_each(|(image, expected)| check(image, expected, &mut rng));
                        open.push((replica.open_image(point).unwrap(), expected.clone()));
                        replica.undo_restore(&mut |_, _| true).unwrap();
                    }
                    _ => {}
                }
            }
            replica.retire(&policy, Timestamp::UNIX_EPOCH).unwrap();
            if let Some(task) = replica.task() {
                let done = task.run(&mut |_| true).unwrap();
                replica.finish_task(done).unwrap();
            }
            open.iter().for_each(|(image, expected)| check(image, expected, &mut rng));
            if open.len() > 4 {
                open.swap_remove(rng.random_range(0..open.len()));
            }
        }
        let last = open.pop();
        drop(replica);
        if let Some((image, _)) = last {
            let error = image.read_at(DiskIndex(0), 0, &mut [0; 512]).unwrap_err().to_string();
            assert!(error.contains("open the point again"), "{error}");
        }
    }
}

#[test]
fn an_open_image_is_exact_between_any_two_writes() {
    for seed in 0..rounds(5) {
        let storage = Arc::new(SimStorage::new());
        let mut source = Source::new(seed);
        let mut replica = admit(&make_home(&storage));
        while source.points.len() < 3 {
            apply(&mut replica, &[source.next()]);
        }
        let (id, expected) = source.points[1].clone();
        let point = replica.state().point(id).unwrap().clone();
        let image = replica.open_image(&point).unwrap();
        let state = Mutex::new(StdRng::seed_from_u64(seed));
        let (busy, checks) = (AtomicBool::new(false), Arc::new(AtomicU64::new(0)));
        let counted = Arc::clone(&checks);
        storage.set_hook(move |event| {
            let changes = matches!(event.op, SimOp::Write | SimOp::Zero | SimOp::Sync);
            // The reads of the check itself come here as well.
            if changes && !busy.swap(true, Ordering::Relaxed) {
                check(&image, &expected, &mut state.lock().unwrap());
                counted.fetch_add(1, Ordering::Relaxed);
                busy.store(false, Ordering::Relaxed);
            }
        });
        for _ in 0..30 {
            replica.apply(&[source.next()], Timestamp::UNIX_EPOCH).unwrap();
        }
        assert!(checks.load(Ordering::Relaxed) > 50);
        storage.set_hook(|_| {});
    }
}
