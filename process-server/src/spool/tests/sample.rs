//! The sample of version 1 that every later version must read: the files of one stream, as written.

use std::path::Path;

use engine::{
    extent::Extent,
    frame::{ContentBuilder, Frame, Packed, Payload},
    io::sim::SimStorage,
    units::{DiskIndex, Seq},
};

use super::{
    super::*,
    rig::{BOUNDS, STREAM, description},
};

/// A stored frame: what a compressor makes may change from version to version.
fn frame(before: &Position, byte: u8) -> Frame {
    let mut content = ContentBuilder::default();
    content.push(Extent::new(u64::from(byte), 1), Payload::Data(&[byte; 4096]));
    content.push(Extent::new(1000, 8), Payload::Zero);
    let extents = content.extents() as u32;
    Packed::data(DiskIndex(0), &content.finish(), extents, 0).seal(STREAM, before)
}

/// The files that are kept, and what they are called in the spool.
fn files() -> [(&'static str, PathBuf); 3] {
    let dir = layout::folder(STREAM);
    [
        ("segment-v1.bin", dir.join(layout::segment_name(&Position::START))),
        ("durable-v1.bin", dir.join(layout::DURABLE)),
        ("stream-v1.frame", dir.join(layout::DESCRIPTION)),
    ]
}

fn kept(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(name)
}

/// `HOMEWARD_BLESS=1` writes the files where they are missing.
#[test]
fn version_1_is_still_written() {
    let storage = Arc::new(SimStorage::new());
    let room = Arc::new(Room::new(BOUNDS));
    let mut spool = Spool::create(storage.clone(), description(), Position::START, room).unwrap();
    let first = frame(&Position::START, 1);
    let after_first = Position::after(first.header());
    let second = frame(&after_first, 2);
    spool.append(&[first, second]).unwrap();
    spool.retire(after_first).unwrap();
    drop(spool);
    for (name, path) in files() {
        let file = storage.open(&path).unwrap();
        let mut bytes = vec![0; file.len().unwrap() as usize];
        file.read_exact_at(&mut bytes, 0).unwrap();
        if std::env::var_os("HOMEWARD_BLESS").is_some() && !kept(name).exists() {
            std::fs::write(kept(name), &bytes).unwrap();
        }
        assert!(std::fs::read(kept(name)).unwrap() == bytes, "{name} is written differently now");
    }
}

#[test]
fn version_1_is_still_read() {
    let storage = Arc::new(SimStorage::new());
    storage.create_dir_all(&layout::folder(STREAM)).unwrap();
    for (name, path) in files() {
        storage.create(&path).unwrap().write_all_at(&std::fs::read(kept(name)).unwrap(), 0).unwrap();
    }
    let opened = Spool::open(storage, STREAM, Arc::new(Room::new(BOUNDS))).unwrap();
    assert_eq!(opened.loss, None);
    let mut spool = opened.spool.unwrap();
    assert_eq!(*spool.description(), description());
    assert_eq!((spool.position().seq, spool.durable().seq), (Seq(2), Seq(1)));
    let durable = spool.durable();
    assert!(spool.join(&durable).unwrap());
    let next = spool.read_next().unwrap().unwrap();
    assert_eq!(next.bytes(), frame(&durable, 2).bytes());
}
