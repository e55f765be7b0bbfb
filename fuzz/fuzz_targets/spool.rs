//! Segment files of the spool: no bytes make the scan panic, what it keeps is a stream without gap, and the spool
//! goes on after it.
//!
//! With an odd first byte the rest is taken as frames whose checksums are put right, to get behind them.

#![no_main]

use std::sync::Arc;

use engine::{
    extent::Extent,
    frame::{ContentBuilder, DiskInfo, Packed, Payload, Position, StreamInfo},
    io::{Storage, sim::SimStorage},
    units::{DiskIndex, StreamId},
};
use homeward_fuzz::mend_frames;
use libfuzzer_sys::fuzz_target;
use process_server::spool::{Bounds, Description, Room, Spool, layout};

const STREAM: StreamId = StreamId(uuid::Uuid::from_u128(1));

fn segment(input: &[u8]) -> Vec<u8> {
    match input.split_first() {
        Some((mode, frames)) if mode % 2 == 1 => {
            let mut bytes = layout::encode(layout::magic::SEGMENT, STREAM, &Position::START).to_vec();
            let at = bytes.len();
            bytes.extend_from_slice(frames);
            mend_frames(&mut bytes[at..], Some(STREAM));
            bytes
        }
        _ => input.to_vec(),
    }
}

fuzz_target!(|input: &[u8]| {
    let room =
        Arc::new(Room::new(Bounds { total: 1 << 30, per_stream: 1 << 30, segment: 1 << 20, keep_free: 0 }));
    let storage = Arc::new(SimStorage::new());
    let disk = DiskInfo { name: "sda".into(), bytes: 1 << 30, used_bytes: 0 };
    let stream = StreamInfo { id: STREAM, vm: "vm".into(), disks: vec![disk] };
    let description = Description { agent: "agent".into(), stream };
    drop(Spool::create(storage.clone(), description, Position::START, room.clone()).unwrap());
    let path = layout::folder(STREAM).join(layout::segment_name(&Position::START));
    let file = storage.open(&path).unwrap();
    file.set_len(0).unwrap();
    file.write_all_at(&segment(input), 0).unwrap();

    let Some(mut spool) = Spool::open(storage.clone(), STREAM, room.clone()).unwrap().spool else { return };
    spool.check();
    let (base, end) = (spool.base(), spool.position());
    assert!(spool.join(&base).unwrap());
    let mut at = base;
    while let Some(frame) = spool.read_next().unwrap() {
        assert_eq!(frame.header().seq, at.seq.next());
        at = Position::after(frame.header());
    }
    assert_eq!(at, end);
    let mut content = ContentBuilder::default();
    content.push(Extent::new(0, 1), Payload::Zero);
    let next = Packed::data(DiskIndex(0), &content.finish(), 1, 0).seal(STREAM, &end);
    spool.append(&[next.clone()]).unwrap();
    drop(spool);
    let again = Spool::open(storage, STREAM, room).unwrap();
    assert!(again.loss.is_none());
    assert_eq!(again.spool.unwrap().position(), Position::after(next.header()));
});
