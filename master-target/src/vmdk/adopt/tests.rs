//! Every reason to refuse a disk, from the golden descriptors, and those that only its folder shows.

use std::{fs, path::PathBuf};

use engine::io::{Backend, FolderStorage};
use tempfile::TempDir;

use super::*;
use crate::vmdk::geometry::CapacityError;

fn testdata(name: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/vmdk/testdata").join(name);
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A folder that holds a golden descriptor as `web-01.vmdk` and a flat file of 40 GiB, all hole.
fn folder(golden: &str) -> TempDir {
    folder_with(&testdata(golden), "web-01-flat.vmdk", 40 << 30)
}

fn folder_with(descriptor: &[u8], flat: &str, bytes: u64) -> TempDir {
    let dir = tempfile::tempdir().expect("a scratch folder");
    fs::write(dir.path().join("web-01.vmdk"), descriptor).expect("written");
    let flat = fs::File::create_new(dir.path().join(flat)).expect("created");
    flat.set_len(bytes).expect("a sparse file");
    dir
}

fn open(dir: &TempDir) -> Result<FlatDisk, Refused> {
    let storage = FolderStorage::open(dir.path(), Backend::Threads).expect("a folder");
    open_for_writing(&storage, Path::new("web-01.vmdk"))
}

fn refusal(dir: &TempDir) -> Refusal {
    let refused = open(dir).expect_err("a reason to refuse it");
    assert!(refused.to_string().starts_with("web-01.vmdk cannot be written to: "), "{refused}");
    refused.reason
}

#[test]
fn disks_of_esxi_are_accepted() {
    for golden in ["esxi-thin.vmdk", "esxi-thick.vmdk", "crlf.vmdk", "nul-padded.vmdk", "gbk.vmdk"] {
        let dir = folder(golden);
        // What stands beside a disk in real folders, and does not matter.
        for harmless in
            ["web-01.vmx", "web-01.nvram", "web-01-aux.xml", ".vmdk", "b.vmdk.lck", "web-01_1-flat.vmdk"]
        {
            fs::write(dir.path().join(harmless), b"COWD\0binary").expect("written");
        }
        fs::write(dir.path().join("web-01_1.vmdk"), testdata("qemu-written.vmdk")).expect("written");
        let disk = open(&dir).unwrap_or_else(|refused| panic!("{golden}: {refused}"));
        assert_eq!(disk.flat, Path::new("web-01-flat.vmdk"));
        assert_eq!(disk.capacity.bytes(), 40 << 30);
        assert_eq!(disk.uuid.map(|uuid| uuid.serial()).as_deref(), Some("6000c29f281e65bf3dcc5ef0f5421ef6"));
    }
}

#[test]
fn flat_disks_of_hosted_products_are_accepted() {
    for (golden, flat) in
        [("virtualbox.vmdk", "web-01-flat.vmdk"), ("qemu-monolithic-flat.vmdk", "h-flat.vmdk")]
    {
        let dir = folder_with(&testdata(golden), flat, 20480 * 512);
        let disk = open(&dir).unwrap_or_else(|refused| panic!("{golden}: {refused}"));
        assert_eq!(
            (disk.flat.as_path(), disk.capacity.sectors(), disk.thin),
            (Path::new(flat), 20480, false)
        );
    }
    let text = String::from_utf8(testdata("virtualbox.vmdk")).expect("text");
    let refused = |from: &str, to: &str| {
        assert!(text.contains(from));
        refusal(&folder_with(text.replace(from, to).as_bytes(), "web-01-flat.vmdk", 20480 * 512))
    };
    assert!(matches!(refused("vmdk\" 0", "vmdk\" 8"), Refusal::Offset(8)));
    assert!(matches!(refused("FLAT", "SPARSE"), Refusal::Invalid(_)));
    assert!(matches!(refused(" 0\n", "\n"), Refusal::Invalid(_)));
    assert!(matches!(refused("monolithicFlat", "vmfs"), Refusal::WrongExtent { expected: "RW VMFS", .. }));
    assert!(matches!(
        refused("FLAT \"web-01-flat.vmdk\" 0", "VMFS \"web-01-flat.vmdk\""),
        Refusal::WrongExtent { expected: "RW FLAT", .. }
    ));
    assert!(matches!(refused("monolithicFlat", "twoGbMaxExtentFlat"), Refusal::NotFlat(_)));
    assert!(matches!(refused("monolithicFlat", "fullDevice"), Refusal::NotFlat(_)));
}

/// Checks that each golden file is refused for its own reason.
macro_rules! refused {
    ($($golden:literal => $reason:pat,)*) => {
        $(
            let reason = refusal(&folder($golden));
            assert!(matches!(reason, $reason), "{}: {reason:?}", $golden);
        )*
    };
}

#[test]
fn every_other_kind_is_refused_for_its_own_reason() {
    refused! {
        "snapshot-delta.vmdk" => Refusal::SnapshotChild { hint: Some(_) },
        "snapshot-sesparse.vmdk" => Refusal::SnapshotChild { hint: Some(_) },
        "snapshot-vsan.vmdk" => Refusal::SnapshotChild { hint: Some(_) },
        "snapshot-cid-only.vmdk" => Refusal::SnapshotChild { hint: None },
        "native-snapshot.vmdk" => Refusal::NativeSnapshot,
        "encrypted.vmdk" => Refusal::Encrypted,
        "io-filter.vmdk" => Refusal::Filtered,
        "change-tracking.vmdk" => Refusal::ChangeTracking { path: Some(_) },
        "version-3.vmdk" => Refusal::ChangeTracking { path: None },
        "vsan.vmdk" => Refusal::VsanObject(_),
        "rdm-virtual.vmdk" => Refusal::RawDevice("vmfsRawDeviceMap"),
        "rdm-physical.vmdk" => Refusal::RawDevice("vmfsPassthroughRawDeviceMap"),
        "rdm-under-vmfs.vmdk" => Refusal::RawDevice("VMFSRDM"),
        "read-only.vmdk" => Refusal::WrongExtent { .. },
        "two-extents.vmdk" => Refusal::ExtentCount(2),
        "outside-folder.vmdk" => Refusal::OutsideFolder(_),
        "zero-capacity.vmdk" => Refusal::Capacity(CapacityError::Zero),
        "too-large.vmdk" => Refusal::Capacity(CapacityError::TooLarge(_)),
        "README.md" => Refusal::Invalid(_),
    }
}

#[test]
fn the_flat_file_must_be_there_and_of_the_right_size() {
    let dir = folder("esxi-thin.vmdk");
    let flat = dir.path().join("web-01-flat.vmdk");
    fs::File::options().write(true).open(&flat).and_then(|file| file.set_len((40 << 30) - 512)).expect("cut");
    assert!(matches!(refusal(&dir), Refusal::SizeMismatch { found: 42_949_672_448, .. }));
    fs::remove_file(flat).expect("removed");
    let text = refusal(&dir).to_string();
    assert!(text.contains("web-01-flat.vmdk: cannot find the length: No such file"), "{text}");
}

#[test]
fn a_parent_of_a_snapshot_is_refused() {
    let child = testdata("snapshot-sesparse.vmdk");
    for hint in ["web-01.vmdk", "/vmfs/volumes/gold/web-01/web-01.vmdk"] {
        let dir = folder("esxi-thin.vmdk");
        let child = String::from_utf8_lossy(&child).replace("\"web-01.vmdk\"", &format!("\"{hint}\""));
        fs::write(dir.path().join("web-01-000001.VMDK"), child).expect("written");
        assert!(
            matches!(refusal(&dir), Refusal::HasChild { child } if child == "web-01-000001.VMDK"),
            "{hint}"
        );
    }
}

#[test]
fn a_child_of_another_disk_does_not_matter() {
    let dir = folder("esxi-thin.vmdk");
    let child = testdata("snapshot-sesparse.vmdk");
    let child = String::from_utf8_lossy(&child).replace("\"web-01.vmdk\"", "\"not-web-01.vmdk\"");
    fs::write(dir.path().join("web-01-000001.vmdk"), child).expect("written");
    open(&dir).expect("no reason to refuse it");
}

#[test]
fn a_neighbour_that_may_be_a_snapshot_is_a_reason() {
    let dir = folder("esxi-thin.vmdk");
    fs::write(dir.path().join("web-01-000001.vmdk"), b"# Disk DescriptorFile\nversi").expect("written");
    assert!(matches!(refusal(&dir), Refusal::UnreadableNeighbour { .. }));
}

#[test]
fn a_second_descriptor_of_the_same_bytes_is_a_reason() {
    let dir = folder("esxi-thin.vmdk");
    fs::write(dir.path().join("copy.vmdk"), testdata("esxi-thick.vmdk")).expect("written");
    assert!(matches!(refusal(&dir), Refusal::SharedExtent { other, .. } if other == "copy.vmdk"));
}

#[test]
fn locks_are_respected() {
    for lock in [".lck-3409000000000000", "web-01.vmdk.lck", "web-01-flat.vmdk.lck"] {
        let dir = folder("esxi-thin.vmdk");
        fs::write(dir.path().join(lock), b"host").expect("written");
        assert!(matches!(refusal(&dir), Refusal::Locked(name) if name == lock));
    }
}
