//! The samples of version 1 that every later version must read: the undo log and the catalogue.

use std::{path::Path, sync::Arc};

use engine::{
    extent::Extent,
    frame::{DiskInfo, Position, StreamInfo},
    io::{Storage, sim::SimStorage},
    point::{Consistency, Method, Point, PointId},
    units::{Digest, DiskIndex, Epoch, Seq, StreamId},
};

use super::{entry::Malformed, *};

const STREAM: StreamId = StreamId(uuid::Uuid::from_u128(0x1234));

/// Compares with a file that is kept for ever; `HOMEWARD_BLESS=1` writes it where it is missing.
fn assert_kept(name: &str, bytes: &[u8]) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(name);
    if std::env::var_os("HOMEWARD_BLESS").is_some() && !path.exists() {
        std::fs::write(&path, bytes).unwrap();
    }
    assert!(std::fs::read(&path).unwrap() == bytes, "{name} is written differently now");
}

fn written(storage: &Arc<dyn Storage>, path: &Path) -> Vec<u8> {
    let file = storage.open(path).unwrap();
    let mut bytes = vec![0; file.len().unwrap() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

fn position(seq: u64) -> Position {
    Position { seq: Seq(seq), epoch: Epoch(7), chain: Digest::of(&seq.to_le_bytes()) }
}

fn sample_log(storage: &Arc<dyn Storage>, path: &Path) {
    let mut log = Log::create(storage, path, STREAM, 7).unwrap();
    log.push_image(DiskIndex(0), Extent::new(5, 1), &[0xAB; 4096]);
    log.push_image(DiskIndex(1), Extent::new(9, 3), &[0; 3 * 4096]);
    log.push_commit(&position(41));
    log.push_image(DiskIndex(0), Extent::new(6, 1), &[0xCD; 4096]);
    log.push_commit(&position(42));
    log.sync().unwrap();
}

#[test]
fn an_undo_log_of_version_1_is_still_read_and_written() {
    let (storage, path): (Arc<dyn Storage>, _) = (Arc::new(SimStorage::new()), Path::new("log"));
    sample_log(&storage, path);
    assert_kept("undo-v1.bin", &written(&storage, path));

    let (mut log, mut scan) = Log::open(&storage, path, STREAM, 7).unwrap();
    log.recover(&mut scan).unwrap();
    assert_eq!((scan.committed, &scan.damage), (Some(position(42)), &None));
    let images: Vec<_> = scan.images.iter().map(|image| (image.disk.0, image.extent, image.zeros)).collect();
    let (first, zeros, last) = (Extent::new(5, 1), Extent::new(9, 3), Extent::new(6, 1));
    assert_eq!(images, [(0, first, false), (1, zeros, true), (0, last, false)]);
    assert_eq!(log.file().read_image(&scan.images[2]).unwrap(), [0xCD; 4096]);
}

#[test]
fn an_undo_log_of_another_version_is_left_alone() {
    let (storage, path): (Arc<dyn Storage>, _) = (Arc::new(SimStorage::new()), Path::new("log"));
    // Without a commit, a bad header is otherwise what a power cut leaves of a new log.
    drop(Log::create(&storage, path, STREAM, 7).unwrap());
    let mut before = written(&storage, path);
    before[layout::at::VERSION] = 2;
    let crc = crc32fast::hash(&before[..layout::at::CRC]);
    before[layout::at::CRC..].copy_from_slice(&crc.to_le_bytes());
    storage.open(path).unwrap().write_all_at(&before, 0).unwrap();
    let (mut log, mut scan) = Log::open(&storage, path, STREAM, 7).unwrap();
    assert_eq!(scan.damage, Some(Malformed::Version(2)));
    assert!(matches!(log.recover(&mut scan), Err(JournalError::Version { version: 2, .. })));
    assert_eq!(written(&storage, path), before);
}

fn sealed(layer: u64) -> Record {
    let point = Point {
        id: PointId(uuid::Uuid::from_u128(u128::from(layer))),
        epoch: Epoch(layer),
        taken_at: "2026-11-23T02:00:00Z".parse().unwrap(),
        consistency: Consistency::CrashConsistent,
        method: Method::Barrier,
        barrier_tries: 2,
        window_us: 500,
        residual_bytes: 8192,
        frozen_us: 0,
        application: None,
        group: None,
    };
    let position = Position { epoch: Epoch(layer + 1), ..position(layer * 10) };
    let sealed_at = "2026-11-23T02:00:01.5Z".parse().unwrap();
    let point = SealedPoint { point, layer, log_bytes: 40 + layer, sealed_at, chain: position.chain };
    Record::Sealed { point, position }
}

/// A catalogue with a record of every kind.
fn sample_catalogue(storage: &Arc<dyn Storage>, dir: &Path) -> Catalogue {
    let disk = |name: &str| DiskInfo { name: name.into(), bytes: 1 << 30, used_bytes: 1 << 20 };
    let stream = StreamInfo { id: STREAM, vm: "web-01".into(), disks: vec![disk("sda"), disk("sdb")] };
    let vmdk = TargetDisk::Vmdk {
        datastore: "datastore1".into(),
        descriptor: "web-01/web-01.vmdk".into(),
        thin: true,
    };
    let device = TargetDisk::Device { path: "/dev/sdb".into() };
    let mut catalogue = Catalogue::create(storage, dir, "web-01", &stream, vec![vmdk, device]).unwrap();
    for record in [
        sealed(1),
        sealed(2),
        sealed(3),
        Record::Retired { oldest: 2 },
        Record::RestoreBegun { to: 2, layer: 5 },
        Record::RestoreDone { layer: 5, log_bytes: 999 },
        Record::UndoBegun,
        Record::UndoDone,
        Record::RestoreBegun { to: 3, layer: 5 },
    ] {
        catalogue.append(record).unwrap();
    }
    catalogue
}

#[test]
fn a_catalogue_of_version_1_is_still_read_and_written() {
    let (storage, dir): (Arc<dyn Storage>, _) = (Arc::new(SimStorage::new()), Path::new(""));
    let state = sample_catalogue(&storage, dir).state().clone();
    assert_kept("catalogue-v1.txt", &written(&storage, Path::new("catalogue")));

    assert_eq!(Catalogue::peek(storage.as_ref(), dir).unwrap(), state);
    assert_eq!(state.points.keys().copied().collect::<Vec<_>>(), [2, 3]);
    assert_eq!((state.oldest, state.open, state.opened_at.seq), (2, 4, Seq(30)));
    let restore = RestoreState { first: 5, layer: 5, to: 3, phase: Phase::Restoring };
    assert_eq!(state.restore, Some(restore));
    assert_eq!(state.log_bytes(2), Some(42));
}

/// A line with its checksum, as some version or somebody's hand may have written it.
fn line(number: u64, json: &str) -> String {
    let numbered = format!("{number} {json}");
    format!("{:08x} {numbered}\n", crc32fast::hash(numbered.as_bytes()))
}

#[test]
fn a_catalogue_that_is_not_understood_is_left_alone() {
    let (storage, dir): (Arc<dyn Storage>, _) = (Arc::new(SimStorage::new()), Path::new(""));
    drop(sample_catalogue(&storage, dir));
    let path = Path::new("catalogue");
    let good = String::from_utf8(written(&storage, path)).unwrap();
    let open = |text: &str| {
        let file = storage.open(path).unwrap();
        file.set_len(0).unwrap();
        file.write_all_at(text.as_bytes(), 0).unwrap();
        let error = Catalogue::open(&storage, dir).err();
        assert_eq!(written(&storage, path), text.as_bytes(), "something was changed");
        error
    };
    assert!(open(&good).is_none());

    let newer = line(0, r#"{"record":"created","version":2,"unheard_of":true}"#).repeat(2);
    assert!(matches!(open(&newer), Some(JournalError::Version { version: 2, .. })));
    // Taken for a torn tail, it would be cut off.
    let unheard_of = good.clone() + &line(10, r#"{"record":"unheard-of"}"#).repeat(2);
    assert!(matches!(open(&unheard_of), Some(JournalError::Damaged { .. })));
    // The number after it would overflow.
    let far = good.clone() + &line(u64::MAX, r#"{"record":"undo-begun"}"#);
    assert!(matches!(open(&far), Some(JournalError::Damaged { .. })));
}
