//! The tracker on files, and on a loop device where there is root.

use std::{fs::File, os::unix::fs::FileExt};

use engine::{io::FolderStorage, units::BLOCK_BYTES};
use serde_json::json;

use super::{
    super::testing::{LoopDevice, wait_for},
    *,
};

const DISK: DiskIndex = DiskIndex(0);
const MIB: u64 = 1 << 20;

fn disk_file(bytes: u64) -> (tempfile::NamedTempFile, PathBuf) {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(bytes).unwrap();
    let path = file.path().to_owned();
    (file, path)
}

fn open(stream: StreamId, path: &Path, saved: Option<Place>) -> Opened {
    ScanTracker::open(stream, &[path.to_owned()], saved).unwrap()
}

/// Flips, and returns the first block of each run that was taken.
fn flip_and_take(tracker: &mut ScanTracker) -> Vec<(u64, u32)> {
    tracker.flip().unwrap();
    let taken = tracker.take(DISK, u64::MAX).unwrap().unwrap();
    taken.extents().map(|extent| (extent.start.0, extent.blocks)).collect()
}

/// Does as a sender does: reads all that is dirty, tells the tracker, and clears it as durable.
fn send_dirty(tracker: &mut ScanTracker, path: &Path) {
    let dirty = tracker.maps(DISK).dirty.collect(Block(0), u64::MAX);
    let file = File::open(path).unwrap();
    for extent in dirty.extents().flat_map(|extent| extent.pieces(256)) {
        let mut bytes = vec![0; extent.bytes_within(tracker.disks[0].device.size()) as usize];
        file.read_exact_at(&mut bytes, extent.offset()).unwrap();
        tracker.note_read(DISK, extent.start, &bytes);
        tracker.maps(DISK).dirty.clear(extent.start, extent.end());
    }
}

#[test]
fn finds_the_leaves_that_differ_from_what_was_sent() {
    let (file, path) = disk_file(5 * MIB + 700);
    let mut tracker = open(StreamId::random(), &path, None).tracker;
    assert_eq!(tracker.maps(DISK).dirty.blocks(), 1281, "a new disk is dirty");
    send_dirty(&mut tracker, &path);
    assert_eq!(flip_and_take(&mut tracker), []);

    file.as_file().write_all_at(b"x", 70_000).unwrap();
    file.as_file().write_all_at(b"x", 5 * MIB + 699).unwrap();
    assert_eq!(flip_and_take(&mut tracker), [(16, 16), (1280, 1)]);
    assert_eq!(flip_and_take(&mut tracker), [(16, 16), (1280, 1)], "as long as it was not sent");
    assert_eq!(tracker.maps(DISK).dirty.blocks(), 17);
    send_dirty(&mut tracker, &path);
    assert_eq!(flip_and_take(&mut tracker), []);

    tracker.flip().unwrap();
    file.as_file().write_all_at(b"y", 0).unwrap();
    assert_eq!(tracker.take(DISK, 15).unwrap(), None, "more than the limit");
    assert_eq!(tracker.maps(DISK).dirty.blocks(), 16);
}

#[test]
fn a_leaf_that_changed_back_after_it_was_sent_differs() {
    let (file, path) = disk_file(MIB);
    let mut tracker = open(StreamId::random(), &path, None).tracker;
    send_dirty(&mut tracker, &path);
    file.as_file().write_all_at(b"A", 0).unwrap();
    assert_eq!(flip_and_take(&mut tracker), [(0, 16)]);
    // Sent while it was B; then it is A again, as at the scan before.
    file.as_file().write_all_at(b"B", 0).unwrap();
    send_dirty(&mut tracker, &path);
    file.as_file().write_all_at(b"A", 0).unwrap();
    assert_eq!(flip_and_take(&mut tracker), [(0, 16)]);
}

#[test]
fn a_file_that_was_written_since_the_flip_shows_it() {
    let (file, path) = disk_file(MIB);
    let mut tracker = open(StreamId::random(), &path, None).tracker;
    assert!(tracker.written_since_flip(DISK, Block(0), 1), "before the first flip nothing is known");
    for round in 0..50 {
        flip_and_take(&mut tracker);
        assert!(tracker.drained().unwrap());
        assert!(!tracker.written_since_flip(DISK, Block(0), 256));
        file.as_file().write_all_at(&[round], 0).unwrap();
        assert!(tracker.written_since_flip(DISK, Block(200), 1), "evidence is of the whole disk");
    }
}

#[test]
fn saved_digests_spare_what_was_durable() {
    let (file, path) = disk_file(2 * MIB);
    let (stream, folder) = (StreamId::random(), tempfile::tempdir().unwrap());
    let storage = FolderStorage::open(folder.path(), Backend::Auto).unwrap();
    let saved: Place = (&storage, Path::new("digests"));
    let mut tracker = open(stream, &path, Some(saved)).tracker;
    send_dirty(&mut tracker, &path);
    // Leaf 2 is dirty again and leaf 3 sent but not durable when the digests are saved.
    tracker.maps(DISK).dirty.set(Block(32), Block(33));
    tracker.maps(DISK).sent[1].set(Block(48), Block(49));
    tracker.save(saved, &json!({"seq": 7})).unwrap();
    file.as_file().write_all_at(b"x", 65536).unwrap();

    let mut opened = open(stream, &path, Some(saved));
    assert_eq!(opened.continuity, [Continuity::Proven]);
    assert_eq!(opened.position, Some(json!({"seq": 7})));
    assert_eq!(flip_and_take(&mut opened.tracker), [(16, 48)]);
    opened.tracker.distrust();
    assert_eq!(flip_and_take(&mut opened.tracker), [(0, 512)]);
}

#[test]
fn digests_in_doubt_are_not_used() {
    let (file, path) = disk_file(MIB);
    let (stream, folder) = (StreamId::random(), tempfile::tempdir().unwrap());
    let storage = FolderStorage::open(folder.path(), Backend::Auto).unwrap();
    let place: Place = (&storage, Path::new("digests"));
    let saved = folder.path().join("digests");
    let mut tracker = open(stream, &path, None).tracker;
    send_dirty(&mut tracker, &path);
    tracker.save(place, &Value::Null).unwrap();
    let good = std::fs::read(&saved).unwrap();
    let lost = |stream| {
        let opened = open(stream, &path, Some(place));
        match opened.continuity[0] {
            Continuity::Proven => None,
            Continuity::Lost { reason, .. } => {
                assert_eq!(opened.tracker.maps(DISK).dirty.blocks(), blocks(&path));
                Some(reason)
            }
        }
    };
    assert_eq!(lost(stream), None);
    assert_eq!(lost(StreamId::random()), Some(LostReason::OtherStream));
    for at in (0..good.len()).step_by(3) {
        let mut bad = good.clone();
        bad[at] ^= 4;
        std::fs::write(&saved, &bad).unwrap();
        let expected = if at < 8 { LostReason::OtherVersion } else { LostReason::Damaged };
        assert_eq!(lost(stream), Some(expected), "byte {at}");
        std::fs::write(&saved, &good[..at]).unwrap();
        assert!(lost(stream).is_some(), "cut at {at}");
    }
    std::fs::write(&saved, &good).unwrap();
    file.as_file().set_len(2 * MIB).unwrap();
    assert_eq!(lost(stream), Some(LostReason::Resized));
    std::fs::remove_file(&saved).unwrap();
    assert_eq!(lost(stream), Some(LostReason::New));
}

fn blocks(path: &Path) -> u64 {
    std::fs::metadata(path).unwrap().len() / BLOCK_BYTES
}

#[test]
fn a_device_that_was_written_since_the_flip_shows_it() {
    let Some(disk) = LoopDevice::of_size(16 * MIB) else { return };
    let mut tracker = open(StreamId::random(), disk.path(), None).tracker;
    send_dirty(&mut tracker, disk.path());
    for round in 0..20 {
        wait_for("the disk is quiet", || tracker.drained().unwrap());
        flip_and_take(&mut tracker);
        assert!(!tracker.written_since_flip(DISK, Block(0), 1), "reads are no writes");
        match round % 2 {
            0 => disk.write(round, 1, 7),
            _ => engine::io::blockdev::discard(disk.open(), round * 4096, 4096).unwrap(),
        }
        assert!(tracker.written_since_flip(DISK, Block(0), 1));
    }
    assert_eq!(flip_and_take(&mut tracker), [(0, 32)]);
}
