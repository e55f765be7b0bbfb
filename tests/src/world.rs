//! Agent, process server and master target of one VM, in one thread, from one seed.
//!
//! The nodes are the real ones; disks, files, clock and net are simulated. Steps of all of them are interleaved at
//! random, and whatever can happen to them does: connections cut and corrupted, services killed, power cut,
//! spools lost. The VM goes on writing all the while. What each sealed point may look like is known from the
//! simulated VM ([`agent::sim::History`]); at the end every point is restored and checked, and the newest
//! state at home must be the VM's disks. For every third seed there are disks at home already, which are adopted: then what
//! they held is a point, too.

mod home;
mod proof;

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use agent::{
    capture::{Clock, pack::Inline},
    node::{self as agent_node, Node, Step, Waiting},
    sim::{History, Plan, SimVm},
    tracker::{Kind, broken::BrokenTracker},
};
use bytes::Bytes;
use engine::{
    frame::{Control, DiskInfo, Frame, Kind as FrameKind, Refusal, StreamInfo, layout::HEADER},
    io::{Storage, read_exact_at, sim::SimStorage},
    net::Backoff,
    point::{Consistency, Point, PointId},
    session::{Link, Message},
    units::{BLOCK_BYTES, DiskIndex, StreamId},
};
use master_target::{node as target_node, proof::Phase, retention::Policy};
use process_server::{
    greeting::Greeting,
    node::{self as relay_node, ConnectionId},
    spool::{Bounds, Room},
};
use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::wire::Wire;

const STREAM: StreamId = StreamId(uuid::Uuid::from_u128(0x5eed));
const AGENT: &str = "vm-agent";

/// What may happen at a step, beside work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mishap {
    /// A connection breaks.
    Cut,
    /// Bytes on the way are damaged, lost or swapped.
    Damage,
    /// A frame reaches the master target whole, but is not what the agent sealed.
    Forge,
    /// The agent is killed and starts again.
    KillAgent,
    /// The VM reboots, or its tracking is lost otherwise: everything is dirty when the agent starts again.
    Reboot,
    /// The process server is killed and starts again.
    KillRelay,
    /// The process server's machine loses power: what was not synced may be gone.
    PowerCutRelay,
    /// The spool is lost altogether.
    LoseSpool,
    /// The master target is killed and starts again.
    KillTarget,
    /// The master target's machine loses power.
    PowerCutTarget,
}

const MISHAPS: [Mishap; 10] = [
    Mishap::Cut,
    Mishap::Damage,
    Mishap::Forge,
    Mishap::KillAgent,
    Mishap::Reboot,
    Mishap::KillRelay,
    Mishap::PowerCutRelay,
    Mishap::LoseSpool,
    Mishap::KillTarget,
    Mishap::PowerCutTarget,
];

/// What a run came to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outcome {
    /// Points that were restored and found exact.
    pub points: usize,
    /// Mishaps on the way.
    pub mishaps: usize,
}

/// The agent's side of the connection to the process server.
#[derive(Default)]
enum ToRelay {
    #[default]
    Down,
    /// No Hello has been read yet.
    Greeting(Wire, Greeting),
    Up(Wire, ConnectionId),
}

/// The process server's side of the connection to the master target.
#[derive(Default)]
enum ToTarget {
    #[default]
    Down,
    /// No Hello has been read yet.
    Greeting(Wire, ConnectionId, Link),
    Up(Wire, ConnectionId),
}

/// Everything.
pub struct World {
    rng: StdRng,
    vm: SimVm,
    plan: Plan,
    agent: Node,
    relay: relay_node::StreamNode,
    relay_storage: Arc<SimStorage>,
    target: Option<target_node::StreamNode>,
    target_storage: Arc<SimStorage>,
    /// What the disks at home held before, if they were there.
    originals: Option<Vec<Vec<u8>>>,
    to_relay: ToRelay,
    to_target: ToTarget,
    /// What the disks may look like at each point that was captured.
    legal: HashMap<PointId, History>,
    /// Points that the master target sealed; none may ever be lost.
    sealed: BTreeSet<PointId>,
    answers: HashMap<agent_node::RequestId, Result<Point, String>>,
    lives: u64,
    /// The agent's tracker misses one write in so many.
    misses_one_in: Option<u32>,
    connections: u64,
    /// The next frame to the master target is forged.
    forge: bool,
}

impl World {
    /// A new VM, never replicated before.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let plan = Plan {
            disks: [vec![24, 17], vec![40], vec![300, 8]][(seed % 3) as usize].clone(),
            shift: (seed / 3 % 2) as u32,
            writers: 1 + (seed % 4) as usize,
            activity: [1, 2, 3][(seed / 5 % 3) as usize],
        };
        let vm = SimVm::new(&plan, seed);
        let (relay_storage, target_storage) = (Arc::new(SimStorage::new()), Arc::new(SimStorage::new()));
        let agent = start_agent(&vm, &plan, seed, None);
        let relay = start_relay(&relay_storage, seed, vm.now());
        let mut rng = StdRng::seed_from_u64(seed);
        let originals = (seed / 2).is_multiple_of(3).then(|| {
            vm.fill();
            home::originals(&target_storage, &vm, &plan, &mut rng)
        });
        Self {
            rng,
            vm,
            plan,
            agent,
            relay,
            relay_storage,
            target: None,
            target_storage,
            originals,
            to_relay: ToRelay::Down,
            to_target: ToTarget::Down,
            legal: HashMap::new(),
            sealed: BTreeSet::new(),
            answers: HashMap::new(),
            lives: seed,
            misses_one_in: None,
            connections: 0,
            forge: false,
        }
    }

    /// Runs `steps` steps with mishaps, then without until all is quiet and equal; checks every point.
    ///
    /// # Panics
    /// If anything that was promised does not hold.
    pub fn run(mut self, steps: u32) -> Outcome {
        let mut mishaps = 0;
        for _ in 0..steps {
            match self.rng.random_range(0..300) {
                0..=5 => {
                    let mishap = MISHAPS[self.rng.random_range(0..MISHAPS.len())];
                    self.suffer(mishap);
                    mishaps += 1;
                }
                6 => drop(self.agent.handle_point_request(Consistency::CrashConsistent)),
                7 => drop(self.begin_to_verify()),
                _ => self.step(false),
            }
        }
        self.settle();
        let report = self.verify();
        assert_eq!(
            (&report.phase, report.different_leaves),
            (&Phase::Proven, 0),
            "a right tracker has no differences"
        );
        Outcome { points: self.check(), mishaps }
    }

    fn now(&self) -> Instant {
        self.vm.now()
    }

    /// Lets something happen.
    pub fn suffer(&mut self, mishap: Mishap) {
        match mishap {
            Mishap::Cut if self.rng.random() => self.cut_agent(),
            Mishap::Cut => self.cut_target(),
            Mishap::Damage => {
                let to_relay = match &mut self.to_relay {
                    ToRelay::Down => None,
                    ToRelay::Greeting(wire, _) | ToRelay::Up(wire, _) => Some(wire),
                };
                let to_target = match &mut self.to_target {
                    ToTarget::Down => None,
                    ToTarget::Greeting(wire, ..) | ToTarget::Up(wire, _) => Some(wire),
                };
                let wires = [to_relay, to_target];
                for wire in wires.into_iter().flatten() {
                    let way = if self.rng.random() { &mut wire.up } else { &mut wire.down };
                    way.damage(&mut self.rng);
                }
            }
            Mishap::Forge => self.forge = true,
            Mishap::Reboot => {
                self.vm.reboot();
                self.suffer(Mishap::KillAgent);
            }
            Mishap::KillAgent => {
                self.cut_agent();
                self.lives += 1;
                // A new life counts its requests anew.
                self.answers.clear();
                self.agent = start_agent(&self.vm, &self.plan, self.lives, self.misses_one_in);
            }
            Mishap::KillRelay => self.restart_relay(SimStorage::clone(&self.relay_storage)),
            Mishap::PowerCutRelay => {
                let seed = self.rng.random();
                self.restart_relay(self.relay_storage.power_cut(self.relay_storage.log_len(), seed));
            }
            Mishap::LoseSpool => self.restart_relay(SimStorage::new()),
            Mishap::KillTarget => self.restart_target(SimStorage::clone(&self.target_storage)),
            Mishap::PowerCutTarget => {
                let seed = self.rng.random();
                self.restart_target(self.target_storage.power_cut(self.target_storage.log_len(), seed));
            }
        }
    }

    fn restart_relay(&mut self, storage: SimStorage) {
        // Both neighbours see their connections end; the process server itself sees nothing any more.
        if !matches!(std::mem::take(&mut self.to_relay), ToRelay::Down) {
            self.agent.handle_closed("the process server is gone", self.now());
        }
        if !matches!(std::mem::take(&mut self.to_target), ToTarget::Down) {
            self.target.iter_mut().for_each(target_node::StreamNode::handle_closed);
        }
        self.relay_storage = Arc::new(storage);
        self.lives += 1;
        self.relay = start_relay(&self.relay_storage, self.lives, self.now());
    }

    fn restart_target(&mut self, storage: SimStorage) {
        self.target = None;
        self.target_storage = Arc::new(storage);
        self.cut_target();
    }

    fn cut_agent(&mut self) {
        let now = self.now();
        match std::mem::take(&mut self.to_relay) {
            ToRelay::Down => return,
            ToRelay::Greeting(..) => {}
            ToRelay::Up(_, connection) => self.relay.handle_agent_closed(connection),
        }
        self.agent.handle_closed("cut", now);
    }

    fn cut_target(&mut self) {
        let now = self.now();
        match std::mem::take(&mut self.to_target) {
            ToTarget::Down => {}
            ToTarget::Greeting(_, connection, _) | ToTarget::Up(_, connection) => {
                self.target.iter_mut().for_each(target_node::StreamNode::handle_closed);
                self.relay.handle_target_closed(connection, "cut", now);
            }
        }
    }

    /// One of the nodes works, or bytes arrive, or time passes.
    pub fn step(&mut self, eager: bool) {
        match self.rng.random_range(0..6) {
            0 | 1 => self.step_agent(),
            2 => self.exchange_agent(eager),
            3 => self.exchange_target(eager),
            4 => self.relay.commit(self.now()),
            _ => self.step_target(),
        }
        self.relay.handle_timeout(self.now());
        self.pump();
    }

    fn step_agent(&mut self) {
        let now = self.now();
        self.agent.handle_timeout(now);
        let pause = match self.agent.step(now) {
            Step::Worked => Duration::from_micros(1),
            Step::Waits(Waiting::Until(until)) => {
                let next = self.agent.poll_timeout().map_or(until, |timeout| timeout.min(until));
                next.saturating_duration_since(now).min(Duration::from_millis(300))
            }
            Step::Waits(_) => Duration::from_millis(20),
        };
        self.vm.pause(pause.max(Duration::from_micros(1)));
    }

    fn step_target(&mut self) {
        let (now, wall) = (self.now(), self.vm.wall());
        let Some(target) = &mut self.target else { return };
        target.handle_timeout(now);
        if target.work_at(now).is_some_and(|due| now >= due) {
            target.work(now, wall);
        }
        if !target.has_work(now) {
            return;
        }
        match target.commit(now, wall) {
            Ok(sealed) => self.sealed.extend(sealed.iter().map(|sealed| sealed.point.id)),
            Err(error) => panic!("no fault was ordered, but the target failed: {error}"),
        }
    }

    /// A seal that leaves for the first time is of the last flip.
    fn note_seal(&mut self, bytes: &Bytes) {
        let frame = Frame::parse(bytes.clone()).expect("nodes send whole frames");
        if frame.header().kind == FrameKind::Seal {
            let point: Point = serde_json::from_slice(&bytes[HEADER..]).expect("the agent seals points");
            self.legal.entry(point.id).or_insert_with(|| self.vm.at_last_flip());
        }
    }

    /// Takes what the nodes want sent.
    fn pump(&mut self) {
        let now = self.now();
        while let Some(output) = self.agent.poll_output(now) {
            match output {
                agent_node::Output::Dial => {
                    self.to_relay = ToRelay::Greeting(Wire::default(), Greeting::new(AGENT, now));
                    self.agent.handle_connected(now);
                }
                agent_node::Output::Send(bytes) => {
                    self.note_seal(&bytes);
                    match &mut self.to_relay {
                        ToRelay::Down => {}
                        ToRelay::Greeting(wire, _) | ToRelay::Up(wire, _) => wire.up.send(&bytes),
                    }
                }
                agent_node::Output::Close(_) => {
                    if let ToRelay::Up(_, connection) = std::mem::take(&mut self.to_relay) {
                        self.relay.handle_agent_closed(connection);
                    }
                }
                agent_node::Output::Answer(request, answer) => drop(self.answers.insert(request, answer)),
            }
        }
        loop {
            let Some(output) = self.relay.poll_output().or_else(|| self.relay.poll_frame(now)) else { break };
            self.relay_output(output, now);
        }
        while let Some(output) = self.target.as_mut().and_then(target_node::StreamNode::poll_output) {
            let ToTarget::Up(wire, _) = &mut self.to_target else { continue };
            match output {
                target_node::Output::Send(bytes) => wire.down.send(&bytes),
                target_node::Output::Close(_) => wire.down.closed = true,
            }
        }
    }

    fn relay_output(&mut self, output: relay_node::Output, now: Instant) {
        match output {
            relay_node::Output::ToAgent(to, bytes) => {
                if let ToRelay::Up(wire, connection) = &mut self.to_relay
                    && *connection == to
                {
                    wire.down.send(&bytes);
                }
            }
            relay_node::Output::CloseAgent(closed) => {
                if let ToRelay::Up(wire, connection) = &mut self.to_relay
                    && *connection == closed
                {
                    wire.down.closed = true;
                }
            }
            relay_node::Output::AgentUp(..)
            | relay_node::Output::AgentDown(_)
            | relay_node::Output::Report(..) => {}
            relay_node::Output::DialTarget(connection) => {
                self.target.iter_mut().for_each(target_node::StreamNode::handle_closed);
                self.to_target = ToTarget::Greeting(Wire::default(), connection, Link::new(None, now));
                self.relay.handle_target_connected(connection, now);
            }
            relay_node::Output::ToTarget(_, bytes) => {
                let bytes = if self.forge { forged(bytes, &mut self.forge) } else { bytes };
                match &mut self.to_target {
                    ToTarget::Down => {}
                    ToTarget::Greeting(wire, ..) | ToTarget::Up(wire, _) => {
                        wire.up.send(&bytes);
                    }
                }
            }
            relay_node::Output::CloseTarget(_) => {
                self.to_target = ToTarget::Down;
                self.target.iter_mut().for_each(target_node::StreamNode::handle_closed);
            }
        }
    }

    fn some(&mut self, eager: bool) -> usize {
        if eager { usize::MAX } else { self.rng.random_range(1..6000) }
    }

    /// Bytes between agent and process server arrive.
    fn exchange_agent(&mut self, eager: bool) {
        let (now, up, down) = (self.now(), self.some(eager), self.some(eager));
        match std::mem::take(&mut self.to_relay) {
            ToRelay::Down => {}
            ToRelay::Greeting(mut wire, greeting) => {
                // The answer to a Hello that is refused, and the end, arrive at once.
                let bytes = wire.up.take(up);
                self.to_relay = match greeting.handle_bytes(&bytes, now) {
                    Ok(Err(greeting)) => ToRelay::Greeting(wire, greeting),
                    Ok(Ok(hello)) => {
                        self.connections += 1;
                        let connection = ConnectionId(self.connections);
                        self.relay.handle_agent_connected(connection, hello, now);
                        ToRelay::Up(wire, connection)
                    }
                    Err(error) => {
                        if let Some(answer) = error.answer() {
                            self.agent.handle_bytes(answer.bytes(), now);
                        }
                        self.agent.handle_closed("greeting failed", now);
                        ToRelay::Down
                    }
                };
            }
            ToRelay::Up(mut wire, connection) => {
                let (up, down) = (wire.up.take(up), wire.down.take(down));
                let ended = wire.down.closed && wire.down.is_empty();
                self.to_relay = ToRelay::Up(wire, connection);
                self.relay.handle_agent_bytes(connection, &up, now);
                self.agent.handle_bytes(&down, now);
                if ended {
                    self.to_relay = ToRelay::Down;
                    self.agent.handle_closed("closed by the process server", now);
                }
            }
        }
    }

    /// Bytes between process server and master target arrive.
    fn exchange_target(&mut self, eager: bool) {
        let (now, up, down) = (self.now(), self.some(eager), self.some(eager));
        match std::mem::take(&mut self.to_target) {
            ToTarget::Down => {}
            ToTarget::Greeting(mut wire, connection, mut link) => {
                link.handle_bytes(&wire.up.take(up), now);
                match link.poll_message() {
                    Ok(None) => self.to_target = ToTarget::Greeting(wire, connection, link),
                    Ok(Some(Message::Control(Control::Hello { agent, stream, .. }))) => {
                        self.greet_target(wire, connection, link, &agent, &stream);
                    }
                    Ok(Some(_)) | Err(_) => self.relay.handle_target_closed(connection, "bad greeting", now),
                }
            }
            ToTarget::Up(mut wire, connection) => {
                let (up, down) = (wire.up.take(up), wire.down.take(down));
                let ended = wire.down.closed && wire.down.is_empty();
                self.to_target = ToTarget::Up(wire, connection);
                if let Some(target) = &mut self.target {
                    target.handle_bytes(&up, now);
                }
                self.relay.handle_target_bytes(connection, &down, now);
                if ended {
                    self.to_target = ToTarget::Down;
                    self.relay.handle_target_closed(connection, "closed by the master target", now);
                }
            }
        }
    }

    /// What the master target's driver does with a Hello.
    fn greet_target(
        &mut self,
        mut wire: Wire,
        connection: ConnectionId,
        link: Link,
        agent: &str,
        stream: &StreamInfo,
    ) {
        let now = self.now();
        let home = self.home();
        let opened = home.prepare(agent, stream).and_then(|()| {
            if self.target.is_none() {
                self.target =
                    Some(target_node::StreamNode::new(home.open_to_write(stream.id)?, Policy::everything()));
            }
            Ok(())
        });
        match (opened, &mut self.target) {
            (Ok(()), Some(target)) => {
                target.handle_connected(link, now);
                self.to_target = ToTarget::Up(wire, connection);
            }
            (refused, _) => {
                let (why, reason) =
                    refused.map_or_else(|no| (no.why, no.reason), |()| (Refusal::Unavailable, String::new()));
                panic!("nothing gives reason to refuse, but: {why:?}, {reason}, {:?}", wire.down.take(0));
            }
        }
    }

    /// With the VM still and nothing breaking, home becomes equal to the VM.
    fn settle(&mut self) {
        // Whatever damaged bytes are still on their way go with their connections.
        self.cut_agent();
        self.cut_target();
        self.forge = false;
        self.vm.set_activity(2);
        self.vm.quiesced(|| ());
        self.vm.set_activity(0);
        // A request may be lost with the position it waited for: ask until one is answered.
        for _ in 0..20 {
            let request = self.agent.handle_point_request(Consistency::CrashConsistent);
            for _ in 0..20_000 {
                self.step(true);
                match self.answers.remove(&request) {
                    Some(Ok(point)) => {
                        let newest = self.images();
                        for (disk, image) in newest.iter().enumerate() {
                            let source = self.vm.bytes(DiskIndex(disk as u16));
                            assert!(*image == source, "disk {disk} differs at last, in {point:?}");
                        }
                        return;
                    }
                    Some(Err(_)) => break,
                    None => {}
                }
            }
        }
        let target =
            self.target.as_ref().map(|target| (target.is_connected(), target.replica().position().seq));
        panic!("no point was made; process server {:?}; master target {target:?}", self.relay.status());
    }

    /// Restores every point and checks it; none that was sealed may be missing.
    fn check(&mut self) -> usize {
        self.target = None;
        let mut replica = self.home().open(STREAM).unwrap();
        let points: Vec<_> = replica.state().points.values().cloned().collect();
        for sealed in &self.sealed {
            assert!(
                points.iter().any(|point| point.point.id == *sealed),
                "point {sealed} was sealed and is lost"
            );
        }
        assert_eq!(replica.state().before_failback().is_some(), self.originals.is_some());
        for point in &points {
            replica.restore(point, &mut |_, _| true).unwrap();
            let image = self.images();
            if point.point.is_before_failback() {
                assert!(Some(image) == self.originals, "the disks before failback are not what they were");
                continue;
            }
            let legal = &self.legal[&point.point.id];
            if let Err(wrong) = legal.check(&image) {
                panic!("point {} of layer {} is not exact: {wrong}", point.point.id, point.layer);
            }
            let held = point.point.consistency == Consistency::ApplicationConsistent;
            assert!(!held || legal.is_held(), "applications did not hold for {:?}", point.point);
        }
        points.len()
    }
}

/// A frame of the stream with another chain digest, its checksums right; other bytes as they are.
fn forged(bytes: Bytes, forge: &mut bool) -> Bytes {
    let frame = Frame::parse(bytes.clone()).expect("nodes send whole frames");
    if frame.header().kind == FrameKind::Control {
        return bytes;
    }
    *forge = false;
    let mut header = frame.header().clone();
    header.chain.0[7] ^= 1;
    [&header.encode()[..], &bytes[HEADER..]].concat().into()
}

fn start_agent(vm: &SimVm, plan: &Plan, seed: u64, misses_one_in: Option<u32>) -> Node {
    let disk = |(index, blocks): (usize, &u64)| {
        let bytes = blocks * BLOCK_BYTES;
        DiskInfo { name: format!("sd{index}"), bytes, used_bytes: bytes }
    };
    let disks = plan.disks.iter().enumerate().map(disk).collect();
    let stream = StreamInfo { id: STREAM, vm: "vm".into(), disks };
    let mut ids = StdRng::seed_from_u64(seed);
    let mut source = vm.source();
    if let Some(one_in) = misses_one_in {
        source.tracker = Box::new(BrokenTracker::new(source.tracker, one_in, seed));
    }
    let parts = agent_node::Parts {
        source,
        kind: Kind::Ebpf,
        freezer: Some(Box::new(vm.clone())),
        quiescer: Some(Box::new(vm.applications(seed))),
        packer: Box::new(Inline::new(1)),
        backoff: Backoff::new(seed),
        new_id: Box::new(move || PointId(uuid::Uuid::from_u128(ids.random()))),
    };
    let settings = agent_node::Settings {
        agent: AGENT.into(),
        stream,
        point_interval: Duration::from_millis(700),
        application_interval: Some(Duration::from_millis(2500)),
        verify_rate: 64 << 20,
        resync_from: 1,
    };
    Node::new(settings, parts, vm.now())
}

fn start_relay(storage: &Arc<SimStorage>, seed: u64, now: Instant) -> relay_node::StreamNode {
    let storage = Arc::clone(storage);
    let open = Arc::new(move || Ok(Arc::clone(&storage) as Arc<dyn Storage>));
    let room = Arc::new(Room::new(Bounds::new(256 << 20, 128 << 20)));
    relay_node::StreamNode::new(STREAM, open, room, seed, now)
}
