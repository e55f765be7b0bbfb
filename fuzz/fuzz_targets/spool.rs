//! Segment files of the spool: no bytes make the scan panic, what it keeps is a stream without gap, and the spool
//! goes on after it.
//!
//! With an odd first byte the rest is taken as frames whose checksums are put right, to get behind them.

#![no_main]

use std::sync::Arc;

use engine::{
    extent::Extent,
    frame::{ContentBuilder, DiskInfo, Packed, Payload, Position, StreamInfo, layout as frame_layout},
    io::{Storage, sim::SimStorage},
    units::{DiskIndex, StreamId},
};
use libfuzzer_sys::fuzz_target;
use process_server::spool::{Bounds, Description, Room, Spool, layout};

const STREAM: StreamId = StreamId(uuid::Uuid::from_u128(1));

/// Gives every frame in `bytes` the magic, version, stream and checksums that make it pass.
fn put_right(bytes: &mut [u8]) {
    let mut rest = bytes;
    while let Some((header, body)) = rest.split_first_chunk_mut::<{ frame_layout::HEADER }>() {
        let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
        put(frame_layout::at::MAGIC, &frame_layout::MAGIC);
        put(frame_layout::at::VERSION, &[frame_layout::VERSION]);
        put(frame_layout::at::STREAM, STREAM.0.as_bytes());
        let len = header[frame_layout::at::BODY_LEN..][..4].try_into().map_or(0, u32::from_le_bytes) as usize;
        let Some((body, later)) = body.split_at_mut_checked(len) else { return };
        let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
        put(frame_layout::at::BODY_CRC, &crc32fast::hash(body).to_le_bytes());
        let crc = crc32fast::hash(&header[..frame_layout::at::HEADER_CRC]);
        header[frame_layout::at::HEADER_CRC..].copy_from_slice(&crc.to_le_bytes());
        rest = later;
    }
}

fn segment(input: &[u8]) -> Vec<u8> {
    match input.split_first() {
        Some((mode, frames)) if mode % 2 == 1 => {
            let mut bytes = layout::encode(layout::magic::SEGMENT, STREAM, &Position::START).to_vec();
            let at = bytes.len();
            bytes.extend_from_slice(frames);
            put_right(&mut bytes[at..]);
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
