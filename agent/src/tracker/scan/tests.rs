//! The tracker on files, and on a loop device where there is root.

use std::{fs::File, os::unix::fs::FileExt};

use engine::{
    io::{
        FolderStorage,
        sim::{Fault, SimOp, SimStorage},
    },
    units::BLOCK_BYTES,
};

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

fn open(stream: StreamId, path: &Path, state: &Arc<dyn Storage>) -> (ScanTracker, Continuity) {
    let (tracker, mut continuity) = ScanTracker::open(stream, &[path.to_owned()], state).unwrap();
    (tracker, continuity.remove(0))
}

/// A tracker that has nothing to go on with.
fn new(path: &Path) -> ScanTracker {
    open(StreamId::random(), path, &no_state()).0
}

fn no_state() -> Arc<dyn Storage> {
    Arc::new(SimStorage::new())
}

fn lost(continuity: Continuity) -> Option<LostReason> {
    match continuity {
        Continuity::Proven => None,
        Continuity::Lost { reason, .. } => Some(reason),
    }
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
    let mut tracker = new(&path);
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
    let mut tracker = new(&path);
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
    let mut tracker = new(&path);
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
fn a_restart_sends_only_what_changed_since_or_was_not_durable() {
    let (file, path) = disk_file(2 * MIB);
    let (stream, state) = (StreamId::random(), no_state());
    let (mut tracker, continuity) = open(stream, &path, &state);
    assert_eq!(lost(continuity), Some(LostReason::New));
    send_dirty(&mut tracker, &path);
    // Leaf 2 is dirty again and leaf 3 sent but not durable when the digests are saved.
    tracker.maps(DISK).dirty.set(Block(32), Block(33));
    tracker.maps(DISK).sent[1].set(Block(48), Block(49));
    tracker.note_durable().unwrap();
    file.as_file().write_all_at(b"x", 65536).unwrap();

    let (mut tracker, continuity) = open(stream, &path, &state);
    assert_eq!(continuity, Continuity::Proven);
    assert_eq!(tracker.maps(DISK).dirty.blocks(), 32, "what is unknown need not wait for a scan");
    assert_eq!(flip_and_take(&mut tracker), [(16, 48)]);
    tracker.distrust().unwrap();
    let (mut tracker, continuity) = open(stream, &path, &state);
    assert_eq!((lost(continuity), tracker.maps(DISK).dirty.blocks()), (None, 512));
    assert_eq!(flip_and_take(&mut tracker), [(0, 512)]);
}

/// A leaf is sent as B while the file says A, the agent ends at once, and the leaf becomes A again.
#[test]
fn what_was_sent_is_not_in_the_file_whenever_the_agent_ends() {
    let (file, path) = disk_file(MIB);
    let (stream, state) = (StreamId::random(), no_state());
    let mut tracker = open(stream, &path, &state).0;
    file.as_file().write_all_at(b"A", 0).unwrap();
    send_dirty(&mut tracker, &path);
    tracker.note_durable().unwrap();
    file.as_file().write_all_at(b"B", 0).unwrap();
    assert_eq!(flip_and_take(&mut tracker), [(0, 16)]);
    send_dirty(&mut tracker, &path);
    drop(tracker);
    file.as_file().write_all_at(b"A", 0).unwrap();
    assert_eq!(flip_and_take(&mut open(stream, &path, &state).0), [(0, 16)]);
}

#[test]
fn what_cannot_be_taken_out_of_the_file_is_not_given_out() {
    let (file, path) = disk_file(MIB);
    let sim = Arc::new(SimStorage::new());
    let state: Arc<dyn Storage> = sim.clone();
    let mut tracker = open(StreamId::random(), &path, &state).0;
    send_dirty(&mut tracker, &path);
    tracker.note_durable().unwrap();
    file.as_file().write_all_at(b"B", 0).unwrap();
    sim.fail(SimOp::Write, 1, Fault::NoSpace);
    tracker.flip().unwrap();
    assert!(matches!(tracker.take(DISK, u64::MAX), Err(TrackerError::Io { .. })));
    assert!(tracker.maps(DISK).dirty.is_empty());
    assert!(matches!(tracker.flip(), Err(TrackerError::NotTaken(_))));
    assert_eq!(tracker.take(DISK, u64::MAX).unwrap().unwrap().blocks(), 16, "found again");
}

#[test]
fn digests_in_doubt_are_not_used() {
    let (file, path) = disk_file(MIB);
    let (stream, folder) = (StreamId::random(), tempfile::tempdir().unwrap());
    let state: Arc<dyn Storage> = Arc::new(FolderStorage::open(folder.path(), Backend::Auto).unwrap());
    let mut tracker = open(stream, &path, &state).0;
    send_dirty(&mut tracker, &path);
    tracker.note_durable().unwrap();
    let saved = std::fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap().path();
    let good = std::fs::read(&saved).unwrap();
    let verdict = |stream| {
        let (tracker, continuity) = open(stream, &path, &state);
        let found = lost(continuity);
        assert_eq!(tracker.maps(DISK).dirty.blocks(), if found.is_some() { blocks(&path) } else { 0 });
        found
    };
    assert_eq!(verdict(stream), None);
    assert_eq!(verdict(StreamId::random()), Some(LostReason::OtherStream));
    for at in (0..good.len()).step_by(3) {
        let mut bad = good.clone();
        bad[at] ^= 4;
        std::fs::write(&saved, &bad).unwrap();
        let expected = if at < 8 { LostReason::OtherVersion } else { LostReason::Damaged };
        assert_eq!(verdict(stream), Some(expected), "byte {at}");
        std::fs::write(&saved, &good[..at]).unwrap();
        assert!(verdict(stream).is_some(), "cut at {at}");
    }
    std::fs::write(&saved, &good).unwrap();
    file.as_file().set_len(2 * MIB).unwrap();
    assert_eq!(verdict(stream), Some(LostReason::Resized));
    forget(&*state).unwrap();
    assert_eq!(verdict(stream), Some(LostReason::New));
}

#[test]
fn a_file_of_another_boot_is_not_used() {
    let state = no_state();
    let of_boot = |boot| {
        DigestFile::new(state.clone(), Path::new("/dev/sdx"), (StreamId(uuid::Uuid::nil()), boot), MIB)
    };
    of_boot(1).save([7; 16].into_iter()).unwrap();
    assert_eq!(of_boot(1).load(16), Ok(vec![7; 16]));
    assert_eq!(of_boot(2).load(16), Err(LostReason::Rebooted));
}

#[test]
fn version_1_is_still_read_and_written() {
    let state = no_state();
    let mut file =
        DigestFile::new(state.clone(), Path::new("/dev/sdx"), (StreamId(uuid::Uuid::nil()), 1), MIB);
    let digests = || (0..16).map(|leaf: u8| u128::from(leaf) << 120 | 0x0123_4567);
    file.save(digests()).unwrap();
    let written = state.open(Path::new("scan-2a918fd86e5938c60522030f61715738.digests")).unwrap();
    let mut bytes = vec![0; written.len().unwrap() as usize];
    written.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(bytes, include_bytes!("../../../testdata/scan-digests-v1.bin"));
    assert_eq!(file.load(16).unwrap(), digests().collect::<Vec<_>>());
}

fn blocks(path: &Path) -> u64 {
    std::fs::metadata(path).unwrap().len() / BLOCK_BYTES
}

#[test]
fn a_device_that_was_written_since_the_flip_shows_it() {
    let Some(disk) = LoopDevice::of_size(16 * MIB) else { return };
    let mut tracker = new(disk.path());
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
