//! Both ends of a hop against a peer that says anything at any time: no panic, and their invariants hold.
//!
//! The input is a list of steps; each takes the bytes that it needs from what is left.

#![no_main]

use std::time::{Duration, Instant};

use engine::{
    extent::Extent,
    frame::{ContentBuilder, Control, Packed, Payload, Position},
    session::{Link, Message, Receiver, Sender},
    units::{Digest, DiskIndex, Epoch, Seq, StreamId},
};
use homeward_fuzz::mend_frames;
use libfuzzer_sys::fuzz_target;

const STREAM: StreamId = StreamId(uuid::Uuid::from_u128(1));

/// What is left of the input.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> u8 {
        self.0.split_off_first().copied().unwrap_or(0)
    }

    fn bytes(&mut self) -> Vec<u8> {
        let len = usize::from(u16::from_le_bytes([self.byte(), self.byte()])).min(self.0.len());
        self.0.split_off(..len).unwrap_or_default().to_vec()
    }

    /// A number close to `near`, or now and then far away.
    fn number(&mut self, near: Seq) -> Seq {
        match self.byte() {
            255 => Seq(u64::MAX),
            254 => Seq(0),
            by => Seq(near.0.saturating_add(u64::from(by)).saturating_sub(4)),
        }
    }

    fn position(&mut self, known: &[Position]) -> Position {
        let mut position = known[usize::from(self.byte()) % known.len()];
        match self.byte() {
            0 => position.seq = self.number(position.seq),
            1 => position.epoch = Epoch(u64::from(self.byte())),
            2 => position.chain = Digest::of(&[self.byte()]),
            _ => {}
        }
        position
    }
}

struct Hop {
    sender: Sender,
    receiver: Receiver,
    link: Link,
    /// Positions that the sender has been at.
    known: Vec<Position>,
    start: Instant,
    now: Instant,
}

impl Hop {
    fn arrive(&mut self, bytes: &[u8]) {
        self.link.handle_bytes(bytes, self.now);
        while let Ok(Some(message)) = self.link.poll_message() {
            match message {
                Message::Frame(frame) => {
                    let before = self.receiver.position();
                    match self.receiver.handle_frame(&frame) {
                        Ok(()) => assert_eq!(self.receiver.position(), Position::after(frame.header())),
                        Err(_) => assert_eq!(self.receiver.position(), before),
                    }
                }
                Message::Control(Control::Ack { spooled, durable }) => self.acknowledge(spooled, durable),
                Message::Control(Control::Welcome { position, durable, window, .. }) => {
                    self.sender.handle_reconnect(position, durable);
                    self.link = Link::new(Some(STREAM), self.now);
                    let fresh = Sender::at(position, durable, window);
                    assert!(fresh.has_room() && fresh.is_idle());
                    let _ = fresh.last().seq.next();
                }
                Message::Control(_) => {}
            }
        }
    }

    fn acknowledge(&mut self, spooled: Seq, durable: Seq) {
        let before = self.sender.durable();
        if self.sender.handle_ack(spooled, durable).is_ok() {
            assert!(self.sender.durable() == durable && durable >= before && durable <= spooled);
            assert!(spooled <= self.sender.last().seq);
        }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        match input.byte() % 12 {
            0 => self.arrive(&input.bytes()),
            1 => {
                let mut bytes = input.bytes();
                mend_frames(&mut bytes, Some(STREAM));
                self.arrive(&bytes);
            }
            2 if self.sender.has_room() => {
                let mut content = ContentBuilder::default();
                content.push(Extent::new(u64::from(input.byte()), 1), Payload::Data(&[input.byte(); 4096]));
                let packed = Packed::data(DiskIndex(0), &content.finish(), 1, 0);
                self.sender.push(packed.seal(STREAM, &self.sender.last()));
                self.known.push(self.sender.last());
            }
            3 => {
                if let Some(frame) = self.sender.poll_transmit() {
                    self.arrive(frame.bytes());
                }
            }
            4 => {
                let last = self.sender.last().seq;
                let (spooled, durable) = (input.number(last), input.number(last));
                self.acknowledge(spooled, durable);
            }
            5 => {
                let position = input.position(&self.known);
                let durable = input.number(position.seq);
                self.sender.handle_reconnect(position, durable);
                self.link = Link::new(Some(STREAM), self.now);
            }
            6 => {
                let seq = input.number(self.receiver.position().seq).min(self.receiver.position().seq);
                self.receiver.handle_spooled(seq);
            }
            7 => {
                let seq = input.number(self.receiver.position().seq).min(self.receiver.position().seq);
                self.receiver.handle_durable(seq);
            }
            8 => {
                if let Some(Control::Ack { spooled, durable }) = self.receiver.poll_ack() {
                    assert!(durable <= spooled && spooled <= self.receiver.position().seq);
                    assert_eq!(self.receiver.poll_ack(), None);
                }
            }
            9 => {
                self.now += Duration::from_secs(u64::from(input.byte()));
                assert!(self.link.poll_timeout() >= self.start);
                if let Ok(Some(control)) = self.link.handle_timeout(self.now) {
                    assert_eq!(control, Control::Ping);
                    self.link.handle_sent(self.now);
                }
            }
            10 => {
                let position = input.position(&self.known);
                let durable = input.number(position.seq);
                let welcome = Control::Welcome { position, durable, window: 1, adopted: false };
                self.arrive(welcome.to_frame(STREAM).bytes());
            }
            _ => self.link = Link::new(None, self.now),
        }
        self.sender.check();
        self.receiver.check();
    }
}

fuzz_target!(|bytes: &[u8]| {
    let (mut input, start) = (Input(bytes), Instant::now());
    let mut hop = Hop {
        sender: Sender::at(Position::START, Seq(0), 64 << 10),
        receiver: Receiver::at(Position::START, Seq(0)),
        link: Link::new(Some(STREAM), start),
        known: vec![Position::START],
        start,
        now: start,
    };
    while !input.0.is_empty() {
        hop.step(&mut input);
    }
});
