//! Disks we create, read by programs that know nothing of us: `qemu-img`, `qemu-io` and `vmdkinfo`.
#![expect(
    clippy::expect_used,
    reason = "a failed step ends the test; the lint spares only functions marked as tests"
)]

use std::{
    fs::File,
    os::unix::fs::{FileExt, MetadataExt},
    path::Path,
    process::Command,
};

use engine::io::{Backend, FolderStorage, Storage, write_all_at};
use master_target::vmdk::{
    adopt::open_for_writing,
    flat::{self, FlatErrorKind, NewDisk, Provisioning},
    geometry::{AdapterType, Capacity, DiskUuid},
};
use rand::{SeedableRng, rngs::StdRng};

/// Runs a program in `dir` and returns what it printed.
fn run(dir: &Path, program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).current_dir(dir).output().unwrap_or_else(|error| {
        panic!("{program}: {error}; install it: apt-get install qemu-utils libvmdk-utils");
    });
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {}\n{printed}{complaint}", output.status);
    assert_eq!(complaint, "", "{program} {arguments:?} complains");
    printed
}

fn new_disk(bytes: u64, provisioning: Provisioning, rng: &mut StdRng) -> NewDisk {
    NewDisk {
        name: "web 01".parse().expect("a name"),
        capacity: Capacity::for_bytes(bytes).expect("a size"),
        provisioning,
        adapter: AdapterType::LsiLogic,
        uuid: DiskUuid::random(rng),
    }
}

/// A pattern at the start, around the middle and at the very end.
fn writes(capacity: u64) -> [(u64, Vec<u8>); 3] {
    let middle = capacity / 2 / 4096 * 4096;
    [(0, vec![0x11; 8192]), (middle, vec![0x22; 65536]), (capacity - 4096, vec![0x33; 4096])]
}

/// Creates a disk, writes to it as the master target does, and lets the others look at it.
fn check(bytes: u64, provisioning: Provisioning, compare: bool) {
    println!("{bytes} bytes, {provisioning:?}");
    let folder = tempfile::tempdir().expect("a scratch folder");
    let storage = FolderStorage::open(folder.path(), Backend::Threads).expect("a folder");
    let mut rng = StdRng::seed_from_u64(bytes);
    let new = new_disk(bytes, provisioning, &mut rng);
    let disk = match flat::create(&storage, Path::new("vm"), &new, &mut rng, &mut |_, _| {}) {
        Err(error) if matches!(error.kind, FlatErrorKind::CannotReserve(_)) => {
            println!("skipped: {error}");
            return;
        }
        made => made.unwrap_or_else(|error| panic!("{error}")),
    };
    let capacity = disk.capacity.bytes();
    let device = storage.device(&disk.flat).expect("the flat file");
    for (offset, bytes) in writes(capacity) {
        write_all_at(&*device, offset, &bytes).expect("written");
    }
    device.sync().expect("synced");
    drop(device);
    let cid = flat::change_content_id(&storage, &disk.descriptor, &mut rng).expect("a new content id");
    let again = open_for_writing(&storage, &disk.descriptor).unwrap_or_else(|refused| panic!("{refused}"));
    assert_eq!(again, disk);

    let dir = folder.path().join("vm");
    let vmdk = "web 01.vmdk";
    let info = run(&dir, "qemu-img", &["info", "-f", "vmdk", "--output=json", vmdk]);
    let info: serde_json::Value = serde_json::from_str(&info).expect("JSON");
    let data = &info["format-specific"]["data"];
    assert_eq!(info["virtual-size"], capacity);
    assert_eq!(data["create-type"], "vmfs");
    assert_eq!(format!("{:08x}", data["cid"].as_u64().expect("a number")), cid.to_string());
    run(&dir, "qemu-img", &["check", "-f", "vmdk", vmdk]);
    for (offset, bytes) in writes(capacity) {
        let read = format!("read -P {} {offset} {}", bytes[0], bytes.len());
        let printed = run(&dir, "qemu-io", &["-r", "-f", "vmdk", "-c", &read, vmdk]);
        assert!(!printed.contains("failed"), "{printed}");
    }
    if compare {
        let raw = File::create_new(dir.join("reference.raw")).expect("created");
        raw.set_len(capacity).expect("sized");
        for (offset, bytes) in writes(capacity) {
            raw.write_all_at(&bytes, offset).expect("written");
        }
        run(&dir, "qemu-img", &["compare", "-f", "vmdk", "-F", "raw", vmdk, "reference.raw"]);
    }

    let info = run(&dir, "vmdkinfo", &[vmdk]);
    for expected in ["VMFS flat", &format!("({capacity} bytes)"), &format!("0x{cid}"), "web 01-flat.vmdk"] {
        assert!(info.contains(expected), "{expected:?} is not in\n{info}");
    }
    if provisioning == Provisioning::Thin {
        let allocated = dir.join("web 01-flat.vmdk").metadata().expect("the flat file").blocks() * 512;
        assert!(allocated < 1 << 20, "{allocated} bytes are allocated");
    }
}

#[test]
fn thin_disks_of_many_sizes() {
    for bytes in [1, 1 << 20, (5 << 20) + 1, 100_000_000, (2 << 30) + 512] {
        check(bytes, Provisioning::Thin, true);
    }
}

#[test]
fn a_thin_disk_of_a_tebibyte() {
    check(1 << 40, Provisioning::Thin, false);
}

#[test]
fn thick_disks() {
    check(20 << 20, Provisioning::LazilyZeroed, true);
    check(20 << 20, Provisioning::EagerlyZeroed, true);
}
