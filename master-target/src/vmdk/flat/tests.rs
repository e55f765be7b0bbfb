//! Tests of creation on a real folder: what stands there afterwards, and what is never touched.

use std::{fs, os::unix::fs::MetadataExt};

use engine::io::{Backend, FolderStorage};
use rand::{SeedableRng, rngs::StdRng};
use tempfile::TempDir;

use super::*;

struct Bench {
    dir: TempDir,
    storage: FolderStorage,
    rng: StdRng,
}

fn bench() -> Bench {
    let dir = tempfile::tempdir().expect("a scratch folder");
    let storage = FolderStorage::open(dir.path(), Backend::Threads).expect("a folder");
    Bench { dir, storage, rng: StdRng::seed_from_u64(7) }
}

fn disk(provisioning: Provisioning) -> NewDisk {
    NewDisk {
        name: "web-01".parse().expect("a name"),
        capacity: Capacity::for_bytes(5 << 20).expect("a size"),
        provisioning,
        adapter: AdapterType::LsiLogic,
        uuid: "6000C29f-281e-65bf-3dcc-5ef0f5421ef6".parse().expect("a uuid"),
    }
}

impl Bench {
    fn create(&mut self, disk: &NewDisk) -> Result<FlatDisk, FlatError> {
        create(&self.storage, Path::new("vm"), disk, &mut self.rng, &mut |_, _| {})
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.dir.path().join("vm").join(name)).expect("a text")
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        fs::create_dir_all(self.dir.path().join("vm")).expect("a folder");
        fs::write(self.dir.path().join("vm").join(name), bytes).expect("a file");
    }

    fn names(&self) -> Vec<String> {
        self.storage.list(Path::new("vm")).expect("the names")
    }

    /// Length and allocated bytes of the flat file.
    fn flat(&self) -> (u64, u64) {
        let found = fs::metadata(self.dir.path().join("vm/web-01-flat.vmdk")).expect("the flat file");
        (found.len(), found.blocks() * 512)
    }
}

#[test]
fn a_thin_disk_is_text_and_a_hole() {
    let mut bench = bench();
    let made = bench.create(&disk(Provisioning::Thin)).expect("a disk");
    assert_eq!(made.descriptor, Path::new("vm/web-01.vmdk"));
    assert_eq!(made.flat, Path::new("vm/web-01-flat.vmdk"));
    assert_eq!(bench.names(), ["web-01-flat.vmdk", "web-01.vmdk"]);
    assert_eq!(bench.flat(), (5 << 20, 0));
    let text = bench.read("web-01.vmdk");
    let long = text.lines().find(|line| line.starts_with("ddb.longContentID")).expect("the line");
    assert_eq!(long.len(), "ddb.longContentID = \"\"".len() + 32);
    assert!(long.ends_with("fffffffe\""), "{long}");
    let expected = "# Disk DescriptorFile\nversion=1\nencoding=\"UTF-8\"\nCID=fffffffe\nparentCID=ffffffff\n\
        createType=\"vmfs\"\n\n# Extent description\nRW 10240 VMFS \"web-01-flat.vmdk\"\n\n\
        # The Disk Data Base \n#DDB\n\nddb.adapterType = \"lsilogic\"\nddb.geometry.cylinders = \"1\"\n\
        ddb.geometry.heads = \"255\"\nddb.geometry.sectors = \"63\"\nLONG\nddb.thinProvisioned = \"1\"\n\
        ddb.uuid = \"60 00 C2 9f 28 1e 65 bf-3d cc 5e f0 f5 42 1e f6\"\nddb.virtualHWVersion = \"14\"\n";
    assert_eq!(text.replace(long, "LONG"), expected);
}

#[test]
fn a_lazily_zeroed_disk_has_its_space() {
    let mut bench = bench();
    match bench.create(&disk(Provisioning::LazilyZeroed)) {
        Ok(_) => {
            let (length, allocated) = bench.flat();
            assert_eq!(length, 5 << 20);
            assert!(allocated >= 5 << 20, "{allocated} bytes are allocated");
            assert!(!bench.read("web-01.vmdk").contains("thinProvisioned"));
        }
        Err(FlatError { kind: FlatErrorKind::CannotReserve(_), .. }) => {
            assert_eq!(bench.names(), [""; 0], "something was left");
            println!("skipped: the file system of {} cannot reserve space", bench.dir.path().display());
        }
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn an_eagerly_zeroed_disk_is_written_and_tells_its_progress() {
    let mut bench = bench();
    let mut seen = Vec::new();
    create(
        &bench.storage,
        Path::new("vm"),
        &disk(Provisioning::EagerlyZeroed),
        &mut bench.rng,
        &mut |done, all| {
            seen.push((done >> 20, all >> 20));
        },
    )
    .expect("a disk");
    assert_eq!(seen, [(1, 5), (2, 5), (3, 5), (4, 5), (5, 5)]);
    assert!(bench.flat().1 >= 5 << 20);
    assert!(!bench.read("web-01.vmdk").contains("thinProvisioned"));
}

#[test]
fn an_existing_disk_is_left_alone() {
    let mut bench = bench();
    bench.write("web-01.vmdk", b"mine");
    let error = bench.create(&disk(Provisioning::Thin)).expect_err("it exists");
    assert!(matches!(error.kind, FlatErrorKind::Exists), "{error}");
    assert_eq!((bench.names(), bench.read("web-01.vmdk").as_str()), (vec!["web-01.vmdk".to_owned()], "mine"));
}

#[test]
fn a_flat_file_without_descriptor_is_left_alone() {
    let mut bench = bench();
    bench.write("web-01-flat.vmdk", b"precious");
    let error = bench.create(&disk(Provisioning::Thin)).expect_err("it is someone's");
    assert!(matches!(error.kind, FlatErrorKind::NoDescriptor), "{error}");
    assert_eq!(bench.names(), ["web-01-flat.vmdk"]);
    assert_eq!(bench.read("web-01-flat.vmdk"), "precious");
}

/// A folder in which creation was cut off after the flat file got `flat` bytes, if any.
fn cut_off(flat: Option<u64>) -> Bench {
    let mut bench = bench();
    bench.create(&disk(Provisioning::Thin)).expect("a disk");
    let vm = bench.dir.path().join("vm");
    fs::rename(vm.join("web-01.vmdk"), vm.join("web-01.vmdk.homeward-new")).expect("renamed");
    let file = fs::File::options().write(true).open(vm.join("web-01-flat.vmdk")).expect("the flat file");
    match flat {
        Some(bytes) => file.set_len(bytes).expect("resized"),
        None => fs::remove_file(vm.join("web-01-flat.vmdk")).expect("removed"),
    }
    bench
}

#[test]
fn what_a_crash_left_is_cleared_away() {
    for flat in [None, Some(0), Some(5 << 20)] {
        let mut bench = cut_off(flat);
        bench.create(&disk(Provisioning::Thin)).unwrap_or_else(|error| panic!("{flat:?}: {error}"));
        assert_eq!(bench.names(), ["web-01-flat.vmdk", "web-01.vmdk"]);
    }
    let mut torn = bench();
    torn.write("web-01.vmdk.homeward-new", b"# Disk Desc\0\0");
    torn.create(&disk(Provisioning::Thin)).expect("a torn mark alone is nobody's");
}

#[test]
fn a_file_that_no_crash_of_ours_left_is_kept() {
    let mut bench = cut_off(Some(3 << 20));
    let error = bench.create(&disk(Provisioning::Thin)).expect_err("of another size");
    assert!(
        matches!(error.kind, FlatErrorKind::NotOurs { found: 0x30_0000, expected: 0x50_0000, .. }),
        "{error}"
    );
    assert_eq!(bench.names(), ["web-01-flat.vmdk", "web-01.vmdk.homeward-new"]);
    let mut bench = self::bench();
    bench.write("web-01-flat.vmdk", b"precious");
    bench.write("web-01.vmdk.homeward-new", b"version");
    let error = bench.create(&disk(Provisioning::Thin)).expect_err("the mark is unreadable");
    assert!(matches!(error.kind, FlatErrorKind::Descriptor(_)), "{error}");
    assert_eq!(bench.read("web-01-flat.vmdk"), "precious");
}

#[test]
fn the_content_id_changes_and_nothing_else() {
    let mut bench = bench();
    let made = bench.create(&disk(Provisioning::Thin)).expect("a disk");
    bench.write("web-01.vmdk.tmp", b"left by a crash");
    let before = bench.read("web-01.vmdk");
    let new = change_content_id(&bench.storage, &made.descriptor, &mut bench.rng).expect("changed");
    assert_eq!(bench.read("web-01.vmdk"), before.replace("fffffffe", &new.to_string()));
    assert_eq!(bench.names(), ["web-01-flat.vmdk", "web-01.vmdk"]);
}

#[test]
fn errors_say_where_and_why() {
    let mut bench = bench();
    let missing =
        change_content_id(&bench.storage, Path::new("vm/a.vmdk"), &mut bench.rng).expect_err("nothing");
    assert!(missing.to_string().starts_with("vm/a.vmdk: cannot open: No such file"), "{missing}");
    bench.write("a.vmdk", b"nonsense");
    let wrong =
        change_content_id(&bench.storage, Path::new("vm/a.vmdk"), &mut bench.rng).expect_err("nonsense");
    assert!(wrong.to_string().contains("line 1 is neither"), "{wrong}");
    bench.write("a.vmdk", &vec![b'#'; descriptor::MAX_BYTES + 1]);
    let long =
        change_content_id(&bench.storage, Path::new("vm/a.vmdk"), &mut bench.rng).expect_err("too long");
    assert!(long.to_string().contains("262145 bytes are too many"), "{long}");
}
