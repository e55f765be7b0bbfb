//! Messages between neighbours: no JSON makes the reader panic, what it accepts keeps the rules and its meaning.

#![no_main]

use engine::{
    digest::leaves_in,
    frame::{Codec, Compare, Compared, Control, Frame, Header, Kind, Span},
    limits,
    units::{Digest, DiskIndex, Epoch, Seq, StreamId},
};
use libfuzzer_sys::fuzz_target;

const STREAM: StreamId = StreamId(uuid::Uuid::from_u128(1));

fuzz_target!(|json: &[u8]| {
    if json.len() > limits::CONTROL_BODY / 2 {
        return;
    }
    let header = Header {
        kind: Kind::Control,
        codec: Codec::Stored,
        stream: STREAM,
        epoch: Epoch(0),
        seq: Seq(0),
        body_len: json.len() as u32,
        content_len: json.len() as u32,
        extents: 0,
        disk: DiskIndex(0),
        body_crc: crc32fast::hash(json),
        chain: Digest::ZERO,
    };
    let frame = Frame::parse([&header.encode()[..], json].concat().into()).expect("a whole frame");
    let Ok(message) = Control::from_frame(&frame) else { return };
    assert_eq!(Control::from_frame(&message.to_frame(STREAM)), Ok(message.clone()));
    if let Control::Verify { leaves } | Control::Resend { leaves } = &message {
        assert!(leaves.len() <= limits::LEAF_RANGES);
        let largest = leaves_in(limits::DISK_BYTES);
        assert!(leaves.iter().all(|range| range.count > 0 && range.first + range.count <= largest));
    }
    if let Control::Compare(Compare { span, .. }) | Control::Compared(Compared { span, .. }) = &message {
        let leaves: Vec<u64> = span.leaves().collect();
        assert!(!leaves.is_empty() && leaves.is_sorted_by(|a, b| a < b));
        assert!(leaves.iter().all(|leaf| leaf - span.first < limits::SPAN_LEAVES));
        assert_eq!(Span::of(span.disk, leaves), Some(*span));
    }
    if let Control::Hello { stream, .. } = message {
        assert!((1..=limits::DISKS_PER_VM).contains(&stream.disks.len()));
        assert!(stream.disks.iter().all(|disk| disk.bytes > 0 && disk.bytes <= limits::DISK_BYTES));
        // Names become names of folders and files.
        assert!(!stream.vm.contains('/') && !stream.vm.starts_with('.'));
    }
});
