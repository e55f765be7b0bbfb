//! A node between two fake neighbours, on a simulated disk, in simulated time, from a seed.
//!
//! The fake agent keeps what a real one keeps: the truth, what is dirty, and which blocks each frame that is not
//! durable yet holds. The fake target checks every chain. So at the end one comparison says whether anything was
//! lost: the target's blocks are the agent's blocks.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Mutex,
};

use engine::{
    extent::Extent,
    frame::{
        ContentBuilder, Control, DiskInfo, Frame, Opened as Content, Packed, Payload, Position, StreamInfo,
    },
    io::sim::SimStorage,
    net::Backoff,
    point::{Consistency, Method, Point, PointId},
    session::{Link, Message, Resume, Sender},
    units::{Block, DiskIndex},
};

use super::super::*;
use crate::{greeting::Greeting, spool::Bounds};

pub(super) const STREAM: StreamId = StreamId(uuid::Uuid::from_u128(0xA));
pub(super) const BOUNDS: Bounds =
    Bounds { total: 1 << 20, per_stream: 160 << 10, segment: 32 << 10, keep_free: 0 };

pub(super) fn info() -> StreamInfo {
    let disk = DiskInfo { name: "sda".into(), bytes: 1 << 30, used_bytes: 0 };
    StreamInfo { id: STREAM, vm: "web".into(), disks: vec![disk] }
}

/// One block's content: incompressible, told by its version.
fn content(block: u64, version: u64) -> Vec<u8> {
    let mut bytes = vec![0; 4096];
    let seed = [block.to_le_bytes(), version.to_le_bytes()].concat();
    blake3::Hasher::new().update(&seed).finalize_xof().fill(&mut bytes);
    bytes
}

pub(super) struct FakeAgent {
    pub(super) name: String,
    pub(super) info: StreamInfo,
    pub(super) blocks: BTreeMap<u64, u64>,
    dirty: BTreeSet<u64>,
    sender: Option<Sender>,
    /// Blocks of each frame that is not durable yet.
    undurable: BTreeMap<Seq, Vec<u64>>,
    link: Option<Link>,
    up: bool,
    pub(super) resets: u64,
    pub(super) refused: Option<Refusal>,
    pub(super) holds: Vec<Option<String>>,
    pub(super) spooled: Seq,
    /// Questions to be sent with the next frames, and the answers that came.
    pub(super) questions: Vec<Control>,
    pub(super) answers: Vec<Control>,
    /// What it was told of the disks at home.
    pub(super) adopted: Option<bool>,
}

impl FakeAgent {
    fn new() -> Self {
        Self {
            name: "web-agent".into(),
            info: info(),
            blocks: BTreeMap::new(),
            dirty: BTreeSet::new(),
            sender: None,
            undurable: BTreeMap::new(),
            link: None,
            up: false,
            resets: 0,
            refused: None,
            holds: Vec::new(),
            spooled: Seq(0),
            questions: Vec::new(),
            answers: Vec::new(),
            adopted: None,
        }
    }

    pub(super) fn write(&mut self, block: u64) {
        *self.blocks.entry(block).or_default() += 1;
        self.dirty.insert(block);
    }

    pub(super) fn is_done(&self) -> bool {
        self.dirty.is_empty() && self.undurable.is_empty()
    }

    fn hello(&self) -> Frame {
        let (agent, stream) = (self.name.clone(), self.info.clone());
        Control::Hello { protocol: engine::frame::PROTOCOL, agent, stream }.to_frame(STREAM)
    }

    fn welcome(&mut self, position: Position, durable: Seq, window: u64) {
        self.up = true;
        let resume = self.sender.as_mut().map(|sender| sender.handle_reconnect(position, durable));
        if resume != Some(Resume::Exact) {
            self.resets += u64::from(resume.is_some());
            let lost = self.sender.as_ref().is_some_and(|sender| position.seq < sender.durable());
            self.sender = Some(Sender::at(position, durable, window));
            self.dirty.extend(std::mem::take(&mut self.undurable).into_values().flatten());
            if lost {
                self.dirty.extend(self.blocks.keys());
            }
        }
        self.durable(durable);
    }

    fn durable(&mut self, seq: Seq) {
        self.undurable = self.undurable.split_off(&seq.next());
    }

    fn handle_bytes(&mut self, bytes: &[u8], now: Instant) {
        let Some(link) = &mut self.link else { return };
        link.handle_bytes(bytes, now);
        while let Some(message) = self.link.as_mut().and_then(|link| link.poll_message().unwrap()) {
            match message {
                Message::Control(Control::Welcome { position, durable, window, adopted }) => {
                    self.adopted = Some(adopted);
                    self.welcome(position, durable, window);
                }
                Message::Control(Control::Refused { why, .. }) => self.refused = Some(why),
                Message::Control(Control::Ack { spooled, durable }) => {
                    self.spooled = spooled;
                    self.sender.as_mut().unwrap().handle_ack(spooled, durable).unwrap();
                    self.durable(durable);
                }
                Message::Control(Control::Hold { reason }) => self.holds.push(reason),
                Message::Control(answer @ Control::Compared(_)) => self.answers.push(answer),
                other => panic!("the agent was sent {other:?}"),
            }
        }
    }

    /// Packs dirty blocks into frames, seals an epoch now and then, sends what may be sent.
    fn pump(&mut self, wire: &mut Vec<u8>) {
        let Some(sender) = self.sender.as_mut().filter(|_| self.up) else { return };
        while !self.dirty.is_empty() && sender.has_room() {
            let blocks: Vec<_> = self.dirty.iter().copied().take(3).collect();
            let mut builder = ContentBuilder::default();
            for block in &blocks {
                self.dirty.remove(block);
                builder.push(Extent::new(*block, 1), Payload::Data(&content(*block, self.blocks[block])));
            }
            let extents = builder.extents() as u32;
            let frame =
                Packed::data(DiskIndex(0), &builder.finish(), extents, 0).seal(STREAM, &sender.last());
            self.undurable.insert(frame.header().seq, blocks);
            sender.push(frame);
            if sender.last().seq.0 % 7 == 0 {
                let seal = Packed::seal_of(&point(sender.last().epoch)).seal(STREAM, &sender.last());
                self.undurable.insert(seal.header().seq, Vec::new());
                sender.push(seal);
            }
        }
        while let Some(frame) = sender.poll_transmit() {
            wire.extend_from_slice(frame.bytes());
        }
        for question in self.questions.drain(..) {
            wire.extend_from_slice(question.to_frame(STREAM).bytes());
        }
    }
}

fn point(epoch: Epoch) -> Point {
    Point {
        id: PointId(uuid::Uuid::from_u128(u128::from(epoch.0))),
        epoch,
        taken_at: "2026-11-23T02:00:00Z".parse().unwrap(),
        consistency: Consistency::CrashConsistent,
        method: Method::Barrier,
        barrier_tries: 1,
        window_us: 1,
        residual_bytes: 0,
        frozen_us: 0,
        application: None,
        group: None,
    }
}

pub(super) struct FakeTarget {
    pub(super) position: Position,
    pub(super) blocks: BTreeMap<u64, Vec<u8>>,
    pub(super) refuses: Option<Refusal>,
    /// Whether connecting fails.
    pub(super) unreachable: bool,
    /// Whether what arrives is left lying.
    pub(super) stalled: bool,
    pub(super) hold: Option<String>,
    /// Whether its disks held something before the first frame.
    pub(super) adopted: bool,
    pub(super) hellos: Vec<(String, StreamInfo)>,
    pub(super) frames: u64,
    /// Questions that came and are not answered.
    pub(super) questions: Vec<Control>,
    /// The last frame it ever held.
    highest: Seq,
    link: Option<Link>,
    acked: Seq,
}

impl FakeTarget {
    fn new() -> Self {
        Self {
            position: Position::START,
            blocks: BTreeMap::new(),
            refuses: None,
            unreachable: false,
            stalled: false,
            hold: None,
            adopted: false,
            hellos: Vec::new(),
            frames: 0,
            questions: Vec::new(),
            highest: Seq(0),
            link: None,
            acked: Seq(0),
        }
    }

    fn handle_bytes(&mut self, bytes: &[u8], wire: &mut Vec<u8>, now: Instant) {
        let Some(link) = &mut self.link else { return };
        link.handle_bytes(bytes, now);
        while let Some(message) = self.link.as_mut().and_then(|link| link.poll_message().unwrap()) {
            match message {
                Message::Control(Control::Hello { agent, stream, .. }) => {
                    self.hellos.push((agent, stream));
                    self.highest = self.highest.max(self.position.seq);
                    let answer = match self.refuses {
                        Some(why) => Control::Refused { why, reason: "as the test says".into() },
                        None => Control::Welcome {
                            position: self.position,
                            durable: self.position.seq,
                            window: 64 << 10,
                            adopted: self.adopted,
                        },
                    };
                    self.acked = self.position.seq;
                    wire.extend_from_slice(answer.to_frame(STREAM).bytes());
                    if let Some(reason) = self.hold.clone() {
                        wire.extend_from_slice(
                            Control::Hold { reason: Some(reason) }.to_frame(STREAM).bytes(),
                        );
                    }
                }
                Message::Frame(frame) => self.apply(&frame),
                Message::Control(question @ Control::Compare(_)) => self.questions.push(question),
                other => panic!("the target was sent {other:?}"),
            }
        }
    }

    fn apply(&mut self, frame: &Frame) {
        assert_eq!(frame.header().seq, self.position.seq.next(), "out of order");
        assert_eq!(frame.header().epoch, self.position.epoch, "out of epoch");
        if let Content::Data(data) = frame.open(self.position.chain).expect("what was sealed arrives") {
            for (extent, payload) in data.extents() {
                let (Block(block), Payload::Data(bytes)) = (extent.start, payload) else {
                    panic!("only data")
                };
                self.blocks.insert(block, bytes.to_vec());
            }
        }
        self.position = Position::after(frame.header());
        self.highest = self.highest.max(self.position.seq);
        self.frames += 1;
    }

    /// Says something to the process server.
    pub(super) fn say(&mut self, answer: &Control, wire: &mut Vec<u8>) {
        wire.extend_from_slice(answer.to_frame(STREAM).bytes());
    }

    fn ack(&mut self, wire: &mut Vec<u8>) {
        if self.acked < self.position.seq && self.link.is_some() {
            self.acked = self.position.seq;
            let ack = Control::Ack { spooled: self.acked, durable: self.acked };
            wire.extend_from_slice(ack.to_frame(STREAM).bytes());
        }
    }
}

/// The agent's connection at its other end.
enum Door {
    Closed,
    Greeting(Option<Greeting>),
    Through,
}

pub(super) struct World {
    pub(super) now: Instant,
    pub(super) node: StreamNode,
    pub(super) disk: Arc<Mutex<Arc<SimStorage>>>,
    pub(super) room: Arc<Room>,
    pub(super) agent: FakeAgent,
    pub(super) target: FakeTarget,
    pub(super) noise: u64,
    door: Door,
    agent_conn: ConnectionId,
    target_conn: Option<ConnectionId>,
    /// Bytes on the way: agent to node, node to agent, node to target, target to node.
    pub(super) wires: [Vec<u8>; 4],
    agent_backoff: (Backoff, Option<Instant>),
    /// Deliveries so far, and after which one the connection is cut.
    pub(super) deliveries: [u64; 4],
    pub(super) cut_at: Option<(usize, u64)>,
}

impl World {
    pub(super) fn new(seed: u64) -> Self {
        let now = Instant::now();
        let disk = Arc::new(Mutex::new(Arc::new(SimStorage::new())));
        let room = Arc::new(Room::new(BOUNDS));
        let node = StreamNode::new(STREAM, opener(&disk), room.clone(), seed, now);
        Self {
            now,
            node,
            disk,
            room,
            agent: FakeAgent::new(),
            target: FakeTarget::new(),
            noise: seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1,
            door: Door::Closed,
            agent_conn: ConnectionId(0),
            target_conn: None,
            wires: Default::default(),
            agent_backoff: (Backoff::new(seed), None),
            deliveries: [0; 4],
            cut_at: None,
        }
    }

    pub(super) fn random(&mut self, below: u64) -> u64 {
        self.noise ^= self.noise << 13;
        self.noise ^= self.noise >> 7;
        self.noise ^= self.noise << 17;
        (self.noise >> 11) % below
    }

    pub(super) fn dial_as_agent(&mut self) {
        self.hang_up_agent();
        self.agent_conn.0 += 1;
        self.agent.link = Some(Link::new(Some(STREAM), self.now));
        self.agent.refused = None;
        self.door = Door::Greeting(Some(Greeting::new(self.agent.name.clone(), self.now)));
        self.wires[0] = self.agent.hello().bytes().to_vec();
    }

    /// The agent's connection is cut; what is on the way is lost.
    pub(super) fn hang_up_agent(&mut self) {
        self.lose_agent();
        self.node.handle_agent_closed(self.agent_conn);
    }

    fn lose_agent(&mut self) {
        (self.agent.link, self.agent.up, self.door) = (None, false, Door::Closed);
        (self.wires[0], self.wires[1]) = Default::default();
    }

    pub(super) fn hang_up_target(&mut self) {
        self.target.link = None;
        (self.wires[2], self.wires[3]) = Default::default();
        if let Some(conn) = self.target_conn.take() {
            self.node.handle_target_closed(conn, "cut by the test", self.now);
        }
    }

    /// The process server dies; `disk` is what it finds when it starts again.
    pub(super) fn restart(&mut self, disk: SimStorage) {
        self.lose_agent();
        self.target_conn = None;
        self.target.link = None;
        (self.wires[2], self.wires[3]) = Default::default();
        *self.disk.lock().unwrap() = Arc::new(disk);
        self.room = Arc::new(Room::new(BOUNDS));
        let seed = self.random(1 << 40);
        self.node = StreamNode::new(STREAM, opener(&self.disk), self.room.clone(), seed, self.now);
    }

    pub(super) fn storage(&self) -> Arc<SimStorage> {
        self.disk.lock().unwrap().clone()
    }

    /// A millisecond passes: bytes arrive, in pieces of up to `most`, and everyone does what is due.
    pub(super) fn tick(&mut self, most: u64) {
        self.now += Duration::from_millis(1);
        if self.agent.link.is_none() && self.agent_backoff.1.is_none_or(|at| at <= self.now) {
            let delay = self.agent_backoff.0.next_delay();
            self.agent_backoff.1 = Some(self.now + delay);
            self.dial_as_agent();
        }
        for wire in 0..4 {
            let most = self.random(most) + 1;
            self.deliver(wire, most as usize);
        }
        let [to_node, _, _, from_target] = &mut self.wires;
        if to_node.len() < 64 << 10 {
            self.agent.pump(to_node);
        }
        if !self.target.stalled {
            self.target.ack(from_target);
        }
        if self.node.poll_timeout().is_some_and(|at| at <= self.now) {
            self.node.handle_timeout(self.now);
        }
        self.node.commit(self.now);
        self.obey();
    }

    /// Bytes of a wire arrive.
    pub(super) fn deliver(&mut self, wire: usize, most: usize) {
        let len = most.min(self.wires[wire].len());
        if len == 0 || (wire == 2 && self.target.stalled) {
            return;
        }
        let bytes: Vec<u8> = self.wires[wire].drain(..len).collect();
        match wire {
            0 => match &mut self.door {
                Door::Closed => {}
                Door::Through => self.node.handle_agent_bytes(self.agent_conn, &bytes, self.now),
                Door::Greeting(greeting) => {
                    match greeting.take().unwrap().handle_bytes(&bytes, self.now).unwrap() {
                        Err(waiting) => *greeting = Some(waiting),
                        Ok(hello) => {
                            self.door = Door::Through;
                            self.node.handle_agent_connected(self.agent_conn, hello, self.now);
                        }
                    }
                }
            },
            1 => self.agent.handle_bytes(&bytes, self.now),
            2 => self.target.handle_bytes(&bytes, &mut self.wires[3], self.now),
            _ => {
                let conn = self.target_conn.unwrap();
                self.node.handle_target_bytes(conn, &bytes, self.now);
            }
        }
        self.deliveries[wire] += 1;
        if self.cut_at == Some((wire, self.deliveries[wire])) {
            if wire < 2 { self.hang_up_agent() } else { self.hang_up_target() }
        }
    }

    /// Does what the node wants.
    fn obey(&mut self) {
        loop {
            let mut output = self.node.poll_output();
            if output.is_none() && self.wires[2].len() < 32 << 10 {
                output = self.node.poll_frame(self.now);
            }
            let Some(output) = output.or_else(|| self.node.poll_output()) else { break };
            match output {
                Output::ToAgent(conn, bytes) if conn == self.agent_conn => {
                    self.check_promise(&bytes);
                    self.wires[1].extend(bytes);
                }
                Output::CloseAgent(conn) if conn == self.agent_conn => {
                    // What was queued before still arrives.
                    let last = std::mem::take(&mut self.wires[1]);
                    self.agent.handle_bytes(&last, self.now);
                    self.lose_agent();
                }
                Output::DialTarget(conn) if self.target.unreachable => {
                    self.node.handle_target_closed(conn, "connection refused", self.now);
                }
                Output::DialTarget(conn) => {
                    self.target_conn = Some(conn);
                    self.target.link = Some(Link::new(None, self.now));
                    self.node.handle_target_connected(conn, self.now);
                }
                Output::ToTarget(conn, bytes) if Some(conn) == self.target_conn => {
                    self.wires[2].extend(bytes)
                }
                Output::CloseTarget(conn) if Some(conn) == self.target_conn => {
                    self.target_conn = None;
                    self.target.link = None;
                    (self.wires[2], self.wires[3]) = Default::default();
                }
                Output::ToAgent(..)
                | Output::CloseAgent(_)
                | Output::ToTarget(..)
                | Output::CloseTarget(_)
                | Output::AgentUp(..)
                | Output::AgentDown(_)
                | Output::Report(..) => {}
            }
        }
    }

    /// What the agent is told is safe is in the spool, as it will be found after a power cut now; what it is told
    /// is durable has been at the target.
    fn check_promise(&mut self, answer: &Bytes) {
        let frame = Frame::parse(answer.clone()).unwrap();
        let (spooled, durable) = match Control::from_frame(&frame).unwrap() {
            Control::Ack { spooled, durable } => (spooled, durable),
            Control::Welcome { position, durable, .. } => (position.seq, durable),
            _ => return,
        };
        assert!(spooled <= self.node.status().spooled, "{spooled} is not in the spool");
        assert!(durable <= self.target.highest, "{durable} has never been at the target");
    }

    /// Lets time pass until `done`.
    pub(super) fn until(&mut self, what: &str, done: impl Fn(&World) -> bool) {
        for _ in 0..60_000 {
            if done(self) {
                return;
            }
            self.tick(20_000);
        }
        panic!("not within a minute: {what}; {:?}", self.node.status());
    }

    /// Everything settles, and then the target has what the agent has.
    pub(super) fn settle(&mut self) {
        self.until("all is durable", |world| world.agent.is_done() && world.agent.up);
        let expected: BTreeMap<_, _> =
            self.agent.blocks.iter().map(|(block, version)| (*block, content(*block, *version))).collect();
        assert!(self.target.blocks == expected, "the target's blocks differ from the agent's");
    }

    pub(super) fn write_some(&mut self, count: u64) {
        for _ in 0..count {
            let block = self.random(200);
            self.agent.write(block);
        }
    }
}

fn opener(disk: &Arc<Mutex<Arc<SimStorage>>>) -> Arc<OpenStorage> {
    let disk = disk.clone();
    Arc::new(move || {
        let mut disk = disk.lock().unwrap();
        // A handle that is dead stays so; the disk lives on in a new one.
        if disk.exists("".as_ref()).is_err() {
            *disk = Arc::new((**disk).clone());
        }
        Ok(disk.clone())
    })
}
