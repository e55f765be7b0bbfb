//! Hop 2: the connection to the master target, which decides where the stream stands.

use std::time::Instant;

use engine::{
    frame::{Compare, Control, PROTOCOL, Position, Refusal},
    limits as engine_limits,
    session::{Link, Message, SessionError},
    units::Seq,
};

use super::{ConnectionId, Output, Store, StreamNode, TargetStatus, forward::Forward};
use crate::spool::{Description, Spool};

/// The way to the master target.
pub(super) enum Target {
    /// Not connected; tried again at that time, if it is wanted then.
    Idle {
        retry: Option<Instant>,
    },
    Dialling {
        conn: ConnectionId,
    },
    /// The Hello is said, for this agent and these disks.
    Greeting {
        conn: ConnectionId,
        link: Link,
        until: Instant,
        asked_for: Description,
    },
    Up {
        conn: ConnectionId,
        link: Link,
        forward: Forward,
    },
}

impl Target {
    fn conn(&self) -> Option<ConnectionId> {
        match self {
            Target::Idle { .. } => None,
            Target::Dialling { conn } | Target::Greeting { conn, .. } | Target::Up { conn, .. } => {
                Some(*conn)
            }
        }
    }

    pub(super) fn bytes_in_flight(&self) -> usize {
        if let Target::Up { forward, .. } = self { forward.bytes() } else { 0 }
    }

    fn link(&mut self) -> Option<&mut Link> {
        match self {
            Target::Greeting { link, .. } | Target::Up { link, .. } => Some(link),
            Target::Idle { .. } | Target::Dialling { .. } => None,
        }
    }
}

impl StreamNode {
    /// The connection that [`Output::DialTarget`] asked for is there.
    pub fn handle_target_connected(&mut self, conn: ConnectionId, now: Instant) {
        if !matches!(self.target, Target::Dialling { conn: dialled } if dialled == conn) {
            return;
        }
        // Of an agent that is connected, the newest that is known of its disks' use.
        let description = self.waiting_agent().or(self.spool().map(Spool::description)).cloned();
        let Some(asked_for) = description else {
            return self.close_target("nobody needs it any more", None);
        };
        let Description { agent, stream } = asked_for.clone();
        let hello = Control::Hello { protocol: PROTOCOL, agent, stream };
        let link = Link::new(Some(self.id), now);
        self.target = Target::Greeting { conn, link, until: now + engine_limits::HANDSHAKE, asked_for };
        self.say_to_target(&hello, now);
    }

    /// Bytes from the master target.
    pub fn handle_target_bytes(&mut self, conn: ConnectionId, bytes: &[u8], now: Instant) {
        if let (Some(_), Some(link)) = (self.target.conn().filter(|c| *c == conn), self.target.link()) {
            link.handle_bytes(bytes, now);
        }
        while self.target.conn() == Some(conn) {
            let message = match self.target.link().map(Link::poll_message) {
                Some(Ok(Some(message))) => message,
                Some(Err(error)) => return self.fail_target(&error.to_string(), now),
                Some(Ok(None)) | None => return,
            };
            if let Err(error) = self.handle_target_message(message, now) {
                return self.fail_target(&error.to_string(), now);
            }
        }
    }

    /// The connection to the master target has ended or could not be made: `reason`.
    pub fn handle_target_closed(&mut self, conn: ConnectionId, reason: &str, now: Instant) {
        if self.target.conn() == Some(conn) {
            self.target = Target::Idle { retry: None };
            self.fail_target(reason, now);
        }
    }

    /// The next frame for the master target. Call it only when there is room to send it, so that frames wait in
    /// the spool and not in memory.
    pub fn poll_frame(&mut self, now: Instant) -> Option<Output> {
        let (Target::Up { conn, link, forward, .. }, Store::Known(spool)) =
            (&mut self.target, &mut self.store)
        else {
            return None;
        };
        if !forward.has_room() {
            return None;
        }
        match spool.read_next() {
            Ok(frame) => {
                let frame = frame?;
                forward.handle_sent(&frame);
                link.handle_sent(now);
                self.counts.frames_out += 1;
                self.counts.wire_bytes_out += frame.bytes().len() as u64;
                Some(Output::ToTarget(*conn, frame.bytes().clone()))
            }
            Err(error) => {
                match self.cut_damage(error) {
                    // The agent must send again what came after the damage; what came before goes on.
                    Ok(()) => {
                        self.close_agent("frames in its spool are damaged; it is told where to begin again")
                    }
                    Err(error) => {
                        self.note_spool_error(&error);
                        self.fail_target(&error.to_string(), now);
                    }
                }
                None
            }
        }
    }

    pub(super) fn target_status(&self) -> TargetStatus {
        match self.target {
            Target::Up { .. } => TargetStatus::Connected,
            Target::Idle { .. } if self.refused.is_some() => TargetStatus::Refused,
            Target::Idle { .. } => TargetStatus::Idle,
            Target::Dialling { .. } | Target::Greeting { .. } => TargetStatus::Connecting,
        }
    }

    pub(super) fn target_timeout(&self) -> Option<Instant> {
        match &self.target {
            Target::Idle { retry } => retry.filter(|_| self.wants_target()),
            Target::Dialling { .. } => None,
            Target::Greeting { until, .. } => Some(*until),
            Target::Up { link, .. } => Some(link.poll_timeout()),
        }
    }

    pub(super) fn handle_target_timeout(&mut self, now: Instant) {
        match &mut self.target {
            Target::Greeting { until, .. } if *until <= now => {
                let seconds = engine_limits::HANDSHAKE.as_secs();
                self.fail_target(&format!("the master target did not answer within {seconds} s"), now);
            }
            Target::Up { link, .. } => match link.handle_timeout(now) {
                Ok(None) => {}
                Ok(Some(ping)) => self.say_to_target(&ping, now),
                Err(error) => self.fail_target(&error.to_string(), now),
            },
            _ => {}
        }
    }

    /// Dials, if the connection is wanted and its time has come.
    pub(super) fn connect_if_wanted(&mut self, now: Instant) {
        if let Target::Idle { retry } = self.target
            && self.wants_target()
            && retry.is_none_or(|retry| retry <= now)
        {
            self.dial();
        }
    }

    /// An agent waits for the master target's word: asks for it at once.
    pub(super) fn ask_target(&mut self, now: Instant) {
        match &self.target {
            Target::Idle { .. } => self.dial(),
            // Its Welcome is known: `refused` was over.
            Target::Up { .. } => self.welcome_agent(now),
            Target::Dialling { .. } | Target::Greeting { .. } => {}
        }
    }

    pub(super) fn close_target(&mut self, reason: &str, retry: Option<Instant>) {
        if let Some(conn) = self.target.conn() {
            tracing::debug!(stream = %self.id, reason, "closing the connection to the master target");
            self.outputs.push_back(Output::CloseTarget(conn));
        }
        self.target = Target::Idle { retry };
        self.target_hold = None;
    }

    fn wants_target(&self) -> bool {
        match &self.store {
            Store::Known(spool) => self.agent.is_some() || !spool.is_drained(),
            Store::Unknown => self.waiting_agent().is_some(),
            Store::Broken(_) => false,
        }
    }

    fn dial(&mut self) {
        self.connections += 1;
        let conn = ConnectionId(self.connections);
        self.target = Target::Dialling { conn };
        self.outputs.push_back(Output::DialTarget(conn));
    }

    /// The connection failed. An agent that waits for its outcome is told; one that is up goes on into the spool.
    pub(super) fn fail_target(&mut self, reason: &str, now: Instant) {
        tracing::warn!(stream = %self.id, reason, "no connection to the master target; trying again");
        self.counts.target_errors += 1;
        self.trouble = Some(reason.to_owned());
        let retry = now + self.backoff.next_delay();
        self.close_target(reason, Some(retry));
        if self.waiting_agent().is_some() {
            self.refuse_agent(
                Refusal::Unavailable,
                &format!("the master target cannot be reached: {reason}"),
            );
        }
    }

    fn handle_target_message(&mut self, message: Message, now: Instant) -> Result<(), SessionError> {
        match (&mut self.target, message) {
            (
                Target::Greeting { .. },
                Message::Control(Control::Welcome { position, durable, window, adopted }),
            ) => {
                // There, what is held is durable.
                if durable != position.seq {
                    return Err(SessionError::Ack { spooled: position.seq, durable, sent: position.seq });
                }
                self.adopted = Some(adopted);
                self.handle_welcome(position, window, now);
                Ok(())
            }
            (Target::Greeting { .. }, Message::Control(Control::Refused { why, reason })) => {
                self.handle_refused(why, reason, now);
                Ok(())
            }
            (Target::Up { forward, .. }, Message::Control(Control::Ack { spooled, durable })) => {
                if let Some(position) = forward.handle_ack(spooled, durable)? {
                    // Not earlier: one that welcomes and then always fails would be hammered.
                    self.backoff.reset();
                    self.handle_durable(position);
                }
                Ok(())
            }
            (Target::Up { .. }, Message::Control(Control::Hold { reason })) => {
                self.target_hold = reason.map(|reason| format!("the master target waits: {reason}"));
                Ok(())
            }
            (
                Target::Up { .. },
                Message::Control(wish @ (Control::Verify { .. } | Control::Resend { .. })),
            ) => {
                self.pass_to_agent(&wish, now);
                Ok(())
            }
            (Target::Up { .. }, Message::Control(Control::Compared(answer))) => {
                self.answer_agent(answer, now);
                Ok(())
            }
            (Target::Up { .. }, Message::Control(Control::Refused { why: Refusal::Damaged, reason })) => {
                tracing::error!(stream = %self.id, reason, "the master target refused a frame; the spool is discarded");
                self.distrusted = true;
                self.fail_target(&reason, now);
                Ok(())
            }
            _ => Err(SessionError::OutOfTurn("something that does not belong there in the conversation")),
        }
    }

    fn handle_refused(&mut self, why: Refusal, reason: String, now: Instant) {
        tracing::warn!(stream = %self.id, ?why, reason, "the master target refuses the stream; trying again later");
        self.counts.target_errors += 1;
        self.trouble = Some(format!("the master target refuses the stream: {reason}"));
        let retry = now + self.backoff.next_delay();
        self.close_target(&reason, Some(retry));
        if why != Refusal::Unavailable {
            self.refuse_agent(why, &reason);
            self.refused = Some((why, reason));
        } else if self.waiting_agent().is_some() {
            self.refuse_agent(why, &reason);
        }
    }

    /// The master target has everything up to `position`: room may have come, and the agent may forget.
    pub(super) fn handle_durable(&mut self, position: Position) {
        let Store::Known(spool) = &mut self.store else { return };
        let outcome = spool.retire(position);
        let durable: Seq = spool.durable().seq;
        self.agent_durable(durable);
        match outcome {
            Ok(()) => self.spool_retry = None,
            Err(error) => self.note_spool_error(&error),
        }
    }

    /// Asks the master target for the agent. What it is asked while it is not connected, it is asked when it is.
    pub(super) fn ask(&mut self, questions: Vec<Compare>, now: Instant) {
        if matches!(self.target, Target::Up { .. }) {
            questions.into_iter().for_each(|question| self.say_to_target(&Control::Compare(question), now));
        }
    }

    fn say_to_target(&mut self, message: &Control, now: Instant) {
        let bytes = message.to_frame(self.id).bytes().clone();
        if let (Some(conn), Some(link)) = (self.target.conn(), self.target.link()) {
            link.handle_sent(now);
            self.outputs.push_back(Output::ToTarget(conn, bytes));
        }
    }
}
