//! Members as far as the coordinator can tell, connections that take time and break, and a clock of their own.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use engine::{
    frame::{GroupOrder, GroupReport},
    limits::GROUP_FREEZE,
    point::{BarrierId, GroupMark, PointId},
    units::StreamId,
};

use super::super::*;

/// How often something goes wrong, of 64.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Faults {
    /// A step takes long.
    pub(super) slow: u32,
    /// A step fails.
    pub(super) fail: u32,
    /// A connection breaks, or messages are lost without anybody noticing for a while.
    pub(super) cut: u32,
    /// The coordinator or a member is killed.
    pub(super) kill: u32,
}

/// A time for which a member was frozen.
#[derive(Clone, Copy, Debug)]
pub(super) struct Freeze {
    pub(super) barrier: BarrierId,
    from: Instant,
    until: Option<Instant>,
}

#[derive(Default)]
pub(super) struct Member {
    /// That it is, as far as it knows.
    connected: bool,
    /// Nothing gets through; it and the coordinator notice then, each by itself.
    lost: Option<[Instant; 2]>,
    /// To and from the coordinator, with the time of arrival.
    orders: VecDeque<(Instant, BarrierId, GroupOrder)>,
    reports: VecDeque<(Instant, BarrierId, GroupReport)>,
    barrier: Option<BarrierId>,
    /// What it will have done then, and says.
    doing: Option<(Instant, GroupReport)>,
    pub(super) freezes: Vec<Freeze>,
    pub(super) seals: BTreeMap<BarrierId, GroupMark>,
    /// Those it sealed since it was killed last.
    remembers: BTreeSet<BarrierId>,
    pub(super) prepare_takes: Duration,
    pub(super) hold_takes: Duration,
}

impl Member {
    pub(super) fn is_frozen(&self) -> bool {
        self.freezes.last().is_some_and(|freeze| freeze.until.is_none())
    }

    fn hears(&self) -> bool {
        self.connected && self.lost.is_none()
    }

    fn lose_messages(&mut self) {
        self.orders.clear();
        self.reports.clear();
    }

    fn thaw(&mut self, now: Instant) {
        if let Some(freeze) = self.freezes.last_mut() {
            freeze.until.get_or_insert(now);
        }
    }

    fn forget(&mut self, now: Instant) {
        self.thaw(now);
        (self.barrier, self.doing) = (None, None);
    }
}

pub(super) struct World {
    pub(super) coordinator: Coordinator,
    settings: Settings,
    pub(super) now: Instant,
    pub(super) members: Vec<Member>,
    pub(super) faults: Faults,
    /// What every message takes.
    pub(super) delay: Duration,
    pub(super) open: BTreeSet<RequestId>,
    pub(super) answers: Vec<(RequestId, Result<GroupPoint, String>)>,
    ids: Arc<AtomicU64>,
    random: u64,
}

impl World {
    pub(super) fn new(settings: Settings, seed: u64) -> Self {
        let now = Instant::now();
        let ids = Arc::new(AtomicU64::new(1));
        Self {
            coordinator: coordinator(&settings, &ids, now),
            members: settings.vms.iter().map(|_| Member::default()).collect(),
            settings,
            now,
            faults: Faults::default(),
            delay: Duration::ZERO,
            open: BTreeSet::new(),
            answers: Vec::new(),
            ids,
            random: seed | 1,
        }
    }

    pub(super) fn ask(&mut self, application: bool) -> RequestId {
        let request = self.coordinator.handle_request("shop", application, self.now).unwrap();
        self.open.insert(request);
        self.pump();
        request
    }

    pub(super) fn connect_all(&mut self) {
        (0..self.members.len()).for_each(|index| self.connect(index));
    }

    pub(super) fn connect(&mut self, index: usize) {
        if !std::mem::replace(&mut self.members[index].connected, true) {
            // What was lost before has been noticed now.
            self.members[index].lost = None;
            self.coordinator.handle_connected(&format!("vm{index}"), stream(index), self.now);
            self.pump();
        }
    }

    pub(super) fn cut(&mut self, index: usize) {
        let member = &mut self.members[index];
        if std::mem::replace(&mut member.connected, false) {
            member.lose_messages();
            member.forget(self.now);
            self.tell_disconnected(index);
        }
    }

    fn tell_disconnected(&mut self, index: usize) {
        self.coordinator.handle_disconnected(&format!("vm{index}"), stream(index), self.now);
        self.pump();
    }

    /// From now on nothing gets through, and nobody knows.
    fn lose_silently(&mut self, index: usize) {
        let later = [self.now + MS * self.below(2000), self.now + MS * self.below(2000)];
        let member = &mut self.members[index];
        if member.connected && member.lost.is_none() {
            member.lose_messages();
            member.lost = Some(later);
        }
    }

    /// `kill -9` of an agent: what is frozen stays so until the watchdog thaws it.
    pub(super) fn kill_member(&mut self, index: usize) {
        let member = &mut self.members[index];
        (member.barrier, member.doing) = (None, None);
        member.remembers.clear();
        if std::mem::replace(&mut member.connected, false) {
            member.lose_messages();
            self.tell_disconnected(index);
        }
    }

    /// `kill -9` of the process server: a new one knows nothing, and the agents notice one by one.
    fn kill_coordinator(&mut self) {
        self.coordinator = coordinator(&self.settings, &self.ids, self.now);
        self.open.clear();
        for index in 0..self.members.len() {
            self.lose_silently(index);
        }
    }

    /// Perhaps something goes wrong.
    pub(super) fn mischief(&mut self) {
        let index = self.below(self.members.len() as u32) as usize;
        match self.below(64) {
            n if n < self.faults.cut => match self.below(2) {
                0 => self.cut(index),
                _ => self.lose_silently(index),
            },
            n if n < self.faults.cut + self.faults.kill => match self.below(2) {
                0 => self.kill_member(index),
                _ => self.kill_coordinator(),
            },
            n if n < 16 => self.connect(index),
            n if n < 18 => drop(self.ask(false)),
            n if n < 19 => drop(self.ask(true)),
            _ => {}
        }
    }

    pub(super) fn run_for(&mut self, time: Duration) {
        let until = self.now + time;
        while self.next_event().is_some_and(|next| next <= until) {
            self.pass();
        }
        self.now = until;
        self.pass();
    }

    /// Time passes until something happens.
    pub(super) fn pass(&mut self) {
        let next = self.next_event().unwrap_or(self.now + MS);
        self.now = self.now.max(next).min(self.now + Duration::from_secs(1));
        let now = self.now;
        if self.coordinator.poll_timeout().is_some_and(|at| at <= now) {
            self.coordinator.handle_timeout(now);
            self.pump();
        }
        for index in 0..self.members.len() {
            self.pass_for(index);
        }
    }

    fn next_event(&self) -> Option<Instant> {
        let of_member = |member: &Member| {
            let thaw = member.freezes.last().filter(|freeze| freeze.until.is_none());
            let times = [
                member.orders.front().map(|(at, ..)| *at),
                member.reports.front().map(|(at, ..)| *at),
                member.doing.as_ref().map(|(at, _)| *at),
                member.lost.and_then(|noticed| noticed.into_iter().filter(|at| *at > self.now).min()),
                thaw.map(|freeze| freeze.from + GROUP_FREEZE),
            ];
            times.into_iter().flatten().min()
        };
        self.members.iter().filter_map(of_member).chain(self.coordinator.poll_timeout()).min()
    }

    fn pass_for(&mut self, index: usize) {
        let now = self.now;
        // Its own watchdog.
        let member = &mut self.members[index];
        if member.freezes.last().is_some_and(|freeze| freeze.from + GROUP_FREEZE <= now) {
            member.thaw(now);
        }
        self.notice_loss(index);
        let member = &mut self.members[index];
        if let Some((_, report)) = member.doing.take_if(|(at, _)| *at <= now)
            && let Some(barrier) = member.barrier
        {
            if report != GroupReport::Held {
                self.report(index, barrier, report);
            } else if member.is_frozen() {
                let reason = "frozen by somebody else".into();
                self.report(index, barrier, GroupReport::Failed { reason });
            } else {
                member.freezes.push(Freeze { barrier, from: now, until: None });
                self.report(index, barrier, report);
            }
        }
        while let Some((_, barrier, order)) = self.members[index].orders.pop_front_if(|(at, ..)| *at <= now) {
            self.obey(index, barrier, order);
        }
        while let Some((_, barrier, report)) = self.members[index].reports.pop_front_if(|(at, ..)| *at <= now)
        {
            self.coordinator.handle_report(stream(index), barrier, report, now);
            self.pump();
        }
    }

    fn notice_loss(&mut self, index: usize) {
        let Some([at_member, at_coordinator]) = self.members[index].lost else { return };
        let member = &mut self.members[index];
        if at_member <= self.now && std::mem::replace(&mut member.connected, false) {
            member.forget(self.now);
        }
        if at_coordinator <= self.now {
            self.tell_disconnected(index);
        }
        if at_member.max(at_coordinator) <= self.now {
            self.members[index].lost = None;
        }
    }

    fn obey(&mut self, index: usize, barrier: BarrierId, order: GroupOrder) {
        let now = self.now;
        let member = &mut self.members[index];
        if let GroupOrder::Prepare { .. } = order {
            member.forget(now);
            member.barrier = Some(barrier);
        } else if member.barrier != Some(barrier) {
            let GroupOrder::Seal { .. } = order else { return };
            let report = match member.remembers.contains(&barrier) {
                true => GroupReport::Durable { point: PointId(barrier.0) },
                false => GroupReport::Failed { reason: "never heard of it".into() },
            };
            return self.report(index, barrier, report);
        }
        let (prepare, hold) = (member.prepare_takes, member.hold_takes);
        match order {
            GroupOrder::Prepare { .. } => self.work(index, prepare, GroupReport::Ready),
            GroupOrder::Quiesce => self.work(index, Duration::ZERO, GroupReport::Quiesced),
            GroupOrder::Hold => self.work(index, hold, GroupReport::Held),
            GroupOrder::Release if member.is_frozen() => {
                member.thaw(now);
                self.report(index, barrier, GroupReport::Released { frozen_us: 1 });
            }
            GroupOrder::Release => {
                member.forget(now);
                self.report(index, barrier, GroupReport::Failed { reason: "thawed too early".into() });
            }
            GroupOrder::Seal { mark } => {
                member.seals.insert(barrier, mark);
                member.remembers.insert(barrier);
                member.barrier = None;
                let point = PointId(barrier.0);
                self.report(index, barrier, GroupReport::Durable { point });
            }
            GroupOrder::Abort { .. } => member.forget(now),
        }
    }

    /// Begins what ends with `report`.
    fn work(&mut self, index: usize, takes: Duration, report: GroupReport) {
        let longest = if self.below(64) < self.faults.slow { 70_000 } else { 3 };
        let jitter = MS * self.below(longest) * u32::from(self.faults.slow > 0);
        let failed = || GroupReport::Failed { reason: "as it happens".into() };
        let report = if self.below(64) < self.faults.fail { failed() } else { report };
        self.members[index].doing = Some((self.now + takes + jitter, report));
    }

    fn report(&mut self, index: usize, barrier: BarrierId, report: GroupReport) {
        if self.members[index].hears() {
            let at = self.now + self.latency();
            self.members[index].reports.push_back((at, barrier, report));
        }
    }

    fn pump(&mut self) {
        while let Some(output) = self.coordinator.poll_output() {
            match output {
                Output::Order(to, barrier, order) => {
                    let index = to.0.as_u128() as usize;
                    if self.members[index].hears() {
                        let at = self.now + self.latency();
                        self.members[index].orders.push_back((at, barrier, order));
                    }
                }
                Output::Answer(request, answer) => {
                    assert!(self.open.remove(&request), "{request:?} is answered twice, or was never asked");
                    self.answers.push((request, answer));
                }
            }
        }
    }

    /// Of one message; those after it never overtake it.
    fn latency(&mut self) -> Duration {
        self.delay + if self.faults.slow == 0 { Duration::ZERO } else { MS * self.below(20) }
    }

    fn below(&mut self, end: u32) -> u32 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 32) as u32 % end.max(1)
    }

    /// What must hold at any time.
    pub(super) fn check(&self) {
        let mut cuts: BTreeMap<BarrierId, &GroupMark> = BTreeMap::new();
        for member in &self.members {
            for (barrier, mark) in &member.seals {
                assert_eq!(mark.barrier, *barrier);
                assert_eq!(*cuts.entry(*barrier).or_insert(mark), mark, "members are told different things");
            }
        }
        for (barrier, mark) in cuts {
            let mut all: Vec<&String> = mark.members.iter().chain(&mark.missing).collect();
            all.sort();
            assert_eq!(all, self.settings.vms.iter().collect::<Vec<_>>(), "the label leaves somebody out");
            assert!(self.settings.partial == Partial::Allow || mark.missing.is_empty());
            let freezes = mark.members.iter().map(|vm| {
                let index = self.settings.vms.iter().position(|known| known == vm).unwrap();
                *self.members[index].freezes.iter().find(|freeze| freeze.barrier == barrier).unwrap()
            });
            let last_frozen = freezes.clone().map(|freeze| freeze.from).max().unwrap();
            let first_thawed = freezes.filter_map(|freeze| freeze.until).min().unwrap();
            assert!(last_frozen <= first_thawed, "at no instant all of {mark:?} were frozen");
        }
        for freeze in self.members.iter().flat_map(|member| &member.freezes) {
            assert!(freeze.until.unwrap_or(self.now).duration_since(freeze.from) <= GROUP_FREEZE + MS);
        }
    }
}

fn coordinator(settings: &Settings, ids: &Arc<AtomicU64>, now: Instant) -> Coordinator {
    let ids = Arc::clone(ids);
    let new_id = move || BarrierId(uuid::Uuid::from_u128(ids.fetch_add(1, Ordering::Relaxed).into()));
    Coordinator::new(vec![settings.clone()], Box::new(new_id), now)
}

const MS: Duration = Duration::from_millis(1);

fn stream(index: usize) -> StreamId {
    StreamId(uuid::Uuid::from_u128(index as u128))
}
