//! Power cuts at every step of a creation and of a rewrite, and every single failure of the disk.

use engine::io::sim::{Fault, SimOp, SimStorage};
use rand::{SeedableRng, rngs::StdRng};

use super::*;
use crate::vmdk::adopt::open_for_writing;

/// Different subsets of the unsynced changes that are tried at each step.
const SEEDS: u64 = 12;

const DESCRIPTOR: &str = "vm/web-01.vmdk";

fn rng() -> StdRng {
    StdRng::seed_from_u64(7)
}

fn disk(provisioning: Provisioning) -> NewDisk {
    NewDisk {
        name: "web-01".parse().expect("a name"),
        capacity: Capacity::for_bytes(2 << 20).expect("a size"),
        provisioning,
        adapter: AdapterType::LsiLogic,
        uuid: DiskUuid::random(&mut rng()),
    }
}

fn make(storage: &SimStorage, disk: &NewDisk) -> Result<FlatDisk, FlatError> {
    create(storage, Path::new("vm"), disk, &mut rng(), &mut |_, _| {})
}

/// Every disk that a power cut after `at` entries of the log may leave, with a name for messages.
fn cuts(storage: &SimStorage, at: usize) -> impl Iterator<Item = (String, SimStorage)> {
    let named = move |what: String, cut| (format!("cut after {at} entries, {what}"), cut);
    let extremes = [("all", storage.power_cut_all_kept(at)), ("none", storage.power_cut_none_kept(at))];
    extremes
        .into_iter()
        .map(move |(what, cut)| named(format!("{what} kept"), cut))
        .chain((0..SEEDS).map(move |seed| named(format!("seed {seed}"), storage.power_cut(at, seed))))
}

/// That what stands there is the whole disk and reads as zeros.
fn check_whole(storage: &SimStorage, disk: &NewDisk, when: &str) {
    let found = open_for_writing(storage, Path::new(DESCRIPTOR))
        .unwrap_or_else(|refused| panic!("{when}: {refused}"));
    assert_eq!((found.capacity, found.uuid), (disk.capacity, Some(disk.uuid)), "{when}");
    let mut bytes = vec![1; disk.capacity.bytes() as usize];
    let flat = storage.open(&found.flat).expect("the flat file");
    flat.read_exact_at(&mut bytes, 0).expect("all its bytes");
    assert!(bytes.iter().all(|byte| *byte == 0), "{when}: not zeros");
}

fn has_descriptor(storage: &SimStorage) -> bool {
    storage.exists(Path::new(DESCRIPTOR)).expect("an answer")
}

#[test]
fn a_cut_creation_leaves_no_disk_or_the_whole_disk_and_can_be_repeated() {
    for provisioning in [Provisioning::Thin, Provisioning::EagerlyZeroed] {
        let (storage, disk) = (SimStorage::new(), disk(provisioning));
        make(&storage, &disk).expect("a disk");
        let mut without = 0;
        for at in 0..=storage.log_len() {
            for (when, cut) in cuts(&storage, at) {
                if !has_descriptor(&cut) {
                    without += 1;
                    make(&cut, &disk).unwrap_or_else(|error| panic!("{when}: {error}"));
                }
                check_whole(&cut, &disk, &when);
            }
        }
        assert!(without > 100, "only {without} cuts came before the end");
        let (_, after) = cuts(&storage, storage.log_len()).nth(1).expect("the cut that keeps least");
        assert!(has_descriptor(&after), "a created disk is not durable");
    }
}

#[test]
fn eagerly_written_zeros_keep_their_space() {
    let (storage, disk) = (SimStorage::new(), disk(Provisioning::EagerlyZeroed));
    storage.set_quota(Some(16 << 20));
    make(&storage, &disk).expect("a disk");
    let left = storage.power_cut_none_kept(storage.log_len()).free_space().expect("a number");
    assert!(left <= 14 << 20, "{left} bytes are free after a power cut");
}

#[test]
fn a_cut_in_the_clearing_away_of_a_cut_creation_can_be_repeated_too() {
    let (first, disk) = (SimStorage::new(), disk(Provisioning::Thin));
    make(&first, &disk).expect("a disk");
    for at in 0..=first.log_len() {
        let cut = first.power_cut_all_kept(at);
        if has_descriptor(&cut) {
            continue;
        }
        make(&cut, &disk).expect("a disk");
        for again in 0..=cut.log_len() {
            for (when, twice) in cuts(&cut, again) {
                if !has_descriptor(&twice) {
                    make(&twice, &disk)
                        .unwrap_or_else(|error| panic!("first after {at}, then {when}: {error}"));
                }
                check_whole(&twice, &disk, &when);
            }
        }
    }
}

#[test]
fn a_cut_rewrite_leaves_the_old_text_or_the_new() {
    let (storage, disk) = (SimStorage::new(), disk(Provisioning::Thin));
    make(&storage, &disk).expect("a disk");
    let read = |storage: &SimStorage| read_text(storage, Path::new(DESCRIPTOR)).expect("a descriptor");
    let old = read(&storage);
    let start = storage.log_len();
    change_content_id(&storage, Path::new(DESCRIPTOR), &mut rng()).expect("a new content id");
    let new = read(&storage);
    assert_ne!(old, new);
    for at in start..=storage.log_len() {
        for (when, cut) in cuts(&storage, at) {
            let found = read(&cut);
            assert!(found == new || found == old && at < storage.log_len(), "{when}: {found:?}");
            change_content_id(&cut, Path::new(DESCRIPTOR), &mut rng())
                .unwrap_or_else(|error| panic!("{when}: {error}"));
        }
    }
}

#[test]
fn a_failing_disk_leaves_nothing_that_the_next_try_cannot_clear() {
    let disk = disk(Provisioning::EagerlyZeroed);
    for op in [
        SimOp::Create,
        SimOp::Write,
        SimOp::SetLen,
        SimOp::Sync,
        SimOp::SyncDir,
        SimOp::Rename,
        SimOp::CreateDir,
    ] {
        for nth in 1..10 {
            let storage = SimStorage::new();
            storage.fail(op, nth, Fault::Io);
            let Err(error) = make(&storage, &disk) else { continue };
            assert!(error.to_string().contains("error"), "{error}");
            // A clone is the same disk for a new process: handles that died stay dead.
            let next = storage.clone();
            if !has_descriptor(&next) {
                make(&next, &disk).unwrap_or_else(|error| panic!("after failure {nth} of {op:?}: {error}"));
            }
            check_whole(&next, &disk, &format!("failure {nth} of {op:?}"));
        }
    }
}

#[test]
fn a_full_datastore_gets_its_space_back() {
    let (storage, disk) = (SimStorage::new(), disk(Provisioning::EagerlyZeroed));
    storage.set_quota(Some(1 << 20));
    let error = make(&storage, &disk).expect_err("2 MiB do not fit in 1 MiB");
    assert!(
        matches!(&error.kind, FlatErrorKind::Io("write zeros", source) if source.kind() == io::ErrorKind::StorageFull),
        "{error}"
    );
    assert_eq!(storage.list(Path::new("vm")).expect("names"), [""; 0]);
    assert_eq!(storage.free_space().expect("a number"), 1 << 20);
}
