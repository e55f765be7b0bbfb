//! The promise: a proof covers everything and means what it says, and what is not as it should be is found and named.
//!
//! In the simulated world, where a bit can flip anywhere and a tracker miss a write. `HOMEWARD_ROUNDS=N` tries N times
//! as often (CONTRIBUTING.md).

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use engine::{
    digest::LEAF_BYTES,
    net::{Authorities, Credentials, Identity, Role},
};
use homeward::pki;
use homeward_tests::{settings, world::World};
use jiff::Timestamp;
use master_target::proof::{Certificate, CertificateError, Phase, Report, Verdict};

/// Points within which everything settles, as docs/barrier.md states for disks of a few hot leaves.
const POINTS: u64 = 3;

fn differing(report: &Report) -> BTreeSet<(String, u64)> {
    let leaves = |from: u64, bytes: u64| (from..from + bytes).step_by(LEAF_BYTES as usize);
    let of = |d: &master_target::proof::Difference| {
        leaves(d.offset, d.bytes).map(|offset| (d.disk.clone(), offset)).collect::<Vec<_>>()
    };
    report.differences.iter().flat_map(of).collect()
}

#[test]
fn a_quiet_disk_is_proven_at_once_and_directly() {
    for seed in 0..30 {
        let mut world = World::new(seed);
        world.live(300);
        world.come_to_rest();
        let report = world.verify();
        assert_eq!(report.phase, Phase::Proven, "seed {seed}: {report:?}");
        assert_eq!(report.points, 1, "seed {seed}");
        assert_eq!(report.coverage.direct, report.coverage.leaves);
        let statement = report.certificate.unwrap().statement;
        assert_eq!((statement.point, statement.coverage()), (report.point, report.coverage));
        // The roots are those of the VM's disks.
        for (disk, proof) in statement.disks.iter().enumerate() {
            assert_eq!(proof.root, world.source_root(disk), "seed {seed}");
        }
        let target = world.target();
        assert_eq!(target.proof().verdicts().get(&report.point), Some(&Verdict::Proven(report.coverage)));
    }
}

#[test]
fn a_busy_disk_is_proven_within_the_stated_number_of_points() {
    let (mut direct, mut leaves) = (0, 0);
    for seed in 0..100 {
        let mut world = World::new(seed);
        world.live(400);
        let report = world.verify();
        assert_eq!(report.phase, Phase::Proven, "seed {seed}: {report:?}");
        assert_eq!(report.coverage.done(), report.coverage.leaves);
        assert!(report.points <= POINTS, "seed {seed}: it took {} points", report.points);
        (direct, leaves) = (direct + report.coverage.direct, leaves + report.coverage.leaves);
    }
    println!("{direct} of {leaves} leaves directly");
    assert!(direct < leaves, "the disks were not busy");
}

#[test]
fn a_bit_that_flips_on_a_disk_is_named_its_point_marked_and_mended() {
    for seed in 0..settings::rounds(100) {
        let mut world = World::new(seed);
        world.live(300);
        world.come_to_rest();
        let place = world.rot_disk();
        let leaf = (World::disk_name(place.disk), place.offset / LEAF_BYTES * LEAF_BYTES);
        let report = world.verify();
        assert_eq!(report.phase, Phase::Different, "seed {seed}, {place:?}");
        assert_eq!(differing(&report), BTreeSet::from([leaf]), "seed {seed}, {place:?}");
        assert!(report.differences.iter().all(|difference| difference.repaired.is_some()));
        let verdicts = world.target().proof().verdicts().clone();
        assert_eq!(verdicts.get(&report.point), Some(&Verdict::Different));
        // It is mended, and the next point is right.
        assert_eq!(world.stale_leaves(), BTreeSet::new());
        let again = world.verify();
        assert_eq!(again.phase, Phase::Proven, "seed {seed}");
        assert_ne!(again.point, report.point);
        // What was mended may be wrong in older points, too: they are not proven by what the disk holds now.
        let older = world.verify_oldest();
        assert!(matches!(older.phase, Phase::Failed(_)), "seed {seed}: {older:?}");
    }
}

#[test]
fn a_tracker_that_misses_writes_is_caught_every_time_and_its_misses_are_mended() {
    let mut caught = 0;
    for seed in 0..settings::rounds(100) {
        // One in 10,000 would need disks that a simulation does not have.
        let mut world = World::with_broken_tracker(seed, 10);
        world.live(500);
        world.rest_as_known();
        let stale: BTreeSet<_> =
            world.stale_leaves().iter().map(|(disk, offset)| (World::disk_name(*disk), *offset)).collect();
        let report = world.verify();
        assert_eq!(differing(&report), stale, "seed {seed}");
        let phase = if stale.is_empty() { Phase::Proven } else { Phase::Different };
        assert_eq!(report.phase, phase, "seed {seed}");
        assert_eq!(world.stale_leaves(), BTreeSet::new(), "seed {seed}");
        caught += usize::from(!stale.is_empty());
    }
    println!("{caught} times caught");
    assert!(caught as u64 > settings::rounds(100) / 2, "hardly anything was missed");
}

/// A world at rest whose disks were scrubbed once.
fn scrubbed(seed: u64) -> World {
    let mut world = World::new(seed);
    world.live(400);
    world.come_to_rest();
    assert_eq!(world.scrub(), [], "seed {seed}");
    world
}

#[test]
fn the_scrub_finds_a_flipped_bit_of_a_disk_and_names_it() {
    for seed in 0..settings::rounds(100) {
        let mut world = scrubbed(seed);
        assert_eq!(world.scrub(), [], "seed {seed}");
        let place = world.rot_disk();
        let findings = world.scrub();
        let [finding] = &findings[..] else { panic!("seed {seed}, {place:?}: {findings:?}") };
        assert_eq!(finding.disk, Some(World::disk_name(place.disk)));
        assert!((finding.offset..finding.offset + finding.bytes).contains(&place.offset), "seed {seed}");
        assert!(finding.file.ends_with("-flat.vmdk"), "{}", finding.file);
        // It only says so; a verification mends it.
        assert_eq!(world.stale_leaves().len(), 1);
        assert_eq!(world.verify().phase, Phase::Different);
        assert_eq!((world.stale_leaves().len(), world.scrub()), (0, Vec::new()), "seed {seed}");
    }
}

#[test]
fn the_scrub_finds_a_flipped_bit_of_the_journal_and_names_it() {
    for seed in 0..settings::rounds(100) {
        let mut world = scrubbed(seed);
        let open = world.open_log();
        let (path, at) = world.rot_file(|name| name.ends_with(".undo") && name != open).unwrap();
        let findings = world.scrub();
        let [finding] = &findings[..] else { panic!("seed {seed}, {path:?} at {at}: {findings:?}") };
        assert_eq!(finding.file, path.display().to_string(), "seed {seed}, {at}");
        assert!(finding.offset <= at, "seed {seed}: at {at}, found at {}", finding.offset);
        assert!(at < finding.offset + (2 << 20), "an entry has at most 1 MiB");
    }
}

#[test]
fn the_scrub_finds_a_flipped_bit_of_stored_digests_and_names_it() {
    for seed in 0..settings::rounds(100) {
        let mut world = scrubbed(seed);
        let (path, at) = world.rot_file(|name| name.starts_with("digests-")).unwrap();
        let findings = world.scrub();
        let [finding] = &findings[..] else { panic!("seed {seed}, {path:?} at {at}: {findings:?}") };
        assert_eq!(finding.file, path.display().to_string());
        assert!((finding.offset..finding.offset + finding.bytes).contains(&at), "seed {seed}: {at}");
    }
}

#[test]
fn a_certificate_holds_for_what_was_signed_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let (ca, other) = (dir.path().join("ca"), dir.path().join("other"));
    for ca in [&ca, &other] {
        pki::init(ca, pki::Validity::days(30)).unwrap();
    }
    let issue = |ca: &std::path::Path, role, name: &str| {
        let identity = Identity::new(role, name).unwrap();
        let out = dir.path().join(format!("{role}-{name}"));
        Credentials::load(&pki::issue(ca, &identity, &out, pki::Validity::days(9)).unwrap(), role).unwrap()
    };
    let mut world = World::new(1);
    world.live(300);
    world.come_to_rest();
    let mut statement = world.verify().certificate.unwrap().statement;
    // The simulation's clock begins in 1970.
    (statement.begun_at, statement.completed_at) = (Timestamp::now(), Timestamp::now());
    statement.issuer = "mt-1".into();

    let authorities = Authorities::load(&ca.join("ca.pem")).unwrap();
    let signed_by = |credentials: &Credentials| statement.clone().certify(credentials).unwrap().to_json();
    let good = signed_by(&issue(&ca, Role::MasterTarget, "mt-1"));
    assert_eq!(Certificate::check(&good, &authorities).unwrap().statement, statement);

    let tampered = good.replace("\"direct\": ", "\"direct\": 1");
    assert_ne!(tampered, good);
    assert!(matches!(Certificate::check(&tampered, &authorities), Err(CertificateError::Signature(_))));
    let added = good.replacen("\"version\": 1,", "\"version\": 1, \"approved\": true,", 1);
    assert!(matches!(Certificate::check(&added, &authorities), Err(CertificateError::Signature(_))));
    for wrong in [
        issue(&ca, Role::Agent, "mt-1"),
        issue(&ca, Role::MasterTarget, "mt-2"),
        issue(&other, Role::MasterTarget, "mt-3"),
    ] {
        assert!(Certificate::check(&signed_by(&wrong), &authorities).is_err(), "{}", wrong.identity());
    }
}
