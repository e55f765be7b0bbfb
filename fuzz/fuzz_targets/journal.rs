//! The journal's files: no bytes make the start-up panic; what it accepts it accepts again with the same meaning,
//! and undoing restores leads back to the disks as they were.
//!
//! The input is a catalogue, then the undo logs of layers 1, 2 and so on, each from its magic to the next one's, and behind
//! each its index, if it has one. It is tried as it is, and with numbers, lengths and checksums put right.

#![no_main]

use std::{path::Path, sync::Arc};

use engine::{
    io::{Device, Storage, read_exact_at, sim::SimStorage},
    units::BLOCK_BYTES,
};
use homeward_fuzz::put;
use libfuzzer_sys::fuzz_target;
use master_target::{
    journal::{
        Catalogue, Logs, View, index,
        layout::{self, COMMIT, ENTRY, HEADER, at, entry_at, kind},
    },
    replica::{Replica, Target},
};
use serde_json::Value;

const BLOCK: usize = BLOCK_BYTES as usize;
const DISKS: usize = 3;
const DISK_BYTES: u64 = 12 * BLOCK_BYTES - 512;

fuzz_target!(|bytes: &[u8]| {
    let (catalogue, mut logs) = cut(bytes, &layout::MAGIC);
    let mut indexes: Vec<Option<Vec<u8>>> = Vec::new();
    for log in &mut logs {
        let (rest, mut found) = cut(log, &index::layout::MAGIC);
        indexes.push(found.drain(..).next());
        log.truncate(rest.len());
    }
    run(&catalogue, &logs, &indexes);

    let stream = catalogue_stream(&catalogue);
    for (layer, (log, index)) in (1..).zip(logs.iter_mut().zip(&mut indexes)) {
        mend_log(log, layer, stream);
        if let Some(index) = index {
            mend_index(index, layer, stream, log.len() as u64);
        }
    }
    run(&mend_catalogue(&catalogue, &logs), &logs, &indexes);
});

/// What stands before the first `magic`, and what begins with each.
fn cut(bytes: &[u8], magic: &[u8; 4]) -> (Vec<u8>, Vec<Vec<u8>>) {
    let starts = (0..bytes.len()).filter(|start| bytes[*start..].starts_with(magic));
    let starts: Vec<usize> = starts.chain([bytes.len()]).collect();
    let parts = starts.windows(2).map(|part| bytes[part[0]..part[1]].to_vec()).collect();
    (bytes[..starts[0]].to_vec(), parts)
}

fn run(catalogue: &[u8], logs: &[Vec<u8>], indexes: &[Option<Vec<u8>>]) {
    let sim = Arc::new(SimStorage::new());
    let storage: Arc<dyn Storage> = Arc::clone(&sim) as _;
    let dir = Path::new("");
    let write = |name: &str, bytes: &[u8]| {
        storage.create(Path::new(name)).unwrap().write_all_at(bytes, 0).unwrap();
    };
    write("catalogue", catalogue);
    for (layer, (log, index)) in (1..).zip(logs.iter().zip(indexes)) {
        let layer: u64 = layer;
        write(&format!("layer-{layer:010}.undo"), log);
        index.iter().for_each(|index| write(&format!("layer-{layer:010}.index"), index));
    }

    let Ok(state) = Catalogue::peek(storage.as_ref(), dir) else { return };
    if state.stream.disks.len() > DISKS {
        return;
    }
    let mut devices: Vec<Arc<dyn Device>> = Vec::new();
    for disk in 0..state.stream.disks.len() {
        let name = format!("disk-{disk}");
        storage.create(Path::new(&name)).unwrap().set_len(DISK_BYTES).unwrap();
        devices.push(storage.device(Path::new(&name)).unwrap());
    }
    let targets =
        || devices.iter().map(|device| Target { device: device.clone(), bytes: DISK_BYTES, thin: true });
    let open = || Replica::open(Arc::clone(&storage), dir, targets().collect());
    let images = || -> Vec<Vec<u8>> {
        let image = |device: &Arc<dyn Device>| {
            read_exact_at(device.as_ref(), 0, DISK_BYTES as usize).unwrap().to_vec()
        };
        devices.iter().map(image).collect()
    };

    let Ok(replica) = open() else { return };
    let found = (replica.position(), replica.state().clone(), images());
    drop(replica);
    let mut replica = open().unwrap_or_else(|error| panic!("opened once, but not again: {error}"));
    assert!(
        found == (replica.position(), replica.state().clone(), images()),
        "a second start finds something else"
    );

    let _ = replica.journal_bytes();
    for layer in state.oldest..=state.newest_layer() {
        let logs = Logs::new(Arc::clone(&storage), dir, state.stream.id);
        let Ok(view) = View::at(&logs, replica.state(), layer) else { continue };
        view.pieces().for_each(|piece| drop(piece.and_then(|piece| view.read(&piece))));
    }
    if replica.restore_state().is_some() && replica.undo_restore(&mut |_, _| true).is_err() {
        return;
    }
    let before = images();
    let points: Vec<_> = replica.state().points.values().cloned().collect();
    for point in points.iter().take(3) {
        // A damaged log ends a restore before anything is overwritten by it; what was done is undone below.
        let _ = replica.restore(point, &mut |_, _| true);
    }
    if replica.restore_state().is_some() && replica.undo_restore(&mut |_, _| true).is_ok() {
        assert!(images() == before, "undoing all restores must lead back");
    }
}

/// The stream's id, if the first record says it.
fn catalogue_stream(catalogue: &[u8]) -> Option<uuid::Uuid> {
    let record = records(catalogue).into_iter().next()?;
    record["stream"]["id"].as_str()?.parse().ok()
}

/// The records in a catalogue, whatever stands before them; a second copy is left out.
fn records(catalogue: &[u8]) -> Vec<Value> {
    let mut records: Vec<Value> = Vec::new();
    for line in catalogue.split(|byte| *byte == b'\n') {
        let json = line.iter().position(|byte| *byte == b'{').map_or(&[][..], |start| &line[start..]);
        match serde_json::from_slice(json) {
            Ok(record) if records.last() != Some(&record) => records.push(record),
            _ => {}
        }
    }
    records
}

/// The catalogue's records with the lengths that the logs have, and lines around them that are right.
fn mend_catalogue(catalogue: &[u8], logs: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (number, mut record) in records(catalogue).into_iter().enumerate() {
        let holder = if record["record"] == "sealed" { &mut record["point"] } else { &mut record };
        let layer = holder.get("layer").and_then(Value::as_u64).unwrap_or(0);
        if let (Some(log), Some(value)) =
            (logs.get((layer as usize).wrapping_sub(1)), holder.get_mut("log_bytes"))
        {
            *value = log.len().into();
        }
        let numbered = format!("{number} {record}");
        let line = format!("{:08x} {numbered}\n", crc32fast::hash(numbered.as_bytes()));
        bytes.extend_from_slice(line.repeat(2).as_bytes());
    }
    bytes
}

/// Makes a whole log of `log`: a right header, and entries as long as what is left allows.
fn mend_log(log: &mut Vec<u8>, layer: u64, stream: Option<uuid::Uuid>) {
    log.resize(log.len().max(HEADER), 0);
    put(log, at::VERSION, &[layout::VERSION]);
    put(log, at::RESERVED, &[0; 3]);
    put(log, at::RESERVED2, &[0; 4]);
    put(log, at::STREAM, stream.unwrap_or_default().as_bytes());
    put(log, at::LAYER, &layer.to_le_bytes());
    let crc = crc32fast::hash(&log[..at::CRC]);
    put(log, at::CRC, &crc.to_le_bytes());

    let (mut start, mut number) = (HEADER, 0u32);
    while start + ENTRY <= log.len() {
        let room = log.len() - start - ENTRY;
        let (entry, data) = log[start..].split_at_mut(ENTRY);
        let data_len = match entry[entry_at::KIND] {
            kind::IMAGE if room >= BLOCK => {
                put(entry, entry_at::BLOCKS, &1u32.to_le_bytes());
                BLOCK
            }
            kind::COMMIT if room >= COMMIT => COMMIT,
            kind::COMMIT | kind::IMAGE => {
                entry[entry_at::KIND] = kind::ZEROS;
                0
            }
            _ => 0,
        };
        put(entry, entry_at::RESERVED, &[0]);
        put(entry, entry_at::DATA_LEN, &(data_len as u32).to_le_bytes());
        put(entry, entry_at::DATA_CRC, &crc32fast::hash(&data[..data_len]).to_le_bytes());
        put(entry, entry_at::NUMBER, &number.to_le_bytes());
        let crc = crc32fast::hash(&entry[..entry_at::CRC]);
        put(entry, entry_at::CRC, &crc.to_le_bytes());
        (start, number) = (start + ENTRY + data_len, number + 1);
    }
    log.truncate(start);
}

/// Makes a whole index of `index`: a right header, and pages as full as what is there allows, of whole images.
fn mend_index(index: &mut Vec<u8>, layer: u64, stream: Option<uuid::Uuid>, log_bytes: u64) {
    use index::layout::{HEADER, MAGIC, PAGE, PAGE_HEAD, RECORD, VERSION, at, page_at, record_at};
    let len = index.len().max(HEADER);
    index.resize(len, 0);
    let mut records = 0u64;
    let mut end = HEADER;
    for (number, page) in (0u64..).zip(index[HEADER..].chunks_mut(PAGE)) {
        let of_page = page.len().saturating_sub(PAGE_HEAD) / RECORD;
        if of_page == 0 {
            break;
        }
        let page = &mut page[..PAGE_HEAD + of_page * RECORD];
        for record in page[PAGE_HEAD..].chunks_exact_mut(RECORD) {
            put(record, record_at::LAYER, &layer.to_le_bytes());
            put(record, record_at::GENERATION, &[0; 4]);
        }
        put(page, page_at::NUMBER, &number.to_le_bytes());
        put(page, page_at::RECORDS, &(of_page as u16).to_le_bytes());
        put(page, page_at::RESERVED, &[0; 2]);
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&page[..page_at::CRC]);
        hasher.update(&page[PAGE_HEAD..]);
        put(page, page_at::CRC, &hasher.finalize().to_le_bytes());
        (records, end) = (records + of_page as u64, end + page.len());
    }
    index.truncate(end);
    index[..HEADER].fill(0);
    put(index, at::MAGIC, &MAGIC);
    put(index, at::VERSION, &[VERSION]);
    put(index, at::STREAM, stream.unwrap_or_default().as_bytes());
    put(index, at::LAYER, &layer.to_le_bytes());
    put(index, at::LOG_BYTES, &log_bytes.to_le_bytes());
    put(index, at::RECORDS, &records.to_le_bytes());
    let crc = crc32fast::hash(&index[..at::CRC]);
    put(index, at::CRC, &crc.to_le_bytes());
}
