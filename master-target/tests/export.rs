//! Exports, read by programs that know nothing of us: `qemu-img` and `vmdkinfo`; and disks that those made, read by us.
#![expect(
    clippy::unwrap_used,
    reason = "a failed step ends the test; the lint spares only functions marked as tests"
)]

use std::{
    fs::{self, File},
    io::Read,
    os::unix::fs::{FileExt, MetadataExt},
    path::Path,
    process::Command,
};

use engine::digest::{LEAF_BYTES, RootBuilder, leaf_digest};
use master_target::{
    export::{ExportError, Format, Written, write},
    image::Image,
    replica::ReplicaError,
    vmdk::sparse::SparseDisk,
};
use proptest::prelude::*;
use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// A disk in memory that knows its holes, as many as are whole runs of 4 KiB.
struct Disk(Vec<u8>);

impl Image for Disk {
    fn bytes(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReplicaError> {
        buf.copy_from_slice(&self.0[offset as usize..][..buf.len()]);
        Ok(())
    }

    fn holes(&self, offset: u64, len: u64) -> Result<Vec<(u64, bool)>, ReplicaError> {
        let range = &self.0[offset as usize..][..len as usize];
        // Every other run of zeros is not known to be one.
        let blocks = range.chunks(4096).enumerate();
        Ok(blocks
            .map(|(i, block)| (block.len() as u64, i % 2 == 0 && block.iter().all(|b| *b == 0)))
            .collect())
    }
}

/// Runs of zeros, of text and of noise.
fn disk(bytes: u64, seed: u64) -> Disk {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut content = vec![0; bytes as usize];
    let mut at = 0;
    while at < content.len() {
        let end = content.len().min(at + rng.random_range(1..300_000));
        match rng.random_range(0..3) {
            0 => {}
            1 => content[at..end]
                .iter_mut()
                .zip(0_u64..)
                .for_each(|(byte, i)| *byte = b'a' + (i / 7 % 20) as u8),
            _ => rng.fill_bytes(&mut content[at..end]),
        }
        at = end;
    }
    Disk(content)
}

fn export(disk: &Disk, format: Format, path: &Path) -> Written {
    let file = File::options().read(true).write(true).create_new(true).open(path).unwrap();
    let written = write(disk, format, &file, false, &mut |_, _, _| true).unwrap();
    assert!(written.checked);
    assert_eq!(written.file_bytes, file.metadata().unwrap().len());
    written
}

/// Runs a program in `dir`, which must succeed without a complaint; what it prints.
fn run(dir: &Path, program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).current_dir(dir).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}; run scripts/setup"));
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {}\n{printed}{complaint}", output.status);
    assert_eq!(complaint, "", "{program} {arguments:?} complains");
    printed
}

/// All of the disk in a sparse file.
fn read(path: &Path) -> Vec<u8> {
    let file = File::open(path).unwrap();
    let disk = SparseDisk::open(path, &file).unwrap_or_else(|error| panic!("{error}"));
    let (bytes, mut content, mut buf) = (disk.capacity().bytes(), Vec::new(), Vec::new());
    for grain in 0..bytes.div_ceil(disk.grain_bytes()) {
        let end = bytes.min((grain + 1) * disk.grain_bytes()) as usize;
        content.extend(disk.read_grain(grain, &mut buf).unwrap().unwrap_or(&[]));
        content.resize(end, 0);
    }
    content
}

#[test]
fn others_read_what_is_exported() {
    // Not whole grains, not whole MiB, more than one table; empty; no zeros.
    let mut cases =
        vec![disk(MIB, 1), disk(5 * MIB + 4096, 2), disk(70 * MIB + 512, 3), disk(3 * MIB - 512, 4)];
    cases.push(Disk(vec![0; 40 * MIB as usize]));
    let mut full = Disk(vec![0; 34 * MIB as usize]);
    StdRng::seed_from_u64(5).fill_bytes(&mut full.0);
    cases.push(full);
    for disk in cases {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let written = export(&disk, Format::StreamOptimized, &dir.join("disk.vmdk"));
        let raw = export(&disk, Format::Raw, &dir.join("disk.raw"));
        println!("{} bytes: {written:?}", disk.bytes());
        assert_eq!(fs::read(dir.join("disk.raw")).unwrap(), disk.0);
        assert_eq!((raw.root, raw.file_bytes), (written.root, disk.bytes()));
        assert_eq!(written.capacity_bytes, disk.bytes().next_multiple_of(MIB));
        let mut root = RootBuilder::new(disk.bytes());
        disk.0.chunks(LEAF_BYTES as usize).for_each(|leaf| root.push(leaf_digest(leaf)));
        assert_eq!(root.finish().unwrap(), written.root);

        run(dir, "qemu-img", &["check", "-f", "vmdk", "disk.vmdk"]);
        run(dir, "qemu-img", &["compare", "-f", "vmdk", "-F", "raw", "disk.vmdk", "disk.raw"]);
        run(dir, "qemu-img", &["convert", "-f", "vmdk", "-O", "raw", "disk.vmdk", "again.raw"]);
        let mut again = fs::read(dir.join("again.raw")).unwrap();
        assert_eq!(again.len() as u64, written.capacity_bytes);
        assert!(again.split_off(disk.0.len()).iter().all(|byte| *byte == 0));
        assert!(again == disk.0);
        let info = run(dir, "qemu-img", &["info", "-f", "vmdk", "--output=json", "disk.vmdk"]);
        let info: serde_json::Value = serde_json::from_str(&info).unwrap();
        assert_eq!(info["format-specific"]["data"]["create-type"], "streamOptimized");
        assert_eq!(info["virtual-size"], written.capacity_bytes);
        let info = run(dir, "vmdkinfo", &["disk.vmdk"]);
        assert!(info.contains(&format!("({} bytes)", written.capacity_bytes)), "{info}");
        let mut ours = read(&dir.join("disk.vmdk"));
        ours.truncate(disk.0.len());
        assert!(ours == disk.0);
    }
}

#[test]
fn what_others_made_is_read() {
    for (bytes, seed) in [(64 * KIB, 1), (5 * MIB + 4096, 2), (70 * MIB + 512, 3)] {
        let (dir, disk) = (tempfile::tempdir().unwrap(), disk(bytes, seed));
        let dir = dir.path();
        fs::write(dir.join("disk.raw"), &disk.0).unwrap();
        let options = [
            "subformat=monolithicSparse",
            "subformat=monolithicSparse,zeroed_grain=on",
            "subformat=streamOptimized",
        ];
        for option in options {
            let convert = ["convert", "-f", "raw", "-O", "vmdk", "-o", option, "disk.raw", "disk.vmdk"];
            run(dir, "qemu-img", &convert);
            assert!(read(&dir.join("disk.vmdk")) == disk.0, "{option} of {bytes}");
        }
        // A child is no disk of its own.
        let child = ["create", "-q", "-f", "vmdk", "-b", "disk.vmdk", "-F", "vmdk", "child.vmdk"];
        run(dir, "qemu-img", &["convert", "-O", "vmdk", "disk.raw", "disk.vmdk"]);
        run(dir, "qemu-img", &child);
        let file = File::open(dir.join("child.vmdk")).unwrap();
        let error = SparseDisk::open(Path::new("child.vmdk"), &file).err().unwrap().to_string();
        assert!(error.contains("snapshot"), "{error}");
    }
}

#[test]
fn zeros_of_a_raw_export_are_holes() {
    let (dir, mut disk) = (tempfile::tempdir().unwrap(), Disk(vec![0; 64 * MIB as usize]));
    disk.0[40 * MIB as usize..][..10_000].fill(7);
    let path = dir.path().join("disk.raw");
    let written = export(&disk, Format::Raw, &path);
    assert_eq!(written.data_bytes, 12 * KIB);
    let allocated = path.metadata().unwrap().blocks() * 512;
    assert!(allocated <= 64 * KIB, "{allocated} bytes are allocated");
    assert!(fs::read(path).unwrap() == disk.0);
}

#[test]
fn a_pipe_gets_the_same_bytes() {
    let disk = disk(9 * MIB + 512, 8);
    for format in [Format::Raw, Format::StreamOptimized] {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let reading = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            reader.read_to_end(&mut bytes).unwrap();
            bytes
        });
        let writer = File::from(std::os::fd::OwnedFd::from(writer));
        let written = write(&disk, format, &writer, true, &mut |_, _, _| true).unwrap();
        drop(writer);
        let bytes = reading.join().unwrap();
        assert!(!written.checked && written.file_bytes == bytes.len() as u64);
        match format {
            Format::Raw => assert!(bytes == disk.0),
            Format::StreamOptimized => {
                let dir = tempfile::tempdir().unwrap();
                fs::write(dir.path().join("disk.vmdk"), &bytes).unwrap();
                assert!(read(&dir.path().join("disk.vmdk"))[..disk.0.len()] == disk.0);
            }
        }
    }
}

#[test]
fn an_export_that_rots_before_it_is_read_again_is_no_export() {
    let (dir, disk) = (tempfile::tempdir().unwrap(), disk(9 * MIB, 9));
    for (format, at, expected) in [
        (Format::Raw, 5 * MIB, "reads as something else"),
        (Format::StreamOptimized, 64 * KIB + 12, "cannot be read again"),
        (Format::StreamOptimized, 20, "cannot be read again"),
    ] {
        let path = dir.path().join(format!("{format:?}-{at}"));
        let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        let mut rotten = false;
        let result = write(&disk, format, &file, false, &mut |what, done, all| {
            if what == "exporting" && done == all && !rotten {
                rotten = true;
                // All data is written by now.
                let mut byte = [0];
                file.read_exact_at(&mut byte, at).unwrap();
                file.write_all_at(&[!byte[0]], at).unwrap();
            }
            true
        });
        let error = result.expect_err("a rotten export");
        assert!(rotten && error.to_string().contains(expected), "{format:?} at {at}: {error}");
        assert_eq!(error.code(), engine::service::exit::Code::Different);
    }
}

#[test]
fn who_wants_it_no_more_ends_it() {
    let (dir, disk) = (tempfile::tempdir().unwrap(), disk(9 * MIB, 9));
    for what in ["looking for data", "exporting", "checking"] {
        let path = dir.path().join(what);
        let file = File::options().read(true).write(true).create_new(true).open(path).unwrap();
        let result = write(&disk, Format::StreamOptimized, &file, false, &mut |now, _, _| now != what);
        assert!(matches!(result, Err(ExportError::Interrupted)), "{what}: {result:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    #[test]
    fn what_is_exported_is_what_is_read(sectors in 1..8 * MIB / 512, seed: u64) {
        let (dir, disk) = (tempfile::tempdir().unwrap(), disk(sectors * 512, seed));
        let path = dir.path().join("disk.vmdk");
        export(&disk, Format::StreamOptimized, &path);
        let mut content = read(&path);
        let rest = content.split_off(disk.0.len());
        prop_assert!(content == disk.0 && rest.iter().all(|byte| *byte == 0));
    }
}
