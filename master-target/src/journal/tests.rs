//! The samples that every later version must read: the undo log and the catalogue.

use std::{path::Path, sync::Arc};

use engine::{
    extent::Extent,
    frame::{DiskInfo, Position, StreamInfo},
    io::{Storage, sim::SimStorage},
    point::{Consistency, Method, Point, PointId},
    units::{Digest, DiskIndex, Epoch, Seq, StreamId},
};

use super::*;

const STREAM: StreamId = StreamId(uuid::Uuid::from_u128(0x1234));

/// Compares with a file that is kept for ever; `HOMEWARD_BLESS=1` writes it where it is missing.
pub(super) fn assert_kept(name: &str, bytes: &[u8]) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(name);
    if std::env::var_os("HOMEWARD_BLESS").is_some() && !path.exists() {
        std::fs::write(&path, bytes).unwrap();
    }
    assert!(std::fs::read(&path).unwrap() == bytes, "{name} is written differently now");
}

pub(super) fn written(storage: &Arc<dyn Storage>, path: &Path) -> Vec<u8> {
    let file = storage.open(path).unwrap();
    let mut bytes = vec![0; file.len().unwrap() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

fn position(seq: u64) -> Position {
    Position { seq: Seq(seq), epoch: Epoch(7), chain: Digest::of(&seq.to_le_bytes()) }
}

fn sample_log(storage: &Arc<dyn Storage>, dir: &Path) {
    let mut log = Log::create(storage, dir, STREAM, LogId::first(7)).unwrap();
    log.push_image(DiskIndex(0), Extent::new(5, 1), &[0xAB; 4096]);
    log.push_image(DiskIndex(1), Extent::new(9, 3), &[0; 3 * 4096]);
    log.push_commit(&position(41));
    log.push_image(DiskIndex(0), Extent::new(6, 1), &[0xCD; 4096]);
    log.push_commit(&position(42));
    log.sync().unwrap();
}

#[test]
fn an_undo_log_of_version_1_is_still_read_and_written() {
    let (storage, dir): (Arc<dyn Storage>, _) = (Arc::new(SimStorage::new()), Path::new(""));
    sample_log(&storage, dir);
    assert_kept("undo-v1.bin", &written(&storage, &LogId::first(7).path(dir)));

    let file = LogFile::open(storage.as_ref(), dir, STREAM, LogId::first(7)).unwrap();
    let (log, committed) = Log::recover(file).unwrap();
    assert_eq!(committed, Some(position(42)));
    let entries = log.file().entries(log.bytes()).unwrap();
    let images: Vec<_> = entries.filter_map(|found| found.unwrap().image()).collect();
    let found: Vec<_> = images.iter().map(|image| (image.disk.0, image.extent, image.zeros)).collect();
    let (first, zeros, last) = (Extent::new(5, 1), Extent::new(9, 3), Extent::new(6, 1));
    assert_eq!(found, [(0, first, false), (1, zeros, true), (0, last, false)]);
    assert_eq!(log.file().read_image(&images[2]).unwrap(), [0xCD; 4096]);
}

#[test]
fn an_undo_log_of_another_version_is_left_alone() {
    let (storage, dir): (Arc<dyn Storage>, _) = (Arc::new(SimStorage::new()), Path::new(""));
    // Without a commit, a bad header is otherwise what a power cut leaves of a new log.
    drop(Log::create(&storage, dir, STREAM, LogId::first(7)).unwrap());
    let path = LogId::first(7).path(dir);
    let mut before = written(&storage, &path);
    before[layout::at::VERSION] = 2;
    let crc = crc32fast::hash(&before[..layout::at::CRC]);
    before[layout::at::CRC..].copy_from_slice(&crc.to_le_bytes());
    storage.open(&path).unwrap().write_all_at(&before, 0).unwrap();
    let logs = Logs::new(Arc::clone(&storage), dir, STREAM);
    let error = logs.open_or_torn(LogId::first(7)).err();
    assert!(matches!(error, Some(JournalError::Version { version: 2, .. })));
    assert_eq!(written(&storage, &path), before);
}

/// Found by fuzzing: whole images, checksums and all, of blocks that the disks do not have.
#[test]
fn images_of_no_blocks_of_the_disks_are_damage() {
    let dir = Path::new("");
    for (disk, start) in [(2, 0), (21, 5), (0, (1 << 18) - 1), (1, 1 << 18), (1, 1 << 30)] {
        let storage: Arc<dyn Storage> = Arc::new(SimStorage::new());
        let disks = ["sda", "sdb"].map(|name| DiskInfo { name: name.into(), bytes: 1 << 30, used_bytes: 0 });
        let stream = StreamInfo { id: STREAM, vm: "web-01".into(), disks: disks.into() };
        let device = |path: &str| TargetDisk::Device { path: path.into() };
        let targets = vec![device("/dev/sdb"), device("/dev/sdc")];
        let mut catalogue = Catalogue::create_with(&storage, dir, "web-01", &stream, targets, None).unwrap();
        catalogue.append(sealed(1)).unwrap();
        let mut log = Log::create(&storage, dir, STREAM, LogId::first(2)).unwrap();
        let logs = Logs::new(Arc::clone(&storage), dir, STREAM);
        let view = || View::at(&logs, catalogue.state(), 1).map(|view| view.runs());
        log.push_image(DiskIndex(1), Extent::new((1 << 18) - 2, 2), &[1; 8192]);
        log.sync().unwrap();
        assert!(matches!(view(), Ok(1)));
        log.push_image(DiskIndex(disk), Extent::new(start, 2), &[2; 8192]);
        log.sync().unwrap();
        assert!(matches!(view(), Err(JournalError::Damaged { .. })), "{disk} {start}");
    }
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
    let found = SealedPoint::before_failback(STREAM, "2026-11-23T01:00:00Z".parse().unwrap());
    let targets = vec![vmdk, device];
    let mut catalogue =
        Catalogue::create_with(storage, dir, "web-01", &stream, targets, Some(found)).unwrap();
    for record in [
        sealed(1),
        sealed(2),
        sealed(3),
        sealed(4),
        sealed(5),
        Record::Dropped { layers: vec![1, 3] },
        Record::Merged { layer: Layer { first: 3, last: 4, generation: 1, log_bytes: 77 } },
        Record::Pinned { layer: 2, pinned: true },
        Record::Pinned { layer: 4, pinned: true },
        Record::Pinned { layer: 4, pinned: false },
        Record::RestoreBegun { to: 2, layer: 7 },
        Record::RestoreAt { mark: Mark { disk: 0, block: 5 } },
        Record::RestoreDone { layer: 7, log_bytes: 999 },
        Record::UndoBegun,
        Record::UndoDone,
        Record::RestoreBegun { to: 4, layer: 8 },
        Record::RestoreAt { mark: Mark { disk: 1, block: 9 } },
    ] {
        catalogue.append(record).unwrap();
    }
    catalogue
}

fn check_sample(state: &State) {
    assert_eq!(state.points.keys().copied().collect::<Vec<_>>(), [2, 3]);
    assert_eq!((state.oldest, state.open, state.opened_at.seq), (2, 4, Seq(30)));
    assert_eq!(
        state.layers.values().copied().collect::<Vec<_>>(),
        [Layer { first: 3, last: 3, generation: 0, log_bytes: 43 }]
    );
    let restore = state.restore.unwrap();
    assert_eq!((restore.to, restore.phase), (3, Phase::Restoring));
}

#[test]
fn a_catalogue_of_version_1_is_still_read() {
    let (storage, dir): (Arc<dyn Storage>, _) = (Arc::new(SimStorage::new()), Path::new(""));
    let sample = include_bytes!("../../testdata/catalogue-v1.txt");
    storage.create(Path::new("catalogue")).unwrap().write_all_at(sample, 0).unwrap();
    let state = Catalogue::peek(storage.as_ref(), dir).unwrap();
    check_sample(&state);
    assert_eq!((state.restore.unwrap().first, state.next_layer()), (5, 6));
    assert_eq!(written(&storage, Path::new("catalogue")), sample, "looking changes nothing");

    // Whoever writes it, writes today's version.
    drop(Catalogue::open(&storage, dir).unwrap());
    let text = String::from_utf8(written(&storage, Path::new("catalogue"))).unwrap();
    assert!(text.contains(r#""version":3"#) && !text.contains("retired"));
    let rewritten = Catalogue::peek(storage.as_ref(), dir).unwrap();
    check_sample(&rewritten);
    assert_eq!(rewritten.restore.unwrap().first, 5);
}

/// What version 2 can say, version 3 says, too; `layers` and `costs` are those from the first point on.
fn check_later(state: &State) {
    let restore = state.restore.unwrap();
    assert_eq!((restore.first, restore.to, restore.phase), (8, 4, Phase::Restoring));
    assert_eq!((restore.done, state.next_layer()), (Some(Mark { disk: 1, block: 9 }), 9));
    assert_eq!(state.replicated().map(|point| point.layer).collect::<Vec<_>>(), [2, 4, 5]);
    assert!(state.open == 6 && state.pinned.contains(&2));
}

const fn layer(first: u64, last: u64, generation: u32, log_bytes: u64) -> Layer {
    Layer { first, last, generation, log_bytes }
}

#[test]
fn a_catalogue_of_version_2_is_still_read() {
    let (storage, dir): (Arc<dyn Storage>, _) = (Arc::new(SimStorage::new()), Path::new(""));
    let sample = include_bytes!("../../testdata/catalogue-v2.txt");
    storage.create(Path::new("catalogue")).unwrap().write_all_at(sample, 0).unwrap();
    let state = Catalogue::peek(storage.as_ref(), dir).unwrap();
    check_later(&state);
    assert_eq!(state.layers.values().copied().collect::<Vec<_>>(), [layer(3, 4, 1, 77), layer(5, 5, 0, 45)]);
    assert_eq!((state.pinned.len(), state.oldest, state.before_failback()), (1, 2, None));
    assert_eq!(state.costs(), [(2, 77), (4, 45), (5, 0)].into());
    drop(Catalogue::open(&storage, dir).unwrap());
    check_later(&Catalogue::peek(storage.as_ref(), dir).unwrap());
}

#[test]
fn a_catalogue_of_version_3_is_read_and_written() {
    let (storage, dir): (Arc<dyn Storage>, _) = (Arc::new(SimStorage::new()), Path::new(""));
    let state = sample_catalogue(&storage, dir).state().clone();
    assert_kept("catalogue-v3.txt", &written(&storage, Path::new("catalogue")));
    assert_eq!(Catalogue::peek(storage.as_ref(), dir).unwrap(), state);
    check_later(&state);
    let layers = [layer(1, 1, 0, 41), layer(2, 2, 0, 42), layer(3, 4, 1, 77), layer(5, 5, 0, 45)];
    assert_eq!(state.layers.values().copied().collect::<Vec<_>>(), layers);
    assert_eq!((state.pinned.first(), state.oldest), (Some(&0), 0));
    assert!(state.before_failback().unwrap().point.is_before_failback());
    assert_eq!(state.costs(), [(0, 83), (2, 77), (4, 45), (5, 0)].into());
}

/// Written anew, a catalogue says the same: also with layers merged, points pinned, a restore under way or accepted.
#[test]
fn a_catalogue_that_is_written_anew_says_the_same() {
    for accept in [false, true] {
        let (storage, dir): (Arc<dyn Storage>, _) = (Arc::new(SimStorage::new()), Path::new(""));
        let mut catalogue = sample_catalogue(&storage, dir);
        if accept {
            catalogue.append(Record::RestoreDone { layer: 8, log_bytes: 1 }).unwrap();
            catalogue.append(Record::Accepted).unwrap();
        }
        let before = catalogue.state().clone();
        catalogue.rewrite().unwrap();
        assert_eq!(Catalogue::peek(storage.as_ref(), dir).unwrap(), before);
    }
}

/// Every record stands there twice: whichever bit flips, nothing is lost, and the scrub names it and mends it.
#[test]
fn no_flipped_bit_of_a_catalogue_loses_anything() {
    let sim = Arc::new(SimStorage::new());
    let (storage, dir): (Arc<dyn Storage>, _) = (Arc::clone(&sim) as _, Path::new(""));
    let mut catalogue = sample_catalogue(&storage, dir);
    let (path, state) = (Path::new("catalogue"), catalogue.state().clone());
    for bit in (0..8 * written(&storage, path).len() as u64).step_by(3) {
        let at = bit / 8;
        // Written anew, it may be shorter.
        if at >= written(&storage, path).len() as u64 {
            break;
        }
        sim.flip_bits(path, at, 1 << (bit % 8)).unwrap();
        assert_eq!(Catalogue::peek(storage.as_ref(), dir).unwrap(), state, "bit {bit}");
        let found = catalogue.recheck().unwrap().unwrap_or_else(|| panic!("bit {bit} is not noticed"));
        assert!(found.contains(&at), "bit {bit}: {found:?}");
        assert_eq!(catalogue.recheck().unwrap(), None, "bit {bit} is not mended");
    }
}

fn with_label(mut record: Record, label: Consistency) -> Record {
    if let Record::Sealed { point, .. } = &mut record {
        point.point.consistency = label;
    }
    record
}

#[test]
fn records_that_cannot_be_are_refused() {
    let (storage, dir): (Arc<dyn Storage>, _) = (Arc::new(SimStorage::new()), Path::new(""));
    let mut catalogue = sample_catalogue(&storage, dir);
    catalogue.append(Record::UndoBegun).unwrap();
    catalogue.append(Record::UndoDone).unwrap();
    let layer =
        |first, last, generation| Record::Merged { layer: Layer { first, last, generation, log_bytes: 1 } };
    for refused in [
        Record::Dropped { layers: vec![2] },
        Record::Dropped { layers: vec![5] },
        Record::Dropped { layers: vec![3] },
        layer(3, 5, 2),
        layer(5, 5, 1),
        Record::Accepted,
        Record::UndoDone,
        sealed(7),
        Record::RestoreBegun { to: 4, layer: 8 },
        Record::RestoreBegun { to: 3, layer: 9 },
        Record::Pinned { layer: 3, pinned: true },
        // Before the first frame, and only there.
        with_label(sealed(6), Consistency::BeforeFailback),
        Record::Kept { point: SealedPoint::before_failback(STREAM, "2026-11-23T01:00:00Z".parse().unwrap()) },
    ] {
        let error = catalogue.append(refused).unwrap_err().to_string();
        assert!(error.contains("does not allow"), "{error}");
    }
    catalogue.append(sealed(6)).unwrap();
    assert_eq!(catalogue.state().open, 9, "no number is used twice");
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

    let newer = line(0, r#"{"record":"created","version":4,"unheard_of":true}"#).repeat(2);
    assert!(matches!(open(&newer), Some(JournalError::Version { version: 4, .. })));
    // Taken for a torn tail, it would be cut off.
    let unheard_of = good.clone() + &line(20, r#"{"record":"unheard-of"}"#).repeat(2);
    assert!(matches!(open(&unheard_of), Some(JournalError::Damaged { .. })));
    // The number after it would overflow.
    let far = good.clone() + &line(u64::MAX, r#"{"record":"undo-begun"}"#);
    assert!(matches!(open(&far), Some(JournalError::Damaged { .. })));
}
