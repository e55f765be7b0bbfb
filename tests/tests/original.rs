//! The promise: a VM whose disk was at home before comes home with what differs only, the disk as it was stays a point
//! to which it can be restored and from which it comes back, and nothing of it is touched as long as something speaks
//! against it.
//!
//! `HOMEWARD_ROUNDS=N` does it N times.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    collections::BTreeSet,
    fs::{self, File},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    time::Duration,
};

use engine::{digest::LEAF_BYTES, units::BLOCK_BYTES};
use homeward::lab::{Look, image, isolate, let_pass, tool::Tool};
use homeward_tests::{ground::logs, rig::Rig, settings};
use rand::{RngExt, rngs::StdRng};

const TEST: &str = "original";

/// 256 MiB, all of it in use and incompressible.
const BLOCKS: u64 = 64 << 10;

/// Places in which the original differs, and how large they are at most, in blocks.
const PLACES: usize = 80;
const PLACE: u64 = 24;

/// What may travel besides: digests, and seals.
const OVERHEAD: u64 = BLOCKS * BLOCK_BYTES / 1000;

const DESCRIPTOR: &str = r#"# Disk DescriptorFile
version=1
encoding="UTF-8"
CID=8f67ca74
parentCID=ffffffff
createType="vmfs"

# Extent description
RW 524288 VMFS "db-flat.vmdk"

# The Disk Data Base 
#DDB

ddb.adapterType = "lsilogic"
ddb.geometry.cylinders = "32"
ddb.geometry.heads = "255"
ddb.geometry.sectors = "63"
ddb.longContentID = "4b98b55ba6a6bc2e8fd6eb368f67ca74"
ddb.uuid = "60 00 C2 9f 28 1e 65 bf-3d cc 5e f0 f5 42 1e f6"
ddb.virtualHWVersion = "14"
"#;

/// The disk at home before the failback.
struct Original {
    folder: PathBuf,
    /// A copy of its bytes.
    before: PathBuf,
    /// Leaves in which it differs from the source.
    stale: BTreeSet<u64>,
}

impl Original {
    /// One that was like the VM's disk once.
    fn make(rig: &Rig, rng: &mut StdRng) -> Self {
        let folder = rig.lab.layout().datastore().join("old");
        fs::create_dir_all(&folder).unwrap();
        let original = Self { before: rig.dir.path().join("before.img"), folder, stale: BTreeSet::new() };
        fs::write(original.descriptor(), DESCRIPTOR).unwrap();
        image::copy(rig.device.path(), &original.flat(), &rig.stop).unwrap();
        let flat = File::options().write(true).open(original.flat()).unwrap();
        let mut stale = BTreeSet::new();
        for _ in 0..PLACES {
            let (start, blocks) = (rng.random_range(0..BLOCKS - PLACE), rng.random_range(1..=PLACE));
            let mut bytes = vec![0; (blocks * BLOCK_BYTES) as usize];
            rng.fill(&mut bytes[..]);
            flat.write_all_at(&bytes, start * BLOCK_BYTES).unwrap();
            stale.extend((start..start + blocks).map(|block| block * BLOCK_BYTES / LEAF_BYTES));
        }
        flat.sync_all().unwrap();
        image::copy(&original.flat(), &original.before, &rig.stop).unwrap();
        Self { stale, ..original }
    }

    fn descriptor(&self) -> PathBuf {
        self.folder.join("db.vmdk")
    }

    fn flat(&self) -> PathBuf {
        self.folder.join("db-flat.vmdk")
    }

    fn lock(&self) -> PathBuf {
        self.folder.join("db.vmdk.lck")
    }

    /// As VMware left it, to the last byte.
    fn assert_untouched(&self, rig: &Rig) {
        assert_eq!(fs::read_to_string(self.descriptor()).unwrap(), DESCRIPTOR);
        assert_equal(rig, &self.flat(), &self.before);
    }
}

#[test]
fn only_what_differs_travels_and_what_was_there_comes_back() {
    if !settings::is_root(TEST) {
        return;
    }
    isolate().unwrap();
    let mut rng = settings::rng(TEST);
    (0..settings::rounds(1)).for_each(|_| run(&mut rng));
}

fn run(rng: &mut StdRng) {
    let rig = Rig::new(TEST, BLOCKS, |options| {
        options.originals = vec![(TEST.into(), "disk0".into(), "old/db.vmdk".into())];
    });
    let original = Original::make(&rig, rng);

    // The VM at home still has it: nothing happens until that is over.
    fs::write(original.lock(), "host").unwrap();
    rig.lab.start().unwrap();
    rig.wait("the agent is told why not", || {
        let status = rig.lab.agent_status(TEST)?;
        let told = status.connection_error.as_ref().is_some_and(|why| {
            why.contains("the original of disk disk0 of VM original")
                && why.contains("db.vmdk.lck says that it is in use")
        });
        Ok(if told { Look::Done(()) } else { Look::NotYet(status.describe()) })
    });
    original.assert_untouched(&rig);
    fs::remove_file(original.lock()).unwrap();

    // Killed on the way, the agent finds out by itself what is left to compare.
    rig.wait("the first frames", || {
        let there = rig.lab.target_status(TEST)?.is_some();
        Ok(if there { Look::Done(()) } else { Look::NotYet("the stream is not there".into()) })
    });
    let_pass(&rig.stop, Duration::from_millis(rng.random_range(0..500))).unwrap();
    rig.lab.agent(TEST).unwrap().kill().unwrap();
    rig.lab.agent(TEST).unwrap().start().unwrap();
    let mut points = vec![rig.had()];
    let differ = original.stale.len() as u64 * LEAF_BYTES;
    let sent = rig.hops.each_ref().map(|hop| hop.bytes_up() + hop.bytes_down()).into_iter().max().unwrap();
    println!("{TEST}: {sent} bytes for {differ} that differ, of a disk of {}", BLOCKS * BLOCK_BYTES);
    assert!(sent > PLACES as u64 / 2 * BLOCK_BYTES, "{sent} bytes cannot be all that differs");
    // What was on its way at a kill travels again.
    assert!(sent < 3 * differ + 2 * OVERHEAD, "{sent} bytes, {differ} differ\n{}", logs(&rig.lab));
    let target = rig.lab.target_status(TEST).unwrap().unwrap();
    assert!(target.logical_bytes <= 3 * differ, "{target:?}");
    assert_equal(&rig, rig.device.path(), &original.flat());

    for _ in 0..100 {
        rig.disks.write(0, rng.random_range(0..BLOCKS), None).unwrap();
    }
    points.push(rig.had());
    rig.check(&points);
    check_before(&rig, &original);

    rig.lab.restore(TEST, "before-failback", |_| {}).unwrap();
    assert_equal(&rig, &original.flat(), &original.before);
    check_readers(&original, &original.before);
    rig.lab.undo(TEST, |_| {}).unwrap();
    assert_equal(&rig, rig.device.path(), &original.flat());
    points.push(rig.had());
    rig.check(&points);
    check_readers(&original, rig.device.path());
    check_descriptor(&original);
}

/// What is there to be looked at while replication goes on, and what cannot be said of it.
fn check_before(rig: &Rig, original: &Original) {
    let (service, exported) = (rig.lab.master_target(), rig.dir.path().join("exported.img"));
    let tool = |arguments: &[&str]| {
        let program = service.program().display().to_string();
        Tool::new(&program).arg("--config").arg(service.config()).args(arguments)
    };
    let points = tool(&["points", TEST]).run().unwrap().stdout;
    let first = points.lines().next().unwrap();
    for word in ["before-failback", "as found at home", "pinned"] {
        assert!(first.contains(word), "{word} is not in: {first}");
    }
    let path = exported.display().to_string();
    let export = ["export", TEST, "--point", "before-failback", "--format", "raw", &path];
    tool(&export).run().unwrap();
    assert_equal(rig, &exported, &original.before);
    fs::remove_file(exported).unwrap();
    let verify = tool(&["verify", TEST, "--point", "before-failback"]).accept(&[5]).run().unwrap();
    assert!(verify.stderr.contains("the source never held them"), "{verify:?}");
}

/// Others open the VMDK, and find in it what they should.
fn check_readers(original: &Original, expected: &Path) {
    let (vmdk, expected) = (original.descriptor().display().to_string(), expected.display().to_string());
    let info = Tool::new("vmdkinfo").arg(&vmdk).run().unwrap().stdout;
    assert!(info.contains("VMFS flat") && info.contains("(268435456 bytes)"), "{info}");
    Tool::new("qemu-img").args(["compare", "-s", "-f", "vmdk", "-F", "raw", &vmdk, &expected]).run().unwrap();
}

/// A new content id, twice, and no other byte.
fn check_descriptor(original: &Original) {
    let text = fs::read_to_string(original.descriptor()).unwrap();
    let lines = DESCRIPTOR.split_inclusive('\n').zip(text.split_inclusive('\n'));
    let changed: Vec<_> = lines.filter(|(old, new)| old != new).map(|(_, new)| new.trim_end()).collect();
    let [id, long] = changed[..] else { panic!("{changed:?}") };
    let id = id.strip_prefix("CID=").unwrap();
    assert_eq!(long, format!("ddb.longContentID = \"4b98b55ba6a6bc2e8fd6eb36{id}\""));
    assert_eq!(text.len(), DESCRIPTOR.len());
}

fn assert_equal(rig: &Rig, a: &Path, b: &Path) {
    let difference = image::first_difference(a, b, &rig.stop).unwrap();
    assert_eq!(difference, None, "{} and {}", a.display(), b.display());
}
