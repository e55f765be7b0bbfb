//! The tracker against real loop devices. All of it needs root, and says that it is skipped without.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    process::{Child, Command, Stdio},
    sync::atomic::AtomicU32,
};

use engine::{io::blockdev, units::BLOCK_BYTES};

use super::{
    super::testing::{LoopDevice, run, wait_for},
    *,
};

const DISK: DiskIndex = DiskIndex(0);
const MIB: u64 = 1 << 20;
const NONE: [u64; 0] = [];

/// A tracker's name, forgotten on drop.
struct Name(String);

impl Name {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        Self(format!("test-{}-{}", std::process::id(), NEXT.fetch_add(1, Relaxed)))
    }

    fn open(&self, stream: StreamId, disks: &[&LoopDevice]) -> (EbpfTracker, Vec<Continuity>) {
        let paths: Vec<PathBuf> = disks.iter().map(|disk| disk.path().to_owned()).collect();
        EbpfTracker::open(&self.0, stream, &paths).unwrap()
    }

    /// Opens it for the first time and clears what a new disk is marked with.
    fn open_clean(&self, stream: StreamId, disks: &[&LoopDevice]) -> EbpfTracker {
        let (tracker, continuity) = self.open(stream, disks);
        for (index, continuity) in continuity.into_iter().enumerate() {
            let disk = DiskIndex(index as u16);
            assert_eq!(continuity, Continuity::Lost { disk, reason: LostReason::New });
            let dirty = &tracker.maps(disk).dirty;
            assert_eq!(dirty.blocks(), dirty.granularity().blocks, "a new disk is wholly dirty");
            dirty.clear_all();
        }
        tracker
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        let forgotten = EbpfTracker::forget(&self.0);
        if !thread::panicking() {
            forgotten.unwrap();
        }
    }
}

fn take(tracker: &mut EbpfTracker, disk: DiskIndex) -> Vec<u64> {
    let taken = tracker.take(disk, u64::MAX).unwrap().unwrap();
    taken.extents().flat_map(|extent| extent.start.0..extent.end().0).collect()
}

fn flip_and_take(tracker: &mut EbpfTracker, disk: DiskIndex) -> Vec<u64> {
    tracker.flip().unwrap();
    take(tracker, disk)
}

#[test]
fn writes_mark_their_blocks_and_reads_do_not() {
    let Some(disk) = LoopDevice::of_size(64 * MIB) else { return };
    let name = Name::new();
    let mut tracker = name.open_clean(StreamId::random(), &[&disk]);

    disk.write(3, 1, 1);
    disk.write(1000, 100, 2);
    disk.write(16383, 1, 3);
    let written = |tracker: &EbpfTracker, block| tracker.written_since_flip(DISK, Block(block), 1);
    assert!(written(&tracker, 3) && written(&tracker, 1099) && !written(&tracker, 1100));
    let expected: Vec<u64> = [3].into_iter().chain(1000..1100).chain([16383]).collect();
    assert_eq!(flip_and_take(&mut tracker, DISK), expected);
    assert!(!written(&tracker, 3), "marks of before the flip");
    assert!(tracker.maps(DISK).dirty.any(Block(1099), Block(1100)), "what is taken is dirty");
    assert_eq!(tracker.maps(DISK).dirty.blocks(), 102);

    let mut buf = engine::io::AlignedBuf::zeroed(1 << 20);
    disk.open().read_exact_at(&mut buf, 0).unwrap();
    disk.open().sync_all().unwrap();
    assert_eq!(flip_and_take(&mut tracker, DISK), NONE, "reads and flushes");

    disk.write(5, 2, 1);
    tracker.flip().unwrap();
    assert_eq!(tracker.take(DISK, 1).unwrap(), None, "more than the limit");
    assert!(tracker.maps(DISK).dirty.any(Block(5), Block(6)));
}

#[test]
fn discards_and_zeroing_mark_every_block_of_long_ranges() {
    let Some(disk) = LoopDevice::of_size(256 * MIB) else { return };
    let name = Name::new();
    let mut tracker = name.open_clean(StreamId::random(), &[&disk]);
    let file = disk.open();

    blockdev::discard(&file, 8 * MIB, 200 * MIB).unwrap();
    assert_eq!(flip_and_take(&mut tracker, DISK), (2048..2048 + 51200).collect::<Vec<_>>());
    blockdev::zero_out(&file, 5 * MIB, 100 * MIB).unwrap();
    assert_eq!(flip_and_take(&mut tracker, DISK), (1280..1280 + 25600).collect::<Vec<_>>());
    blockdev::punch_hole(&file, 0, MIB).unwrap();
    assert_eq!(flip_and_take(&mut tracker, DISK), (0..256).collect::<Vec<_>>());
    // Less than a block, within one and across two.
    disk.write(0, 1, 0);
    flip_and_take(&mut tracker, DISK);
    blockdev::zero_out(&file, 512, 512).unwrap();
    blockdev::zero_out(&file, 7 * 4096 - 512, 1024).unwrap();
    assert_eq!(flip_and_take(&mut tracker, DISK), [0, 6, 7]);
}

#[test]
fn each_write_is_in_the_generation_it_was_made_in() {
    let Some(disk) = LoopDevice::of_size(64 * MIB) else { return };
    let name = Name::new();
    let mut tracker = name.open_clean(StreamId::random(), &[&disk]);
    let file = disk.open();
    let buf = engine::io::AlignedBuf::zeroed(4096);
    for step in 0..2000 {
        let block = step * 7919 % (64 * MIB / BLOCK_BYTES);
        file.write_all_at(&buf, block * 4096).unwrap();
        assert_eq!(flip_and_take(&mut tracker, DISK), [block]);
        assert!(tracker.drained().unwrap());
    }
}

#[test]
fn under_load_no_changed_block_is_missed() {
    let Some(disk) = LoopDevice::of_size(64 * MIB) else { return };
    let name = Name::new();
    let mut tracker = name.open_clean(StreamId::random(), &[&disk]);
    let mut flips = Vec::new();
    for load in ["randwrite", "randtrimwrite", "randwrite"] {
        let before = disk.content();
        let dirty = &tracker.maps(DISK).dirty;
        dirty.clear_all();
        let mut fio = start_fio(&disk, load);
        while fio.try_wait().unwrap().is_none() {
            let start = Instant::now();
            tracker.flip().unwrap();
            flips.push(start.elapsed());
            take(&mut tracker, DISK);
        }
        assert!(fio.wait().unwrap().success());
        flip_and_take(&mut tracker, DISK);

        let after = disk.content();
        let dirty = &tracker.maps(DISK).dirty;
        let mut changed = 0;
        for (index, (old, new)) in before.chunks(4096).zip(after.chunks(4096)).enumerate() {
            if old != new {
                changed += 1;
                assert!(
                    dirty.any(Block(index as u64), Block(index as u64 + 1)),
                    "block {index} under {load}"
                );
            }
        }
        assert!(changed > 500, "the load changed only {changed} blocks");
        wait_for("all writes are known to be complete", || tracker.drained().unwrap());
    }
    flips.sort();
    let at = |part: usize| flips[(flips.len() - 1) * part / 100];
    // An issue is never skipped; that is why there is one program for it.
    assert_eq!(tracker.misses.issues().unwrap(), 0);
    println!("{} completions were skipped", tracker.misses.completions().unwrap());
    println!("{} flips: median {:?}, p99 {:?}, max {:?}", flips.len(), at(50), at(99), at(100));
    assert!(flips.len() > 2000);
}

fn start_fio(disk: &LoopDevice, load: &str) -> Child {
    let filename = format!("--filename={}", disk.path().display());
    let mode = format!("--rw={load}");
    let common = ["--name=load", "--direct=1", "--ioengine=libaio", "--iodepth=16", "--bsrange=4k-64k"];
    Command::new("fio")
        .args(common)
        .args(["--time_based", "--runtime=2", "--refill_buffers", "--randrepeat=0", "--allow_file_create=0"])
        .args([filename, mode])
        .stdout(Stdio::null())
        .spawn()
        .expect("this test needs fio")
}

#[test]
fn one_flip_is_one_instant_for_all_disks() {
    let (Some(a), Some(b)) = (LoopDevice::of_size(16 * MIB), LoopDevice::of_size(32 * MIB)) else { return };
    let name = Name::new();
    let mut tracker = name.open_clean(StreamId::random(), &[&a, &b]);
    // Block n of b is written only after block n of a: no generation may end with the effect and not the cause.
    let (file_a, file_b) = (a.open(), b.open());
    thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let buf = engine::io::AlignedBuf::zeroed(4096);
            for block in 0..4096 {
                file_a.write_all_at(&buf, block * 4096).unwrap();
                file_b.write_all_at(&buf, block * 4096).unwrap();
            }
        });
        let (mut causes, mut effects) = (0, 0);
        let mut all_written = false;
        while !all_written {
            all_written = writer.is_finished();
            tracker.flip().unwrap();
            causes = causes.max(take(&mut tracker, DISK).last().map_or(causes, |block| block + 1));
            effects = effects.max(take(&mut tracker, DiskIndex(1)).last().map_or(effects, |block| block + 1));
            assert!(effects <= causes, "{effects} effects of {causes} causes");
        }
        assert_eq!((causes, effects), (4096, 4096));
    });
}

#[test]
fn flipping_needs_the_last_generation_taken() {
    let Some(disk) = LoopDevice::of_size(16 * MIB) else { return };
    let name = Name::new();
    let mut tracker = name.open_clean(StreamId::random(), &[&disk]);
    tracker.flip().unwrap();
    assert!(matches!(tracker.flip(), Err(TrackerError::NotTaken(DISK))));
    assert_eq!(take(&mut tracker, DISK), NONE);
    tracker.flip().unwrap();
}

/// A disk whose writes can be held in flight: it is a file on a file system that can be frozen.
struct Holdable {
    disk: LoopDevice,
    mounted: Mounted,
    _below: LoopDevice,
}

impl Holdable {
    fn new() -> Option<Self> {
        let below = LoopDevice::of_size(96 * MIB)?;
        run("mkfs.ext4", &["-q", below.path().to_str().unwrap()]);
        let mounted = Mounted::new(&below);
        let image = mounted.dir.path().join("image");
        File::create(&image).unwrap().set_len(16 * MIB).unwrap();
        Some(Self { disk: LoopDevice::over(&image), mounted, _below: below })
    }

    /// Calls `during` while a write to block 9 is in flight.
    fn hold(&self, during: impl FnOnce()) {
        let dir = self.mounted.dir.path().to_str().unwrap();
        run("fsfreeze", &["--freeze", dir]);
        let thaw = Thaw(dir);
        thread::scope(|scope| {
            // Dropped before the scope waits for the writer, also when `during` panics.
            let _thaw = thaw;
            scope.spawn(|| self.disk.write(9, 1, 1));
            wait_for("the write is issued", || !self.is_quiet());
            during();
            assert!(!self.is_quiet());
        });
    }

    fn is_quiet(&self) -> bool {
        BlockDevice::find(self.disk.path()).unwrap().unwrap().is_quiet().unwrap()
    }
}

#[test]
fn writes_in_flight_are_known() {
    let Some(held) = Holdable::new() else { return };
    let name = Name::new();
    let mut tracker = name.open_clean(StreamId::random(), &[&held.disk]);
    wait_for("what was in flight before is known to be complete", || tracker.drained().unwrap());
    // The block is marked already when the write to be held comes.
    held.disk.write(9, 1, 1);
    held.hold(|| {
        assert_eq!(flip_and_take(&mut tracker, DISK), [9]);
        assert!(!tracker.drained().unwrap() && !tracker.may_read().unwrap());
        let start = Instant::now();
        assert!(matches!(tracker.flip(), Err(TrackerError::StillInFlight { writes: 1, .. })));
        assert!(start.elapsed() >= DRAINED_WITHIN);
    });
    assert!(tracker.drained().unwrap() && tracker.may_read().unwrap());
    assert_eq!(flip_and_take(&mut tracker, DISK), NONE);
}

#[test]
fn a_completion_that_was_not_seen_is_known_from_the_disks() {
    let Some(held) = Holdable::new() else { return };
    let name = Name::new();
    let mut tracker = name.open_clean(StreamId::random(), &[&held.disk]);
    wait_for("what was in flight before is known to be complete", || tracker.drained().unwrap());
    held.hold(|| {
        // The program goes with its link.
        fs::remove_file(tracker.set.dir.join("link_complete")).unwrap();
        flip_and_take(&mut tracker, DISK);
        thread::sleep(ASK_AFTER);
        assert!(!tracker.drained().unwrap());
    });
    assert!(!tracker.set.flight().is_empty(tracker.ended()), "nobody saw it");
    wait_for("the disk is seen quiet", || tracker.drained().unwrap());
    assert!(tracker.set.flight().is_empty(tracker.ended()));
}

#[test]
fn a_write_that_passed_unmarked_makes_everything_dirty() {
    let Some(disk) = LoopDevice::of_size(16 * MIB) else { return };
    let name = Name::new();
    let mut tracker = name.open_clean(StreamId::random(), &[&disk]);
    assert!(tracker.saw_all().unwrap());
    // The kernel's count cannot be raised at will: it now differs from what is known the other way round.
    tracker.set.control.missed().store(1, SeqCst);
    assert!(!tracker.saw_all().unwrap());
    assert_eq!(flip_and_take(&mut tracker, DISK).len(), 4096);
    assert!(tracker.saw_all().unwrap());
}

#[test]
fn a_write_issued_before_the_tracker_was_there_is_marked_and_waited_for() {
    let Some(held) = Holdable::new() else { return };
    let name = Name::new();
    let mut tracker = None;
    held.hold(|| {
        let opened = tracker.insert(name.open_clean(StreamId::random(), &[&held.disk]));
        assert_eq!(flip_and_take(opened, DISK), NONE);
        assert!(!opened.drained().unwrap());
    });
    let mut tracker = tracker.unwrap();
    assert!(tracker.drained().unwrap());
    assert_eq!(flip_and_take(&mut tracker, DISK), [9]);
}

struct Thaw<'a>(&'a str);

impl Drop for Thaw<'_> {
    fn drop(&mut self) {
        run("fsfreeze", &["--unfreeze", self.0]);
    }
}

/// A mounted file system, unmounted on drop.
struct Mounted {
    dir: tempfile::TempDir,
}

impl Mounted {
    fn new(disk: &LoopDevice) -> Self {
        let dir = tempfile::tempdir().unwrap();
        run("mount", &[disk.path().to_str().unwrap(), dir.path().to_str().unwrap()]);
        Self { dir }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        run("umount", &[self.dir.path().to_str().unwrap()]);
    }
}

#[test]
fn a_killed_agent_loses_no_mark() {
    let Some(disk) = LoopDevice::of_size(64 * MIB) else { return };
    let (name, stream) = (Name::new(), StreamId::random());
    let signal = tempfile::tempdir().unwrap();
    let ready = signal.path().join("ready");
    let agent = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "tracker::ebpf::tests::agent_to_be_killed", "--nocapture"])
        .env("HOMEWARD_TEST_AGENT", format!("{} {} {}", name.0, stream, disk.path().display()))
        .env("HOMEWARD_TEST_READY", &ready)
        .spawn()
        .unwrap();
    let agent = Killed(agent);
    wait_for("the agent is ready", || ready.exists());
    assert!(matches!(
        EbpfTracker::open(&name.0, stream, &[disk.path().to_owned()]),
        Err(TrackerError::InUse(_))
    ));
    drop(agent);
    disk.write(400, 4, 1);

    let (mut tracker, continuity) = name.open(stream, &[&disk]);
    assert_eq!(continuity, [Continuity::Proven]);
    let maps = tracker.maps(DISK);
    let marked = |from| maps.dirty.any(Block(from), Block(from + 1));
    // Taken by the agent; flipped but not taken by it.
    assert!(marked(100) && marked(200));
    assert_eq!(maps.dirty.blocks(), 2);
    assert!(maps.sent[0].any(Block(50), Block(51)) && maps.sent[1].is_empty(), "what was sent stays so");
    // Written after its last flip, and while it was dead.
    assert_eq!(flip_and_take(&mut tracker, DISK), [300, 400, 401, 402, 403]);
    assert!(tracker.drained().unwrap());
}

/// A process that is killed (SIGKILL) on drop.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// Not a test: what `a_killed_agent_loses_no_mark` starts as a process of its own.
#[test]
fn agent_to_be_killed() {
    let Ok(arguments) = std::env::var("HOMEWARD_TEST_AGENT") else { return };
    let mut arguments = arguments.split(' ');
    let (name, stream, path) =
        (arguments.next().unwrap(), arguments.next().unwrap(), arguments.next().unwrap());
    let stream = serde_json::from_value(serde_json::json!(stream)).unwrap();
    let (mut tracker, _) = EbpfTracker::open(name, stream, &[path.into()]).unwrap();
    tracker.maps(DISK).dirty.clear_all();
    let file = File::options().write(true).open(path).unwrap();
    let write = |block: u64| {
        file.write_all_at(&[1; 4096], block * 4096).unwrap();
        file.sync_all().unwrap();
    };
    write(100);
    flip_and_take(&mut tracker, DISK);
    tracker.maps(DISK).sent[0].set(Block(50), Block(51));
    write(200);
    tracker.flip().unwrap();
    write(300);
    File::create(std::env::var("HOMEWARD_TEST_READY").unwrap()).unwrap();
    thread::sleep(Duration::from_secs(60));
}

#[test]
fn continuity_is_lost_when_it_cannot_be_proven() {
    let Some(mut disk) = LoopDevice::of_size(16 * MIB) else { return };
    let (name, stream) = (Name::new(), StreamId::random());
    drop(name.open_clean(stream, &[&disk]));
    let lost = |reason| [Continuity::Lost { disk: DISK, reason }];
    let reopen = |stream, disk: &LoopDevice| {
        let (tracker, continuity) = name.open(stream, &[disk]);
        let maps = tracker.maps(DISK);
        let all = maps.dirty.granularity().blocks;
        assert_eq!(maps.dirty.blocks(), if continuity == [Continuity::Proven] { 0 } else { all });
        maps.dirty.clear_all();
        continuity
    };
    assert_eq!(reopen(stream, &disk), [Continuity::Proven]);

    disk.replace(16 * MIB);
    assert_eq!(reopen(stream, &disk), lost(LostReason::Replaced));
    assert_eq!(reopen(stream, &disk), [Continuity::Proven]);
    disk.grow(17 * MIB);
    assert_eq!(reopen(stream, &disk), lost(LostReason::Resized));
    assert_eq!(reopen(StreamId::random(), &disk), lost(LostReason::OtherStream));

    let stream = StreamId::random();
    reopen(stream, &disk);
    let pins = Path::new("/sys/fs/bpf/homeward").join(&name.0);
    let set = || fs::read_dir(&pins).unwrap().next().unwrap().unwrap().path();
    fs::remove_file(set().join("link_complete")).unwrap();
    assert_eq!(reopen(stream, &disk), lost(LostReason::Detached));
    fs::remove_file(set().join("marks")).unwrap();
    assert_eq!(reopen(stream, &disk), lost(LostReason::Damaged));
    assert_eq!(reopen(stream, &disk), [Continuity::Proven]);
}

#[test]
fn disks_come_and_go_without_losing_marks_of_the_others() {
    let (Some(a), Some(b)) = (LoopDevice::of_size(16 * MIB), LoopDevice::of_size(32 * MIB)) else { return };
    let (name, stream) = (Name::new(), StreamId::random());
    let mut tracker = name.open_clean(stream, &[&a]);
    a.write(1, 1, 1);
    flip_and_take(&mut tracker, DISK);
    tracker.maps(DISK).sent[1].set(Block(7), Block(8));
    a.write(2, 1, 1);
    tracker.flip().unwrap();
    a.write(3, 1, 1);
    drop(tracker);

    // The new disk comes first, so that the old one also changes place.
    let (mut tracker, continuity) = name.open(stream, &[&b, &a]);
    let moved = DiskIndex(1);
    assert_eq!(continuity, [Continuity::Lost { disk: DISK, reason: LostReason::New }, Continuity::Proven]);
    let dirty: Vec<u64> =
        tracker.maps(moved).dirty.collect(Block(0), u64::MAX).extents().map(|e| e.end().0).collect();
    assert_eq!(dirty, [4]);
    assert_eq!(tracker.maps(moved).dirty.blocks(), 3);
    assert!(tracker.maps(moved).sent[1].any(Block(7), Block(8)));
    a.write(9, 1, 1);
    b.write(8, 1, 1);
    assert_eq!(flip_and_take(&mut tracker, moved), [9]);
    assert_eq!(take(&mut tracker, DISK), [8]);
    drop(tracker);

    let (mut tracker, continuity) = name.open(stream, &[&a]);
    assert_eq!(continuity, [Continuity::Proven]);
    assert_eq!(tracker.maps(DISK).dirty.blocks(), 4);
    a.write(10, 1, 1);
    assert_eq!(flip_and_take(&mut tracker, DISK), [10]);
}

#[test]
fn trackers_of_other_names_do_not_meet() {
    let (Some(a), Some(b)) = (LoopDevice::of_size(16 * MIB), LoopDevice::of_size(16 * MIB)) else { return };
    let (one, other, third) = (Name::new(), Name::new(), Name::new());
    let mut one = one.open_clean(StreamId::random(), &[&a]);
    let mut other = other.open_clean(StreamId::random(), &[&b]);
    let mut both = third.open_clean(StreamId::random(), &[&a, &b]);
    a.write(1, 1, 1);
    b.write(2, 1, 1);
    assert_eq!(flip_and_take(&mut one, DISK), [1]);
    assert_eq!(flip_and_take(&mut other, DISK), [2]);
    assert_eq!(flip_and_take(&mut both, DISK), [1]);
    assert_eq!(take(&mut both, DiskIndex(1)), [2]);
}

#[test]
fn what_cannot_be_marked_makes_the_whole_disk_dirty() {
    let Some(mut disk) = LoopDevice::of_size(16 * MIB) else { return };
    let name = Name::new();
    let mut tracker = name.open_clean(StreamId::random(), &[&disk]);
    disk.grow(32 * MIB);
    disk.write(5000, 1, 1);
    assert!(tracker.written_since_flip(DISK, Block(0), 1));
    assert_eq!(flip_and_take(&mut tracker, DISK).len(), 4096);
    assert_eq!(tracker.maps(DISK).dirty.blocks(), 4096);
    assert!(!tracker.written_since_flip(DISK, Block(0), 1));
    assert_eq!(flip_and_take(&mut tracker, DISK), NONE);
}

#[test]
fn only_whole_disks_with_requests_are_tracked() {
    let Some(disk) = LoopDevice::of_size(16 * MIB) else { return };
    let refused = |name: &str, paths: &[&Path]| {
        let paths: Vec<PathBuf> = paths.iter().map(|path| (*path).to_owned()).collect();
        EbpfTracker::open(name, StreamId::random(), &paths).unwrap_err()
    };
    let file = tempfile::NamedTempFile::new().unwrap();
    assert!(matches!(refused("x", &[file.path()]), TrackerError::WrongDevice { .. }));
    assert!(matches!(refused("x", &[disk.path(), disk.path()]), TrackerError::TooMuch { .. }));
    assert!(matches!(refused("a.b", &[disk.path()]), TrackerError::BadName(_)));
    assert!(matches!(refused("../x", &[disk.path()]), TrackerError::BadName(_)));
    if Path::new("/dev/zram0").exists() {
        assert!(matches!(refused("x", &[Path::new("/dev/zram0")]), TrackerError::WrongDevice { .. }));
    }
}
