//! The promise: a crash-consistent point is as good as a power cut. PostgreSQL starts from every one that was sealed
//! while it ran, nothing that it had committed before is missing, no transaction is there by half, and `pg_amcheck`
//! finds every table and index whole.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{os::unix::fs::PermissionsExt, time::Duration};

use engine::service::shutdown::Shutdown;
use homeward::lab::{Lab, LoopDevice, Mount, Options, Tracker, Vm, isolate};
use homeward_tests::{
    checkers::{Copy, FileSystem},
    ground::{Had, had_within, options},
    ledger::Ledger,
    postgres::Server,
    settings,
};

const TEST: &str = "postgres";
const DISK: u64 = 384 << 20;
const POINTS: u64 = 12;
const POINT: Duration = Duration::from_secs(300);

#[test]
fn every_point_recovers() {
    if !settings::is_root(TEST) {
        return;
    }
    isolate().unwrap();
    let stop = Shutdown::manual();
    // PostgreSQL is another user.
    let dir = tempfile::Builder::new().permissions(PermissionsExt::from_mode(0o755)).tempdir().unwrap();
    let disk = LoopDevice::create(&dir.path().join("disk.img"), DISK).unwrap();
    FileSystem::Ext4.make(disk.path()).unwrap();
    let mount = Mount::new(disk.path(), &dir.path().join("mnt"), "").unwrap();
    let server = Server::create(&mount.point().join("data"), &dir.path().join("source")).unwrap();
    let vm = Vm { disks: vec![disk.path().into()], ..Vm::new(TEST, Tracker::Ebpf) };
    let lab = Lab::new(dir.path(), Options { vms: vec![vm], ..options(&stop) }).unwrap();
    lab.start().unwrap();

    let mut pgbench = server.pgbench().unwrap();
    let mut ledger = Ledger::start(&server, 3).unwrap();
    let points: Vec<Had> =
        (0..settings::rounds(POINTS)).map(|_| had_within(&lab, &stop, TEST, POINT)).collect();
    assert!(pgbench.is_running());
    ledger.stop();
    drop(pgbench);
    drop(server);
    drop(mount);

    let mut least = usize::MAX;
    for (number, had) in points.iter().enumerate() {
        lab.restore(TEST, &had.point.id.to_string(), |_| {}).unwrap();
        let copy = Copy::of(&lab.vmdks(TEST).unwrap()[0].flat, dir.path(), FileSystem::Ext4).unwrap();
        let mounted = copy.mount().unwrap();
        let server = Server::start(&mounted.point().join("data"), &dir.path().join(number.to_string()));
        let server = server.unwrap_or_else(|error| panic!("{:?}: {error}", had.point));
        assert!(server.log().contains("was not properly shut down"), "{}", server.log());
        let checked = ledger.check(&server, had.from..=had.until);
        least = least.min(checked.unwrap_or_else(|error| panic!("{:?}: {error}", had.point)));
        assert_eq!(server.query(BALANCED).unwrap(), "t", "{:?}", had.point);
        server.amcheck().unwrap_or_else(|error| panic!("{:?}: {error}", had.point));
        drop(server);
        drop(mounted);
        copy.check().unwrap();
    }
    let frozen = points.iter().filter(|had| had.point.frozen_us > 0).count();
    println!(
        "{TEST}: {} points, {frozen} of them frozen; {} transactions acknowledged, {least} at the first point",
        points.len(),
        ledger.acknowledged()
    );
    assert!(ledger.acknowledged() > least, "nothing was committed between the points");
}

/// Every pgbench transaction adds the same to an account, a teller, a branch and the history.
const BALANCED: &str = "SELECT count(DISTINCT sum) = 1 FROM (
    SELECT coalesce(sum(abalance), 0) AS sum FROM pgbench_accounts UNION ALL
    SELECT coalesce(sum(tbalance), 0) FROM pgbench_tellers UNION ALL
    SELECT coalesce(sum(bbalance), 0) FROM pgbench_branches UNION ALL
    SELECT coalesce(sum(delta), 0) FROM pgbench_history) AS sums";
