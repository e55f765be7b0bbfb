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
//! No marks are taken while contents are between reading and sealing (rule 3 of docs/barrier.md),
//! nor while leaves are being compared with the target ([`resync`]): those that are equal leave `dirty` without a frame.

mod applications;
mod attempt;
mod group;
mod ledger;
mod points;
mod resync;
mod status;
mod uplink;
mod verify;
mod work;

#[cfg(test)]
mod tests;

use std::{
    collections::VecDeque,
    ops::RangeInclusive,
    time::{Duration, Instant},
};

use bytes::Bytes;
use engine::{
    extent_set::ExtentSet,
    frame::{GroupReport, Position, StreamInfo},
    net::Backoff,
    point::{Consistency, Point, PointId},
    units::{BLOCK_BYTES, DiskIndex, Seq},
};

use self::{
    applications::Applications,
    attempt::Attempt,
    group::Membership,
    ledger::Ledger,
    points::{Confirmed, Points},
    resync::Resync,
    status::{Copying, Lag},
    uplink::{Elsewhere, News, Uplink},
    verify::Verification,
    work::Work,
};
use crate::{
    capture::{Freezer, Source, learned::Learned, pack::Packer, precopy::Precopy, quiesce::Quiescer},
    tracker::Kind,
};

pub use self::{
    points::{PointRecord, PointState, RequestId},
    resync::RESYNC_FROM,
    status::{CopyStatus, NodeStatus, ResyncStatus, Totals},
};

/// Contents that are being packed before one must be sealed.
pub const PIPELINE: usize = 4;

/// A harvest happens this often between two points, within bounds: a hot block travels at most so many times.
const HARVESTS_PER_POINT: u32 = 16;
const HARVEST_EVERY: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(5);

/// Time between two looks whether writes of before a flip are complete, before what is dirty is read.
const READ_POLL: Duration = Duration::from_millis(1);

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
    /// `None` if no application-consistent points are configured.
    pub quiescer: Option<Box<dyn Quiescer>>,
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
    /// Time from one application-consistent point to the next; `None` if they are made on demand only, or not at all.
    pub application_interval: Option<Duration>,
    /// Bytes per second that may be read for digests, while the master target wants some.
    pub verify_rate: u64,
    /// Leaves of 64 KiB that must be dirty as a whole before they are compared with the target instead of sent;
    /// [`RESYNC_FROM`], but for tests with small disks.
    pub resync_from: u64,
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
    /// The common point of the VM's group that is under way.
    member: Option<Membership>,
    applications: Applications,
    points: Points,
    verify_rate: u64,
    /// While the master target wants digests.
    verification: Option<Box<Verification>>,
    resync_from: u64,
    /// While the target may have some of what is dirty. Nothing is taken from the tracker as long.
    resync: Option<Resync>,
    harvest_every: Option<Duration>,
    harvest_at: Instant,
    /// Everything written before this was harvested.
    harvested: Instant,
    paused_until: Option<Instant>,
    /// The tracker must still be told that the target lost what it held.
    distrust: bool,

    lag: Lag,
    copying: Option<Copying>,
    trouble: Option<String>,
    point_failure: Option<String>,
    totals: Totals,
    answers: VecDeque<Output>,
}

impl Node {
    /// A node that has just started: it dials on its first [`Self::handle_timeout`].
    #[must_use]
    pub fn new(settings: Settings, parts: Parts, now: Instant) -> Self {
        let Settings { agent, stream, point_interval, application_interval, verify_rate, resync_from } =
            settings;
        let Parts { source, kind, freezer, quiescer, packer, backoff, new_id } = parts;
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
            applications: Applications::new(quiescer),
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
            member: None,
            points: Points::new(point_interval, application_interval, now),
            verify_rate,
            verification: None,
            resync_from,
            resync: None,
            // A harvest of the scan tracker reads whole disks: only points are worth that.
            harvest_every: (kind == Kind::Ebpf).then_some(every),
            harvest_at: now,
            harvested: now,
            paused_until: None,
            distrust: false,
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
        self.leave("the connection was lost");
        self.totals.connection_errors += 1;
        self.uplink.handle_closed(reason.into(), now);
    }

    /// Bytes from the process server.
    pub fn handle_bytes(&mut self, bytes: &[u8], now: Instant) {
        for news in self.uplink.handle_bytes(bytes, now) {
            match news {
                News::Resumed(durable) => {
                    tracing::info!("reconnected; going on where it stopped");
                    self.resync.iter_mut().for_each(|resync| resync.ask_again(now));
                    self.handle_durable(durable);
                }
                News::Reset(elsewhere) => self.reset(&elsewhere, now),
                News::Durable(seq) => self.handle_durable(seq),
                News::Verify(leaves) => self.verify(&leaves, now),
                News::Resend(leaves) => self.resend(&leaves, now),
                News::Compared(compared) => self.handle_compared(&compared),
                News::Order(barrier, order) => self.handle_order(barrier, order, now),
            }
        }
        self.leave_if_disconnected();
    }

    /// Time has passed: call at [`Self::poll_timeout`], or whenever.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.uplink.handle_timeout(now);
        self.leave_if_disconnected();
    }

    /// Whether file systems are frozen until an order comes: nothing may be logged, nor any file touched.
    #[must_use]
    pub fn is_frozen(&self) -> bool {
        self.member.as_ref().is_some_and(|member| member.frozen_since().is_some())
    }

    /// Someone wants a point of what is on the disks from now on. Answered by [`Output::Answer`].
    pub fn handle_point_request(&mut self, wanted: Consistency) -> RequestId {
        let request = self.points.ask(wanted);
        if wanted == Consistency::ApplicationConsistent && !self.applications.can_hold() {
            self.points.forget(request);
            let reason = "no application-consistent points are configured: add [application] to agent.toml";
            self.answers.push_back(Output::Answer(request, Err(reason.into())));
        }
        request
    }

    /// When [`Self::handle_timeout`] should be called next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let member = self.member.as_ref().map(Membership::until);
        self.uplink.poll_timeout().into_iter().chain(member).min()
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

    /// The target stands elsewhere: all that is not durable there is dirty again.
    fn reset(&mut self, elsewhere: &Elsewhere, now: Instant) {
        let Elsewhere { position, durable, diverged, adopted } = elsewhere;
        self.ledger = Ledger::reset(&self.source, position.seq);
        if *diverged {
            tracing::warn!(%durable, "the target does not hold what was sent from here: all of it may differ");
            self.distrust = true;
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
        // Sending it all again takes longer than anybody should hold.
        self.applications.give_up("the connection was lost".into());
        self.reset_verification();
        self.durable = *durable;
        self.points.reset(now);
        self.lag.reset();
        if self.copying.is_none() {
            self.copying = Some(Copying::new(self.source.dirty_bytes(), now));
        }
        tracing::info!(position = %position.seq, %durable, "connected");
        self.begin_resync(position.seq, *adopted, now);
    }

    fn handle_durable(&mut self, seq: Seq) {
        self.durable = seq;
        self.lag.durable(seq);
        let Confirmed { answers, common } = self.points.durable(seq);
        if self.points.confirmed() > self.totals.points {
            // Who is told of a point may rely on it: killed right after, the agent sends nothing of it again.
            self.ledger.forget(&self.source, seq);
            if let Err(error) = self.source.tracker.note_durable() {
                tracing::warn!(%error, "not saved: a restart of the agent may send more than it must");
            }
        }
        self.totals.points = self.points.confirmed();
        self.answers.extend(answers.into_iter().map(|(request, point)| Output::Answer(request, Ok(point))));
        let now = self.source.clock.now();
        for (barrier, point) in common {
            self.uplink.report(barrier, GroupReport::Durable { point }, now);
        }
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
            compression_level: self.packer.level(),
            position: sender.map(|sender| -> Position { sender.last() }),
            durable: self.durable,
            lag_bytes: dirty_bytes + unconfirmed,
            lag_s: self.lag.at(now).as_secs_f64(),
            dirty_bytes,
            window_bytes: sender.map_or(0, |sender| sender.bytes_held()),
            copy: self.copying.as_ref().map(|copying| copying.status(now)),
            activity: self.activity().into(),
            resync: self.resync.as_ref().map(|resync| resync.status(now)),
            verifying_leaves: self.verification.as_ref().map(|verification| verification.left()),
            trouble: self.trouble.clone(),
            point_failure: self.point_failure.clone(),
            points: self.points.records().cloned().collect(),
            totals: Totals { holds: self.applications.totals(), ..self.totals },
        }
    }

    fn activity(&self) -> &'static str {
        if let (Some(member), Work::Idle) = (&self.member, &self.work) {
            return member.activity();
        }
        match self.work {
            Work::Idle if self.uplink.up_since().is_none() => "waiting for the process server",
            Work::Idle if self.resync.is_some() => "comparing with the target",
            Work::Idle => "waiting for changes",
            Work::Precopy { .. } if self.copying.is_some() => "copying",
            Work::Precopy { .. } => "sending changes",
            Work::Rounds => "making a point",
            Work::Sealing(_) => "sending a point",
        }
    }
}
