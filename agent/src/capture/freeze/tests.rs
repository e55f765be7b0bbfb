//! Real file systems on loop devices, and real processes that are killed and stopped. All of it needs root, and
//! says that it is skipped without.

use std::{
    fs::{self, File},
    io::Write,
    path::Path,
    process::{Child, Command},
};

use rustix::process::{Pid, Signal, kill_process};

use super::{super::watchdog, *};
use crate::tracker::testing::{LoopDevice, run, wait_for};

const MIB: u64 = 1 << 20;
const LONG: Duration = Duration::from_secs(20);

/// A mounted file system; thawed and unmounted on drop.
struct Mounted {
    dir: tempfile::TempDir,
}

impl Mounted {
    fn new(device: &LoopDevice, mkfs: &[&str], options: &str) -> Self {
        Self::of(device.path(), mkfs, options)
    }

    fn of(device: &Path, mkfs: &[&str], options: &str) -> Self {
        run(mkfs[0], &[&mkfs[1..], &[device.to_str().unwrap()]].concat());
        let dir = tempfile::tempdir().unwrap();
        run("mount", &["-o", options, device.to_str().unwrap(), dir.path().to_str().unwrap()]);
        Self { dir }
    }

    fn existing(device: &LoopDevice, options: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        run("mount", &["-o", options, device.path().to_str().unwrap(), dir.path().to_str().unwrap()]);
        Self { dir }
    }

    fn ext4(device: &LoopDevice) -> Self {
        Self::new(device, &["mkfs.ext4", "-q"], "rw")
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Looks without waiting for a write, by trying to freeze it.
    fn is_frozen(&self) -> bool {
        let dir = File::open(self.path()).unwrap();
        match fs_ioctl::freeze(&dir) {
            Err(Errno::BUSY) => true,
            other => {
                other.unwrap();
                // The watchdog may have been quicker.
                let _ = fs_ioctl::thaw(&dir);
                false
            }
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = File::open(self.path()).map(fs_ioctl::thaw);
        run("umount", &[self.path().to_str().unwrap()]);
    }
}

fn id(device: &LoopDevice) -> DeviceId {
    use std::os::unix::fs::MetadataExt;
    DeviceId::from_dev_t(fs::metadata(device.path()).unwrap().rdev())
}

/// This test program as a process that runs only the test `name`, and knows why.
fn helper(name: &str, why: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", &format!("capture::freeze::tests::{name}"), "--nocapture"])
        .env("HOMEWARD_TEST", why);
    command
}

fn freezer(disks: &[&LoopDevice]) -> FileSystemFreezer {
    let watchdog = Watchdog::start(helper("watchdog_process", "watchdog")).unwrap();
    FileSystemFreezer::new(disks.iter().map(|disk| id(disk)).collect(), watchdog)
}

/// Not a test: the watchdog of those below.
#[test]
fn watchdog_process() {
    if std::env::var("HOMEWARD_TEST").as_deref() == Ok("watchdog") {
        watchdog::run().unwrap();
    }
}

#[test]
fn writes_wait_while_frozen_and_go_on_after() {
    for mkfs in [&["mkfs.ext4", "-q"][..], &["mkfs.xfs", "-q"], &["mkfs.btrfs", "-q"]] {
        let Some(disk) = LoopDevice::of_size(320 * MIB) else { return };
        let mounted = Mounted::new(&disk, mkfs, "rw");
        let mut freezer = freezer(&[&disk]);
        freezer.sync().unwrap();
        let start = Instant::now();
        freezer.freeze(LONG).unwrap();
        assert!(mounted.is_frozen());
        std::thread::scope(|scope| {
            let file = mounted.path().join("file");
            let writer = scope.spawn(move || fs::write(file, "x").unwrap());
            // A write that waits can only be seen not to come; the disk's contents prove the rest.
            std::thread::sleep(Duration::from_millis(50));
            assert!(!writer.is_finished());
            freezer.thaw().unwrap();
            writer.join().unwrap();
        });
        assert!(!mounted.is_frozen());
        let frozen_for = freezer.last_frozen_for().unwrap();
        assert!(frozen_for >= Duration::from_millis(50) && frozen_for <= start.elapsed());
        freezer.freeze(LONG).unwrap();
        drop(freezer);
        assert!(!mounted.is_frozen(), "thawed by the drop");
    }
}

#[test]
fn a_file_system_on_a_file_is_frozen_before_the_one_below() {
    let Some(disk) = LoopDevice::of_size(96 * MIB) else { return };
    let below = Mounted::ext4(&disk);
    let image = below.path().join("image");
    File::create(&image).unwrap().set_len(32 * MIB).unwrap();
    let upper = LoopDevice::over(&image);
    let above = Mounted::ext4(&upper);
    let mut freezer = freezer(&[&disk]);
    for _ in 0..10 {
        // Something to write out: it must go through the file system below, still open.
        File::create(above.path().join("file")).unwrap().write_all(&vec![1; 4 << 20]).unwrap();
        freezer.freeze(LONG).unwrap();
        assert!(above.is_frozen() && below.is_frozen());
        freezer.thaw().unwrap();
        assert!(!above.is_frozen() && !below.is_frozen());
    }
}

/// Debian's fuse2fs; the kernel at hand may have no vfat.
#[test]
fn a_file_system_that_knows_no_freezing_does_not_keep_others_from_it() {
    let (Some(a), Some(b)) = (LoopDevice::of_size(32 * MIB), LoopDevice::of_size(32 * MIB)) else { return };
    let mounted = Mounted::ext4(&a);
    run("mkfs.ext4", &["-q", b.path().to_str().unwrap()]);
    let dir = tempfile::tempdir().unwrap();
    run("fuse2fs", &[b.path().to_str().unwrap(), dir.path().to_str().unwrap()]);
    let unfreezable = Mounted { dir };
    let mut both = freezer(&[&a, &b]);
    both.sync().unwrap();
    both.freeze(LONG).unwrap();
    assert!(mounted.is_frozen());
    fs::write(unfreezable.path().join("file"), "x").unwrap();
    assert_eq!(both.not_frozen(), [unfreezable.path().to_str().unwrap()]);
    both.thaw().unwrap();
    assert!(!mounted.is_frozen());
    let mut alone = freezer(&[&b]);
    let error = alone.freeze(LONG).err().unwrap().to_string();
    assert!(error.contains("can be frozen") && error.contains("fuse"), "{error}");
}

/// Partitions stand for whatever lies on a disk; LVM is not to be had on every machine. See [`super::super::mounts`] for
/// those.
#[test]
fn all_of_a_disk_are_frozen_once_each_wherever_they_are_mounted() {
    let Some(disk) = LoopDevice::of_size(96 * MIB) else { return };
    let path = disk.path().to_str().unwrap();
    let mounted = [("1", "2048"), ("2", "67584")].map(|(number, first)| {
        run("addpart", &[path, number, first, "65536"]);
        Mounted::of(Path::new(&format!("{path}p{number}")), &["mkfs.ext4", "-q"], "rw")
    });
    let (again, sub) = (tempfile::tempdir().unwrap(), mounted[0].path().join("sub"));
    fs::create_dir(&sub).unwrap();
    run("mount", &["--bind", sub.to_str().unwrap(), again.path().to_str().unwrap()]);
    let bound = Mounted { dir: again };
    let mut freezer = freezer(&[&disk]);
    freezer.sync().unwrap();
    freezer.freeze(LONG).unwrap();
    assert_eq!(freezer.frozen.as_ref().unwrap().file_systems.len(), 2);
    assert!(mounted.iter().chain([&bound]).all(Mounted::is_frozen));
    freezer.thaw().unwrap();
    assert!(!mounted.iter().chain([&bound]).any(Mounted::is_frozen));
}

#[test]
fn a_btrfs_of_several_disks_is_found_from_each() {
    let (Some(a), Some(b)) = (LoopDevice::of_size(160 * MIB), LoopDevice::of_size(160 * MIB)) else { return };
    run("mkfs.btrfs", &["-q", a.path().to_str().unwrap()]);
    let mounted = Mounted::existing(&a, "rw");
    run("btrfs", &["device", "add", b.path().to_str().unwrap(), mounted.path().to_str().unwrap()]);
    for disk in [&a, &b] {
        let mut freezer = freezer(&[disk]);
        freezer.freeze(LONG).unwrap();
        assert!(mounted.is_frozen());
        freezer.thaw().unwrap();
    }
}

#[test]
fn one_that_is_frozen_already_is_left_so_and_the_others_are_thawed() {
    let (Some(a), Some(b)) = (LoopDevice::of_size(32 * MIB), LoopDevice::of_size(32 * MIB)) else { return };
    let mounted = [Mounted::ext4(&a), Mounted::ext4(&b)];
    for (frozen, other) in [(&mounted[0], &mounted[1]), (&mounted[1], &mounted[0])] {
        run("fsfreeze", &["--freeze", frozen.path().to_str().unwrap()]);
        let mut freezer = freezer(&[&a, &b]);
        let error = freezer.freeze_all(LONG).unwrap_err();
        assert!(
            matches!(&error, Error::AlreadyFrozen { mount_point } if mount_point == frozen.path()),
            "{error}"
        );
        assert!(frozen.is_frozen() && !other.is_frozen());
        run("fsfreeze", &["--unfreeze", frozen.path().to_str().unwrap()]);
    }
}

#[test]
fn a_thaw_by_somebody_else_is_noticed() {
    let Some(disk) = LoopDevice::of_size(32 * MIB) else { return };
    let mounted = Mounted::ext4(&disk);
    let mut freezer = freezer(&[&disk]);
    freezer.freeze_all(LONG).unwrap();
    run("fsfreeze", &["--unfreeze", mounted.path().to_str().unwrap()]);
    assert!(matches!(freezer.thaw_all(), Err(Error::Thawed { .. })));
}

#[test]
fn a_freeze_that_takes_too_long_is_broken_off_and_reported() {
    let Some(disk) = LoopDevice::of_size(32 * MIB) else { return };
    let mounted = Mounted::ext4(&disk);
    let mut slow = freezer(&[&disk]);
    let start = Instant::now();
    slow.freeze_all(Duration::from_millis(100)).unwrap();
    wait_for("the watchdog thaws", || !mounted.is_frozen());
    assert!(start.elapsed() >= Duration::from_millis(100));
    assert!(matches!(slow.thaw_all(), Err(Error::Thawed { .. })));

    let mut hopeless = freezer(&[&disk]);
    let error = hopeless.freeze_all(Duration::ZERO).unwrap_err();
    assert!(matches!(error, Error::Overrun { .. } | Error::Thawed { .. }), "{error}");
    assert!(!mounted.is_frozen());
}

#[test]
fn where_all_is_read_only_there_is_nothing_to_freeze() {
    let Some(disk) = LoopDevice::of_size(32 * MIB) else { return };
    drop(Mounted::ext4(&disk));
    let mounted = Mounted::existing(&disk, "ro");
    let mut freezer = freezer(&[&disk]);
    let error = freezer.freeze_all(LONG).err().unwrap();
    assert!(matches!(error, Error::NothingMounted), "{error}");
    assert!(!mounted.is_frozen());
}

#[test]
fn a_watchdog_that_is_gone_lets_nothing_be_frozen() {
    let Some(disk) = LoopDevice::of_size(32 * MIB) else { return };
    let mounted = Mounted::ext4(&disk);
    let mut freezer = freezer(&[&disk]);
    freezer.watchdog.kill_for_test();
    assert!(matches!(freezer.freeze_all(LONG), Err(Error::Watchdog(_))));
    assert!(!mounted.is_frozen());
}

/// Then nobody would thaw if the agent failed, too; what was captured is no point.
#[test]
fn a_watchdog_that_is_killed_while_frozen_is_noticed_and_all_is_thawed() {
    let Some(disk) = LoopDevice::of_size(32 * MIB) else { return };
    let mounted = Mounted::ext4(&disk);
    let mut freezer = freezer(&[&disk]);
    freezer.freeze_all(LONG).unwrap();
    freezer.watchdog.kill_for_test();
    assert!(mounted.is_frozen());
    assert!(matches!(freezer.thaw_all(), Err(Error::Watchdog(_))));
    assert!(!mounted.is_frozen());
}

/// Starts an agent that freezes `disk` and stays so.
fn start_agent(disk: &LoopDevice, within: Duration, signal: &Path) -> Agent {
    let why = format!("agent {} {} {}", disk.path().display(), within.as_millis(), signal.display());
    let agent = Agent(helper("agent_process", &why).spawn().unwrap());
    wait_for("the agent has frozen the disk", || signal.join("frozen").exists());
    agent
}

struct Agent(Child);

impl Agent {
    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Not a test: what is killed and stopped below.
#[test]
fn agent_process() {
    let Ok(why) = std::env::var("HOMEWARD_TEST") else { return };
    let ["agent", disk, within, signal] = why.split(' ').collect::<Vec<_>>()[..] else { return };
    use std::os::unix::fs::MetadataExt;
    let disk = DeviceId::from_dev_t(fs::metadata(disk).unwrap().rdev());
    let watchdog = Watchdog::start(helper("watchdog_process", "watchdog")).unwrap();
    let mut freezer = FileSystemFreezer::new(vec![disk], watchdog);
    freezer.freeze_all(Duration::from_millis(within.parse().unwrap())).unwrap();
    let signal = Path::new(signal);
    File::create(signal.join("frozen")).unwrap();
    wait_for("the test says so", || signal.join("thaw").exists());
    let outcome = freezer.thaw_all();
    fs::write(signal.join("outcome"), format!("{outcome:?}")).unwrap();
}

#[test]
fn what_a_killed_agent_froze_is_thawed() {
    let Some(disk) = LoopDevice::of_size(32 * MIB) else { return };
    let mounted = Mounted::ext4(&disk);
    for _ in 0..3 {
        let signal = tempfile::tempdir().unwrap();
        let agent = start_agent(&disk, Duration::from_secs(600), signal.path());
        assert!(mounted.is_frozen());
        let start = Instant::now();
        agent.signal(Signal::KILL);
        wait_for("it is thawed", || !mounted.is_frozen());
        println!("thawed {:?} after the kill", start.elapsed());
        fs::write(mounted.path().join("file"), "x").unwrap();
    }
}

#[test]
fn what_a_stopped_agent_froze_is_thawed_at_the_deadline() {
    let Some(disk) = LoopDevice::of_size(32 * MIB) else { return };
    let mounted = Mounted::ext4(&disk);
    let signal = tempfile::tempdir().unwrap();
    let start = Instant::now();
    let agent = start_agent(&disk, Duration::from_millis(1500), signal.path());
    agent.signal(Signal::STOP);
    assert!(mounted.is_frozen());
    wait_for("it is thawed", || !mounted.is_frozen());
    assert!(start.elapsed() >= Duration::from_millis(1500));
    // Once it runs again, the agent learns that its point is none.
    File::create(signal.path().join("thaw")).unwrap();
    agent.signal(Signal::CONT);
    let outcome = signal.path().join("outcome");
    wait_for("the agent reports", || fs::read_to_string(&outcome).is_ok_and(|text| text.contains("Thawed")));
}
