//! The promise: whatever runs full, replication waits, says for what, and goes on by itself when there is room;
//! nothing is lost by it.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{fs, os::unix::fs::MetadataExt, path::Path, thread, time::Duration};

use engine::service::{quantity::Size, shutdown::Shutdown};
use homeward::lab::{Lab, Look, LoopDevice, Mount, Options, Tracker, Vm, image, isolate};
use homeward_tests::{
    checkers::FileSystem,
    ground::{configure, had_within, logs, options},
    load::{Load, Plan},
    rig::{Rig, WAIT},
    room::Room,
    settings,
};

const MIB: u64 = 1 << 20;

#[test]
fn a_full_journal() {
    const VM: &str = "full-journal";
    const BLOCKS: u64 = 12 << 10;
    if !settings::is_root(VM) {
        return;
    }
    isolate().unwrap();
    let mut rng = settings::rng(VM);
    let journal = tempfile::tempdir().unwrap();
    let room = Room::new(journal.path(), "room", 96 * MIB).unwrap();
    let rig = Rig::new(VM, BLOCKS, |_| {});
    let lab = &rig.lab;
    configure(lab.master_target(), |table| {
        table.insert("journal".into(), room.path().display().to_string().into());
    });
    // The full copy needs no before-images.
    room.leave(6 * MIB).unwrap();
    let mut points = vec![rig.start()];

    let plan = Plan { threads: 4, blocks: 0..BLOCKS, pace: Duration::ZERO };
    let load = Load::start(&rig.disks, &plan, &mut rng);
    let reason = wait_for_hold(lab, VM, "no space left");
    assert!(reason.contains("layer-"), "which file? {reason}");
    assert_eq!(lab.master_target().metric("homeward_waiting_for_space").unwrap(), 1.0);

    room.leave(80 * MIB).unwrap();
    points.push(rig.had());
    wait_for_no_hold(lab, VM);
    load.stop();
    points.push(rig.had());
    rig.check(&points);
}

#[test]
fn a_full_datastore() {
    const VM: &str = "full-datastore";
    if !settings::is_root(VM) {
        return;
    }
    isolate().unwrap();
    let stop = Shutdown::manual();
    let dir = tempfile::tempdir().unwrap();
    let room = Room::new(dir.path(), "room", 192 * MIB).unwrap();
    let device = LoopDevice::create(&dir.path().join("disk.img"), 128 * MIB).unwrap();
    FileSystem::Ext4.make(device.path()).unwrap();
    let mount = Mount::new(device.path(), &dir.path().join("mnt"), "").unwrap();
    fs::write(mount.point().join("early"), noise(8 * MIB)).unwrap();
    mount.sync().unwrap();
    let vm = Vm { disks: vec![device.path().into()], ..Vm::new(VM, Tracker::Ebpf) };
    let lab = Lab::new(dir.path(), Options { vms: vec![vm], ..options(&stop) }).unwrap();
    configure(lab.master_target(), |table| {
        table["datastore"][0]["path"] = room.path().display().to_string().into();
        table["datastore"][0]["reserve_bytes"] = 0.into();
    });

    // Too little even for what the disk holds: refused before a byte is copied.
    room.leave(4 * MIB).unwrap();
    lab.start().unwrap();
    lab.wait("the copy is refused", WAIT, || {
        let status = lab.agent_status(VM)?;
        let refused = status.connection_error.as_deref().is_some_and(|error| error.contains("NoSpace"));
        Ok(if refused { Look::Done(()) } else { Look::NotYet(status.describe()) })
    })
    .unwrap();
    assert!(!room.path().join(VM).exists(), "something was made although there is no room for it");

    room.leave(48 * MIB).unwrap();
    let _ = had_within(&lab, &stop, VM, WAIT);

    // A thin disk grows while its source is written.
    fs::write(mount.point().join("late"), noise(80 * MIB)).unwrap();
    mount.sync().unwrap();
    let reason = wait_for_hold(&lab, VM, "no space left");
    assert!(reason.contains("-flat.vmdk"), "which file? {reason}");

    room.leave(120 * MIB).unwrap();
    let frozen = mount.freeze().unwrap();
    let had = had_within(&lab, &stop, VM, WAIT);
    wait_for_no_hold(&lab, VM);
    lab.restore(VM, &had.point.id.to_string(), |_| {}).unwrap();
    let flat = room.path().join(format!("{VM}/{VM}-flat.vmdk"));
    assert_eq!(image::first_difference(device.path(), &flat, &stop).unwrap(), None);
    drop(frozen);
}

#[test]
fn a_full_spool() {
    const VM: &str = "full-spool";
    const BLOCKS: u64 = 32 << 10;
    /// The least that a process server takes; half of it for one stream.
    const SPOOL: u64 = 128 * MIB;
    if !settings::is_root(VM) {
        return;
    }
    isolate().unwrap();
    let mut rng = settings::rng(VM);
    let rig = Rig::new(VM, BLOCKS, |options| options.spool = Size(SPOOL));
    let lab = &rig.lab;
    let mut points = vec![rig.start()];

    lab.master_target().stop().unwrap();
    rig.disks.rewrite().unwrap();
    let plan = Plan { threads: 2, blocks: 0..BLOCKS, pace: Duration::from_millis(2) };
    let load = Load::start(&rig.disks, &plan, &mut rng);
    let had = thread::scope(|scope| {
        // More than the spool may hold.
        let asking = scope.spawn(|| rig.had());
        rig.wait("the spool holds the agent back", || {
            let status = lab.agent_status(VM)?;
            let held = status.hold.as_deref().is_some_and(|hold| hold.contains("spool"));
            Ok(if held { Look::Done(()) } else { Look::NotYet(status.describe()) })
        });
        assert!(size_of(&lab.layout().dir("spool")) <= SPOOL / 2, "the spool is larger than it may be");
        assert!(lab.process_server().metric("homeward_holds_total").unwrap() >= 1.0);
        lab.master_target().start().unwrap();
        asking.join().expect("there is a point")
    });
    points.push(had);
    wait_for_no_hold(lab, VM);
    load.stop();
    points.push(rig.had());
    rig.check(&points);
}

/// Waits until both ends say that they wait; returns what the master target says.
fn wait_for_hold(lab: &Lab, vm: &str, why: &str) -> String {
    let waited = lab.wait("both ends wait for space", WAIT, || {
        let (agent, target) = (lab.agent_status(vm)?, lab.target_status(vm)?.expect("it is known"));
        let [there, here] = [target.hold, agent.hold.clone()].map(Option::unwrap_or_default);
        if there.contains(why) && here.contains(why) {
            return Ok(Look::Done(there));
        }
        Ok(Look::NotYet(format!("the master target: {there:?}; the agent: {}", agent.describe())))
    });
    waited.unwrap_or_else(|error| panic!("{error}\n{}", logs(lab)))
}

fn wait_for_no_hold(lab: &Lab, vm: &str) {
    let waited = lab.wait("nobody waits any more", WAIT, || {
        let (agent, target) = (lab.agent_status(vm)?, lab.target_status(vm)?.expect("it is known"));
        let holds = [target.hold, agent.hold];
        Ok(if holds == [None, None] { Look::Done(()) } else { Look::NotYet(format!("{holds:?}")) })
    });
    waited.unwrap_or_else(|error| panic!("{error}\n{}", logs(lab)));
}

/// Bytes that nothing can compress.
fn noise(len: u64) -> Vec<u8> {
    use rand::Rng;
    let mut bytes = vec![0; len as usize];
    rand::rng().fill_bytes(&mut bytes);
    bytes
}

fn size_of(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries.map(|path| if path.is_dir() { size_of(&path) } else { fs::metadata(&path).unwrap().size() }).sum()
}
