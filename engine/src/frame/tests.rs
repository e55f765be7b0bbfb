//! Round trips, damage at every byte, and the sample of version 1 that every later version must read.

use proptest::prelude::*;

use super::*;
use crate::{
    extent::Extent,
    point::{Consistency, Method, PointId},
    units::{Block, DiskIndex, StreamId},
};

const STREAM: StreamId = StreamId(uuid::Uuid::from_u128(0x1234));

#[derive(Clone, Debug)]
enum Held {
    Data(Vec<u8>),
    Zero(u32),
    Copy(u64, u32),
}

fn held() -> impl Strategy<Value = Held> {
    prop_oneof![
        (1usize..4, any::<u8>(), any::<bool>()).prop_map(|(blocks, seed, noisy)| {
            let mut bytes = vec![seed; blocks * 4096];
            if noisy {
                blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut bytes);
            }
            Held::Data(bytes)
        }),
        (1u32..5000).prop_map(Held::Zero),
        (0u64..1 << 30, 1u32..100).prop_map(|(from, blocks)| Held::Copy(from, blocks)),
    ]
}

fn build(parts: &[(u64, Held)]) -> (Vec<u8>, u32) {
    let mut content = ContentBuilder::default();
    let mut at = 0;
    for (gap, held) in parts {
        at += gap;
        let (blocks, payload) = match held {
            Held::Data(bytes) => (bytes.len() as u32 / 4096, Payload::Data(bytes)),
            Held::Zero(blocks) => (*blocks, Payload::Zero),
            Held::Copy(from, blocks) => {
                let digest = Digest::of(b"elsewhere");
                (*blocks, Payload::Copy { disk: DiskIndex(3), from: Block(*from), digest })
            }
        };
        content.push(Extent::new(at, blocks), payload);
        at += u64::from(blocks);
    }
    let extents = content.extents() as u32;
    (content.finish(), extents)
}

proptest! {
    #[test]
    fn what_is_sealed_is_what_is_opened(
        parts in prop::collection::vec((0u64..100, held()), 1..20),
        level in 0i32..4,
        cuts in prop::collection::vec(1usize..5000, 1..40),
    ) {
        let (content, extents) = build(&parts);
        let before = Position { seq: Seq(41), epoch: Epoch(7), chain: Digest::of(b"before") };
        let frame = Packed::data(DiskIndex(2), &content, extents, level).seal(STREAM, &before);

        let mut deframer = Deframer::default();
        let mut rest = &frame.bytes()[..];
        let mut arrived = None;
        for cut in cuts.iter().cycle() {
            let (now, later) = rest.split_at((*cut).min(rest.len()));
            deframer.feed(now);
            rest = later;
            if let Some(frame) = deframer.next_frame().unwrap() {
                arrived = Some(frame);
                break;
            }
        }
        prop_assert!(rest.is_empty());
        let arrived = arrived.unwrap();
        prop_assert_eq!(arrived.header(), frame.header());
        prop_assert_eq!(arrived.header().seq, Seq(42));

        let Opened::Data(opened) = arrived.open(before.chain).unwrap() else { panic!("data was sealed") };
        let mut rebuilt = ContentBuilder::default();
        opened.extents().for_each(|(extent, payload)| rebuilt.push(extent, payload));
        prop_assert_eq!(rebuilt.finish(), content);
        let elsewhere = arrived.open(Digest::of(b"another history"));
        let refused = matches!(elsewhere, Err(FrameError::Chain { .. }));
        prop_assert!(refused);
    }

    #[test]
    fn arbitrary_content_is_refused_or_read_but_never_panics(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        extents in 0u32..12,
    ) {
        let _ = Content::parse(bytes, extents);
    }
}

fn sample() -> Frame {
    let (content, extents) =
        build(&[(5, Held::Data(vec![0xAB; 4096])), (3, Held::Zero(9)), (0, Held::Copy(77, 2))]);
    Packed::data(DiskIndex(1), &content, extents, 0).seal(STREAM, &Position::START)
}

#[test]
fn every_flipped_bit_is_noticed() {
    let good = sample();
    for at in 0..good.bytes().len() {
        let mut bytes = good.bytes().to_vec();
        bytes[at] ^= 1 << (at % 8);
        let noticed = Frame::parse(bytes.into()).is_err();
        assert!(noticed, "byte {at}");
    }
}

#[test]
fn the_deframer_stops_at_damage_and_names_it() {
    let mut deframer = Deframer::default();
    let mut bytes = sample().bytes().to_vec();
    bytes[layout::HEADER + 100] ^= 1;
    deframer.feed(&bytes);
    let error = deframer.next_frame().unwrap_err();
    assert!(error.to_string().contains("damaged body of frame 1"), "{error}");
    deframer.feed(sample().bytes());
    assert_eq!(deframer.next_frame().unwrap_err(), error, "it has lost its place");
}

#[test]
fn a_bomb_is_refused_before_it_is_read() {
    let mut header = sample().header().clone();
    header.content_len = u32::MAX;
    header.body_len = u32::MAX;
    let error = Header::decode(&header.encode()).unwrap_err();
    assert!(matches!(error, FrameError::TooLarge { field: "content", .. }), "{error}");
}

/// The position after such a frame would overflow.
#[test]
fn numbers_that_no_stream_reaches_are_refused() {
    let mut header = sample().header().clone();
    header.epoch = Epoch(u64::MAX);
    assert!(Header::decode(&header.encode()).is_err());
    let welcome = |seq| Control::Welcome {
        position: Position { seq: Seq(seq), ..Position::START },
        durable: Seq(0),
        window: 1,
        adopted: false,
    };
    assert!(Control::from_frame(&welcome(u64::MAX).to_frame(STREAM)).is_err());
    assert!(Control::from_frame(&welcome(7).to_frame(STREAM)).is_ok());
}

#[test]
fn a_recompressed_body_keeps_its_chain() {
    let (content, extents) = build(&[(0, Held::Data(vec![7; 40960]))]);
    let light = Packed::data(DiskIndex(0), &content, extents, 1).seal(STREAM, &Position::START);
    let stored = Packed::data(DiskIndex(0), &content, extents, 0).seal(STREAM, &Position::START);
    assert_ne!(light.bytes(), stored.bytes());
    assert_eq!(light.header().chain, stored.header().chain);
}

#[test]
fn a_seal_carries_its_point() {
    let point = Point {
        id: PointId(uuid::Uuid::from_u128(9)),
        epoch: Epoch(3),
        taken_at: "2026-11-23T02:00:00Z".parse().unwrap(),
        consistency: Consistency::CrashConsistent,
        method: Method::Barrier,
        barrier_tries: 2,
        window_us: 500,
        residual_bytes: 8192,
        frozen_us: 0,
        application: None,
        group: None,
    };
    let before = Position { seq: Seq(9), epoch: Epoch(3), chain: Digest::ZERO };
    let frame = Packed::seal_of(&point).seal(STREAM, &before);
    assert_eq!(Position::after(frame.header()).epoch, Epoch(4));
    let Opened::Seal(opened) = frame.open(Digest::ZERO).unwrap() else { panic!("a seal was sealed") };
    assert_eq!(opened, point);
    for change in [
        |point: &mut Point| point.consistency = Consistency::BeforeFailback,
        |point: &mut Point| point.method = Method::Found,
    ] {
        let mut point = point.clone();
        change(&mut point);
        let claimed = Packed::seal_of(&point).seal(STREAM, &before);
        assert!(claimed.open(Digest::ZERO).is_err(), "a point that no agent can make: {point:?}");
    }
    let misplaced = Packed::seal_of(&point).seal(STREAM, &Position::START);
    assert!(misplaced.open(Digest::ZERO).is_err(), "a point of epoch 3 in a frame of epoch 1");
}

fn digests_frame() -> Frame {
    let entries = vec![(3, Digest::of(b"three")), (1 << 29, Digest::of(b"far"))];
    let before = Position { seq: Seq(9), epoch: Epoch(4), chain: Digest::ZERO };
    Packed::digests(DiskIndex(2), &LeafDigests::new(entries)).seal(STREAM, &before)
}

#[test]
fn digests_arrive_as_they_were_sealed() {
    let frame = Frame::parse(digests_frame().bytes().clone()).unwrap();
    assert_eq!((frame.header().disk, Position::after(frame.header()).epoch), (DiskIndex(2), Epoch(4)));
    let Opened::Digests(digests) = frame.open(Digest::ZERO).unwrap() else { panic!("digests were sealed") };
    assert_eq!(digests.entries(), [(3, Digest::of(b"three")), (1 << 29, Digest::of(b"far"))]);
    let mut content = digests.to_bytes();
    assert!(LeafDigests::parse(&content, 1).is_err(), "longer than its count");
    content[7] = 1;
    assert!(LeafDigests::parse(&content, 2).is_err(), "beyond the largest disk, and descending");
    let twice = [&digests.to_bytes()[..40], &digests.to_bytes()[..40]].concat();
    assert!(LeafDigests::parse(&twice, 2).is_err(), "one leaf twice");
}

#[test]
fn leaves_that_no_disk_has_are_refused() {
    let range = |disk, first, count| LeafRange { disk: DiskIndex(disk), first, count };
    let read = |leaves| Control::from_frame(&Control::Verify { leaves }.to_frame(STREAM));
    assert!(read(vec![range(59, 0, 5); limits::LEAF_RANGES]).is_ok());
    for wrong in [range(60, 0, 5), range(0, 5, 0), range(0, u64::MAX, 5), range(0, 62 << 24, 1)] {
        assert!(read(vec![wrong]).is_err(), "{wrong:?}");
    }
    assert!(read(vec![range(0, 0, 5); limits::LEAF_RANGES + 1]).is_err());
}

/// The bytes of a version 1 frame, kept for ever: `HOMEWARD_BLESS=1` writes them where they are missing.
#[test]
fn version_1_is_still_read_and_written() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/frame-v1.bin");
    if std::env::var_os("HOMEWARD_BLESS").is_some() && !std::path::Path::new(path).exists() {
        std::fs::write(path, sample().bytes()).unwrap();
    }
    let kept = std::fs::read(path).unwrap();
    assert_eq!(kept, sample().bytes()[..]);
    Frame::parse(kept.into()).unwrap().open(Digest::ZERO).unwrap();
}

/// The same of a digests frame, which came with version 2 of the conversation.
#[test]
fn a_digests_frame_is_still_read_and_written() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/digests-v1.bin");
    if std::env::var_os("HOMEWARD_BLESS").is_some() && !std::path::Path::new(path).exists() {
        std::fs::write(path, digests_frame().bytes()).unwrap();
    }
    let kept = std::fs::read(path).unwrap();
    assert_eq!(kept, digests_frame().bytes()[..]);
    Frame::parse(kept.into()).unwrap().open(Digest::ZERO).unwrap();
}
