//! The promise: with the shipped hooks, an application-consistent point of PostgreSQL or MariaDB restores to a server
//! that starts by itself, redoes no more than the hook says (its log shows it), has every commit that was
//! acknowledged before the instant of the point, and none begun after it.
//!
//! Beside the database's own load, files are written at 20 MB/s. The figures that each test prints, of 50 points, stand
//! in docs/performance.md.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use engine::{
    point::{Consistency, Stage},
    service::shutdown::Shutdown,
};
use homeward::lab::{Lab, LoopDevice, Mount, Options, Tracker, Vm, isolate};
use homeward_tests::{
    checkers::{Copy, FileSystem},
    fio::Bulk,
    ground::{Had, held_within, options},
    ledger::{Client, Database, Ledger},
    mariadb, postgres, settings,
};

const DISK: u64 = 512 << 20;
const POINTS: u64 = 2;
const POINT: Duration = Duration::from_secs(300);
/// What may lie between the reading of two clocks.
const CLOCKS: Duration = Duration::from_millis(1);
/// Of each point, how many may be none since a busy machine does not freeze in time; they say so.
const FAILED: u64 = 3;

#[test]
fn postgresql() {
    run(&Case {
        name: "postgresql",
        create: |data, dir| Box::new(postgres::Server::create(data, dir).unwrap()),
        start: |data, dir| Box::new(postgres::Server::start(data, dir).unwrap()),
        environment: |dir| format!("PGHOST={}", dir.display()),
    });
}

#[test]
fn mariadb() {
    run(&Case {
        name: "mariadb",
        create: |data, dir| Box::new(mariadb::Server::create(data, dir).unwrap()),
        start: |data, dir| Box::new(mariadb::Server::start(data, dir).unwrap()),
        environment: |dir| {
            let socket = dir.join("socket");
            format!("HOMEWARD_MARIADB_OPTIONS='--no-defaults --user=root --socket={}'", socket.display())
        },
    });
}

/// A database, its load, and what its hook promises.
trait Server: Database {
    fn load(&self) -> Client;
    /// Checks all tables, and what the log of a server that started from a copy says; `from` is where redo begins at
    /// the earliest, as the hook printed it.
    fn verify(&self, from: &str);
}

struct Case {
    name: &'static str,
    create: fn(&Path, &Path) -> Box<dyn Server>,
    start: fn(&Path, &Path) -> Box<dyn Server>,
    /// How its hook finds a server whose socket is in a folder.
    environment: fn(&Path) -> String,
}

impl Server for postgres::Server {
    fn load(&self) -> Client {
        self.pgbench().unwrap()
    }

    fn verify(&self, from: &str) {
        let log = self.log();
        let redo = log.lines().find_map(|line| line.split_once("redo starts at ").map(|(_, at)| at.trim()));
        assert!(redo.is_some() || log.contains("redo is not required"), "{log}");
        let position = |lsn: &str| {
            let (high, low) = lsn.split_once('/').expect("an LSN");
            [high, low].map(|half| u64::from_str_radix(half, 16).unwrap())
        };
        assert!(redo.is_none_or(|redo| position(redo) >= position(from)), "redoes before {from}: {log}");
        self.amcheck().unwrap();
    }
}

impl Server for mariadb::Server {
    fn load(&self) -> Client {
        self.sysbench().unwrap()
    }

    fn verify(&self, from: &str) {
        let log = self.log();
        let redo = log.lines().find_map(|line| line.split_once("crash recovery from checkpoint LSN="));
        let redo = redo.map(|(_, at)| at.split(|c: char| !c.is_ascii_digit()).next().unwrap());
        assert!(
            redo.is_none_or(|redo| redo.parse::<u64>().unwrap() >= from.parse().unwrap()),
            "redoes before {from}: {log}"
        );
        let bad = ["corrupt", "crashed", "epair", "[ERROR]"];
        assert!(!bad.iter().any(|word| log.contains(word)), "{log}");
        assert_eq!(self.check().unwrap(), Vec::<String>::new());
    }
}

fn run(case: &Case) {
    let name = case.name;
    if !settings::is_root(name) {
        return;
    }
    isolate().unwrap();
    let stop = Shutdown::manual();
    // Databases are other users.
    let dir = tempfile::Builder::new().permissions(PermissionsExt::from_mode(0o755)).tempdir().unwrap();
    let disk = LoopDevice::create(&dir.path().join("disk.img"), DISK).unwrap();
    FileSystem::Ext4.make(disk.path()).unwrap();
    let mount = Mount::new(disk.path(), &dir.path().join("mnt"), "").unwrap();
    let source = dir.path().join("source");
    let server = (case.create)(&mount.point().join("data"), &source);
    let hook = hook(dir.path(), name, &(case.environment)(&source));
    let vm = Vm { disks: vec![disk.path().into()], hooks: Some(vec![hook]), ..Vm::new(name, Tracker::Ebpf) };
    let lab = Lab::new(dir.path(), Options { vms: vec![vm], ..options(&stop) }).unwrap();
    lab.start().unwrap();

    let bulk = Bulk::start(&mount.point().join("bulk")).unwrap();
    let mut load = server.load();
    let mut ledger = Ledger::start(&*server, 3).unwrap();
    let points = points(&lab, &stop, name);
    assert!(load.is_running());
    ledger.stop();
    drop(load);
    drop(bulk);
    drop(server);
    drop(mount);

    let log = fs::read_to_string(lab.agent(name).unwrap().log()).unwrap();
    for (number, had) in points.iter().enumerate() {
        let id = had.point.id.to_string();
        let from = log.lines().find_map(|line| line.split_once(&format!("{id} redoes from ")));
        let from =
            from.and_then(|(_, from)| from.split(' ').next()).expect("the hook says where redo starts");
        lab.restore(name, &id, |_| {}).unwrap();
        let copy = Copy::of(&lab.vmdks(name).unwrap()[0].flat, dir.path(), FileSystem::Ext4).unwrap();
        let mounted = copy.mount().unwrap();
        let server = (case.start)(&mounted.point().join("data"), &dir.path().join(number.to_string()));
        server.verify(from);
        ledger
            .check(&*server, had.taken..=had.taken + CLOCKS)
            .unwrap_or_else(|error| panic!("{:?}: {error}", had.point));
        drop(server);
        drop(mounted);
        copy.check().unwrap();
    }
    assert!(ledger.acknowledged() > 0);
}

/// Application-consistent points, and how long each held and froze.
fn points(lab: &Lab, stop: &Shutdown, name: &str) -> Vec<Had> {
    let wanted = settings::rounds(POINTS);
    let (mut points, mut failed): (Vec<Had>, u64) = (Vec::new(), 0);
    while (points.len() as u64) < wanted {
        let had = held_within(lab, stop, name, POINT);
        let application = had.point.application.clone().expect("applications were to hold");
        match application.failed {
            None => {
                assert_eq!(had.point.consistency, Consistency::ApplicationConsistent);
                points.push(had);
            }
            Some(step) => {
                assert_eq!(had.point.consistency, Consistency::CrashConsistent);
                println!("{name}: {step}");
                assert_eq!(step.stage, Stage::Freeze, "a hook failed");
                failed += 1;
                assert!(failed <= wanted * FAILED, "freezing fails too often");
            }
        }
    }
    let figures = |what, of: fn(&Had) -> u64| {
        let mut all: Vec<u64> = points.iter().map(of).collect();
        all.sort_unstable();
        let at = |part: usize| all[(all.len() * part).div_ceil(100) - 1] as f64 / 1000.0;
        println!("{name}: {what} ms: median {:.1}, p99 {:.1}, most {:.1}", at(50), at(99), at(100));
    };
    println!(
        "{name}: {} application-consistent points, {failed} that could not be frozen in time",
        points.len()
    );
    figures("held", |had| had.point.application.as_ref().map_or(0, |application| application.hold_us));
    figures("frozen", |had| had.point.frozen_us);
    points
}

/// The shipped hook, told where the server is.
fn hook(dir: &Path, name: &str, environment: &str) -> PathBuf {
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../agent/hooks").join(name);
    let path = dir.join("hook");
    let script = format!("#!/bin/sh\nexport {environment}\nexec {} \"$@\"\n", shipped.display());
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    path
}
