//! A node against a simulated VM and a simulated process server that loses connections, frames and its spool,
//! while the agent is killed and started again: every sealed point is exact, and the target always catches up.

mod group;
mod peer;
mod resync;

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use engine::{
    digest::{LEAF_BYTES, leaves_in},
    frame::{DiskInfo, Frame, Kind as FrameKind, Opened, StreamInfo},
    net::Backoff,
    point::{Method, PointId},
    units::{Seq, StreamId},
};
use rand::{RngExt, SeedableRng, rngs::StdRng};

use self::peer::Peer;
use super::*;
use crate::{
    capture::{Clock, pack::Inline},
    sim::{History, Plan, SimVm, version_at},
    tracker::broken::BrokenTracker,
};

const STREAM: StreamId = StreamId(uuid::Uuid::from_u128(0x5eed));

/// Everything on one seed.
struct World {
    rng: StdRng,
    vm: SimVm,
    plan: Plan,
    node: Node,
    peer: Peer,
    /// What the disks may look like at a point.
    legal: HashMap<PointId, History>,
    answers: HashMap<RequestId, Result<Point, String>>,
    lives: u64,
    application_consistent: u32,
    /// Points that were to be application-consistent and are not.
    failed: u32,
    /// Points of a group.
    common: u32,
    /// The barrier that was ordered last.
    barrier: u128,
    /// Times that nothing was reported on it.
    silent_for: u32,
    /// Points are not exact.
    is_broken: bool,
}

impl World {
    fn new(plan: Plan, seed: u64) -> Self {
        let vm = SimVm::new(&plan, seed);
        let node = start(&vm, &plan, seed << 32);
        Self {
            rng: StdRng::seed_from_u64(seed),
            peer: Peer::new(&plan.disks),
            vm,
            node,
            plan,
            legal: HashMap::new(),
            answers: HashMap::new(),
            lives: seed << 32,
            application_consistent: 0,
            failed: 0,
            common: 0,
            barrier: 0,
            silent_for: 0,
            is_broken: false,
        }
    }

    fn now(&self) -> Instant {
        self.vm.now()
    }

    fn outputs(&mut self) {
        let now = self.now();
        while let Some(output) = self.node.poll_output(now) {
            match output {
                Output::Dial => {
                    self.peer.connect(now);
                    self.node.handle_connected(now);
                }
                Output::Send(bytes) => {
                    self.note_seal(&bytes);
                    self.peer.to_peer.extend_from_slice(&bytes);
                }
                Output::Close(reason) => panic!("the agent found fault: {reason}"),
                Output::Answer(request, answer) => drop(self.answers.insert(request, answer)),
            }
        }
    }

    /// A seal that leaves for the first time is of the last flip.
    fn note_seal(&mut self, bytes: &Bytes) {
        let frame = Frame::parse(bytes.clone()).unwrap();
        if frame.header().kind == FrameKind::Seal {
            let point: Point = serde_json::from_slice(&bytes[engine::frame::layout::HEADER..]).unwrap();
            self.legal.entry(point.id).or_insert_with(|| self.vm.at_last_flip());
        }
    }

    /// The node works, or time passes.
    fn step(&mut self) {
        let now = self.now();
        self.node.handle_timeout(now);
        match self.node.step(now) {
            Step::Worked => (),
            Step::Waits(Waiting::Until(until)) => {
                let next = self.node.poll_timeout().map_or(until, |timeout| timeout.min(until));
                // An order may come at any time.
                let most = if self.node.is_frozen() { 5 } else { 300 };
                self.pass(next.saturating_duration_since(now).min(Duration::from_millis(most)));
            }
            Step::Waits(_) => self.pass(Duration::from_millis(20)),
        }
        self.outputs();
    }

    fn pass(&mut self, time: Duration) {
        self.vm.pause(time.max(Duration::from_micros(1)));
    }

    /// Bytes move, and the peer spools and makes durable, some of it.
    fn exchange(&mut self, all: bool) {
        let now = self.now();
        let some = |rng: &mut StdRng, len: usize| if all { len } else { rng.random_range(0..=len) };
        let bytes = some(&mut self.rng, self.peer.to_peer.len());
        self.peer.receive(bytes, now);
        let spooled = some(&mut self.rng, self.peer.unspooled());
        self.peer.spool(spooled);
        let durable = some(&mut self.rng, self.peer.undurable());
        if let Some(point) = self.peer.make_durable(durable).filter(|_| !self.is_broken) {
            self.check(&point);
        }
        self.peer.acknowledge();
        let bytes = some(&mut self.rng, self.peer.to_agent.len());
        let bytes: Vec<u8> = self.peer.to_agent.drain(..bytes).collect();
        self.node.handle_bytes(&bytes, now);
        self.outputs();
    }

    fn check(&mut self, point: &Point) {
        let legal = &self.legal[&point.id];
        if let Err(wrong) = legal.check(&self.peer.target) {
            panic!("point of {} is not exact: {wrong}", point.epoch);
        }
        let failed = point.application.as_ref().map(|application| application.failed.is_some());
        match point.consistency {
            Consistency::ApplicationConsistent => {
                assert_eq!((failed, point.method), (Some(false), Method::Frozen));
                assert!(legal.is_held(), "applications did not hold at the point's instant");
                self.application_consistent += 1;
            }
            // That there is one that failed and one that did not is not the point's fault: the label is right.
            Consistency::CrashConsistent => assert_ne!(failed, Some(false), "{point:?}"),
            Consistency::BeforeFailback => panic!("an agent cannot observe that: {point:?}"),
        }
        self.failed += u32::from(failed == Some(true));
        self.common += u32::from(point.group.is_some());
    }

    fn leaves(&self) -> usize {
        self.plan.disks.iter().map(|blocks| leaves_in(blocks * BLOCK_BYTES) as usize).sum()
    }

    /// Leaves that are not at the target as they are on the disks.
    fn stale_leaves(&self) -> BTreeSet<(u16, u64)> {
        let mut stale = BTreeSet::new();
        for (disk, target) in (0..).zip(&self.peer.target) {
            let source = self.vm.bytes(DiskIndex(disk));
            let pairs = target.chunks(LEAF_BYTES as usize).zip(source.chunks(LEAF_BYTES as usize));
            stale.extend((0..).zip(pairs).filter(|(_, (a, b))| a != b).map(|(leaf, _)| (disk, leaf)));
        }
        stale
    }

    fn cut(&mut self) {
        self.peer.disconnect();
        self.node.handle_closed("cut", self.now());
    }

    fn any_kind(&mut self) -> Consistency {
        [Consistency::CrashConsistent, Consistency::ApplicationConsistent][self.rng.random_range(0..2)]
    }

    fn restart_agent(&mut self) {
        self.peer.disconnect();
        self.answers.clear(); // Requests are numbered anew.
        self.lives += 1;
        self.node = start(&self.vm, &self.plan, self.lives);
    }

    fn accounting(&self) {
        // Invariant 2, as far as the node can break it: what the target lacks is marked somewhere, or in flight.
        self.vm.check_accounted(&self.peer.everything_received());
    }

    /// Asks for all digests and waits until they were found right; returns how many points it took.
    fn verify_all(&mut self) -> u32 {
        let before = self.peer.points;
        // The connection may be on its way.
        while !self.peer.is_greeted() {
            self.step();
            self.exchange(true);
        }
        self.peer.verify();
        for _ in 0..200_000 {
            self.step();
            self.exchange(true);
            if self.peer.is_verified() {
                return self.peer.points - before;
            }
        }
        panic!("not all leaves settled: {:?}", self.node.status(self.now()));
    }

    /// With the VM still and the connection good, the target becomes equal to the source.
    fn converge(&mut self) {
        self.abort();
        self.vm.set_activity(2);
        self.vm.quiesced(|| ());
        self.vm.set_activity(0);
        let request = self.node.handle_point_request(Consistency::CrashConsistent);
        for _ in 0..20_000 {
            self.step();
            self.exchange(true);
            if let Some(answer) = self.answers.remove(&request) {
                answer.expect("a point of a VM that is still");
                for (disk, target) in self.peer.target.iter().enumerate() {
                    let source = self.vm.bytes(DiskIndex(disk as u16));
                    for (block, (is, was)) in target.chunks(4096).zip(source.chunks(4096)).enumerate() {
                        let versions = (version_at(is), version_at(was));
                        assert!(is == was, "disk {disk} block {block} differs at last: {versions:?}");
                    }
                }
                return;
            }
        }
        panic!("no point was made: {:?}", self.node.status(self.now()));
    }
}

fn start(vm: &SimVm, plan: &Plan, seed: u64) -> Node {
    let disks = plan.disks.iter().enumerate();
    let disk = |(index, blocks): (usize, &u64)| {
        let bytes = blocks * BLOCK_BYTES;
        DiskInfo { name: format!("sd{index}"), bytes, used_bytes: bytes }
    };
    let stream = StreamInfo { id: STREAM, vm: "vm".into(), disks: disks.map(disk).collect() };
    let mut ids = StdRng::seed_from_u64(seed);
    let parts = Parts {
        source: vm.source(),
        kind: Kind::Ebpf,
        freezer: Some(Box::new(vm.clone())),
        quiescer: Some(Box::new(vm.applications(seed))),
        packer: Box::new(Inline::new(0)),
        backoff: Backoff::new(seed),
        new_id: Box::new(move || PointId(uuid::Uuid::from_u128(ids.random()))),
    };
    let settings = Settings {
        agent: "vm".into(),
        stream,
        point_interval: Duration::from_millis(700),
        application_interval: Some(Duration::from_millis(1500)),
        verify_rate: 64 << 20,
        resync_from: 1,
    };
    Node::new(settings, parts, vm.now())
}

fn plan_of(seed: u64) -> Plan {
    Plan {
        disks: [vec![24, 17], vec![40], vec![600, 8]][(seed % 3) as usize].clone(),
        shift: (seed / 3 % 2) as u32,
        writers: 1 + (seed % 5) as usize,
        activity: [1, 2, 4][(seed / 5 % 3) as usize],
    }
}

#[test]
fn every_point_is_exact_and_the_target_catches_up_whatever_breaks() {
    let (mut points, mut resets, mut application_consistent, mut failed, mut common) = (0, 0, 0, 0, 0);
    for seed in 0..250 {
        let outcome = std::panic::catch_unwind(|| {
            let mut world = World::new(plan_of(seed), seed);
            for _ in 0..700 {
                match world.rng.random_range(0..400) {
                    0..=1 => world.cut(),
                    2 => {
                        if world.rng.random() {
                            world.vm.reboot();
                        }
                        world.restart_agent();
                    }
                    3 => {
                        world.cut();
                        world.peer.lose_unspooled();
                    }
                    4 => {
                        world.cut();
                        world.peer.lose_spool();
                    }
                    5 => {
                        let wanted = world.any_kind();
                        world.node.handle_point_request(wanted);
                    }
                    6..=8 => world.peer.verify(),
                    9 => world.peer.resend(),
                    10..=100 => world.lead(),
                    101..=250 => world.step(),
                    _ => world.exchange(false),
                }
            }
            world.accounting();
            world.converge();
            world.verify_all();
            // Not one digest may be wrong for as long as the tracker is right.
            assert_eq!(world.peer.different, BTreeSet::new());
            (world.peer.points, world.peer.resets, world.application_consistent, world.failed, world.common)
        });
        let (found, reset, held, in_vain, of_group) = outcome.unwrap_or_else(|panic| {
            eprintln!("seed {seed} failed");
            std::panic::resume_unwind(panic)
        });
        points += found;
        resets += reset;
        application_consistent += held;
        failed += in_vain;
        common += of_group;
    }
    println!("{points} points, {resets} losses of the spool");
    println!("{application_consistent} application-consistent points, {failed} were to be and are not");
    println!("{common} points of the group");
    assert!(points > 500 && resets > 100);
    assert!(application_consistent > 100 && failed > 50 && common > 20);
}

/// The number of points stated in docs/barrier.md, section 9, for disks whose hot leaves fit one point, and one more for
/// witnesses given up.
#[test]
fn every_leaf_settles_within_a_few_points_however_busy_the_disks() {
    let (mut most, mut points) = (0, 0);
    for seed in 0..60 {
        let mut world = World::new(plan_of(seed), seed);
        for _ in 0..300 {
            world.step();
            world.exchange(true);
        }
        let took = world.verify_all();
        most = most.max(took);
        points += took;
        assert_eq!(world.peer.different, BTreeSet::new(), "seed {seed}");
    }
    println!("at most {most} points, {points} in all");
    assert!(most <= 4, "it took {most} points");
}

#[test]
fn a_tracker_that_misses_writes_is_caught_and_its_misses_are_mended() {
    let mut caught = 0;
    for seed in 0..60 {
        let mut world = World::new(plan_of(seed), seed);
        world.vm.fill();
        world.is_broken = true;
        let tracker = std::mem::replace(&mut world.node.source.tracker, world.vm.source().tracker);
        world.node.source.tracker = Box::new(BrokenTracker::new(tracker, 20, seed));
        for _ in 0..300 {
            world.step();
            world.exchange(true);
        }
        // Still, and everything that the tracker knows of is sent.
        world.vm.set_activity(2);
        world.vm.quiesced(|| ());
        world.vm.set_activity(0);
        let request = world.node.handle_point_request(Consistency::CrashConsistent);
        while world.answers.remove(&request).is_none() {
            world.step();
            world.exchange(true);
        }
        let stale = world.stale_leaves();
        world.peer.verify();
        while world.peer.verified.len() + world.peer.different.len() < world.leaves() {
            world.step();
            world.exchange(true);
        }
        assert_eq!(world.peer.different, stale, "seed {seed}");
        caught += usize::from(!stale.is_empty());
        // The target asks for them again, and is then right.
        world.peer.resend();
        world.verify_all();
        assert_eq!(world.stale_leaves(), BTreeSet::new());
    }
    assert!(caught > 30, "hardly anything was missed: {caught}");
}

#[test]
fn a_target_that_lost_everything_gets_everything() {
    let mut world = World::new(plan_of(1), 1);
    world.converge();
    world.cut();
    world.peer = Peer::new(&world.plan.disks);
    world.converge();
}

/// A virtual machine set back to a snapshot with its memory: the agent goes on as if it had never sent what it did.
#[test]
fn an_agent_that_was_set_back_sends_everything() {
    for sealed_since in [false, true] {
        let mut world = World::new(plan_of(1), 1);
        world.vm.fill();
        world.converge();
        if sealed_since {
            // As many frames are sealed here as there: only the chain tells.
            let before = world.node.last_seq();
            world.vm.set_activity(4);
            while world.node.last_seq() <= before {
                world.step();
            }
        }
        world.cut();
        world.peer.receive_foreign();
        world.converge();
    }
}

#[test]
fn a_full_window_stops_reading_and_says_so() {
    let plan = Plan { disks: vec![4096], shift: 0, writers: 0, activity: 0 };
    let mut world = World::new(plan, 7);
    world.vm.fill();
    let mut waited = false;
    for _ in 0..200 {
        world.step();
        let now = world.now();
        let bytes = world.peer.to_peer.len();
        world.peer.receive(bytes, now);
        let bytes: Vec<u8> = world.peer.to_agent.drain(..).collect();
        world.node.handle_bytes(&bytes, now);
        waited |= world.node.step(now) == Step::Waits(Waiting::Window);
    }
    assert!(waited);
    let held = world.node.status(world.now()).window_bytes;
    assert!(held <= engine::limits::WINDOW_BYTES + engine::limits::FRAME_CONTENT, "{held}");
    world.converge();
}

#[test]
fn sent_blocks_are_remembered_in_bounded_memory_and_forgotten_when_durable() {
    let mut world = World::new(plan_of(4), 4);
    world.converge();
    for _ in 0..200 {
        world.step();
        world.exchange(true);
    }
    let maps = world.node.source().tracker.maps(DiskIndex(0));
    assert!(maps.dirty.is_empty());
    assert!(maps.sent.iter().all(|half| half.is_empty()), "all is durable");
    assert_eq!(world.node.status(world.now()).lag_bytes, 0);
}

#[test]
fn a_request_is_answered_with_a_point_taken_after_it() {
    let mut world = World::new(plan_of(2), 2);
    world.converge();
    let asked = world.vm.wall();
    let request = world.node.handle_point_request(Consistency::CrashConsistent);
    while !world.answers.contains_key(&request) {
        world.step();
        world.exchange(true);
    }
    let point = world.answers.remove(&request).unwrap().unwrap();
    assert!(point.taken_at >= asked);
    assert_eq!(point.method, Method::Barrier);
    let status = world.node.status(world.now());
    assert_eq!(status.points.last().unwrap().point, point);
    assert_eq!(status.points.last().unwrap().state, PointState::Durable);
    assert!(status.durable >= Seq(2));
}
