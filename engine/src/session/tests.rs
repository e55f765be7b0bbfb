//! Sender and receiver against each other over a connection that is cut and slow, from a seed.

use std::time::Instant;

use proptest::prelude::*;

use super::*;
use crate::{
    extent::Extent,
    frame::{ContentBuilder, Control, Packed, Payload, Position},
    units::{DiskIndex, Epoch, Seq, StreamId},
};

const STREAM: StreamId = StreamId(uuid::Uuid::from_u128(7));

fn packed(number: u64) -> Packed {
    let mut content = ContentBuilder::default();
    content.push(Extent::new(number % 50, 1), Payload::Data(&[number as u8; 4096]));
    let extents = content.extents() as u32;
    Packed::data(DiskIndex(0), &content.finish(), extents, 1)
}

#[derive(Clone, Debug)]
enum Step {
    Push,
    Transmit,
    Deliver(usize),
    Spool,
    Durable,
    Ack,
    Cut { lose_unspooled: bool },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => Just(Step::Push),
        4 => Just(Step::Transmit),
        4 => (1usize..9000).prop_map(Step::Deliver),
        2 => Just(Step::Spool),
        2 => Just(Step::Durable),
        2 => Just(Step::Ack),
        1 => any::<bool>().prop_map(|lose_unspooled| Step::Cut { lose_unspooled }),
    ]
}

proptest! {
    #[test]
    fn every_frame_arrives_once_and_in_order(steps in prop::collection::vec(step(), 0..300)) {
        let now = Instant::now();
        let mut sender = Sender::at(Position::START, Seq(0), 1 << 20);
        let mut receiver = Receiver::at(Position::START, Seq(0));
        let mut link = Link::new(Some(STREAM), now);
        let mut wire: Vec<u8> = Vec::new();
        let mut held: Vec<Position> = vec![Position::START];
        let (mut spooled, mut durable, mut pushed) = (Position::START, Seq(0), 0);
        for step in steps {
            match step {
                Step::Push if sender.has_room() => {
                    pushed += 1;
                    sender.push(packed(pushed).seal(STREAM, &sender.last()));
                }
                Step::Push => {}
                Step::Transmit => {
                    if let Some(frame) = sender.poll_transmit() {
                        wire.extend_from_slice(frame.bytes());
                    }
                }
                Step::Deliver(n) => {
                    let n = n.min(wire.len());
                    link.handle_bytes(&wire[..n], now);
                    wire.drain(..n);
                    while let Some(message) = link.poll_message().unwrap() {
                        let Message::Frame(frame) = message else { panic!("no control was sent") };
                        let before = receiver.position();
                        receiver.handle_frame(&frame).unwrap();
                        frame.open(before.chain).unwrap();
                        held.push(receiver.position());
                    }
                }
                Step::Spool => {
                    spooled = receiver.position();
                    receiver.handle_spooled(spooled.seq);
                }
                Step::Durable => {
                    durable = spooled.seq;
                    receiver.handle_durable(durable);
                }
                Step::Ack => {
                    if let Some(Control::Ack { spooled, durable }) = receiver.poll_ack() {
                        sender.handle_ack(spooled, durable).unwrap();
                        prop_assert_eq!(sender.durable(), durable);
                    }
                }
                Step::Cut { lose_unspooled } => {
                    wire.clear();
                    link = Link::new(Some(STREAM), now);
                    if lose_unspooled {
                        held.truncate(spooled.seq.0 as usize + 1);
                        receiver = Receiver::at(spooled, durable);
                    } else {
                        spooled = receiver.position();
                        receiver = Receiver::at(spooled, durable);
                    }
                    prop_assert_eq!(sender.handle_reconnect(spooled, durable), Resume::Exact);
                }
            }
            sender.check();
        }
        for (number, position) in held.iter().enumerate() {
            prop_assert_eq!(position.seq, Seq(number as u64));
        }
    }
}

#[test]
fn a_receiver_that_stands_elsewhere_needs_a_reset() {
    let mut sender = Sender::at(Position::START, Seq(0), 1 << 20);
    for number in 1..=3 {
        sender.push(packed(number).seal(STREAM, &sender.last()));
        sender.poll_transmit();
    }
    sender.handle_ack(Seq(2), Seq(1)).unwrap();
    let last = sender.last();
    assert_eq!(sender.handle_reconnect(Position::START, Seq(0)), Resume::Reset, "a spool was lost");
    let other = Position { chain: crate::units::Digest::of(b"another"), ..last };
    assert_eq!(sender.handle_reconnect(other, Seq(1)), Resume::Reset, "same number, other history");
    assert_eq!(sender.handle_reconnect(last, Seq(0)), Resume::Reset, "durable went back");
    assert_eq!(sender.handle_reconnect(last, Seq(1)), Resume::Exact);
    assert!(sender.is_idle());
}

#[test]
fn lies_are_refused() {
    let mut sender = Sender::at(Position::START, Seq(0), 1 << 20);
    sender.push(packed(1).seal(STREAM, &sender.last()));
    let ack = |sender: &mut Sender, spooled, durable| sender.handle_ack(Seq(spooled), Seq(durable)).is_err();
    assert!(ack(&mut sender, 1, 0), "acknowledged before it was sent");
    let first = sender.poll_transmit().unwrap();
    assert!(ack(&mut sender, 0, 1), "durable but not spooled");
    assert!(!ack(&mut sender, 1, 1));
    assert!(ack(&mut sender, 1, 0), "durable no more");

    let mut receiver = Receiver::at(Position::START, Seq(0));
    receiver.handle_frame(&first).unwrap();
    let gap = receiver.handle_frame(&first).unwrap_err();
    assert_eq!(gap, SessionError::Gap { expected: Seq(2), found: Seq(1) });
    let elsewhere = Position { epoch: Epoch(9), ..receiver.position() };
    let misplaced = packed(2).seal(STREAM, &elsewhere);
    assert!(matches!(receiver.handle_frame(&misplaced), Err(SessionError::Epoch { .. })));
}

#[test]
fn a_window_is_held_to() {
    let mut receiver = Receiver::at(Position::START, Seq(0));
    let noise: Vec<u8> = {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"incompressible");
        let mut bytes = vec![0; 1 << 20];
        hasher.finalize_xof().fill(&mut bytes);
        bytes
    };
    let mut content = ContentBuilder::default();
    content.push(Extent::new(0, 256), Payload::Data(&noise));
    let content = content.finish();
    let error = (0..20).find_map(|_| {
        let frame = Packed::data(DiskIndex(0), &content, 1, 1).seal(STREAM, &receiver.position());
        receiver.handle_frame(&frame).err()
    });
    assert!(matches!(error, Some(SessionError::Window { .. })));
}

#[test]
fn silence_ends_a_connection_and_pings_prevent_it() {
    let start = Instant::now();
    let mut link = Link::new(Some(STREAM), start);
    assert_eq!(link.handle_timeout(start), Ok(None));
    let due = link.poll_timeout();
    assert_eq!(link.handle_timeout(due), Ok(Some(Control::Ping)));
    link.handle_sent(due);
    let dead = start + crate::limits::IDLE;
    assert!(matches!(link.handle_timeout(dead), Err(SessionError::Silent(30))));
    link.handle_bytes(Control::Ping.to_frame(STREAM).bytes(), dead);
    assert!(link.poll_message().unwrap().is_none());
    assert!(link.handle_timeout(dead).is_ok());
}
