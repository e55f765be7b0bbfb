//! docs/formats.md and the code say the same: every table of offsets and values, every version, every example.
//!
//! A table is named by the comment before it. Its rows must lie one behind the other without gap, so checking each
//! field's offset and the whole length checks every length, too.

#![allow(clippy::unwrap_used)]

use std::path::Path;

use agent::tracker::ebpf::layout as tracker;
use engine::{
    frame::{Control, GroupOrder, GroupReport, PROTOCOL, Refusal, layout as frame},
    io::{Storage, sim::SimStorage},
    net::Role,
    point::{BarrierId, Consistency, GroupMark, Point, PointId},
};
use master_target::{
    digests::layout as digests,
    journal::{Catalogue, index::layout as index, layout as undo},
    proof::Certificate,
};
use process_server::spool::layout as spool;

fn document() -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/formats.md")).unwrap()
}

/// The cells of the table behind `<!-- KIND: NAME -->`, without its head.
fn rows(kind: &str, name: &str) -> Vec<Vec<String>> {
    let document = document();
    let marker = format!("<!-- {kind}: {name} -->\n");
    let table = document.split(&marker).nth(1).unwrap_or_else(|| panic!("no {marker}"));
    let lines = table.lines().take_while(|line| line.starts_with('|')).skip(2);
    lines.map(|line| line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect()).collect()
}

/// Compares a table of fields with their offsets and the length of it all.
fn assert_fields(table: &str, fields: &[(&str, usize)], length: usize) {
    let (mut said, mut end) = (Vec::new(), 0);
    for row in rows("table", table) {
        let [offset, bytes] = [&row[0], &row[1]].map(|cell| cell.parse::<usize>().unwrap());
        assert_eq!(offset, end, "{table}: {} does not follow the field before it", row[3]);
        end += bytes;
        said.push((row[3].clone(), offset));
    }
    let known: Vec<_> = fields.iter().map(|(name, offset)| ((*name).to_owned(), *offset)).collect();
    assert_eq!(said, known, "{table}: document, then code");
    assert_eq!(end, length, "{table}: length in the document, then in the code");
}

/// Compares a table of numbers and names.
fn assert_values(table: &str, values: &[(u8, &str)]) {
    let said: Vec<(u8, String)> =
        rows("values", table).into_iter().map(|row| (row[0].parse().unwrap(), row[1].clone())).collect();
    let known: Vec<_> = values.iter().map(|(value, name)| (*value, (*name).to_owned())).collect();
    assert_eq!(said, known, "{table}: document, then code");
}

/// The words of a table, without their quotes.
fn words(table: &str) -> Vec<String> {
    rows("words", table).into_iter().map(|row| row[0].trim_matches('`').to_owned()).collect()
}

/// The lines of the block that is marked as `mark`.
fn example(mark: &str) -> Vec<String> {
    let document = document();
    let block = document.split(&format!("```{mark}\n")).nth(1).unwrap_or_else(|| panic!("no {mark}"));
    block.split("```").next().unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn frames() {
    use frame::{at, codec, copy_at, digest_at, extent_at, extent_kind, kind};
    let header = [
        ("magic", at::MAGIC),
        ("version", at::VERSION),
        ("kind", at::KIND),
        ("codec", at::CODEC),
        ("reserved", at::RESERVED),
        ("stream", at::STREAM),
        ("epoch", at::EPOCH),
        ("seq", at::SEQ),
        ("body_len", at::BODY_LEN),
        ("content_len", at::CONTENT_LEN),
        ("extents", at::EXTENTS),
        ("disk", at::DISK),
        ("reserved2", at::RESERVED2),
        ("body_crc", at::BODY_CRC),
        ("chain", at::CHAIN),
        ("header_crc", at::HEADER_CRC),
    ];
    assert_fields("frame-header", &header, frame::HEADER);
    let kinds =
        [(kind::DATA, "data"), (kind::SEAL, "seal"), (kind::DIGESTS, "digests"), (kind::CONTROL, "control")];
    assert_values("frame-kind", &kinds);
    assert_values("frame-codec", &[(codec::STORED, "stored"), (codec::ZSTD, "zstd")]);
    let extent = [
        ("start", extent_at::START),
        ("blocks", extent_at::BLOCKS),
        ("kind", extent_at::KIND),
        ("reserved", extent_at::RESERVED),
    ];
    assert_fields("frame-extent", &extent, frame::EXTENT);
    let kinds = [(extent_kind::DATA, "data"), (extent_kind::ZERO, "zero"), (extent_kind::COPY, "copy")];
    assert_values("frame-extent-kind", &kinds);
    let copy = [
        ("start", copy_at::START),
        ("disk", copy_at::DISK),
        ("reserved", copy_at::RESERVED),
        ("digest", copy_at::DIGEST),
    ];
    assert_fields("frame-copy", &copy, frame::COPY);
    let digest = [("leaf", digest_at::LEAF), ("digest", digest_at::DIGEST)];
    assert_fields("frame-digest", &digest, frame::DIGEST);
    assert_eq!(rows("table", "frame-header")[0][4], quoted(frame::MAGIC));
}

#[test]
fn indexes() {
    use index::{at, page_at, record_at};
    let header = [
        ("magic", at::MAGIC),
        ("version", at::VERSION),
        ("reserved", at::RESERVED),
        ("stream", at::STREAM),
        ("layer", at::LAYER),
        ("generation", at::GENERATION),
        ("reserved2", at::RESERVED2),
        ("log_bytes", at::LOG_BYTES),
        ("records", at::RECORDS),
        ("reserved3", at::RESERVED3),
        ("crc", at::CRC),
    ];
    assert_fields("index-header", &header, index::HEADER);
    let page = [
        ("number", page_at::NUMBER),
        ("records", page_at::RECORDS),
        ("reserved", page_at::RESERVED),
        ("crc", page_at::CRC),
    ];
    assert_fields("index-page", &page, index::PAGE_HEAD);
    let record = [
        ("start", record_at::START),
        ("at", record_at::AT),
        ("layer", record_at::LAYER),
        ("generation", record_at::GENERATION),
        ("crc", record_at::CRC),
        ("disk", record_at::DISK),
        ("blocks", record_at::BLOCKS),
        ("image_blocks", record_at::IMAGE_BLOCKS),
        ("skip", record_at::SKIP),
        ("zeros", record_at::ZEROS),
    ];
    assert_fields("index-record", &record, index::RECORD);
    assert_eq!(rows("table", "index-header")[0][4], quoted(index::MAGIC));
}

#[test]
fn undo_logs() {
    use undo::{at, commit_at, entry_at, kind};
    let header = [
        ("magic", at::MAGIC),
        ("version", at::VERSION),
        ("reserved", at::RESERVED),
        ("stream", at::STREAM),
        ("layer", at::LAYER),
        ("reserved2", at::RESERVED2),
        ("crc", at::CRC),
    ];
    assert_fields("undo-header", &header, undo::HEADER);
    let entry = [
        ("kind", entry_at::KIND),
        ("reserved", entry_at::RESERVED),
        ("disk", entry_at::DISK),
        ("blocks", entry_at::BLOCKS),
        ("start", entry_at::START),
        ("data_len", entry_at::DATA_LEN),
        ("data_crc", entry_at::DATA_CRC),
        ("number", entry_at::NUMBER),
        ("crc", entry_at::CRC),
    ];
    assert_fields("undo-entry", &entry, undo::ENTRY);
    assert_values("undo-kind", &[(kind::IMAGE, "image"), (kind::ZEROS, "zeros"), (kind::COMMIT, "commit")]);
    let commit = [("seq", commit_at::SEQ), ("epoch", commit_at::EPOCH), ("chain", commit_at::CHAIN)];
    assert_fields("undo-commit", &commit, undo::COMMIT);
    assert_eq!(rows("table", "undo-header")[0][4], quoted(undo::MAGIC));
}

#[test]
fn stored_digests() {
    use digests::{at, page_at};
    let header = [
        ("magic", at::MAGIC),
        ("version", at::VERSION),
        ("state", at::STATE),
        ("disk", at::DISK),
        ("stream", at::STREAM),
        ("bytes", at::BYTES),
        ("layer", at::LAYER),
        ("reserved", at::RESERVED),
        ("crc", at::CRC),
    ];
    assert_fields("digests-header", &header, digests::HEADER);
    let page = [
        ("digests", page_at::DIGESTS),
        ("number", page_at::NUMBER),
        ("reserved", page_at::RESERVED),
        ("crc", page_at::CRC),
    ];
    assert_fields("digests-page", &page, digests::PAGE);
    assert_eq!(rows("table", "digests-header")[0][4], quoted(digests::MAGIC));
}

#[test]
fn a_certificate_reads_as_described() {
    let [json] = &example("json certificate")[..] else { panic!("one line") };
    let certificate = Certificate::parse(json).unwrap();
    assert_eq!(&serde_json::to_string(&certificate).unwrap(), json);
}

#[test]
fn spool_marks() {
    use spool::{at, magic};
    let mark = [
        ("magic", at::MAGIC),
        ("version", at::VERSION),
        ("reserved", at::RESERVED),
        ("stream", at::STREAM),
        ("seq", at::SEQ),
        ("epoch", at::EPOCH),
        ("chain", at::CHAIN),
        ("reserved2", at::RESERVED2),
        ("crc", at::CRC),
    ];
    assert_fields("spool-mark", &mark, spool::MARK);
    let said = &rows("table", "spool-mark")[0][4];
    assert!(said.contains(&quoted(magic::SEGMENT)) && said.contains(&quoted(magic::DURABLE)));
}

#[test]
fn tracker_maps() {
    use tracker::control as at;
    let control = [
        ("magic", at::MAGIC),
        ("state", at::STATE),
        ("serial", at::SERIAL),
        ("disk_count", at::DISK_COUNT),
        ("boot", at::BOOT),
        ("object", at::OBJECT),
        ("stream", at::STREAM),
        ("missed", at::MISSED),
        ("flips", at::FLIPS),
        ("unknown", at::UNKNOWN),
        ("disk", at::DISK),
        ("cpu", at::CPU),
    ];
    assert_fields("tracker-control", &control, at::WORDS);
    let disk = [
        ("id", at::DISK_ID),
        ("bytes", at::DISK_BYTES),
        ("identity", at::DISK_IDENTITY),
        ("overflow", at::DISK_OVERFLOW),
    ];
    assert_fields("tracker-disk", &disk, at::DISK_WORDS);
    assert_fields("tracker-cpu", &[("inside", 0)], at::CPU_WORDS);
}

#[test]
fn versions() {
    let document = document();
    for (format, version) in [
        ("frame", u64::from(frame::VERSION)),
        ("conversation (`protocol` in Hello)", u64::from(PROTOCOL)),
        ("undo log", u64::from(undo::VERSION)),
        ("index", u64::from(index::VERSION)),
        ("spool mark", u64::from(spool::VERSION)),
        ("tracker maps", tracker::VERSION),
        ("stored digests", u64::from(digests::VERSION)),
    ] {
        let newest = document.lines().rfind(|line| line.starts_with(&format!("| {format} | "))).unwrap();
        assert_eq!(newest.split('|').nth(2).unwrap().trim(), version.to_string(), "{format}");
    }
}

#[test]
fn every_control_message_has_an_example() {
    // A new kind of message does not compile here until it has a line.
    let index = |message: &Control| match message {
        Control::Hello { .. } => 0,
        Control::Welcome { .. } => 1,
        Control::Refused { .. } => 2,
        Control::Ack { .. } => 3,
        Control::Hold { .. } => 4,
        Control::Verify { .. } => 5,
        Control::Resend { .. } => 6,
        Control::Compare(_) => 7,
        Control::Compared(_) => 8,
        Control::GroupOrder { .. } => 9,
        Control::GroupReport { .. } => 10,
        Control::Ping => 11,
    };
    let examples = example("jsonl control");
    for (line, json) in examples.iter().enumerate() {
        let message: Control = serde_json::from_str(json).unwrap();
        assert_eq!(index(&message), line);
        assert_eq!(&serde_json::to_string(&message).unwrap(), json);
    }
    assert_eq!(examples.len(), 12);

    let refusals = words("refusal");
    for word in &refusals {
        let why: Refusal = serde_json::from_value(word.as_str().into()).unwrap();
        match why {
            Refusal::Protocol
            | Refusal::NotYours
            | Refusal::BadRequest
            | Refusal::NoSpace
            | Refusal::Restored
            | Refusal::Unavailable
            | Refusal::Lost
            | Refusal::Damaged => {}
        }
    }
    assert_eq!(refusals.len(), 8);
    let mark = GroupMark {
        group: "shop".into(),
        barrier: BarrierId(uuid::Uuid::from_u128(1)),
        members: vec!["web-01".into()],
        missing: Vec::new(),
        skew_us: 0,
    };
    let reason = String::new();
    let orders = [
        GroupOrder::Prepare { group: "shop".into(), application: true },
        GroupOrder::Quiesce,
        GroupOrder::Hold,
        GroupOrder::Release,
        GroupOrder::Seal { mark },
        GroupOrder::Abort { reason: reason.clone() },
    ];
    let point = PointId(uuid::Uuid::from_u128(2));
    let reports = [
        GroupReport::Ready,
        GroupReport::Quiesced,
        GroupReport::Held,
        GroupReport::Released { frozen_us: 0 },
        GroupReport::Durable { point },
        GroupReport::Failed { reason },
    ];
    let tags = |values: Vec<serde_json::Value>, tag: &str| -> Vec<String> {
        values.iter().map(|value| value[tag].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(
        words("group-order"),
        tags(orders.map(|order| serde_json::to_value(order).unwrap()).into(), "order")
    );
    let reports = reports.map(|report| serde_json::to_value(report).unwrap());
    assert_eq!(words("group-report"), tags(reports.into(), "report"));
    assert_eq!(words("role"), Role::ALL.map(Role::as_str));
}

#[test]
fn a_seal_and_a_catalogue_read_as_described() {
    let examples = example("json point");
    for json in &examples {
        let point: Point = serde_json::from_str(json).unwrap();
        assert_eq!(&point.to_json(), json);
        assert!(point.group.as_ref().is_none_or(|mark| mark.check().is_ok()));
        let failed = point.application.is_some_and(|application| application.failed.is_some());
        assert!(!failed || point.consistency == Consistency::CrashConsistent);
    }
    assert_eq!(examples.len(), 4, "with every form of a field");

    let [line] = &example("text catalogue")[..] else { panic!("one line") };
    let storage = SimStorage::new();
    let bytes = format!("{line}\n").repeat(2);
    storage.create(Path::new("catalogue")).unwrap().write_all_at(bytes.as_bytes(), 0).unwrap();
    let state = Catalogue::peek(&storage, Path::new("")).unwrap();
    assert_eq!((state.agent.as_str(), state.targets.len()), ("web-01", 2));
}

fn quoted(magic: [u8; 4]) -> String {
    format!("`{}`", str::from_utf8(&magic).unwrap())
}
