//! When points are due, who asked for them, and what became of the last ones.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use engine::{
    point::{BarrierId, Consistency, Point, PointId},
    units::Seq,
};
use serde::{Deserialize, Serialize};

/// Points remembered.
const RECORDS: usize = 32;

/// How long after a failed attempt the next is made, if the interval is not shorter.
const RETRY: Duration = Duration::from_secs(10);

/// A wish for a point, to be answered when it is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// How far a point got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PointState {
    /// Its seal is on its way.
    Sealed,
    /// It can be restored.
    Durable,
    /// The connection's other end lost its place before the point was confirmed; it may or may not exist there.
    Unconfirmed,
}

/// A point that was captured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PointRecord {
    /// What was observed.
    #[serde(flatten)]
    pub point: Point,
    /// The frame with its seal.
    pub seq: Seq,
    /// How far it got.
    pub state: PointState,
}

/// Who asked for a point, and what kind of it.
#[derive(Clone, Copy, Debug)]
struct Request {
    id: RequestId,
    wanted: Consistency,
}

/// Points at an interval.
#[derive(Debug)]
struct Schedule {
    interval: Duration,
    next_at: Instant,
}

#[derive(Debug)]
pub(super) struct Points {
    /// Of points of any kind.
    any: Schedule,
    /// Of application-consistent ones; `None` if they are made on demand only.
    application: Option<Schedule>,
    last_request: u64,
    /// Not captured yet.
    asked: Vec<Request>,
    /// Captured, not sealed yet.
    captured: Vec<Request>,
    /// Sealed; by the seal's frame.
    waiting: Vec<(Seq, Request)>,
    records: VecDeque<PointRecord>,
    confirmed: u64,
}

/// What became durable.
#[derive(Debug, Default)]
pub(super) struct Confirmed {
    /// Who can be answered, with what.
    pub(super) answers: Vec<(RequestId, Point)>,
    /// Points of the VM's group.
    pub(super) common: Vec<(BarrierId, PointId)>,
}

impl Points {
    pub(super) fn new(interval: Duration, application: Option<Duration>, now: Instant) -> Self {
        Self {
            any: Schedule { interval, next_at: now },
            application: application.map(|interval| Schedule { interval, next_at: now }),
            last_request: 0,
            asked: Vec::new(),
            captured: Vec::new(),
            waiting: Vec::new(),
            records: VecDeque::new(),
            confirmed: 0,
        }
    }

    pub(super) fn ask(&mut self, wanted: Consistency) -> RequestId {
        self.last_request += 1;
        let id = RequestId(self.last_request);
        self.asked.push(Request { id, wanted });
        id
    }

    /// Nobody waits for this any more.
    pub(super) fn forget(&mut self, id: RequestId) {
        self.asked.retain(|request| request.id != id);
    }

    /// The kind of point to make now, the strongest that is wished for; `None` if none is due.
    pub(super) fn due(&self, now: Instant) -> Option<Consistency> {
        let asked = self.asked.iter().map(|request| request.wanted).max();
        let application = self.application.as_ref().filter(|schedule| now >= schedule.next_at);
        let any = (now >= self.any.next_at).then_some(Consistency::CrashConsistent);
        asked.max(application.map(|_| Consistency::ApplicationConsistent)).max(any)
    }

    /// A point is wanted soon, by nobody who waits for an answer.
    pub(super) fn hurry(&mut self, now: Instant) {
        self.any.next_at = self.any.next_at.min(now);
    }

    pub(super) fn next_at(&self) -> Instant {
        self.application.as_ref().map_or(self.any.next_at, |schedule| schedule.next_at.min(self.any.next_at))
    }

    /// A point was captured at `instant`, in the attempt to make one as `wanted`: it answers all who asked for no
    /// more until now, and nobody who asks later. Whether the attempt reached its kind, the point says.
    pub(super) fn captured(&mut self, wanted: Consistency, instant: Instant) {
        self.any.next_at = instant + self.any.interval;
        if wanted == Consistency::ApplicationConsistent
            && let Some(schedule) = &mut self.application
        {
            schedule.next_at = instant + schedule.interval;
        }
        self.captured.extend(self.asked.extract_if(.., |request| request.wanted <= wanted));
    }

    /// What was captured last is sealed in frame `seq`.
    pub(super) fn sealed(&mut self, point: Point, seq: Seq) {
        self.waiting.extend(self.captured.drain(..).map(|request| (seq, request)));
        if self.records.len() == RECORDS {
            self.records.pop_front();
        }
        self.records.push_back(PointRecord { point, seq, state: PointState::Sealed });
    }

    /// There is no point of any kind; tries again later. Returns those who asked.
    pub(super) fn failed(&mut self, now: Instant) -> Vec<RequestId> {
        self.any.next_at = now + self.any.interval.min(RETRY);
        // Applications are not held again and again in vain.
        for schedule in self.application.iter_mut().filter(|schedule| now >= schedule.next_at) {
            schedule.next_at = now + schedule.interval;
        }
        self.asked.drain(..).map(|request| request.id).collect()
    }

    /// What was captured last came to nothing: who waits for it gets another, and soon.
    pub(super) fn uncaptured(&mut self, now: Instant) {
        self.any.next_at = now;
        self.asked.append(&mut self.captured);
    }

    /// Frames up to `durable` are durable.
    pub(super) fn durable(&mut self, durable: Seq) -> Confirmed {
        let Confirmed { mut answers, mut common } = Confirmed::default();
        for record in &mut self.records {
            if record.state == PointState::Sealed && record.seq <= durable {
                record.state = PointState::Durable;
                self.confirmed += 1;
                let of_this = self.waiting.extract_if(.., |(seq, _)| *seq == record.seq);
                answers.extend(of_this.map(|(_, request)| (request.id, record.point.clone())));
                common.extend(record.point.group.as_ref().map(|mark| (mark.barrier, record.point.id)));
            }
        }
        Confirmed { answers, common }
    }

    /// How far this VM's point of a barrier got; `None` if it is not remembered.
    pub(super) fn common(&self, barrier: BarrierId) -> Option<(PointId, PointState)> {
        let is_of =
            |record: &&PointRecord| record.point.group.as_ref().is_some_and(|mark| mark.barrier == barrier);
        self.records.iter().find(is_of).map(|record| (record.point.id, record.state))
    }

    /// What was captured and not confirmed never will be: who waits for it gets another, and soon.
    pub(super) fn reset(&mut self, now: Instant) {
        for record in self.records.iter_mut().filter(|record| record.state == PointState::Sealed) {
            record.state = PointState::Unconfirmed;
        }
        self.any.next_at = now;
        self.asked.append(&mut self.captured);
        self.asked.extend(self.waiting.drain(..).map(|(_, request)| request));
    }

    /// How many became durable.
    pub(super) fn confirmed(&self) -> u64 {
        self.confirmed
    }

    /// The last points, oldest first.
    pub(super) fn records(&self) -> impl Iterator<Item = &PointRecord> {
        self.records.iter()
    }
}
