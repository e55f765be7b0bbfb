//! Process server and target in one: receives, spools, applies in order, acknowledges; loses what it is told to.

use std::collections::BTreeSet;

use engine::{
    digest::{LEAF_BYTES, leaf_digest, leaves_in},
    extent::Extent,
    frame::{
        Compare, Compared, Content, ContentBuilder, Frame, GroupOrder, GroupReport, LeafDigests, LeafRange,
        Packed, Payload, Position, digest_of_all,
    },
    point::BarrierId,
    session::{Link, Message, Receiver},
};

use super::*;
use engine::frame::Control;

pub(super) struct Peer {
    link: Option<Link>,
    greeted: bool,
    receiver: Receiver,
    /// Received, in order, and not yet durable; the first `spooled` of them are spooled.
    frames: Vec<Frame>,
    spooled: usize,
    durable: Position,
    pub(super) target: Vec<Vec<u8>>,
    pub(super) to_peer: Vec<u8>,
    pub(super) to_agent: Vec<u8>,
    pub(super) points: u32,
    /// Leaves whose digests were right, since they were last asked for.
    pub(super) verified: BTreeSet<(u16, u64)>,
    /// Digests that were not.
    pub(super) different: BTreeSet<(u16, u64)>,
    pub(super) resets: u32,
    /// Whether it says that its disks held something before the first frame.
    pub(super) adopted: bool,
    /// Questions that came. Every third is lost on the way, or its answer.
    pub(super) questions: u32,
    /// Bytes of data frames that came.
    pub(super) content: u64,
    /// What the agent reported on common points, and nobody has looked at.
    pub(super) reports: Vec<(BarrierId, GroupReport)>,
}

impl Peer {
    pub(super) fn new(disks: &[u64]) -> Self {
        Self {
            link: None,
            greeted: false,
            receiver: Receiver::at(Position::START, Seq(0)),
            frames: Vec::new(),
            spooled: 0,
            durable: Position::START,
            target: disks.iter().map(|blocks| vec![0xEE; (blocks * BLOCK_BYTES) as usize]).collect(),
            to_peer: Vec::new(),
            to_agent: Vec::new(),
            points: 0,
            verified: BTreeSet::new(),
            different: BTreeSet::new(),
            resets: 0,
            adopted: false,
            questions: 0,
            content: 0,
            reports: Vec::new(),
        }
    }

    pub(super) fn connect(&mut self, now: Instant) {
        self.disconnect();
        self.link = Some(Link::new(None, now));
    }

    pub(super) fn disconnect(&mut self) {
        self.link = None;
        self.greeted = false;
        self.to_peer.clear();
        self.to_agent.clear();
        self.reports.clear();
    }

    /// Takes the next `bytes` bytes from the agent.
    pub(super) fn receive(&mut self, bytes: usize, now: Instant) {
        let Some(link) = &mut self.link else { return };
        let bytes: Vec<u8> = self.to_peer.drain(..bytes).collect();
        link.handle_bytes(&bytes, now);
        loop {
            let message = match &mut self.link {
                Some(link) => link.poll_message().unwrap(),
                None => return,
            };
            match message {
                None => return,
                Some(Message::Control(Control::Hello { agent, stream, .. })) => {
                    assert_eq!((agent.as_str(), stream.id), ("vm", STREAM));
                    let position = self.receiver.position();
                    self.receiver = Receiver::at(position, self.durable.seq);
                    self.spooled = self.frames.len();
                    self.greeted = true;
                    self.say(&Control::Welcome {
                        position,
                        durable: self.durable.seq,
                        window: 8 << 20,
                        adopted: self.adopted,
                    });
                }
                Some(Message::Control(Control::GroupReport { barrier, report })) => {
                    self.reports.push((barrier, report));
                }
                Some(Message::Control(Control::Compare(question))) => {
                    self.questions += 1;
                    if !self.questions.is_multiple_of(3) {
                        self.answer(question);
                    }
                }
                Some(Message::Control(other)) => panic!("{other:?}"),
                Some(Message::Frame(frame)) => {
                    let before = self.receiver.position();
                    self.receiver.handle_frame(&frame).unwrap();
                    frame.open(before.chain).unwrap();
                    self.content += u64::from(frame.header().content_len);
                    self.frames.push(frame);
                }
            }
        }
    }

    pub(super) fn unspooled(&self) -> usize {
        self.frames.len() - self.spooled
    }

    pub(super) fn spool(&mut self, frames: usize) {
        self.spooled += frames;
        if let Some(last) = self.spooled.checked_sub(1) {
            self.receiver.handle_spooled(self.frames[last].header().seq);
        }
    }

    pub(super) fn undurable(&self) -> usize {
        self.spooled
    }

    /// Applies the oldest frames; stops at the first point, which is then as the target stands.
    pub(super) fn make_durable(&mut self, frames: usize) -> Option<Point> {
        for _ in 0..frames {
            let frame = self.frames.remove(0);
            self.spooled -= 1;
            let disk = frame.header().disk;
            let point = match frame.open(self.durable.chain).unwrap() {
                Opened::Seal(point) => Some(point),
                Opened::Data(content) => {
                    write(&mut self.target[usize::from(disk.0)], &content);
                    None
                }
                Opened::Digests(digests) => {
                    self.compare(disk, &digests);
                    None
                }
            };
            self.durable = Position::after(frame.header());
            self.receiver.handle_durable(self.durable.seq);
            if point.is_some() {
                self.points += 1;
                return point;
            }
        }
        None
    }

    pub(super) fn is_greeted(&self) -> bool {
        self.greeted
    }

    fn compare(&mut self, disk: DiskIndex, digests: &LeafDigests) {
        for (leaf, digest) in digests.entries() {
            let bytes =
                self.target[usize::from(disk.0)].chunks(LEAF_BYTES as usize).nth(*leaf as usize).unwrap();
            let found = if leaf_digest(bytes) == *digest { &mut self.verified } else { &mut self.different };
            found.insert((disk.0, *leaf));
        }
    }

    /// What the target holds, as it stands: not what is only received.
    fn answer(&mut self, Compare { span, digest: theirs }: Compare) {
        let target = &self.target[usize::from(span.disk.0)];
        let digest = |leaf| leaf_digest(target.chunks(LEAF_BYTES as usize).nth(leaf as usize).unwrap());
        let digests: Vec<_> = span.leaves().map(digest).collect();
        let digest = digest_of_all(&digests);
        let digests = if digest == theirs { Vec::new() } else { digests };
        self.say(&Control::Compared(Compared { span, position: self.durable.seq, digest, digests }));
    }

    /// Orders something for a common point, if the agent is there.
    pub(super) fn order(&mut self, barrier: BarrierId, order: GroupOrder) {
        if self.greeted {
            self.say(&Control::GroupOrder { barrier, order });
        }
    }

    /// Asks for digests of all leaves.
    pub(super) fn verify(&mut self) {
        if self.greeted {
            self.verified.clear();
            let leaves = self.all_leaves();
            self.say(&Control::Verify { leaves });
        }
    }

    /// Asks for all blocks again.
    pub(super) fn resend(&mut self) {
        if self.greeted {
            let leaves = self.all_leaves();
            self.say(&Control::Resend { leaves });
        }
    }

    fn all_leaves(&self) -> Vec<LeafRange> {
        let all = |(disk, bytes): (u16, &Vec<u8>)| LeafRange {
            disk: DiskIndex(disk),
            first: 0,
            count: leaves_in(bytes.len() as u64),
        };
        (0..).zip(&self.target).map(all).collect()
    }

    /// Whether all leaves were found right since they were last asked for.
    pub(super) fn is_verified(&self) -> bool {
        self.verified.len() as u64 == self.all_leaves().iter().map(|range| range.count).sum::<u64>()
    }

    pub(super) fn acknowledge(&mut self) {
        if self.greeted
            && let Some(ack) = self.receiver.poll_ack()
        {
            self.say(&ack);
        }
    }

    /// As after a crash: what was received but not spooled is gone.
    pub(super) fn lose_unspooled(&mut self) {
        self.frames.truncate(self.spooled);
        let position = self.frames.last().map_or(self.durable, |frame| Position::after(frame.header()));
        self.receiver = Receiver::at(position, self.durable.seq);
    }

    /// The spool is gone, although it was acknowledged.
    pub(super) fn lose_spool(&mut self) {
        self.resets += 1;
        self.spooled = 0;
        self.lose_unspooled();
    }

    /// Takes a frame of zeros that this agent never sent: from what it was before somebody set it back.
    pub(super) fn receive_foreign(&mut self) {
        let position = self.receiver.position();
        let mut content = ContentBuilder::default();
        content.push(Extent::new(0, 1), Payload::Zero);
        let frame = Packed::data(DiskIndex(0), &content.finish(), 1, 0).seal(STREAM, &position);
        self.receiver.handle_frame(&frame).unwrap();
        self.frames.push(frame);
    }

    /// The target, were everything received applied.
    pub(super) fn everything_received(&self) -> Vec<Vec<u8>> {
        let (mut target, mut at) = (self.target.clone(), self.durable);
        for frame in &self.frames {
            if let Opened::Data(content) = frame.open(at.chain).unwrap() {
                write(&mut target[usize::from(frame.header().disk.0)], &content);
            }
            at = Position::after(frame.header());
        }
        target
    }

    fn say(&mut self, control: &Control) {
        self.to_agent.extend_from_slice(control.to_frame(STREAM).bytes());
    }
}

fn write(target: &mut [u8], content: &Content) {
    for (extent, payload) in content.extents() {
        let at = extent.offset() as usize..(extent.offset() + extent.bytes()) as usize;
        match payload {
            Payload::Data(data) => target[at].copy_from_slice(data),
            Payload::Zero => target[at].fill(0),
            Payload::Copy { .. } => panic!("nothing is copied"),
        }
    }
}
