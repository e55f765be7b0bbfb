//! Hop 1: the agent's connection, its frames on their way into the spool, and what it is told.

use std::time::Instant;

use engine::{
    frame::{Compare, Compared, Control, Frame, GroupReport, Kind, Refusal, StreamInfo},
    limits as engine_limits,
    point::BarrierId,
    session::{Link, Message, Receiver, SessionError},
    units::Seq,
};

use super::{ConnectionId, Output, Store, StreamNode};
use crate::{
    greeting::Hello,
    limits,
    spool::{Description, SpoolError},
};

/// The agent's connection.
pub(super) struct Agent {
    conn: ConnectionId,
    link: Link,
    state: State,
}

enum State {
    /// Said its Hello; the master target is being asked.
    Waiting(Description),
    Up {
        vm: String,
        receiver: Receiver,
        /// Frames that are not safe yet, in order. Bounded by the window that `receiver` enforces.
        pending: Vec<Frame>,
        /// What it reports on its group's barrier, until the frames before it are spooled. Bounded.
        reports: Vec<(BarrierId, GroupReport)>,
        /// What it asks the master target and is not answered. Bounded by [`engine_limits::QUESTIONS`].
        questions: Vec<Compare>,
        /// What it was last told about waiting.
        told: Option<String>,
    },
}

impl Agent {
    /// What it said of itself, until it is answered.
    pub(super) fn description(&self) -> Option<&Description> {
        match &self.state {
            State::Waiting(description) => Some(description),
            State::Up { .. } => None,
        }
    }
}

impl StreamNode {
    /// An agent said Hello on `conn`; `hello` was checked against its certificate.
    pub fn handle_agent_connected(&mut self, conn: ConnectionId, hello: Hello, now: Instant) {
        let Hello { description, link } = hello;
        if let Err((why, reason)) = self.check_owner(&description) {
            tracing::warn!(stream = %self.id, agent = description.agent, ?why, reason, "agent refused");
            self.counts.refused += 1;
            self.say_refused(conn, why, reason);
            return;
        }
        // Only after the check: nobody else's connection may end the owner's.
        self.close_agent("a newer connection replaces it");
        self.idle_since = None;
        self.finished = false;
        self.agent = Some(Agent { conn, link, state: State::Waiting(description) });
        if self.knows_enough() && self.refused.is_none() {
            self.welcome_agent(now);
        } else {
            self.ask_target(now);
        }
    }

    /// Bytes from the agent.
    pub fn handle_agent_bytes(&mut self, conn: ConnectionId, bytes: &[u8], now: Instant) {
        let Some(agent) = self.agent.as_mut().filter(|agent| agent.conn == conn) else { return };
        agent.link.handle_bytes(bytes, now);
        let (new, outcome) = agent.take_messages();
        self.ask(new, now);
        if let Err(error) = outcome {
            self.counts.agent_errors += 1;
            self.close_agent(&error.to_string());
        }
    }

    /// The agent's connection has ended. Call [`Self::commit`] after it.
    pub fn handle_agent_closed(&mut self, conn: ConnectionId) {
        if self.agent.as_ref().is_some_and(|agent| agent.conn == conn) {
            self.forget_agent();
        }
    }

    /// Bytes received and not yet safe.
    #[must_use]
    pub fn pending_bytes(&self) -> usize {
        match &self.agent {
            Some(Agent { state: State::Up { pending, .. }, .. }) => {
                pending.iter().map(|frame| frame.bytes().len()).sum()
            }
            _ => 0,
        }
    }

    /// Makes received frames safe, if there is room for them, and tells the agent how far it got. Call it after
    /// every batch of input and after [`Self::handle_timeout`].
    pub fn commit(&mut self, now: Instant) {
        self.spool_pending(now);
        self.pass_reports();
        self.tell_agent(now);
        self.connect_if_wanted(now);
        self.finish_if_idle(now);
    }

    pub(super) fn agent_timeout(&self) -> Option<Instant> {
        self.agent.as_ref().map(|agent| agent.link.poll_timeout())
    }

    pub(super) fn handle_agent_timeout(&mut self, now: Instant) {
        let Some(agent) = &mut self.agent else { return };
        match agent.link.handle_timeout(now) {
            Ok(None) => {}
            Ok(Some(ping)) => self.say(&ping, now),
            Err(error) => {
                self.counts.agent_errors += 1;
                self.close_agent(&error.to_string());
            }
        }
    }

    /// The agent that waits for the master target's answer.
    pub(super) fn waiting_agent(&self) -> Option<&Description> {
        self.agent.as_ref().and_then(Agent::description)
    }

    /// Tells the agent where the stream stands.
    pub(super) fn welcome_agent(&mut self, now: Instant) {
        let (Some(agent), Store::Known(spool)) = (&mut self.agent, &self.store) else { return };
        let (position, durable) = (spool.position(), spool.durable().seq);
        let receiver = Receiver::at(position, durable);
        let adopted = self.adopted.unwrap_or_default();
        let (conn, vm) = (agent.conn, spool.description().stream.vm.clone());
        agent.state = State::Up {
            vm: vm.clone(),
            receiver,
            pending: Vec::new(),
            reports: Vec::new(),
            questions: Vec::new(),
            told: None,
        };
        tracing::info!(stream = %self.id, position = %position.seq, durable = %durable, "agent connected");
        let window = engine_limits::WINDOW_BYTES as u64;
        self.say(&Control::Welcome { position, durable, window, adopted }, now);
        // Whoever gives it orders from here on does so behind the Welcome.
        self.outputs.push_back(Output::AgentUp(conn, vm));
    }

    /// Refuses the agent, if there is one.
    pub(super) fn refuse_agent(&mut self, why: Refusal, reason: &str) {
        let Some(Agent { conn, .. }) = self.agent else { return };
        tracing::warn!(stream = %self.id, ?why, reason, "agent refused");
        self.counts.refused += 1;
        self.forget_agent();
        self.say_refused(conn, why, reason.to_owned());
    }

    /// Ends the agent's connection, if there is one. Frames that are not safe are dropped: they were not
    /// acknowledged, so the agent has them.
    pub(super) fn close_agent(&mut self, reason: &str) {
        if let Some(Agent { conn, .. }) = self.agent {
            tracing::info!(stream = %self.id, reason, "closing the agent's connection");
            self.forget_agent();
            self.outputs.push_back(Output::CloseAgent(conn));
        }
    }

    /// The master target has everything up to `seq`.
    pub(super) fn agent_durable(&mut self, seq: Seq) {
        if let Some(Agent { state: State::Up { receiver, .. }, .. }) = &mut self.agent {
            receiver.handle_durable(seq);
        }
    }

    /// Something that the master target wants of the agent. If that is not connected, it will be said again.
    pub(super) fn pass_to_agent(&mut self, wish: &Control, now: Instant) {
        if matches!(self.agent, Some(Agent { state: State::Up { .. }, .. })) {
            self.say(wish, now);
        }
    }

    /// What the agent has asked the master target, and is not answered.
    pub(super) fn questions(&self) -> Vec<Compare> {
        match &self.agent {
            Some(Agent { state: State::Up { questions, .. }, .. }) => questions.clone(),
            _ => Vec::new(),
        }
    }

    /// The master target's answer.
    pub(super) fn answer_agent(&mut self, answer: Compared, now: Instant) {
        if let Some(Agent { state: State::Up { questions, .. }, .. }) = &mut self.agent {
            questions.retain(|question| question.span != answer.span);
            self.say(&Control::Compared(answer), now);
        }
    }

    /// Whether an agent can be told where the stream stands without asking the master target. An agent that begins at the
    /// beginning must also know what the disks there held before, and that is not kept beside the spool: nothing is
    /// lost by asking again as long as there is no frame.
    fn knows_enough(&self) -> bool {
        self.spool().is_some_and(|spool| spool.position().seq > Seq(0) || self.adopted.is_some())
    }

    fn forget_agent(&mut self) {
        if let Some(Agent { state: State::Up { vm, .. }, .. }) = self.agent.take() {
            self.outputs.push_back(Output::AgentDown(vm));
        }
        self.spool_hold = None;
        self.spool_retry = None;
    }

    fn check_owner(&self, told: &Description) -> Result<(), (Refusal, String)> {
        if let Store::Broken(_) = self.store {
            let trouble = self.trouble.as_deref().unwrap_or("its spool cannot be opened");
            return Err((Refusal::Unavailable, trouble.to_owned()));
        }
        let known = match &self.store {
            Store::Known(spool) => spool.description(),
            // Nothing is proven of an agent that waits, so it keeps its place and this one tries again.
            _ => match self.waiting_agent() {
                Some(waiting) if waiting.agent != told.agent => {
                    return Err((Refusal::Unavailable, "another agent is asking for this stream".to_owned()));
                }
                _ => return Ok(()),
            },
        };
        if known.agent != told.agent {
            let reason =
                format!("stream {} belongs to agent {:?}, not to {:?}", self.id, known.agent, told.agent);
            return Err((Refusal::NotYours, reason));
        }
        if !same_disks(&known.stream, &told.stream) {
            let reason = format!(
                "the VM or its disks differ from those that stream {} began with; start a new replication",
                self.id
            );
            return Err((Refusal::BadRequest, reason));
        }
        Ok(())
    }

    fn spool_pending(&mut self, now: Instant) {
        let (Some(Agent { state: State::Up { receiver, pending, .. }, .. }), Store::Known(spool)) =
            (&mut self.agent, &mut self.store)
        else {
            return;
        };
        if pending.is_empty() || self.spool_retry.is_some_and(|retry| now < retry) {
            return;
        }
        let outcome = spool.append(pending);
        let safe = spool.position().seq;
        let count = pending.iter().take_while(|frame| frame.header().seq <= safe).count();
        for frame in pending.drain(..count) {
            self.counts.frames_in += 1;
            self.counts.wire_bytes_in += frame.bytes().len() as u64;
            if frame.header().kind == Kind::Data {
                self.counts.logical_bytes_in += u64::from(frame.header().content_len);
            }
        }
        receiver.handle_spooled(safe);
        self.spool_retry = outcome.is_err().then(|| now + limits::SPOOL_RETRY);
        match outcome {
            Ok(()) if self.spool_hold.take().is_some() => {
                tracing::info!(stream = %self.id, "the spool takes frames again");
                self.trouble = None;
            }
            Ok(()) => {}
            Err(SpoolError::Full(full)) => self.spool_hold = Some(full.to_string()),
            Err(error) => {
                self.spool_hold = Some(error.to_string());
                self.note_spool_error(&error);
            }
        }
    }

    /// While a frame waits for the spool, so does every report after it: a VM must not be frozen before what it sent
    /// is out of the way.
    fn pass_reports(&mut self) {
        if let Some(Agent { state: State::Up { pending, reports, .. }, .. }) = &mut self.agent
            && pending.is_empty()
        {
            let reports = reports.drain(..).map(|(barrier, report)| Output::Report(barrier, report));
            self.outputs.extend(reports);
        }
    }

    fn tell_agent(&mut self, now: Instant) {
        let hold = self.hold().map(ToOwned::to_owned);
        let Some(Agent { state: State::Up { receiver, told, .. }, .. }) = &mut self.agent else { return };
        let ack = receiver.poll_ack();
        let news = (*told != hold).then(|| Control::Hold { reason: hold.clone() });
        if told.is_none() && hold.is_some() {
            self.counts.holds += 1;
            tracing::warn!(stream = %self.id, reason = hold, "the agent is told to wait");
        }
        *told = hold;
        for message in [ack, news].into_iter().flatten() {
            self.say(&message, now);
        }
    }

    fn say(&mut self, message: &Control, now: Instant) {
        if let Some(agent) = &mut self.agent {
            agent.link.handle_sent(now);
            let bytes = message.to_frame(self.id).bytes().clone();
            self.outputs.push_back(Output::ToAgent(agent.conn, bytes));
        }
    }

    fn say_refused(&mut self, conn: ConnectionId, why: Refusal, reason: String) {
        let bytes = Control::Refused { why, reason }.to_frame(self.id).bytes().clone();
        self.outputs.push_back(Output::ToAgent(conn, bytes));
        self.outputs.push_back(Output::CloseAgent(conn));
    }
}

impl Agent {
    /// Takes what has arrived; returns what it asks that it had not asked.
    fn take_messages(&mut self) -> (Vec<Compare>, Result<(), SessionError>) {
        let mut new = Vec::new();
        let outcome = self.try_take_messages(&mut new);
        (new, outcome)
    }

    fn try_take_messages(&mut self, new: &mut Vec<Compare>) -> Result<(), SessionError> {
        while let Some(message) = self.link.poll_message()? {
            match (message, &mut self.state) {
                (Message::Frame(frame), State::Up { receiver, pending, .. }) => {
                    receiver.handle_frame(&frame)?;
                    pending.push(frame);
                }
                (Message::Control(Control::GroupReport { barrier, report }), State::Up { reports, .. })
                    if reports.len() < limits::REPORTS =>
                {
                    reports.push((barrier, report));
                }
                (Message::Control(Control::Compare(question)), State::Up { questions, .. }) => {
                    // One too many is asked again when others have been answered.
                    if !questions.contains(&question) && questions.len() < engine_limits::QUESTIONS {
                        questions.push(question.clone());
                        new.push(question);
                    }
                }
                _ => {
                    return Err(SessionError::OutOfTurn("something else than frames, reports and questions"));
                }
            }
        }
        Ok(())
    }
}

/// Whether it is the same VM with the same disks; how much of them is in use may change.
fn same_disks(known: &StreamInfo, told: &StreamInfo) -> bool {
    let disks = |info: &StreamInfo| -> Vec<_> {
        info.disks.iter().map(|disk| (disk.name.clone(), disk.bytes)).collect()
    };
    known.id == told.id && known.vm == told.vm && disks(known) == disks(told)
}
