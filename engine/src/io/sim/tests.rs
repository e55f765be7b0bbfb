use std::{collections::HashSet, time::Instant};

use proptest::prelude::*;
use tempfile::tempdir;

use super::*;
use crate::io::{AlignedBuf, Backend, FolderStorage, Op, read_exact_at, write_all_at};

fn content(storage: &dyn Storage, path: &str) -> Option<Vec<u8>> {
    let file = storage.open(Path::new(path)).ok()?;
    let mut bytes = vec![0; file.len().unwrap() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    Some(bytes)
}

/// An operation on one of a few paths.
#[derive(Clone, Debug)]
enum Step {
    Create(usize),
    CreateDir(usize),
    Rename(usize, usize),
    Remove(usize),
    Write(usize, u64, Vec<u8>),
    Read(usize, u64, usize),
    SetLen(usize, u64),
    Sync(usize),
    SyncDir(usize),
    List(usize),
    Exists(usize),
    Device(usize, u64, bool),
}

const PATHS: [&str; 9] = ["a", "b", "d", "d/a", "d/b", "d/e", "d/e/a", "d/e/x/y", "./a"];

fn step() -> impl Strategy<Value = Step> {
    let path = || 0..PATHS.len();
    let offset = || prop_oneof![0u64..20_000, 4090u64..4100];
    prop_oneof![
        path().prop_map(Step::Create),
        path().prop_map(Step::CreateDir),
        (path(), path()).prop_map(|(from, to)| Step::Rename(from, to)),
        path().prop_map(Step::Remove),
        (path(), offset(), prop::collection::vec(any::<u8>(), 0..9000))
            .prop_map(|(path, offset, bytes)| Step::Write(path, offset, bytes)),
        (path(), offset(), 0usize..9000).prop_map(|(path, offset, len)| Step::Read(path, offset, len)),
        (path(), offset()).prop_map(|(path, len)| Step::SetLen(path, len)),
        path().prop_map(Step::Sync),
        path().prop_map(Step::SyncDir),
        path().prop_map(Step::List),
        path().prop_map(Step::Exists),
        (path(), 0u64..6, any::<bool>()).prop_map(|(path, block, zero)| Step::Device(path, block, zero)),
    ]
}

/// Does a step; the answer in words, so that two storages can be compared.
fn perform(storage: &dyn Storage, step: &Step) -> Result<String, io::ErrorKind> {
    let path = |index: &usize| Path::new(PATHS[*index]);
    match step {
        Step::Create(at) => storage.create(path(at)).map(|_| String::new()),
        Step::CreateDir(at) => storage.create_dir_all(path(at)).map(|()| String::new()),
        Step::Rename(from, to) => storage.rename(path(from), path(to)).map(|()| String::new()),
        Step::Remove(at) => storage.remove(path(at)).map(|()| String::new()),
        Step::Write(at, offset, bytes) => storage
            .open(path(at))
            .and_then(|file| file.write_all_at(bytes, *offset).and_then(|()| file.len()))
            .map(|len| len.to_string()),
        Step::Read(at, offset, len) => {
            let mut bytes = vec![0; *len];
            storage
                .open(path(at))
                .and_then(|file| file.read_exact_at(&mut bytes, *offset))
                .map(|()| format!("{bytes:?}"))
        }
        Step::SetLen(at, len) => storage.open(path(at)).and_then(|f| f.set_len(*len)).map(|()| String::new()),
        Step::Sync(at) => storage.open(path(at)).and_then(|file| file.sync()).map(|()| String::new()),
        Step::SyncDir(at) => storage.sync_dir(path(at)).map(|()| String::new()),
        Step::List(at) => storage.list(path(at)).map(|names| format!("{names:?}")),
        Step::Exists(at) => storage.exists(path(at)).map(|found| found.to_string()),
        Step::Device(at, block, zero) => storage.device(path(at)).and_then(|device| {
            let mut op = Op::write(block * 4096, AlignedBuf::copy_of(&[7; 4096]), 0);
            if *zero {
                op = Op::zero(block * 4096, 4096, 0);
            }
            let mut result = Ok(());
            device.run(&mut std::iter::once(op), &mut |_, outcome| result = outcome);
            result.map(|()| device.size().to_string())
        }),
    }
    .map_err(|error| error.kind())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn it_does_what_a_real_folder_does(steps in prop::collection::vec(step(), 0..60)) {
        let dir = tempdir().unwrap();
        let real = FolderStorage::open(dir.path(), Backend::Threads).unwrap();
        let sim = SimStorage::new();
        for (i, step) in steps.iter().enumerate() {
            prop_assert_eq!(perform(&sim, step), perform(&real, step), "step {}: {:?}", i, step);
        }
        for path in PATHS {
            prop_assert!(content(&sim, path) == content(&real, path), "{}", path);
        }
    }

    /// Whatever was synced is there after any cut; with everything kept, the cut disk is the disk.
    #[test]
    fn power_cuts_keep_what_is_synced(steps in prop::collection::vec(step(), 0..60), seed: u64) {
        let sim = SimStorage::new();
        let mut states = vec![];
        for step in &steps {
            let _ = perform(&sim, step);
            states.push((sim.log_len(), sim.clone()));
        }
        for (at, state) in &states {
            let kept = sim.power_cut_all_kept(*at);
            for path in PATHS {
                prop_assert!(content(&kept, path) == content(state, path), "{} at {}", path, at);
            }
        }
        for path in ["", "d", "d/e", "d/e/x"] {
            let _ = sim.sync_dir(Path::new(path));
        }
        for path in PATHS {
            let _ = sim.open(Path::new(path)).and_then(|file| file.sync());
        }
        for after in [sim.power_cut_none_kept(sim.log_len()), sim.power_cut(sim.log_len(), seed)] {
            for path in PATHS {
                prop_assert!(content(&after, path) == content(&sim, path), "{}", path);
            }
        }
    }
}

/// All contents of `path` that cuts at `at` leave over many seeds.
fn outcomes(storage: &SimStorage, at: usize, path: &str) -> HashSet<Option<Vec<u8>>> {
    (0..500).map(|seed| content(&storage.power_cut(at, seed), path)).collect()
}

#[test]
fn unsynced_writes_are_lost_in_any_combination_and_torn_at_sectors() {
    let storage = SimStorage::new();
    let file = storage.create(Path::new("f")).unwrap();
    file.write_all_at(&[1; 1024], 0).unwrap();
    file.sync().unwrap();
    storage.sync_dir(Path::new("")).unwrap();
    file.write_all_at(&[2; 512], 512).unwrap();
    file.write_all_at(&[3; 1024], 1024).unwrap();
    let cut: HashSet<Vec<[u8; 512]>> = outcomes(&storage, storage.log_len(), "f")
        .into_iter()
        .map(|bytes| bytes.unwrap().chunks(512).map(|sector| sector.try_into().unwrap()).collect())
        .collect();
    let mut expected = HashSet::new();
    for second in [1, 2] {
        for tail in [vec![], vec![3], vec![0, 3], vec![3, 3]] {
            let sectors = [vec![1, second], tail].concat();
            expected.insert(sectors.into_iter().map(|fill| [fill; 512]).collect());
        }
    }
    assert_eq!(cut, expected);
}

#[test]
fn names_last_when_their_folder_is_synced() {
    let storage = SimStorage::new();
    let first = storage.create(Path::new("old")).unwrap();
    first.write_all_at(b"1", 0).unwrap();
    first.sync().unwrap();
    let first = || Some(b"1".to_vec());
    assert_eq!(outcomes(&storage, storage.log_len(), "old"), HashSet::from([None, first()]));
    storage.sync_dir(Path::new("")).unwrap();
    assert_eq!(outcomes(&storage, storage.log_len(), "old"), HashSet::from([first()]));

    storage.rename(Path::new("old"), Path::new("new")).unwrap();
    let second = storage.create(Path::new("old")).unwrap();
    second.write_all_at(b"2", 0).unwrap();
    second.sync().unwrap();
    let second = Some(b"2".to_vec());
    let mut seen = HashSet::new();
    for seed in 0..500 {
        let after = storage.power_cut(storage.log_len(), seed);
        seen.insert((content(&after, "old"), content(&after, "new")));
    }
    // Renamed or not, and only if renamed created anew: the first file is always somewhere.
    assert_eq!(seen, HashSet::from([(first(), None), (None, first()), (second, first())]));
    storage.sync_dir(Path::new("")).unwrap();
    storage.remove(Path::new("new")).unwrap();
    assert_eq!(outcomes(&storage, storage.log_len(), "new"), HashSet::from([None, first()]));
}

#[test]
fn a_killed_process_loses_nothing_but_the_power_still_may() {
    let storage = SimStorage::new();
    let file = storage.create(Path::new("f")).unwrap();
    file.write_all_at(b"first", 0).unwrap();
    let after = storage.clone();
    file.write_all_at(b"later", 0).unwrap();
    assert_eq!(content(&after, "f").unwrap(), b"first");
    assert_eq!(content(&after.power_cut_none_kept(after.log_len()), "f"), None);
}

#[test]
fn what_a_failed_sync_left_is_in_doubt_for_good() {
    let storage = SimStorage::new();
    let path = Path::new("f");
    let file = storage.create(path).unwrap();
    storage.sync_dir(Path::new("")).unwrap();
    file.write_all_at(&[1; 512], 0).unwrap();
    storage.fail(SimOp::Sync, 1, Fault::Io);
    assert_eq!(file.sync().unwrap_err().raw_os_error(), Some(libc::EIO));
    assert!(file.write_all_at(b"x", 0).unwrap_err().to_string().contains("earlier sync failed"));

    let again = storage.open(path).unwrap();
    again.write_all_at(&[2; 512], 512).unwrap();
    again.sync().unwrap();
    let expected = [0, 1].map(|first| Some([[first; 512], [2; 512]].concat()));
    assert_eq!(outcomes(&storage, storage.log_len(), "f"), HashSet::from(expected));
}

#[test]
fn a_failed_folder_sync_kills_the_storage() {
    let storage = SimStorage::new();
    assert!(storage.sync_dir(Path::new("none")).is_err());
    storage.create(Path::new("f")).unwrap();
    storage.fail(SimOp::SyncDir, 1, Fault::Io);
    assert!(storage.sync_dir(Path::new("")).is_err());
    assert!(storage.sync_dir(Path::new("")).unwrap_err().to_string().contains("earlier sync failed"));
    assert!(storage.open(Path::new("f")).is_err());
    assert!(storage.clone().open(Path::new("f")).is_ok());
}

#[test]
fn the_ordered_operation_fails_and_no_other() {
    let storage = SimStorage::new();
    let file = storage.create(Path::new("f")).unwrap();
    storage.fail(SimOp::Write, 2, Fault::Io);
    file.write_all_at(&[1; 1024], 0).unwrap();
    file.read_exact_at(&mut [0; 10], 0).unwrap();
    assert!(file.write_all_at(&[2; 1024], 0).is_err());
    assert_eq!(content(&storage, "f").unwrap(), [[2; 512], [1; 512]].concat());
    file.write_all_at(&[3; 1024], 0).unwrap();

    let device = storage.device(Path::new("f")).unwrap();
    storage.fail(SimOp::Write, 1, Fault::Io);
    assert!(write_all_at(&*device, 0, &[4; 512]).is_err());
    write_all_at(&*device, 512, &[4; 512]).unwrap();
    assert_eq!(read_exact_at(&*device, 512, 512).unwrap()[..], [4; 512]);
}

#[test]
fn a_full_disk_takes_what_fits() {
    let storage = SimStorage::new();
    storage.set_quota(Some(3 * 4096 + 1));
    let file = storage.create(Path::new("f")).unwrap();
    file.set_len(1 << 30).unwrap();
    assert_eq!(storage.free_space().unwrap(), 3 * 4096 + 1);
    file.write_all_at(&[1; 4097], 100).unwrap();
    assert_eq!(storage.free_space().unwrap(), 4096 + 1);
    let error = file.write_all_at(&[2; 3 * 4096], 4096).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
    let mut bytes = [0; 4];
    file.read_exact_at(&mut bytes, 3 * 4096 - 2).unwrap();
    assert_eq!(bytes, [2, 2, 0, 0]);
    file.write_all_at(&[3; 100], 4096).unwrap();
    storage.remove(Path::new("f")).unwrap();
    assert_eq!(storage.free_space().unwrap(), 3 * 4096 + 1);
}

#[test]
fn flipped_bits_last() {
    let storage = SimStorage::new();
    let file = storage.create(Path::new("f")).unwrap();
    storage.sync_dir(Path::new("")).unwrap();
    file.write_all_at(&[1; 4], 0).unwrap();
    file.sync().unwrap();
    storage.flip_bits(Path::new("f"), 2, 0x80).unwrap();
    assert_eq!(content(&storage, "f").unwrap(), [1, 1, 0x81, 1]);
    assert_eq!(content(&storage.power_cut_none_kept(storage.log_len()), "f").unwrap(), [1, 1, 0x81, 1]);
}

#[test]
fn a_hook_can_hold_an_operation() {
    let storage = Arc::new(SimStorage::new());
    let file = storage.create(Path::new("f")).unwrap();
    let (reached, wait_reached) = crossbeam_channel::bounded(1);
    let (release, wait_release) = crossbeam_channel::bounded::<()>(1);
    storage.set_hook(move |event| {
        if event.op == SimOp::Write {
            reached.send((event.path.to_owned(), event.at)).unwrap();
            wait_release.recv().unwrap();
        }
    });
    std::thread::scope(|scope| {
        let writer = scope.spawn(move || file.write_all_at(b"held", 0));
        assert_eq!(wait_reached.recv().unwrap(), ("f".to_owned(), 1));
        assert_eq!(storage.log_len(), 1);
        assert_eq!(content(&*storage, "f").unwrap(), b"");
        release.send(()).unwrap();
        writer.join().unwrap().unwrap();
    });
    assert_eq!(content(&*storage, "f").unwrap(), b"held");
}

#[test]
fn thousands_of_cuts_are_quick() {
    let storage = SimStorage::new();
    let file = storage.create(Path::new("f")).unwrap();
    storage.sync_dir(Path::new("")).unwrap();
    file.set_len(32 << 20).unwrap();
    for i in 0..3000u64 {
        file.write_all_at(&vec![i as u8; 8192], i * 7919 % 4000 * 8192).unwrap();
        if i % 10 == 9 {
            file.sync().unwrap();
        }
    }
    let start = Instant::now();
    for at in 0..=storage.log_len() {
        let after = storage.power_cut(at, at as u64);
        assert!(after.exists(Path::new("f")).is_ok());
    }
    println!("{} cuts in {:?}", storage.log_len() + 1, start.elapsed());
}
