//! What the reader accepts, and that nothing that is damaged gets past it.

use std::path::Path;

use proptest::prelude::*;
use rand::{SeedableRng, rngs::StdRng};

use super::{layout::*, *};
use crate::vmdk::{
    geometry::{Capacity, SECTOR_BYTES},
    stream_optimized::{GRAIN_BYTES, GrainWriter, StreamWriter},
};

/// A stream of a disk of `mib`, whose grains of these numbers hold their number in every byte.
fn stream(mib: u64, grains: &[u64]) -> Vec<u8> {
    let (mut out, mut zlib) = (Vec::new(), GrainWriter::new());
    let capacity = Capacity::for_bytes(mib << 20).unwrap();
    let mut writer = StreamWriter::begin(capacity, &mut StdRng::seed_from_u64(7), &mut out);
    for &grain in grains {
        writer.grain(grain, &zlib.compress(grain, &content(grain)), &mut out).unwrap();
    }
    writer.finish(&mut out).unwrap();
    out
}

fn content(grain: u64) -> Vec<u8> {
    vec![grain as u8; GRAIN_BYTES]
}

fn open(bytes: &[u8]) -> Result<SparseDisk<&[u8]>, SparseError> {
    SparseDisk::open(Path::new("disk.vmdk"), bytes)
}

/// Opens and reads everything: numbers of the grains that are stored.
fn read(bytes: &[u8]) -> Result<Vec<u64>, SparseError> {
    let disk = open(bytes)?;
    let (mut buf, mut stored) = (Vec::new(), Vec::new());
    for grain in 0..disk.capacity().bytes().div_ceil(disk.grain_bytes()) {
        if disk.read_grain(grain, &mut buf)?.is_some() {
            stored.push(grain);
        }
    }
    Ok(stored)
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..][..value.len()].copy_from_slice(value);
}

#[test]
fn what_was_written_is_read() {
    // Nothing; the first and the last; two tables with one between that has none.
    for (mib, grains) in [(1, vec![]), (1, vec![1, 15]), (100, vec![1, 2, 511, 1025, 1599])] {
        let bytes = stream(mib, &grains);
        assert!((bytes.len() as u64).is_multiple_of(SECTOR_BYTES));
        assert_eq!(read(&bytes).unwrap(), grains);
        let (disk, mut buf) = (open(&bytes).unwrap(), Vec::new());
        assert_eq!(disk.capacity().bytes(), mib << 20);
        for grain in grains {
            assert_eq!(disk.read_grain(grain, &mut buf).unwrap(), Some(&content(grain)[..]));
        }
    }
}

#[test]
fn every_broken_field_of_the_header_has_its_error() {
    let good = stream(1, &[3]);
    let cases: [(usize, &[u8], &str); 17] = [
        (at::MAGIC, b"QFI\xfb", "begins with"),
        (at::MAGIC, b"COWD", "snapshot"),
        (at::VERSION, &[4], "version is 4, expected 1, 2 or 3"),
        (at::VERSION, &[0], "version is 0"),
        (at::FLAGS, &[0x09], "flags is"),
        (at::FLAGS, &[1, 0, 1], "both or neither"),
        (at::CAPACITY, &[0; 8], "capacity is 0"),
        (at::CAPACITY, &[0xff; 8], "62 TiB"),
        (at::GRAIN, &[100], "grainSize is 100"),
        (at::GRAIN, &[0, 16], "grainSize is 4096"),
        (at::DESCRIPTOR, &[0], "no descriptor"),
        (at::DESCRIPTOR_SECTORS, &[0xff; 8], "place of its descriptor"),
        (at::TABLE_ENTRIES, &[0, 4], "numGTEsPerGT is 1024"),
        (at::DIRECTORY, &[0; 8], "gdOffset is 0"),
        (at::UNCLEAN, &[1], "marked as open"),
        (at::NEWLINES, b"\n \n\n", "transferred as text"),
        (at::COMPRESSION, &[0], "compressAlgorithm is 0"),
    ];
    for (at, value, expected) in cases {
        let mut bytes = good.clone();
        put(&mut bytes, at, value);
        let error = open(&bytes).err().unwrap_or_else(|| panic!("{expected}: accepted")).to_string();
        assert!(error.contains(expected), "{error}");
        assert!(error.starts_with("disk.vmdk, at byte "), "{error}");
    }
}

#[test]
fn the_descriptor_must_be_that_of_a_whole_disk() {
    let cases = [
        ("parentCID=ffffffff", "parentCID=01234567", "snapshot"),
        ("version=1\n", "version=3\n", "version other than 1"),
        ("\"streamOptimized\"", "\"monolithicFlat\" ", "createType is not that of its data"),
        ("RDONLY 2048 SPARSE", "RDONLY 4096 SPARSE", "different sizes"),
        ("RDONLY 2048 SPARSE", "RDONLY 0    SPARSE", "different sizes"),
        ("RDONLY 2048 SPARSE", "RDONLY 2048 VMFS  ", "other extents"),
        ("# Disk Descriptor", "parentFileNameHint", "line 1"),
        ("encoding=\"UTF-8\"", "encryptionKeys=a", "encrypted"),
    ];
    for (from, to, expected) in cases {
        let mut bytes = stream(1, &[3]);
        let at = bytes.windows(from.len()).position(|window| window == from.as_bytes()).unwrap();
        bytes[at..][..to.len()].copy_from_slice(to.as_bytes());
        let error = open(&bytes).err().unwrap_or_else(|| panic!("{expected}: accepted")).to_string();
        assert!(error.contains(expected), "{to}: {error}");
        assert!(error.starts_with("disk.vmdk, at byte 512"), "{error}");
    }
}

#[test]
fn grains_and_tables_must_be_where_they_are_said_to_be() {
    let good = stream(1, &[3]);
    let (sector, grain_at) = (SECTOR_BYTES as usize, (OVERHEAD * SECTOR_BYTES) as usize);
    // From the end: end marker, footer, its marker, directory, its marker, table.
    let end = good.len();
    let (footer, footer_marker, directory, table) =
        (end - 2 * sector, end - 3 * sector, end - 4 * sector, end - 5 * sector - TABLE);
    let cases: [(usize, &[u8], &str); 11] = [
        (end - sector + marker::TYPE, &[1], "no end-of-stream marker"),
        (footer_marker + marker::TYPE, &[2], "no marker of a footer"),
        (footer + at::CAPACITY, &[0, 16], "contradicts"),
        (footer + at::DIRECTORY, &[0xff; 8], "contradicts"),
        (footer + at::DIRECTORY, &[0xff; 4], "reaches beyond the file's end"),
        (directory, &[0xff; 4], "reaches beyond the file's end"),
        (table + 3 * 4, &[1], "grain 3 is said to begin at sector 1"),
        (table + 3 * 4, &[0xff; 4], "reaches beyond the file's end"),
        (grain_at, &[0], "its marker says 256"),
        (grain_at + 8, &[0xff; 4], "length is said to be 4294967295"),
        (grain_at + GRAIN_MARKER + 4, &[0xff; 8], "is damaged"),
    ];
    for (at, value, expected) in cases {
        let mut bytes = good.clone();
        put(&mut bytes, at, value);
        let error = read(&bytes).expect_err(expected).to_string();
        assert!(error.contains(expected), "{error}");
    }
    for cut in [0, 100, 512, 1024, grain_at, good.len() - 512, good.len() - 1] {
        assert!(read(&good[..cut]).is_err(), "cut at {cut}");
    }
}

#[test]
fn no_flipped_bit_of_a_grain_is_read_as_data() {
    let good = stream(1, &[3]);
    let start = (OVERHEAD * SECTOR_BYTES) as usize;
    let len = GRAIN_MARKER + u32::from_le_bytes(good[start + 8..start + 12].try_into().unwrap()) as usize;
    for bit in 0..len * 8 {
        let mut bytes = good.clone();
        bytes[start + bit / 8] ^= 1 << (bit % 8);
        let (disk, mut buf) = (open(&bytes).unwrap(), Vec::new());
        if let Ok(read) = disk.read_grain(3, &mut buf) {
            assert_eq!(read, Some(&content(3)[..]), "bit {bit}");
        }
    }
}

/// Kept for ever: `HOMEWARD_BLESS=1` writes it where it is missing.
#[test]
fn a_file_that_was_kept_is_read() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/stream-optimized.vmdk");
    let written = stream(40, &[0, 17, 540]);
    if std::env::var_os("HOMEWARD_BLESS").is_some() && !path.exists() {
        std::fs::write(&path, &written).unwrap();
    }
    let kept = std::fs::read(&path).unwrap();
    assert_eq!(read(&kept).unwrap(), [0, 17, 540]);
    // Another version of zlib may compress otherwise.
    let before_grains = (OVERHEAD * SECTOR_BYTES) as usize;
    assert!(
        kept[..before_grains] == written[..before_grains],
        "header or descriptor is written differently now"
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn any_damage_is_an_error_or_nothing(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)) {
        let mut bytes = stream(33, &[3, 500, 520]);
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        let _ = read(&bytes);
    }
}
