//! The promise: disks in real use come home. For each file system, under fio and a file churn, every sealed point
//! restores to a VMDK that others can read; it equals the disk where a reference copy was taken, holds every file
//! that was durable before it otherwise, and after its journal was replayed the file system's checker finds nothing.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{path::PathBuf, time::Duration};

use engine::service::shutdown::Shutdown;
use homeward::lab::{Lab, LoopDevice, Mount, Options, Tracker, Vm, image, isolate, tool};
use homeward_tests::{
    checkers::{Copy, FileSystem, vmdk_equals, vmdk_opens},
    churn::Churn,
    fio::Fio,
    ground::{Had, had_within, options},
    settings,
};

/// XFS wants 300 MiB at least.
const DISK: u64 = 320 << 20;

/// Points for each reference copy, made while everybody writes.
const LIVE: usize = 3;

const POINT: Duration = Duration::from_secs(300);

#[test]
fn ext4() {
    run("ext4", FileSystem::Ext4);
}

#[test]
fn xfs() {
    run("xfs", FileSystem::Xfs);
}

#[test]
fn btrfs() {
    run("btrfs", FileSystem::Btrfs);
}

fn run(name: &str, file_system: FileSystem) {
    if !settings::is_root(name) {
        return;
    }
    tool::require(&["fio", "qemu-img", "vmdkinfo", "mkfs.xfs", "mkfs.btrfs"])
        .unwrap_or_else(|error| panic!("{error}"));
    isolate().unwrap();
    let mut rng = settings::rng(name);
    let stop = Shutdown::manual();
    let dir = tempfile::tempdir().unwrap();
    let disk = LoopDevice::create(&dir.path().join("disk.img"), DISK).unwrap();
    file_system.make(disk.path()).unwrap();
    let mount = Mount::new(disk.path(), &dir.path().join("mnt"), "").unwrap();
    let vm = Vm { disks: vec![disk.path().into()], ..Vm::new(name, Tracker::Ebpf) };
    let lab = Lab::new(dir.path(), Options { vms: vec![vm], ..options(&stop) }).unwrap();
    lab.start().unwrap();

    let mut fio = Fio::start(mount.point()).unwrap();
    let mut churn = Churn::start(&mount.point().join("churn"), 2, &mut rng).unwrap();
    let mut points: Vec<(Had, Option<PathBuf>)> = Vec::new();
    for number in 0..settings::rounds(2) {
        points.extend((0..LIVE).map(|_| (had_within(&lab, &stop, name, POINT), None)));
        // Nobody writes to a frozen file system.
        let frozen = mount.freeze().unwrap();
        let had = had_within(&lab, &stop, name, POINT);
        let reference = dir.path().join(format!("reference-{number}.raw"));
        image::copy(disk.path(), &reference, &stop).unwrap();
        drop(frozen);
        points.push((had, Some(reference)));
    }
    assert!(fio.is_running().unwrap());
    churn.stop();
    drop(fio);
    // A copy has the same identity as the file system: the kernel takes only one of them at a time.
    drop(mount);

    for (had, reference) in &points {
        lab.restore(name, &had.point.id.to_string(), |_| {}).unwrap();
        let vmdk = &lab.vmdks(name).unwrap()[0];
        vmdk_opens(vmdk, DISK);
        if let Some(reference) = reference {
            vmdk_equals(vmdk, reference);
        }
        let copy = Copy::of(&vmdk.flat, dir.path(), file_system).unwrap();
        let mounted = copy.mount().unwrap();
        let contents = churn.check(&mounted.point().join("churn"), had.from..=had.until);
        contents.unwrap_or_else(|error| panic!("{:?}: {error}", had.point));
        Fio::verify(mounted.point()).unwrap();
        drop(mounted);
        copy.check().unwrap_or_else(|error| panic!("{:?}: {error}", had.point));
    }
    let frozen = points.iter().filter(|(had, _)| had.point.frozen_us > 0).count();
    println!(
        "{name}: {} points exact, {frozen} of them frozen, {} steps of the churn",
        points.len(),
        churn.steps()
    );
}
