//! Resync: what is answered about leaves is what the disks hold, whatever was stored, overwritten, killed or restored before.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use engine::{
    digest::{LEAF_BYTES, leaf_digest},
    frame::{Compare, Compared, Control, Frame, Span, digest_of_all},
    io::sim::SimStorage,
    session::Link,
    units::{Digest, DiskIndex, Seq},
};
use jiff::Timestamp;
use master_target::{
    node::{Output, StreamNode},
    proof::ScrubPlan,
    retention::Policy,
};
use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::{
    admit, rounds,
    scenario::{DISK_BYTES, Images, Source, home as make_home, stream},
};

struct Peer {
    node: StreamNode,
    now: Instant,
}

impl Peer {
    fn start(storage: &Arc<SimStorage>) -> Self {
        let now = Instant::now();
        let mut node = StreamNode::new(admit(&make_home(storage)), Policy::everything());
        node.handle_connected(Link::new(None, now), now);
        let mut peer = Self { node, now };
        peer.work();
        peer
    }

    /// Lets the node do what is due; returns what it answered.
    fn work(&mut self) -> Vec<Compared> {
        let mut answers = Vec::new();
        while self.node.work_at(self.now).is_some_and(|at| at <= self.now) {
            self.node.work(self.now, Timestamp::UNIX_EPOCH);
            self.now += Duration::from_millis(1);
        }
        while let Some(output) = self.node.poll_output() {
            let Output::Send(bytes) = output else { panic!("{output:?}") };
            if let Control::Compared(answer) = Control::from_frame(&Frame::parse(bytes).unwrap()).unwrap() {
                answers.push(answer);
            }
        }
        answers
    }

    fn apply(&mut self, frame: &Frame) {
        self.node.handle_bytes(frame.bytes(), self.now);
        while self.node.has_work(self.now) {
            self.node.commit(self.now, Timestamp::UNIX_EPOCH).unwrap();
        }
        self.work();
    }

    fn ask(&mut self, span: Span, digest: Digest) -> Compared {
        let question = Control::Compare(Compare { span, digest }).to_frame(stream().id);
        self.node.handle_bytes(question.bytes(), self.now);
        let mut answers = self.work();
        assert_eq!(answers.len(), 1, "a question has an answer");
        answers.remove(0)
    }

    /// Asks for all leaves of all disks, whose content is known.
    fn check(&mut self, images: &Images, position: Seq) {
        for (disk, image) in (0..).map(DiskIndex).zip(images) {
            let digests: Vec<Digest> = image.chunks(LEAF_BYTES as usize).map(leaf_digest).collect();
            let (span, all) = (Span::of(disk, 0..digests.len() as u64).unwrap(), digest_of_all(&digests));
            let right = Compared { span, position, digest: all, digests: Vec::new() };
            assert_eq!(self.ask(span, all), right);
            assert_eq!(self.ask(span, Digest::ZERO), Compared { digests: digests.clone(), ..right });
            // Some of them only.
            let (span, last) = (Span::of(disk, [1, 2]).unwrap(), digest_of_all(&digests[1..]));
            assert_eq!(self.ask(span, last).digest, last);
        }
    }
}

#[test]
fn answers_are_what_the_disks_hold() {
    for seed in 0..rounds(120) {
        let mut storage = Arc::new(SimStorage::new());
        let (mut source, mut rng) = (Source::new(seed), StdRng::seed_from_u64(seed));
        let mut peer = Peer::start(&storage);
        for _ in 0..30 {
            match rng.random_range(0..12) {
                0..=5 => {
                    let frame = source.next();
                    peer.apply(&frame);
                }
                6..=8 => peer.check(&source.images, source.position.seq),
                // The scrub stores digests, too, and makes them durable after each pass.
                9 => peer.node.scrub(ScrubPlan { rate: 1 << 20, every: Duration::from_millis(1) }, peer.now),
                10 => {
                    peer.node.replica_mut().flush_digests();
                }
                _ => {
                    drop(peer);
                    let found = match rng.random() {
                        true => SimStorage::clone(&storage),
                        false => storage.power_cut(storage.log_len(), rng.random()),
                    };
                    storage = Arc::new(found);
                    peer = Peer::start(&storage);
                }
            }
        }
        peer.check(&source.images, source.position.seq);
    }
}

#[test]
fn what_was_restored_and_undone_is_answered_as_it_is() {
    let storage = Arc::new(SimStorage::new());
    let mut source = Source::new(5);
    let mut peer = Peer::start(&storage);
    for seal in [false, true, false, true, false] {
        let frame = if seal { source.seal() } else { source.data() };
        peer.apply(&frame);
        peer.check(&source.images, source.position.seq);
    }
    let point = peer.node.replica().state().point(source.points[0].0).unwrap().clone();
    peer.node.handle_restore();
    peer.node.replica_mut().restore(&point, &mut |_, _| true).unwrap();
    let span = Span::of(DiskIndex(0), [0]).unwrap();
    let question = Control::Compare(Compare { span, digest: Digest::ZERO }).to_frame(stream().id);
    peer.node.handle_bytes(question.bytes(), peer.now);
    assert_eq!(peer.work(), [], "nobody is connected");
    peer.node.replica_mut().undo_restore(&mut |_, _| true).unwrap();
    peer.node.handle_connected(Link::new(None, peer.now), peer.now);
    peer.work();
    peer.check(&source.images, source.position.seq);
}

#[test]
fn who_asks_for_what_there_is_not_is_disconnected() {
    let leaves = DISK_BYTES.div_ceil(LEAF_BYTES);
    for (disk, leaf) in [(2, 0), (0, leaves), (0, leaves + 1000)] {
        let storage = Arc::new(SimStorage::new());
        let mut peer = Peer::start(&storage);
        let span = Span::of(DiskIndex(disk), [leaf]).unwrap();
        let question = Control::Compare(Compare { span, digest: Digest::ZERO }).to_frame(stream().id);
        peer.node.handle_bytes(question.bytes(), peer.now);
        assert!(!peer.node.is_connected(), "{span:?}");
    }
}
