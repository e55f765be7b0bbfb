use std::os::unix::fs::{MetadataExt, symlink};

use tempfile::tempdir;

use super::*;
use crate::io::{
    DeadHandle, Op, read_exact_at,
    sim::{Fault, SimOp, SimStorage},
};

fn is_dead(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<DeadHandle>())
}

#[test]
fn paths_that_lead_out_are_refused() {
    let dir = tempdir().unwrap();
    let storage = FolderStorage::open(dir.path(), Backend::Auto).unwrap();
    for path in ["/etc/passwd", "..", "a/../../b", "a/.."].map(Path::new) {
        let refused = [
            storage.open(path).map(|_| ()),
            storage.create(path).map(|_| ()),
            storage.device(path).map(|_| ()),
            storage.create_dir_all(path),
            storage.list(path).map(|_| ()),
            storage.exists(path).map(|_| ()),
            storage.rename(path, Path::new("a")),
            storage.rename(Path::new("a"), path),
            storage.remove(path),
            storage.sync_dir(path),
        ];
        for result in refused {
            assert_eq!(result.unwrap_err().kind(), io::ErrorKind::InvalidInput, "{}", path.display());
        }
    }
    storage.sync_dir(Path::new(".")).unwrap();
}

#[test]
fn after_a_failed_sync_the_file_is_dead() {
    let dir = tempdir().unwrap();
    symlink("/dev/null", dir.path().join("unsyncable")).unwrap(); // Its fsync is EINVAL.
    let storage = FolderStorage::open(dir.path(), Backend::Auto).unwrap();
    let file = storage.open(Path::new("unsyncable")).unwrap();
    file.write_all_at(b"x", 0).unwrap();
    assert!(file.sync().unwrap_err().raw_os_error().is_some());
    let later = [
        file.sync(),
        file.write_all_at(b"x", 0),
        file.read_exact_at(&mut [], 0),
        file.len().map(|_| ()),
        file.set_len(0),
    ];
    assert!(later.into_iter().all(|result| is_dead(&result.unwrap_err())));
}

#[test]
fn files_and_devices_address_the_same_bytes() {
    let dir = tempdir().unwrap();
    let storage = FolderStorage::open(dir.path(), Backend::Auto).unwrap();
    let path = Path::new("disk");
    let file = storage.create(path).unwrap();
    file.set_len(1 << 20).unwrap();
    let device = storage.device(path).unwrap();
    file.write_all_at(&[1; 100], 4000).unwrap();
    assert_eq!(read_exact_at(&*device, 4096, 4096).unwrap()[..5], [1, 1, 1, 1, 0]);
    device.run(&mut std::iter::once(Op::zero(4096, 4096, 0)), &mut |_, result| result.unwrap());
    let mut bytes = [9; 4];
    file.read_exact_at(&mut bytes, 4094).unwrap();
    assert_eq!(bytes, [1, 1, 0, 0]);
}

#[test]
fn the_lock_file_is_not_listed() {
    let dir = tempdir().unwrap();
    let _lock = crate::io::DirLock::acquire(dir.path()).unwrap();
    let storage = FolderStorage::open(dir.path(), Backend::Auto).unwrap();
    storage.create(Path::new("b")).unwrap();
    storage.create_dir_all(Path::new("a")).unwrap();
    assert_eq!(storage.list(Path::new("")).unwrap(), ["a", "b"]);
    assert!(storage.free_space().unwrap() > 0);
    assert_eq!(fs::metadata(dir.path().join("b")).unwrap().mode() & 0o777, 0o600);
}

fn content(storage: &dyn Storage, path: &Path) -> Option<Vec<u8>> {
    let file = storage.open(path).ok()?;
    let mut bytes = vec![0; file.len().unwrap() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    Some(bytes)
}

#[test]
fn a_file_is_replaced_whole_or_not_at_all() {
    let path = Path::new("folder/settings");
    let storage = SimStorage::new();
    storage.create_dir_all(Path::new("folder")).unwrap();
    storage.sync_dir(Path::new("")).unwrap();
    write_file_atomically(&storage, path, &[1; 3000]).unwrap();
    let first_done = storage.log_len();
    write_file_atomically(&storage, path, &[2; 2000]).unwrap();
    let second_done = storage.log_len();
    remove_file_durably(&storage, path).unwrap();

    for at in 0..=storage.log_len() {
        for seed in 0..50 {
            let after = storage.power_cut(at, seed);
            let found = content(&after, path);
            let allowed: &[Option<Vec<u8>>] = match at {
                _ if at < first_done => &[None, Some(vec![1; 3000])],
                _ if at < second_done => &[Some(vec![1; 3000]), Some(vec![2; 2000])],
                _ if at < storage.log_len() => &[Some(vec![2; 2000]), None],
                _ => &[None],
            };
            assert!(allowed.contains(&found), "cut at {at}, seed {seed}");
            if at >= first_done {
                write_file_atomically(&after, path, b"again").unwrap();
                remove_file_durably(&after, path).unwrap();
                remove_file_durably(&after, path).unwrap();
            }
        }
    }
}

#[test]
fn a_failed_replacement_leaves_the_old_file() {
    let path = Path::new("settings");
    for op in [SimOp::Create, SimOp::Write, SimOp::Sync, SimOp::Rename] {
        let storage = SimStorage::new();
        write_file_atomically(&storage, path, b"old").unwrap();
        storage.fail(op, 1, Fault::NoSpace);
        let error = write_file_atomically(&storage, path, b"new").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert_eq!(content(&storage, path).unwrap(), b"old");
        write_file_atomically(&storage, path, b"newer").unwrap();
        assert_eq!(content(&storage, path).unwrap(), b"newer");
    }
}
