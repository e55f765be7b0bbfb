//! The agent's node: what to read, send and remember when, as one state machine.
//!
//! Sans-IO towards network and time: `handle_*` takes events in, [`Node::step`] does one bounded piece of work,
//! [`Node::poll_output`] gives wishes out; `now` is an argument. Disks, tracker and freezer are called directly,
//! behind their traits, and may block for as long as one piece of work takes.
//!
//! Memory: besides the maps at most the window ([`engine::limits::WINDOW_BYTES`]), one capture
//! ([`engine::limits::CAPTURE_BYTES`]), one batch being read and [`PIPELINE`] contents being packed (8 MiB and 8 MiB),
//! and the heat map: under 64 MiB in all.
//!
//! **Accounting** (a written block is always in a dirty map, a capture buffer, in flight or durable): marks go from
//! the tracker to `dirty`, stay there while a block is read, packed or captured, and move to a `sent` half
//! ([`ledger`]) when its frame is sealed. So whatever is dropped on the way is still dirty.
//! No marks are taken while contents are between reading and sealing (rule 3 of docs/barrier.md).

mod ledger;
mod points;
mod status;
mod uplink;

#[cfg(test)]
mod tests;

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use bytes::Bytes;
use engine::{
    extent_set::ExtentSet,
    frame::{Packed, Position, StreamInfo},
    net::Backoff,
    point::{Consistency, Point, PointId},
    units::{BLOCK_BYTES, DiskIndex, Seq},
};

use self::{
    ledger::Ledger,
    points::Points,
    status::{Copying, Lag},
    uplink::{Elsewhere, News, Uplink},
};
use crate::{
    capture::{
        CaptureError, Freezer, Source,
        barrier::{Barrier, Captured, Learned, Round, Rules},
        contents::FrameContent,
        pack::Packer,
        precopy::{Precopy, granule_blocks},
    },
    tracker::Kind,
};

pub use self::{
    points::{PointRecord, PointState, RequestId},
    status::{CopyStatus, NodeStatus, Totals},
};

/// Contents that are being packed before one must be sealed.
pub const PIPELINE: usize = 4;

/// How long after an error of a disk or the tracker work goes on.
const PAUSE: Duration = Duration::from_secs(2);

/// Least time between two times that sent maps are cleared, which costs a pass over them.
const FORGET_EVERY: Duration = Duration::from_millis(500);

/// A harvest happens this often between two points, within bounds: a hot block travels at most so many times.
const HARVESTS_PER_POINT: u32 = 16;
const HARVEST_EVERY: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(5);

/// How long a harvest waits for writes in flight; then it is left for the next time.
const HARVEST_DRAIN: Duration = Duration::from_millis(100);

/// Blocks of a harvest that are worth noting as often written; more tell nothing.
const NOTED_BLOCKS: u64 = 16 << 10;

/// Freezes tried for one point.
const FREEZES: u32 = 4;

/// What the node wants done outside.
#[derive(Debug, PartialEq)]
pub enum Output {
    /// Connect to the process server; then [`Node::handle_connected`] or [`Node::handle_closed`].
    Dial,
    /// Put these bytes on the connection.
    Send(Bytes),
    /// Close the connection, for this reason. No [`Node::handle_closed`] for it.
    Close(String),
    /// A request for a point is done: the point is durable, or there is none, for this reason.
    Answer(RequestId, Result<Point, String>),
}

/// What [`Node::step`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A piece of work: call again.
    Worked,
    /// Nothing; calling again is of use after this.
    Waits(Waiting),
}

/// What there is to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// A connection.
    Connection,
    /// Acknowledgements: the window is full.
    Window,
    /// This moment.
    Until(Instant),
}

/// What a node is made of.
pub struct Parts {
    /// The protected disks.
    pub source: Source,
    /// The kind of `source.tracker`.
    pub kind: Kind,
    /// `None` if writers cannot be stopped.
    pub freezer: Option<Box<dyn Freezer>>,
    /// Packs contents.
    pub packer: Box<dyn Packer>,
    /// Delays between connections.
    pub backoff: Backoff,
    /// Makes ids of points.
    pub new_id: Box<dyn FnMut() -> PointId + Send>,
}

/// What a node is told.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Name of the agent, as in its certificate.
    pub agent: String,
    /// What it replicates.
    pub stream: StreamInfo,
    /// Time from one point to the next.
    pub point_interval: Duration,
}

/// The agent of one VM.
pub struct Node {
    stream: StreamInfo,
    source: Source,
    kind: Kind,
    freezer: Option<Box<dyn Freezer>>,
    packer: Box<dyn Packer>,
    new_id: Box<dyn FnMut() -> PointId + Send>,

    uplink: Uplink,
    ledger: Ledger,
    /// Durable but not yet forgotten.
    durable: Seq,
    forget_at: Instant,

    work: Work,
    /// What is in the packer, in order.
    packing: VecDeque<(DiskIndex, ExtentSet)>,
    precopy: Precopy,
    learned: Learned,
    attempt: Option<Attempt>,
    points: Points,
    harvest_every: Option<Duration>,
    harvest_at: Instant,
    /// Everything written before this was harvested.
    harvested: Instant,
    paused_until: Option<Instant>,

    lag: Lag,
    copying: Option<Copying>,
    trouble: Option<String>,
    point_failure: Option<String>,
    totals: Totals,
    answers: VecDeque<Output>,
}

/// What [`Node::step`] goes on with.
enum Work {
    /// To be decided.
    Idle,
    /// A pass over everything dirty; over when all of it was read.
    Precopy { over: bool },
    /// Rounds of the barrier: see [`Node::attempt`].
    Rounds,
    /// A captured point on its way into frames.
    Sealing(Box<Captured>),
}

struct Attempt {
    barrier: Barrier,
    freezes: u32,
}

impl Node {
    /// A node that has just started: it dials on its first [`Self::handle_timeout`].
    #[must_use]
    pub fn new(settings: Settings, parts: Parts, now: Instant) -> Self {
        let Settings { agent, stream, point_interval } = settings;
        let Parts { source, kind, freezer, packer, backoff, new_id } = parts;
        // Whatever the process before had under way is dirty again; where the target stands shows on connecting.
        let ledger = Ledger::reset(&source, Seq(0));
        let copying = Some(Copying::new(source.dirty_bytes(), now));
        let every = (point_interval / HARVESTS_PER_POINT).clamp(*HARVEST_EVERY.start(), *HARVEST_EVERY.end());
        Self {
            uplink: Uplink::new(agent, stream.clone(), backoff, now),
            stream,
            source,
            kind,
            freezer,
            packer,
            new_id,
            ledger,
            durable: Seq(0),
            forget_at: now,
            work: Work::Idle,
            packing: VecDeque::new(),
            precopy: Precopy::default(),
            learned: Learned::default(),
            attempt: None,
            points: Points::new(point_interval, now),
            // A harvest of the scan tracker reads whole disks: only points are worth that.
            harvest_every: (kind == Kind::Ebpf).then_some(every),
            harvest_at: now,
            harvested: now,
            paused_until: None,
            lag: Lag::new(now),
            copying,
            trouble: None,
            point_failure: None,
            totals: Totals::default(),
            answers: VecDeque::new(),
        }
    }

    /// The connection asked for by [`Output::Dial`] is there.
    pub fn handle_connected(&mut self, now: Instant) {
        self.uplink.handle_connected(now);
    }

    /// The connection broke, or none came about.
    pub fn handle_closed(&mut self, reason: impl Into<String>, now: Instant) {
        self.totals.connection_errors += 1;
        self.uplink.handle_closed(reason.into(), now);
    }

    /// Bytes from the process server.
    pub fn handle_bytes(&mut self, bytes: &[u8], now: Instant) {
        for news in self.uplink.handle_bytes(bytes, now) {
            match news {
                News::Resumed(durable) => {
                    tracing::info!("reconnected; going on where it stopped");
                    self.handle_durable(durable);
                }
                News::Reset(elsewhere) => self.reset(&elsewhere, now),
                News::Durable(seq) => self.handle_durable(seq),
            }
        }
    }

    /// Time has passed: call at [`Self::poll_timeout`], or whenever.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.uplink.handle_timeout(now);
    }

    /// Someone wants a point of what is on the disks from now on. Answered by [`Output::Answer`].
    pub fn handle_point_request(&mut self) -> RequestId {
        self.points.ask()
    }

    /// When [`Self::handle_timeout`] should be called next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.uplink.poll_timeout()
    }

    /// The next wish; call until there is none.
    pub fn poll_output(&mut self, now: Instant) -> Option<Output> {
        let output = self.answers.pop_front().or_else(|| self.uplink.poll_output(now))?;
        if let Output::Close(reason) = &output {
            self.totals.connection_errors += 1;
            tracing::warn!(reason, "connection closed");
        }
        Some(output)
    }

    /// The disks and what tracks them: for tests that look at maps.
    #[must_use]
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// Does one bounded piece of work, if there is any and it can be sent.
    pub fn step(&mut self, now: Instant) -> Step {
        if self.durable > Seq(0) && now >= self.forget_at {
            self.forget_at = now + FORGET_EVERY;
            self.ledger.forget(&self.source, self.durable);
        }
        let Some(sender) = self.uplink.sender() else { return Step::Waits(Waiting::Connection) };
        if let Some(until) = self.paused_until.filter(|until| now < *until) {
            return Step::Waits(Waiting::Until(until));
        }
        // While the window is full nothing is read either: what is read later is newer.
        if !sender.has_room() {
            return Step::Waits(Waiting::Window);
        }
        self.paused_until = None;
        match std::mem::replace(&mut self.work, Work::Idle) {
            Work::Idle => return self.decide(now),
            Work::Precopy { over } => self.step_precopy(over, now),
            Work::Rounds => self.step_rounds(now),
            Work::Sealing(captured) => self.step_sealing(captured, now),
        }
        Step::Worked
    }

    /// Nothing is under way and nothing is being packed: what next?
    fn decide(&mut self, now: Instant) -> Step {
        debug_assert!(self.packing.is_empty());
        if !self.source.is_clean() {
            self.work = Work::Precopy { over: false };
            return Step::Worked;
        }
        if self.copying.take().is_some() {
            tracing::info!("everything was sent once");
        }
        self.lag.sent(self.last_seq(), self.harvested);
        self.lag.durable(self.durable);
        if self.attempt.is_some() || self.points.is_due(now) {
            let rules = Rules::of(self.kind);
            self.attempt.get_or_insert_with(|| Attempt { barrier: Barrier::new(rules), freezes: 0 });
            self.work = Work::Rounds;
            return Step::Worked;
        }
        match self.harvest_every {
            Some(every) if now >= self.harvest_at => {
                self.harvest_at = now + every;
                if let Err(error) = self.harvest(now) {
                    self.fail(&error, now);
                }
                Step::Worked
            }
            Some(_) => Step::Waits(Waiting::Until(self.harvest_at.min(self.points.next_at()))),
            None => Step::Waits(Waiting::Until(self.points.next_at())),
        }
    }

    /// Moves what was written since the last time into the dirty maps.
    fn harvest(&mut self, now: Instant) -> Result<(), CaptureError> {
        let disks = self.source.indices();
        // A flip that failed may have left marks to take.
        disks.clone().try_for_each(|disk| self.source.tracker.take(disk, 0).map(drop))?;
        // Rule 1 of the barrier. Where writes take so long there is little to harvest.
        if !self.source.drain(HARVEST_DRAIN)? {
            return Ok(());
        }
        self.source.tracker.flip()?;
        self.harvested = now;
        for disk in disks {
            if let Some(marked) = self.source.tracker.take(disk, NOTED_BLOCKS)? {
                self.learned.note(disk, &marked);
            }
        }
        Ok(())
    }

    fn step_precopy(&mut self, over: bool, now: Instant) {
        if over || self.packing.len() >= PIPELINE {
            if self.seal_next() {
                self.work = Work::Precopy { over };
            }
            return;
        }
        let batch = self.precopy.batch(&mut self.source);
        self.work = Work::Precopy { over: batch.is_none() };
        let Some(batch) = batch else { return };
        if let Some(error) = batch.error {
            self.fail(&error, now);
        } else {
            self.trouble = None;
        }
        self.submit(batch.contents);
    }

    fn step_rounds(&mut self, now: Instant) {
        let Some(mut attempt) = self.attempt.take() else { return };
        let before = attempt.barrier.tries();
        let round = self.round(&mut attempt);
        self.totals.barrier_tries += u64::from(attempt.barrier.tries() - before);
        match round {
            Some(Ok(Round::Conflict)) => (self.work, self.attempt) = (Work::Rounds, Some(attempt)),
            Some(Ok(Round::TooMuch)) => self.attempt = Some(attempt),
            Some(Ok(Round::Settled(captured))) => {
                self.totals.frozen_us += captured.frozen.as_micros() as u64;
                self.harvested = captured.instant;
                self.points.captured(captured.instant);
                self.work = Work::Sealing(Box::new(captured));
            }
            Some(Err(error)) => {
                if !matches!(error, CaptureError::Freeze(_)) {
                    self.fail(&error, now);
                }
                self.no_point(error.to_string(), now);
            }
            None => {
                let tries = attempt.barrier.tries();
                self.no_point(format!("{} after {tries} tries", self.why_no_point()), now);
            }
        }
    }

    /// The next round of an attempt; `None` if it has none left.
    fn round(&mut self, attempt: &mut Attempt) -> Option<Result<Round, CaptureError>> {
        if attempt.barrier.may_try() {
            return Some(attempt.barrier.round(&mut self.source, &mut self.learned));
        }
        let freezer =
            self.freezer.as_mut().filter(|_| attempt.barrier.may_freeze() && attempt.freezes < FREEZES)?;
        attempt.freezes += 1;
        Some(attempt.barrier.frozen_round(&mut self.source, &mut self.learned, &mut **freezer))
    }

    fn why_no_point(&self) -> &'static str {
        match (self.kind, &self.freezer) {
            (Kind::Scan, _) => {
                "a disk was written while it was compared: stop its writers for a moment, or use ebpf"
            }
            (Kind::Ebpf, None) => {
                "the disks are written too fast for a point without a freeze, and there is nothing that can be frozen"
            }
            (Kind::Ebpf, Some(_)) => "the disks are written too fast, and a short freeze did not help",
        }
    }

    fn step_sealing(&mut self, mut captured: Box<Captured>, now: Instant) {
        if !captured.buffer.is_empty() && self.packing.len() < PIPELINE {
            let contents = captured.buffer.take_contents(|disk| granule_blocks(&self.source, disk));
            self.submit(contents);
        } else if !self.seal_next() {
            self.seal_point(&captured);
            self.trouble = None;
            self.harvest_at = now + self.harvest_every.unwrap_or_default();
            return;
        }
        self.work = Work::Sealing(captured);
    }

    fn submit(&mut self, contents: Vec<FrameContent>) {
        for mut content in contents {
            self.packing.push_back((content.disk, std::mem::take(&mut content.covers)));
            self.packer.submit(content);
        }
    }

    /// Seals the oldest content in the packer and hands it to the sender; false if there is none.
    fn seal_next(&mut self) -> bool {
        let Some(sender) = self.uplink.sender() else { return false };
        let (Some(packed), Some((disk, covers))) = (self.packer.collect(), self.packing.pop_front()) else {
            return false;
        };
        let frame = packed.seal(self.stream.id, &sender.last());
        self.ledger.sealed(self.source.tracker.maps(disk), &covers, frame.header().seq);
        self.totals.logical_bytes += covers.bytes();
        self.totals.wire_bytes += frame.bytes().len() as u64;
        if let Some(copying) = &mut self.copying {
            copying.advance(covers.bytes());
        }
        sender.push(frame);
        true
    }

    fn seal_point(&mut self, captured: &Captured) {
        let Some(sender) = self.uplink.sender() else { return };
        let point = Point {
            id: (self.new_id)(),
            epoch: sender.last().epoch,
            taken_at: captured.taken_at,
            consistency: Consistency::CrashConsistent,
            method: captured.method,
            barrier_tries: captured.tries,
            window_us: captured.window.as_micros() as u64,
            residual_bytes: captured.residual_bytes,
            frozen_us: captured.frozen.as_micros() as u64,
        };
        let frame = Packed::seal_of(&point).seal(self.stream.id, &sender.last());
        let seq = frame.header().seq;
        sender.push(frame);
        self.point_failure = None;
        tracing::info!(id = %point.id, tries = point.barrier_tries, window_us = point.window_us,
            residual_bytes = point.residual_bytes, frozen_us = point.frozen_us, "point sealed");
        self.points.sealed(point, seq);
    }

    /// The target stands elsewhere: all that is not durable there is dirty again.
    fn reset(&mut self, elsewhere: &Elsewhere, now: Instant) {
        let Elsewhere { position, durable, lost_durable } = elsewhere;
        self.ledger = Ledger::reset(&self.source, position.seq);
        if *lost_durable {
            tracing::warn!(%durable, "the target holds nothing, or less than it once confirmed: sending everything");
            self.source.indices().for_each(|disk| self.source.tracker.maps(disk).dirty.set_all());
        }
        // A capture holds blocks of T, but blocks sent before it will now be sent as they are later. Contents in
        // the packer are no worse than any pre-copy.
        if let Work::Sealing(_) | Work::Rounds = self.work {
            self.work = Work::Precopy { over: true };
        }
        if let Some(attempt) = &mut self.attempt {
            attempt.barrier.start_over();
        }
        self.durable = *durable;
        self.points.reset(now);
        self.lag.reset();
        if self.copying.is_none() {
            self.copying = Some(Copying::new(self.source.dirty_bytes(), now));
        }
        tracing::info!(position = %position.seq, %durable, "connected");
    }

    fn handle_durable(&mut self, seq: Seq) {
        self.durable = seq;
        self.lag.durable(seq);
        let answers = self.points.durable(seq);
        self.totals.points = self.points.confirmed();
        self.answers.extend(answers.into_iter().map(|(request, point)| Output::Answer(request, Ok(point))));
    }

    fn fail(&mut self, error: &CaptureError, now: Instant) {
        tracing::error!(%error, "capture failed; going on soon");
        self.totals.capture_errors += 1;
        self.trouble = Some(error.to_string());
        self.paused_until = Some(now + PAUSE);
    }

    fn no_point(&mut self, reason: String, now: Instant) {
        tracing::warn!(reason, "no point was made; trying again later");
        self.totals.point_failures += 1;
        let answers = self.points.failed(now);
        self.answers.extend(answers.into_iter().map(|request| Output::Answer(request, Err(reason.clone()))));
        self.point_failure = Some(reason);
    }

    fn last_seq(&self) -> Seq {
        self.uplink.last_sender().map_or(Seq(0), |sender| sender.last().seq)
    }

    /// How it stands. Counts bits of all maps: not for every step.
    #[must_use]
    pub fn status(&self, now: Instant) -> NodeStatus {
        let dirty_bytes = self.source.dirty_bytes();
        let sent = |disk| self.source.tracker.maps(disk).sent.iter().map(|half| half.blocks()).sum::<u64>();
        let unconfirmed: u64 = self.source.indices().map(|disk| sent(disk) * BLOCK_BYTES).sum();
        let sender = self.uplink.last_sender();
        NodeStatus {
            vm: self.stream.vm.clone(),
            stream: self.stream.id.to_string(),
            tracker: self.kind,
            connection: self.uplink.state_word().into(),
            connected_s: self.uplink.up_since().map(|since| now.duration_since(since).as_secs_f64()),
            connection_error: self.uplink.error.clone(),
            hold: self.uplink.hold.clone(),
            position: sender.map(|sender| -> Position { sender.last() }),
            durable: self.durable,
            lag_bytes: dirty_bytes + unconfirmed,
            lag_s: self.lag.at(now).as_secs_f64(),
            dirty_bytes,
            window_bytes: sender.map_or(0, |sender| sender.bytes_held()),
            copy: self.copying.as_ref().map(|copying| copying.status(now)),
            activity: self.activity().into(),
            trouble: self.trouble.clone(),
            point_failure: self.point_failure.clone(),
            points: self.points.records().cloned().collect(),
            totals: self.totals,
        }
    }

    fn activity(&self) -> &'static str {
        match self.work {
            Work::Idle if self.uplink.up_since().is_none() => "waiting for the process server",
            Work::Idle => "waiting for changes",
            Work::Precopy { .. } if self.copying.is_some() => "copying",
            Work::Precopy { .. } => "sending changes",
            Work::Rounds => "making a point",
            Work::Sealing(_) => "sending a point",
        }
    }
}
