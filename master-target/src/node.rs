//! One stream at the master target: frames in, acknowledgements out, the replica between.
//!
//! Sans-IO towards the network: bytes, time and connections come in as arguments, bytes go out by `poll_output`.
//! The replica below it blocks on disks, so a driver gives every stream a thread of its own.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use engine::{
    frame::{Control, Refusal},
    limits,
    session::{Link, Message, Receiver, SessionError},
    units::StreamId,
};
use jiff::Timestamp;

use crate::{
    home::{Rejected, check_goes_on},
    journal::SealedPoint,
    opening::{Openers, Opening},
    proof::{Proof, ScrubPlan, Sign},
    replica::{Replica, ReplicaError},
    resync::Questions,
    retention::Policy,
};

/// What the node wants done.
#[derive(Debug)]
pub enum Output {
    /// Send these bytes to the process server.
    Send(Bytes),
    /// Close the connection; the reason is for the log.
    Close(String),
}

/// How long to wait before trying again when there is no space.
const NO_SPACE_PAUSE: Duration = Duration::from_secs(2);

/// One stream.
pub struct StreamNode {
    stream: StreamId,
    replica: Replica,
    retention: Policy,
    receiver: Receiver,
    link: Option<Link>,
    /// Received and not yet applied.
    pending: Opening,
    outputs: VecDeque<Output>,
    hold: Option<(String, Instant)>,
    counts: Counts,
    proof: Proof,
    /// What the agent asks in a resync.
    questions: Questions,
    /// Whether a warning was given that the journal is nearly full.
    warned: bool,
}

/// What a stream has done since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counts {
    /// Frame bytes received.
    pub wire_bytes: u64,
    /// Bytes of content applied.
    pub logical_bytes: u64,
    /// Frames applied.
    pub frames: u64,
    /// Points sealed.
    pub points: u64,
    /// Connections closed for the peer's fault.
    pub peer_errors: u64,
}

impl StreamNode {
    /// A stream whose replica stands open.
    #[must_use]
    pub fn new(replica: Replica, retention: Policy) -> Self {
        let (stream, position) = (replica.state().stream.id, replica.position());
        let proof = Proof::new(&replica);
        Self {
            stream,
            replica,
            retention,
            receiver: Receiver::at(position, position.seq),
            link: None,
            pending: Opening::default(),
            outputs: VecDeque::new(),
            hold: None,
            counts: Counts::default(),
            proof,
            questions: Questions::default(),
            warned: false,
        }
    }

    /// The disks and their journal.
    #[must_use]
    pub fn replica(&self) -> &Replica {
        &self.replica
    }

    /// The disks and their journal, for a restore.
    pub fn replica_mut(&mut self) -> &mut Replica {
        &mut self.replica
    }

    /// What was done so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// What is known of the disks being right.
    #[must_use]
    pub fn proof(&self) -> &Proof {
        &self.proof
    }

    /// Begins to verify a point; `signer` signs the certificate. How it goes shows in [`Self::proof`].
    pub fn verify(
        &mut self,
        point: &SealedPoint,
        signer: Arc<dyn Sign>,
        wall: Timestamp,
        now: Instant,
    ) -> Result<(), ReplicaError> {
        self.proof.begin(&mut self.replica, point, signer, wall, now)?;
        self.ask_agent(now);
        Ok(())
    }

    /// Before a restore: replication ends until somebody connects after its undoing. What was received and is not
    /// applied is forgotten, for it was not acknowledged. What is being verified ends, stored digests go with the
    /// disks they are of.
    pub fn handle_restore(&mut self) {
        self.link = None;
        self.pending.clear();
        self.questions.clear();
        self.proof.give_up(&mut self.replica, "the disks become those of a point");
    }

    /// Why replication waits, if it does.
    #[must_use]
    pub fn hold(&self) -> Option<&str> {
        self.hold.as_ref().map(|(reason, _)| reason.as_str())
    }

    /// Whether a process server is connected.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.link.is_some()
    }

    /// A connection whose `Hello` was accepted; `link` has read that far. It replaces an earlier one.
    pub fn handle_connected(&mut self, link: Link, now: Instant) {
        // Let in before a restore began, it may come to us after it.
        if let Err(Rejected { why, reason }) = check_goes_on(self.replica.state()) {
            self.link = Some(link);
            self.send(&Control::Refused { why, reason: reason.clone() }, now);
            return self.close(reason);
        }
        let position = self.replica.position();
        self.receiver = Receiver::at(position, position.seq);
        self.pending.clear();
        self.questions.clear();
        self.link = Some(link);
        let window = limits::WINDOW_BYTES as u64;
        let adopted = self.replica.state().before_failback().is_some();
        self.send(&Control::Welcome { position, durable: position.seq, window, adopted }, now);
        if let Some((reason, _)) = &self.hold {
            let reason = Some(reason.clone());
            self.send(&Control::Hold { reason }, now);
        }
        self.proof.handle_connected(now);
        self.ask_agent(now);
        self.read_link(now);
    }

    /// Bytes from the connection.
    pub fn handle_bytes(&mut self, bytes: &[u8], now: Instant) {
        if let Some(link) = &mut self.link {
            link.handle_bytes(bytes, now);
            self.read_link(now);
        }
    }

    /// The connection is gone. What was received whole is still applied.
    pub fn handle_closed(&mut self) {
        self.link = None;
    }

    /// When [`Self::handle_timeout`] should be called next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let link = self.link.as_ref().map(Link::poll_timeout);
        let hold = self.hold.as_ref().map(|(_, until)| *until);
        link.into_iter().chain(hold).chain(self.proof.ask_at().filter(|_| self.is_connected())).min()
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        let Some(link) = &mut self.link else { return };
        match link.handle_timeout(now) {
            Ok(Some(ping)) => self.send(&ping, now),
            Ok(None) => {}
            Err(error) => self.close(error.to_string()),
        }
        self.ask_agent(now);
    }

    /// Tells the agent what a verification wants of it, as far as that is due.
    fn ask_agent(&mut self, now: Instant) {
        if self.is_connected() {
            self.proof.wishes(now).iter().for_each(|wish| self.send(wish, now));
        }
    }

    /// When [`Self::work`] has something to do.
    #[must_use]
    pub fn work_at(&self, now: Instant) -> Option<Instant> {
        let question = Some(now).filter(|_| self.must_answer());
        question.into_iter().chain(self.proof.work_at(now)).min()
    }

    fn must_answer(&self) -> bool {
        self.is_connected() && !self.questions.is_empty()
    }

    /// Does a bounded piece of what is not replication: call it between batches, when it is due.
    pub fn work(&mut self, now: Instant, wall: Timestamp) {
        self.proof.step(&mut self.replica, now, wall);
        if self.must_answer()
            && let Some(answer) = self.questions.answer(&mut self.replica)
        {
            self.send(&Control::Compared(answer), now);
        }
    }

    /// From now on, threads open frames ahead.
    pub fn use_openers(&mut self, openers: Openers) {
        self.pending.use_openers(openers);
    }

    /// From now on, disks and journal are read again in the background.
    pub fn scrub(&mut self, plan: ScrubPlan, now: Instant) {
        self.proof.scrub(plan, now);
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Whether frames wait to be applied and nothing keeps them.
    #[must_use]
    pub fn has_work(&self, now: Instant) -> bool {
        !self.pending.is_empty() && self.hold.as_ref().is_none_or(|(_, until)| now >= *until)
    }

    /// Applies a batch of what is pending and acknowledges it. Call it when no more input is queued, while
    /// [`Self::has_work`]. An error means that disks or journal failed: the node must be dropped and the replica
    /// opened again, which recovers it.
    pub fn commit(&mut self, now: Instant, wall: Timestamp) -> Result<Vec<SealedPoint>, ReplicaError> {
        let batch = self.pending.batch();
        let count = batch.len();
        let result = self.replica.apply_unpacked(batch, wall);
        self.proof.observe(&mut self.replica, now);
        let position = self.replica.position();
        for frame in self.pending.applied(position.seq, count) {
            self.counts.frames += 1;
            self.counts.logical_bytes += u64::from(frame.header().content_len);
        }
        self.receiver.handle_durable(position.seq);
        if let Some(ack) = self.receiver.poll_ack() {
            self.send(&ack, now);
        }
        self.ask_agent(now);
        match result {
            Ok(sealed) => {
                if self.hold.take().is_some() {
                    tracing::info!(stream = %self.stream, "there is space again: going on");
                    self.send(&Control::Hold { reason: None }, now);
                }
                self.counts.points += sealed.len() as u64;
                if !sealed.is_empty() {
                    match self.retire(wall) {
                        // It is tried again with the next point.
                        Err(error) if error.is_no_space() => tracing::warn!(stream = %self.stream, %error),
                        retired => retired?,
                    }
                }
                Ok(sealed)
            }
            Err(error) if error.is_no_space() => {
                let reason = error.to_string();
                if self.hold.is_none() {
                    tracing::warn!(stream = %self.stream, %reason, "waiting for space");
                    self.send(&Control::Hold { reason: Some(reason.clone()) }, now);
                }
                self.hold = Some((reason, now + NO_SPACE_PAUSE));
                Ok(Vec::new())
            }
            Err(error) if error.is_peers_fault() => {
                self.pending.clear();
                self.counts.peer_errors += 1;
                let reason = error.to_string();
                self.send(&Control::Refused { why: Refusal::Damaged, reason: reason.clone() }, now);
                self.close(reason);
                Ok(Vec::new())
            }
            Err(error) => Err(error),
        }
    }

    /// Drops the points that are not to be kept any more, and warns before space costs points. Call it now and then, for
    /// points also age while none is made.
    pub fn retire(&mut self, wall: Timestamp) -> Result<(), ReplicaError> {
        self.replica.retire(&self.retention, wall)?;
        let (bytes, limit) = (self.replica.journal_bytes(), self.retention.bytes);
        let nearly_full = self.is_nearly_full();
        if nearly_full && !self.warned {
            tracing::warn!(
                stream = %self.stream, bytes, limit,
                "the journal is nearly as large as it may be: raise retention.bytes, or the oldest points go"
            );
        }
        self.warned = nearly_full;
        Ok(())
    }

    /// Whether the journal takes so much that points will soon be dropped for it.
    #[must_use]
    pub fn is_nearly_full(&self) -> bool {
        self.replica.journal_bytes() >= self.retention.warn_bytes
    }

    fn read_link(&mut self, now: Instant) {
        if let Err(error) = self.try_read_link(now) {
            self.counts.peer_errors += 1;
            self.close(error.to_string());
        }
    }

    fn try_read_link(&mut self, _now: Instant) -> Result<(), SessionError> {
        while let Some(link) = &mut self.link {
            match link.poll_message()? {
                None => break,
                Some(Message::Frame(frame)) => {
                    self.receiver.handle_frame(&frame)?;
                    self.counts.wire_bytes += frame.bytes().len() as u64;
                    self.pending.push(frame);
                }
                Some(Message::Control(Control::Compare(question))) => {
                    self.questions.push(&self.replica, question)?;
                }
                Some(Message::Control(_)) => return Err(SessionError::OutOfTurn("a control message")),
            }
        }
        Ok(())
    }

    fn send(&mut self, control: &Control, now: Instant) {
        if let Some(link) = &mut self.link {
            link.handle_sent(now);
            self.outputs.push_back(Output::Send(control.to_frame(self.stream).bytes().clone()));
        }
    }

    fn close(&mut self, reason: String) {
        self.link = None;
        self.outputs.push_back(Output::Close(reason));
    }
}
