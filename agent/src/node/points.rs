//! When points are due, who asked for them, and what became of the last ones.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use engine::{point::Point, units::Seq};
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

#[derive(Debug)]
pub(super) struct Points {
    interval: Duration,
    next_at: Instant,
    last_request: u64,
    /// Not captured yet.
    asked: Vec<RequestId>,
    /// Captured, not sealed yet.
    captured: Vec<RequestId>,
    /// Sealed; by the seal's frame.
    waiting: Vec<(Seq, RequestId)>,
    records: VecDeque<PointRecord>,
    confirmed: u64,
}

impl Points {
    pub(super) fn new(interval: Duration, now: Instant) -> Self {
        Self {
            interval,
            next_at: now,
            last_request: 0,
            asked: Vec::new(),
            captured: Vec::new(),
            waiting: Vec::new(),
            records: VecDeque::new(),
            confirmed: 0,
        }
    }

    pub(super) fn ask(&mut self) -> RequestId {
        self.last_request += 1;
        let request = RequestId(self.last_request);
        self.asked.push(request);
        request
    }

    pub(super) fn is_due(&self, now: Instant) -> bool {
        !self.asked.is_empty() || now >= self.next_at
    }

    pub(super) fn next_at(&self) -> Instant {
        self.next_at
    }

    /// A point was captured at `instant`: it answers all who asked until now, and nobody who asks later.
    pub(super) fn captured(&mut self, instant: Instant) {
        self.next_at = instant + self.interval;
        self.captured.append(&mut self.asked);
    }

    /// What was captured last is sealed in frame `seq`.
    pub(super) fn sealed(&mut self, point: Point, seq: Seq) {
        self.waiting.extend(self.captured.drain(..).map(|request| (seq, request)));
        if self.records.len() == RECORDS {
            self.records.pop_front();
        }
        self.records.push_back(PointRecord { point, seq, state: PointState::Sealed });
    }

    /// There is no point; tries again later. Returns those who asked.
    pub(super) fn failed(&mut self, now: Instant) -> Vec<RequestId> {
        self.next_at = now + self.interval.min(RETRY);
        std::mem::take(&mut self.asked)
    }

    /// Frames up to `durable` are durable. Returns who can be answered, with what.
    pub(super) fn durable(&mut self, durable: Seq) -> Vec<(RequestId, Point)> {
        let mut answers = Vec::new();
        for record in &mut self.records {
            if record.state == PointState::Sealed && record.seq <= durable {
                record.state = PointState::Durable;
                self.confirmed += 1;
                let of_this = self.waiting.extract_if(.., |(seq, _)| *seq == record.seq);
                answers.extend(of_this.map(|(_, request)| (request, record.point.clone())));
            }
        }
        answers
    }

    /// What was captured and not confirmed never will be: who waits for it gets another, and soon.
    pub(super) fn reset(&mut self, now: Instant) {
        for record in self.records.iter_mut().filter(|record| record.state == PointState::Sealed) {
            record.state = PointState::Unconfirmed;
        }
        self.next_at = now;
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
