//! Tests of the descriptor: golden files, properties, and each error.

use std::{fs, path::PathBuf};

use proptest::prelude::*;

use super::*;

fn testdata(name: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/vmdk/testdata").join(name);
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn every_golden_file() -> Vec<(String, Vec<u8>)> {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/vmdk/testdata");
    let names = fs::read_dir(dir).expect("the folder").map(|entry| entry.expect("an entry").file_name());
    let names = names.map(|name| name.into_string().expect("UTF-8")).filter(|name| name.ends_with(".vmdk"));
    let files: Vec<_> = names.map(|name| (name.clone(), testdata(&name))).collect();
    assert!(files.len() > 20, "only {} golden files found", files.len());
    files
}

fn raw(text: impl AsRef<[u8]>) -> RawDescriptor {
    RawDescriptor::parse(text.as_ref()).expect("a descriptor")
}

fn checked(text: impl AsRef<[u8]>) -> Result<Descriptor, DescriptorError> {
    Descriptor::try_from(&RawDescriptor::parse(text.as_ref())?)
}

#[test]
fn golden_files_print_as_they_were_read() {
    for (name, bytes) in every_golden_file() {
        assert_eq!(raw(&bytes).to_bytes(), bytes, "{name}");
        checked(&bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}

#[test]
fn a_thin_disk_of_esxi() {
    let found = checked(testdata("esxi-thin.vmdk")).expect("a descriptor");
    let expected = Descriptor {
        version: 1,
        content_id: ContentId::from_bits(0x8f67_ca74),
        parent_content_id: ContentId::NO_PARENT,
        parent_hint: None,
        create_type: CreateType::Vmfs,
        encrypted: false,
        change_tracking: None,
        native_snapshot: false,
        filtered: false,
        extents: vec![Extent {
            access: Access::ReadWrite,
            sectors: 83_886_080,
            kind: ExtentType::Vmfs,
            file: Some("web-01-flat.vmdk".to_owned()),
            offset: None,
        }],
        uuid: Some("6000c29f281e65bf3dcc5ef0f5421ef6".parse().expect("a uuid")),
        thin: true,
    };
    assert_eq!(found, expected);
    assert_eq!(checked(testdata("nul-padded.vmdk")), Ok(expected));
}

#[test]
fn line_ends_and_foreign_letters_do_not_matter() {
    let plain = checked(testdata("esxi-thick.vmdk"));
    assert_eq!(checked(testdata("crlf.vmdk")), plain);
    assert_eq!(checked(testdata("gbk.vmdk")), plain);
}

#[test]
fn other_writers() {
    let found = checked(testdata("virtualbox.vmdk")).expect("a descriptor");
    assert_eq!(found.create_type, CreateType::MonolithicFlat);
    assert_eq!(found.extents[0].offset, Some(0));
    assert_eq!(found.uuid, None);
    let found = checked(testdata("snapshot-vsan.vmdk")).expect("a descriptor");
    assert_eq!((found.version, found.parent_hint.as_deref()), (4, Some("web-01.vmdk")));
    assert_eq!(found.extents[0].kind, ExtentType::VsanSparse);
}

/// Lines of `old` and `new` that differ.
fn changes<'a>(old: &'a [u8], new: &'a [u8]) -> Vec<(String, String)> {
    let text = |line: &[u8]| String::from_utf8_lossy(line).into_owned();
    let (old, new) = (old.split(|byte| *byte == b'\n'), new.split(|byte| *byte == b'\n'));
    assert_eq!(old.clone().count(), new.clone().count(), "lines came or went");
    old.zip(new).filter(|(old, new)| old != new).map(|(old, new)| (text(old), text(new))).collect()
}

#[test]
fn a_new_content_id_changes_two_lines() {
    for (name, old) in every_golden_file() {
        let mut edited = raw(&old);
        edited.set_content_id(ContentId::from_bits(0xab)).unwrap_or_else(|error| panic!("{name}: {error}"));
        let new = edited.to_bytes();
        assert_eq!(
            checked(&new).expect("still a descriptor").content_id,
            ContentId::from_bits(0xab),
            "{name}"
        );
        for (old, new) in changes(&old, &new) {
            let end = if old.ends_with('\r') { "\r" } else { "" };
            match old.split_once(" = ") {
                None => assert_eq!(new, format!("CID=000000ab{end}"), "{name}"),
                Some(("ddb.longContentID", long)) => {
                    assert_eq!(new, format!("ddb.longContentID = {}000000ab\"{end}", &long[..25]), "{name}");
                }
                Some(_) => panic!("{name}: {old} became {new}"),
            }
        }
    }
}

#[test]
fn a_short_content_id_may_grow() {
    let mut edited = raw("version=1\n  CID = \"7\" \r\nx=1\0\0");
    edited.set_content_id(ContentId::FRESH).expect("there is a CID");
    assert_eq!(edited.to_bytes(), b"version=1\n  CID = \"fffffffe\" \r\nx=1\0\0");
    edited.set_content_id(ContentId::from_bits(1)).expect("there is a CID");
    assert_eq!(edited.to_bytes(), b"version=1\n  CID = \"00000001\" \r\nx=1\0\0");
}

#[test]
fn an_edit_that_fails_changes_nothing() {
    for text in
        ["version=1\nddb.longContentID = \"0123456789abcdef\"\n", "CID=1\nddb.longContentID = \"123\"\n"]
    {
        let mut edited = raw(text);
        assert!(edited.set_content_id(ContentId::FRESH).is_err());
        assert_eq!(edited.to_bytes(), text.as_bytes());
    }
}

const MINIMAL: &str = "version=1\nCID=1\nparentCID=ffffffff\ncreateType=vmfs\n";

#[test]
fn errors_name_the_line() {
    let with = |line: &str| format!("{MINIMAL}{line}\n");
    let cases = [
        (with("neither"), "line 5 is neither a comment nor key=value nor an extent: neither"),
        (with("=1"), "line 5 is neither"),
        (with("two words=1"), "line 5 is neither"),
        (with("a=\"b"), "line 5 has unpaired quotes: a=\"b"),
        (with("a=\"b\" c"), "line 5 has unpaired quotes"),
        (with("a=\"b\"c\""), "line 5 has unpaired quotes"),
        (with("a=\""), "line 5 has unpaired quotes"),
        (with("a=b\rc=d"), "line 5 holds a control character"),
        (with("# a\0b"), "line 5 holds a control character"),
        (with("cid=2"), "line 5 sets cid again, line 2 did already"),
        (with("isNativeSnapshot=maybe"), "line 5: isNativeSnapshot is \"maybe\", expected yes or no"),
        (with("ddb.uuid=12"), "line 5: ddb.uuid is \"12\", expected 32 hexadecimal digits"),
        (with("ddb.thinProvisioned=2"), "line 5: ddb.thinProvisioned is \"2\", expected 0 or 1"),
        (with("RW 1 VMFS"), "line 5: extent with no file name: RW 1 VMFS"),
        (with("RW -1 VMFS \"a\""), "a length that is not a number"),
        (with("RW 99999999999999999999 VMFS \"a\""), "a length that is not a number"),
        (with("RW 1 VVOL \"a\""), "an unknown type"),
        (with("RW 1 VMFS \"a\" 0"), "an offset, which only FLAT has"),
        (with("RW 1 FLAT \"a\""), "no offset"),
        (with("RW 1 FLAT \"a\" x"), "an offset that is not a number"),
        (with("RW VMFS \"a\""), "other than an access mode, a length and a type"),
        (with("RW 1 VMFS \"a"), "unpaired quotes"),
        (MINIMAL.replace("version=1", "version=+1"), "line 1: version is \"+1\""),
        (MINIMAL.replace("CID=1", "CID=123456789"), "line 2: CID is \"123456789\", expected eight"),
        (MINIMAL.replace("=vmfs", "=vmfsThin"), "line 4: createType is \"vmfsThin\""),
        (MINIMAL.replace("parentCID=ffffffff\n", ""), "no line that sets parentCID"),
        (String::new(), "no line that sets version"),
        (format!("#{}", " ".repeat(MAX_BYTES)), "262145 bytes are too many"),
        ("\n".repeat(MAX_LINES + 1), "more than 4096 lines"),
        (format!("#{}", "x".repeat(16 << 10)), "line 1 is longer than 16384 bytes"),
    ];
    assert!(checked(MINIMAL).is_ok());
    for (text, expected) in cases {
        let error = checked(&text).expect_err(expected).to_string();
        assert!(error.contains(expected), "{error:?} lacks {expected:?}");
    }
    let error = checked(b"version=\xff\n").expect_err("not UTF-8").to_string();
    assert!(error.contains("line 1: version is \"\u{fffd}\""), "{error}");
}

/// A line that follows the grammar, with no line end. Keys are numbered so that none comes twice.
fn line() -> impl Strategy<Value = fn(usize) -> String> {
    let kinds: [fn(usize) -> String; 7] = [
        |n| format!("key{n}=value"),
        |n| format!("  ddb.Key{n} \t=  \"a value = {n}\"  "),
        |n| format!("empty{n}=\"\""),
        |_| "# comment \"".to_owned(),
        |_| "\t ".to_owned(),
        |n| format!("RW {n} VMFS \"disk-flat.vmdk\""),
        |n| format!("noaccess {n} ZERO"),
    ];
    prop::sample::select(kinds.to_vec())
}

prop_compose! {
    fn text()(
        lines in prop::collection::vec((line(), prop::sample::select(vec!["\n", "\r\n", "\n\n"])), 0..20),
        cid: u32,
        last_end in prop::sample::select(vec!["", "\n"]),
        padding in 0usize..600,
    ) -> Vec<u8> {
        let mut text: String = lines.iter().enumerate().map(|(n, (line, end))| line(n) + end).collect();
        text += &format!("CID={cid:x}{last_end}");
        let mut bytes = text.into_bytes();
        bytes.resize(bytes.len() + padding, 0);
        bytes
    }
}

proptest! {
    #[test]
    fn printing_gives_back_what_was_parsed(bytes in text()) {
        prop_assert_eq!(raw(&bytes).to_bytes(), bytes);
    }

    #[test]
    fn edits_are_read_back_and_undone(bytes in text(), new: u32) {
        let mut edited = raw(&bytes);
        edited.set_content_id(ContentId::from_bits(new)).expect("there is a CID");
        let reread = raw(edited.to_bytes());
        prop_assert_eq!(&reread, &edited);
        let written = format!("{new:08x}");
        prop_assert_eq!(reread.get("cid").map(|entry| entry.value), Some(written.as_bytes()));
        let extents = |raw: &RawDescriptor| raw.extent_lines().map(|(_, line)| line.to_vec()).collect::<Vec<_>>();
        prop_assert_eq!(extents(&reread), extents(&raw(&bytes)));
    }

    #[test]
    fn mutated_golden_files_never_panic(
        file in prop::sample::select(every_golden_file()),
        cuts in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0u8..3), 1..6),
    ) {
        let mut bytes = file.1;
        for (at, byte, how) in cuts {
            let at = at.index(bytes.len());
            match how {
                0 => bytes[at] = byte,
                1 => bytes.insert(at, byte),
                _ => bytes.truncate(at.max(1)),
            }
        }
        if let Ok(raw) = RawDescriptor::parse(&bytes) {
            let _ = Descriptor::try_from(&raw);
            prop_assert_eq!(raw.to_bytes(), bytes);
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
        if let Ok(mut raw) = RawDescriptor::parse(&bytes) {
            let _ = Descriptor::try_from(&raw);
            prop_assert_eq!(raw.to_bytes(), bytes);
            let _ = raw.set_content_id(ContentId::FRESH);
        }
    }
}
