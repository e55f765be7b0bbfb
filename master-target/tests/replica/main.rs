//! The replica as users would break it: every point exact, whatever happens at whatever moment.
//!
//! Counts are bounded for CI; `HOMEWARD_ROUNDS=N` multiplies them (CONTRIBUTING.md).

#![allow(clippy::unwrap_used)]

mod merging;
mod month;
mod open_images;
mod original;
mod resync;
mod rot;
mod scenario;
mod space;

use std::{sync::Arc, time::Instant};

use engine::{
    frame::Frame,
    io::sim::{Fault, SimOp, SimStorage},
    session::Link,
};
use jiff::Timestamp;
use master_target::{home::Home, node::StreamNode, replica::Replica, retention::Policy};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use scenario::{Source, check_points, home as make_home, images, stream};

fn rounds(base: u64) -> u64 {
    base * std::env::var("HOMEWARD_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(1)
}

fn admit(home: &Home) -> Replica {
    home.admit("agent-1", &stream()).unwrap()
}

fn apply(replica: &mut Replica, frames: &[Frame]) {
    replica.apply(frames, Timestamp::UNIX_EPOCH).unwrap();
}

/// Frames that are received already when a restore begins, and a connection that was let in before it.
#[test]
fn nothing_is_applied_while_the_disks_are_those_of_a_point() {
    let storage = Arc::new(SimStorage::new());
    let mut source = Source::new(1);
    let mut replica = admit(&make_home(&storage));
    apply(&mut replica, &[source.data(), source.seal(), source.data()]);
    let (id, expected) = source.points[0].clone();
    let point = replica.state().point(id).unwrap().clone();
    let later = source.data();

    let mut node = StreamNode::new(replica, Policy::everything());
    let now = Instant::now();
    let receive = |node: &mut StreamNode| {
        node.handle_connected(Link::new(None, now), now);
        node.handle_bytes(later.bytes(), now);
    };
    receive(&mut node);
    assert!(node.has_work(now));
    node.handle_restore();
    node.replica_mut().restore(&point, &mut |_, _| true).unwrap();
    assert!(!node.has_work(now));
    receive(&mut node);
    assert!(!node.has_work(now) && !node.is_connected());
    assert!(node.replica_mut().apply(std::slice::from_ref(&later), Timestamp::UNIX_EPOCH).is_err());
    assert!(images(&storage) == expected);

    node.replica_mut().undo_restore(&mut |_, _| true).unwrap();
    receive(&mut node);
    assert!(node.has_work(now));
    node.commit(now, Timestamp::UNIX_EPOCH).unwrap();
    assert!(images(&storage) == source.images);
}

#[test]
fn every_point_restores_and_replication_goes_on() {
    for seed in 0..rounds(60) {
        let storage = Arc::new(SimStorage::new());
        let home = make_home(&storage);
        let mut source = Source::new(seed);
        let mut rng = StdRng::seed_from_u64(seed);
        let mut replica = admit(&home);
        for _ in 0..rng.random_range(1..25) {
            let frames: Vec<Frame> = (0..rng.random_range(1..6)).map(|_| source.next()).collect();
            apply(&mut replica, &frames);
            assert!(images(&storage) == source.images, "seed {seed}");
            assert_eq!(replica.position(), source.position);
            match rng.random_range(0..6) {
                0 => {
                    replica = {
                        drop(replica);
                        admit(&home)
                    }
                }
                1 => check_points(&storage, &mut replica, &source.points),
                _ => {}
            }
        }
        check_points(&storage, &mut replica, &source.points);
    }
}

/// A recorded replication: for each batch the log's length when it was acknowledged, and what was sealed by then.
struct Recording {
    home: fn(&Arc<SimStorage>) -> Home,
    storage: Arc<SimStorage>,
    source: Source,
    frames: Vec<Frame>,
    /// Log length at the acknowledgement, frames and points acknowledged with it.
    acks: Vec<(usize, usize, usize)>,
}

fn record(seed: u64, batches: usize) -> Recording {
    record_at(make_home, Arc::new(SimStorage::new()), Source::new(seed), seed, batches)
}

fn record_at(
    home: fn(&Arc<SimStorage>) -> Home,
    storage: Arc<SimStorage>,
    mut source: Source,
    seed: u64,
    batches: usize,
) -> Recording {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut replica = admit(&home(&storage));
    let (mut frames, mut acks) = (Vec::new(), vec![(storage.log_len(), 0, source.points.len())]);
    for _ in 0..batches {
        let batch: Vec<Frame> = (0..rng.random_range(1..4)).map(|_| source.next()).collect();
        apply(&mut replica, &batch);
        frames.extend(batch);
        acks.push((storage.log_len(), frames.len(), source.points.len()));
    }
    Recording { home, storage, source, frames, acks }
}

/// After a crash at entry `at` of the log, `storage` is what is left: everything acknowledged must be there, and
/// replication must go on to the same end.
fn check_crash(recording: &Recording, at: usize, storage: SimStorage, what: &str) {
    let storage = &Arc::new(storage);
    let acked = recording.acks.iter().rev().find(|(log, ..)| *log <= at).copied();
    let home = (recording.home)(storage);
    let mut replica = match home.admit("agent-1", &stream()) {
        Ok(replica) => replica,
        Err(error) => panic!("seed, {what} at {at} ({}): {error}", recording.storage.describe(at.max(1) - 1)),
    };
    let position = replica.position().seq.0 as usize;
    let (_, frames, points) = acked.unwrap_or((0, 0, 0));
    assert!(position >= frames, "{what} at {at}: acknowledged {frames}, found {position}");
    check_points(storage, &mut replica, &recording.source.points[..points]);
    apply(&mut replica, &recording.frames[position..]);
    assert!(images(storage) == recording.source.images, "{what} at {at}: the end differs");
    check_points(storage, &mut replica, &recording.source.points);
}

#[test]
fn a_power_cut_at_every_write_and_sync_loses_nothing() {
    (0..rounds(2)).for_each(|seed| cut_everywhere(&record(seed, 12), seed));
}

fn cut_everywhere(recording: &Recording, seed: u64) {
    for at in 0..=recording.storage.log_len() {
        check_crash(recording, at, recording.storage.power_cut_none_kept(at), "cut, nothing unsynced kept");
        check_crash(recording, at, recording.storage.power_cut_all_kept(at), "cut, everything kept");
        for subset in 0..2 {
            let seed = seed * 1000 + subset;
            check_crash(recording, at, recording.storage.power_cut(at, seed), "cut, a subset kept");
        }
    }
}

#[test]
fn a_power_cut_during_a_restore_or_its_undo_loses_nothing() {
    for seed in 0..rounds(2) {
        let recording = record(seed + 100, 10);
        let (storage, points) = (&recording.storage, &recording.source.points);
        let Some((first, _)) = points.first() else { continue };
        let mut replica = admit(&make_home(storage));
        let start = storage.log_len();
        let point = replica.state().point(*first).unwrap().clone();
        replica.restore(&point, &mut |_, _| true).unwrap();
        let restored = storage.log_len();
        replica.undo_restore(&mut |_, _| true).unwrap();
        let undone = storage.log_len();
        for at in start..=undone {
            for subset in 0..3 {
                let storage = match subset {
                    0 => storage.power_cut_none_kept(at),
                    1 => storage.power_cut_all_kept(at),
                    _ => storage.power_cut(at, seed * 1000 + at as u64),
                };
                let storage = Arc::new(storage);
                let mut replica = make_home(&storage).open(stream().id).unwrap();
                if at == restored {
                    assert!(images(&storage) == points[0].1, "a completed restore stays");
                }
                check_points(&storage, &mut replica, points);
                assert!(images(&storage) == recording.source.images, "cut at {at} of {start}..{undone}");
            }
        }
    }
}

#[test]
fn a_full_disk_stops_replication_until_there_is_room() {
    for seed in 0..rounds(12) {
        let storage = Arc::new(SimStorage::new());
        let home = make_home(&storage);
        let mut source = Source::new(seed);
        let mut replica = admit(&home);
        let mut stops = 0;
        storage.set_quota(Some(40 << 10));
        let mut quota = 40 << 10;
        for _ in 0..25 {
            let batch = [source.next(), source.next()];
            loop {
                let done = replica.position().seq.0;
                let rest: Vec<Frame> = batch.iter().filter(|f| f.header().seq.0 > done).cloned().collect();
                match replica.apply(&rest, Timestamp::UNIX_EPOCH) {
                    Ok(_) => break,
                    Err(error) => {
                        assert!(error.is_no_space(), "{error}");
                        stops += 1;
                        quota += 16 << 10;
                        storage.set_quota(Some(quota));
                    }
                }
            }
        }
        assert!(stops > 0, "seed {seed} never ran out of space");
        storage.set_quota(None);
        assert!(images(&storage) == source.images);
        check_points(&storage, &mut replica, &source.points);
    }
}

#[test]
fn an_io_error_at_any_operation_loses_nothing() {
    for op in [SimOp::Write, SimOp::Sync, SimOp::Read, SimOp::Create, SimOp::SyncDir] {
        for nth in 1..40 {
            let mut storage = Arc::new(SimStorage::new());
            let mut home = make_home(&storage);
            let mut source = Source::new(nth);
            let mut replica = admit(&home);
            storage.fail(op, nth, Fault::Io);
            for _ in 0..15 {
                let batch = [source.next(), source.next()];
                loop {
                    let done = replica.position().seq.0;
                    let rest: Vec<Frame> =
                        batch.iter().filter(|f| f.header().seq.0 > done).cloned().collect();
                    match replica.apply(&rest, Timestamp::UNIX_EPOCH) {
                        Ok(_) => break,
                        // As the driver does it: open the replica again, or, with a storage that is dead after a
                        // failed sync of a folder, start the whole service again.
                        Err(_) => {
                            drop(replica);
                            replica = home.admit("agent-1", &stream()).unwrap_or_else(|_| {
                                storage = Arc::new(SimStorage::clone(&storage));
                                home = make_home(&storage);
                                admit(&home)
                            });
                        }
                    }
                }
            }
            assert!(images(&storage) == source.images, "{op:?} {nth}");
            drop(replica);
            // A clone has no fault ordered any more.
            let storage = Arc::new(SimStorage::clone(&storage));
            check_points(&storage, &mut admit(&make_home(&storage)), &source.points);
        }
    }
}

#[test]
fn a_rotten_byte_in_the_journal_is_named_or_harmless_never_applied() {
    let mut named = 0;
    for seed in 0..rounds(150) {
        let recording = record(seed % 7, 10);
        let storage = Arc::new(recording.storage.power_cut_all_kept(recording.storage.log_len()));
        let mut rng = StdRng::seed_from_u64(seed);
        let dir = stream().id.to_string();
        let files = engine::io::Storage::list(storage.as_ref(), dir.as_ref()).unwrap();
        let name = &files[rng.random_range(0..files.len())];
        let path = std::path::Path::new(&dir).join(name);
        let len = engine::io::Storage::open(storage.as_ref(), &path).unwrap().len().unwrap();
        let at = rng.random_range(0..len);
        storage.flip_bits(&path, at, 1 << rng.random_range(0..8)).unwrap();

        let error = match make_home(&storage).open(stream().id) {
            Err(error) => error.to_string(),
            Ok(mut replica) => {
                let failed = recording.source.points.iter().rev().find_map(|(id, expected)| {
                    let point = replica
                        .state()
                        .point(*id)
                        .unwrap_or_else(|| panic!("{name} byte {at}: lost {id}"))
                        .clone();
                    let before = (images(&storage), replica.restore_state());
                    let result = replica.restore(&point, &mut |_, _| true);
                    if result.is_ok() {
                        assert!(
                            images(&storage) == *expected,
                            "{name} byte {at}: a wrong point was restored"
                        );
                    } else {
                        let after = (images(&storage), replica.restore_state());
                        assert!(before == after, "{name} byte {at}: a restore that is refused has begun");
                    }
                    result.err()
                });
                let Some(error) = failed else { continue };
                error.to_string()
            }
        };
        assert!(error.contains(name.as_str()) && error.contains("damaged"), "{name} byte {at}: {error}");
        named += 1;
    }
    assert!(named > 10, "hardly any damage was noticed: {named}");
}

#[test]
fn a_frame_that_was_tampered_with_is_refused_before_it_touches_a_disk() {
    let storage = Arc::new(SimStorage::new());
    let mut source = Source::new(1);
    let mut replica = admit(&make_home(&storage));
    let good = source.data();
    let mut other = Source::new(2);
    other.data();
    let log = storage.log_len();
    // Whole and intact, but of another history.
    let error = replica.apply(&[other.data()], Timestamp::UNIX_EPOCH).unwrap_err();
    assert!(error.is_peers_fault(), "{error}");
    assert_eq!(storage.log_len(), log, "nothing was written");
    apply(&mut replica, &[good]);
}

#[test]
fn another_agent_or_another_set_of_disks_is_refused() {
    let storage = Arc::new(SimStorage::new());
    let home = make_home(&storage);
    drop(admit(&home));
    let why = |agent: &str, change: &dyn Fn(&mut engine::frame::StreamInfo)| {
        let mut stream = stream();
        change(&mut stream);
        home.admit(agent, &stream).err().unwrap().why
    };
    use engine::frame::Refusal;
    assert_eq!(why("agent-2", &|_| {}), Refusal::NotYours);
    assert_eq!(why("agent-2", &|s| s.id = engine::units::StreamId::random()), Refusal::NotYours);
    assert_eq!(why("agent-1", &|s| s.disks[0].bytes += 512), Refusal::BadRequest);
    assert_eq!(
        why("agent-1", &|s| s.id = engine::units::StreamId::random()),
        Refusal::BadRequest,
        "files exist"
    );
}

#[test]
fn the_oldest_points_are_retired_and_the_others_stay_exact() {
    for seed in 0..rounds(20) {
        let storage = Arc::new(SimStorage::new());
        let home = make_home(&storage);
        let mut source = Source::new(seed);
        let mut replica = admit(&home);
        let policy = Policy { points: 4, bytes: 200 << 10, ..Policy::everything() };
        for _ in 0..40 {
            let frame = source.next();
            apply(&mut replica, &[frame]);
            replica.retire(&policy, Timestamp::UNIX_EPOCH).unwrap();
        }
        let kept: Vec<_> = replica.state().points.values().map(|point| point.point.id).collect();
        assert!(kept.len() <= 4);
        source.points.retain(|(id, _)| kept.contains(id));
        drop(replica);
        check_points(&storage, &mut admit(&home), &source.points);
    }
}
