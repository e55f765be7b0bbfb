//! The promise: with real services, disks and loads, `verify` proves what is right and names and mends what is not: a
//! bit that flipped in a VMDK, and what an agent sent whose tracker misses one write in 10,000.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    fs,
    os::unix::fs::{FileExt, symlink},
    path::Path,
    process::{Command, Output, Stdio},
    time::Duration,
};

use engine::{digest::LEAF_BYTES, units::BLOCK_BYTES};
use homeward::lab::{image, isolate};
use homeward_tests::{
    load::{Load, Plan},
    rig::Rig,
    settings,
};
use rand::RngExt;
use serde_json::Value;

/// The exit code of what was compared and found different.
const DIFFERENT: Option<i32> = Some(6);

/// 128 MiB.
const BLOCKS: u64 = 32 << 10;

/// `homeward-master-target verify`, as an operator runs it.
fn command(rig: &Rig, args: &[&str]) -> Command {
    let service = rig.lab.master_target();
    let mut command = Command::new(service.program());
    command.arg("--config").arg(service.config()).args(["--json", "verify"]).args(args);
    command
}

/// Its exit code, and the one object that it printed.
fn outcome(output: &Output) -> (Option<i32>, Value) {
    let stdout = String::from_utf8_lossy(&output.stdout);
    let answer = serde_json::from_str(&stdout);
    let answer = answer.unwrap_or_else(|_| panic!("{stdout}{}", String::from_utf8_lossy(&output.stderr)));
    (output.status.code(), answer)
}

fn verify(rig: &Rig, args: &[&str]) -> (Option<i32>, Value) {
    outcome(&command(rig, args).output().unwrap())
}

/// The same, while a point is made whenever what settles without one has settled.
fn verify_meanwhile(rig: &Rig, args: &[&str]) -> (Option<i32>, Value) {
    let mut child = command(rig, args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut before = None;
    while child.try_wait().unwrap().is_none() {
        let settled = Some(rig.lab.master_target().metric("homeward_verified_leaves").unwrap());
        if settled == before {
            let _point = rig.had();
        }
        before = settled;
        std::thread::sleep(Duration::from_millis(300));
    }
    outcome(&child.wait_with_output().unwrap())
}

/// The certificate in an answer, which must be one.
fn certificate(answer: &Value) -> &Value {
    let certificate = &answer["verified"]["certificate"];
    assert!(certificate.is_object(), "{answer:#}");
    certificate
}

fn disk_of(certificate: &Value) -> &Value {
    &certificate["statement"]["disks"][0]
}

#[test]
fn a_proof_covers_a_busy_disk_and_finds_a_flipped_bit() {
    const VM: &str = "verify";
    if !settings::is_root(VM) {
        return;
    }
    isolate().unwrap();
    let mut rng = settings::rng(VM);
    let rig = Rig::new(VM, BLOCKS, |_| {});
    let _first = rig.start();
    let plan = Plan { threads: 4, blocks: 0..BLOCKS / 16, pace: Duration::from_millis(2) };
    let load = Load::start(&rig.disks, &plan, &mut rng);
    let _second = rig.had();
    let (code, answer) = verify_meanwhile(&rig, &[VM, "--wait"]);
    assert_eq!(code, Some(0), "{answer:#}");
    let disk = disk_of(certificate(&answer));
    let [leaves, direct, later] = ["leaves", "direct", "later"].map(|name| disk[name].as_u64().unwrap());
    println!("{VM}: under load {direct} of {leaves} leaves directly, {later} later");
    assert_eq!(direct + later, leaves);
    assert!(later > 0 && direct >= leaves / 2, "the load is on a sixteenth of the disk");
    // At least 64 leaves settle with a point (docs/barrier.md, section 9), but for those that a busy machine gives up.
    let points = answer["verified"]["report"]["points"].as_u64().unwrap();
    println!("{VM}: it took {points} points");
    assert!(points <= 3 * (1 + (leaves / 16).div_ceil(64)), "it took {points} points");
    check_offline(&rig, certificate(&answer));
    load.stop();

    // Still, everything is direct, and at once.
    let _third = rig.had();
    let (code, answer) = verify(&rig, &[VM, "--wait"]);
    assert_eq!(code, Some(0), "{answer:#}");
    let disk = disk_of(certificate(&answer));
    assert_eq!(disk["direct"], disk["leaves"]);
    assert_eq!(answer["verified"]["report"]["points"], 1);

    let flat = &rig.lab.vmdks(VM).unwrap()[0].flat;
    let at = rng.random_range(0..BLOCKS * BLOCK_BYTES);
    flip(flat, at, rng.random_range(0..8));
    // The certificate of before is kept, and says what was true.
    assert_eq!(verify(&rig, &[VM]).0, Some(0));
    let (code, answer) = verify_meanwhile(&rig, &[VM, "--wait", "--again"]);
    assert_eq!(code, DIFFERENT, "{answer:#}");
    let difference = &answer["verified"]["report"]["differences"][0];
    let offset = difference["offset"].as_u64().unwrap();
    assert_eq!(offset, at / LEAF_BYTES * LEAF_BYTES, "{answer:#}");
    assert!(difference["repaired"].is_u64(), "{answer:#}");

    let _fourth = rig.had();
    assert_eq!(verify(&rig, &[VM, "--wait"]).0, Some(0));
    rig.lab.master_target().stop().unwrap();
    assert_eq!(image::first_difference(rig.device.path(), flat, &rig.stop).unwrap(), None);
}

/// The certificate holds for anybody who has the CA, and not when a digit of it is changed.
fn check_offline(rig: &Rig, certificate: &Value) {
    let file = rig.dir.path().join("certificate.json");
    let ca = rig.dir.path().join("ca.pem");
    let config: toml::Table =
        toml::from_str(&fs::read_to_string(rig.lab.master_target().config()).unwrap()).unwrap();
    fs::copy(config["tls"]["ca"].as_str().unwrap(), &ca).unwrap();
    let check = |text: &str| {
        fs::write(&file, text).unwrap();
        let mut command = Command::new(rig.lab.master_target().program());
        command.args(["verify", "--check"]).arg(&file).arg("--ca").arg(&ca);
        command.output().unwrap().status.success()
    };
    let text = certificate.to_string();
    assert!(check(&text));
    assert!(!check(&text.replacen("\"direct\":", "\"direct\":1", 1)));
}

fn flip(file: &Path, at: u64, bit: u32) {
    let file = fs::File::options().read(true).write(true).open(file).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1 << bit], at).unwrap();
    // The service reads past the page cache.
    file.sync_all().unwrap();
}

#[test]
fn an_agent_that_misses_writes_is_caught_and_mended() {
    const VM: &str = "missing";
    if !settings::is_root(VM) {
        return;
    }
    isolate().unwrap();
    let services = tempfile::tempdir().unwrap();
    let rig = Rig::new(VM, BLOCKS, |options| {
        for name in ["homeward-process-server", "homeward-master-target"] {
            symlink(options.binaries.join(name), services.path().join(name)).unwrap();
        }
        let broken = env!("CARGO_BIN_EXE_agent-that-misses-writes");
        symlink(broken, services.path().join("homeward-agent")).unwrap();
        options.binaries = services.path().into();
    });
    let _first = rig.start();
    let flat = rig.lab.vmdks(VM).unwrap()[0].flat.clone();
    let missed = || {
        let log = fs::read_to_string(rig.lab.agent(VM).unwrap().log()).unwrap();
        log.lines().filter(|line| line.contains("this write is missed")).count()
    };
    for round in 1..=settings::rounds(1) {
        write_until_it_differs(&rig, &flat);
        println!("{VM}: round {round}, {} writes missed so far", missed());
        let (code, answer) = verify_meanwhile(&rig, &[VM, "--wait"]);
        assert_eq!(code, DIFFERENT, "{answer:#}");
        let differences = answer["verified"]["report"]["differences"].as_array().unwrap();
        assert!(!differences.is_empty(), "{answer:#}");
        assert!(differences.iter().all(|difference| difference["repaired"].is_u64()), "{answer:#}");

        let _point = rig.had();
        let (code, answer) = verify(&rig, &[VM, "--wait"]);
        assert_eq!(code, Some(0), "{answer:#}");
        certificate(&answer);
        assert_eq!(image::first_difference(rig.device.path(), &flat, &rig.stop).unwrap(), None);
    }
}

/// Until a write was missed: a time or two, as a rule.
fn write_until_it_differs(rig: &Rig, flat: &Path) {
    for _ in 0..20 {
        rig.disks.rewrite().unwrap();
        let _point = rig.had();
        if image::first_difference(rig.device.path(), flat, &rig.stop).unwrap().is_some() {
            return;
        }
    }
    panic!("the tracker misses nothing");
}
