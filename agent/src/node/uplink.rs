//! The connection to the process server: dial, greet, send within the window, notice silence, dial again.
//!
//! Sans-IO. What it learns that concerns others comes out as [`News`].

use std::{collections::VecDeque, time::Instant};

use bytes::Bytes;
use engine::{
    frame::{Compare, Compared, Control, GroupOrder, GroupReport, LeafRange, PROTOCOL, Position, StreamInfo},
    limits,
    net::Backoff,
    point::BarrierId,
    session::{Link, Message, Resume, Sender, SessionError},
    units::Seq,
};

use super::Output;

/// What the other side said.
#[derive(Debug)]
pub(super) enum News {
    /// It goes on at a frame that is still held; what is durable may have grown.
    Resumed(Seq),
    /// It stands somewhere else: what is unacknowledged must be sent anew.
    Reset(Elsewhere),
    /// Frames up to this one are durable.
    Durable(Seq),
    /// The master target wants digests of these leaves.
    Verify(Vec<LeafRange>),
    /// It found them different, and wants them again.
    Resend(Vec<LeafRange>),
    /// What the master target holds of leaves that were asked for.
    Compared(Compared),
    /// What to do for this common point.
    Order(BarrierId, GroupOrder),
}

/// Where the receiver stands when it can join on nothing that is held.
#[derive(Debug)]
pub(super) struct Elsewhere {
    pub(super) position: Position,
    pub(super) durable: Seq,
    /// It holds nothing at all, or less for durable than it once said, or frames that were never sent from here: one
    /// of the two was set back to an earlier state.
    pub(super) diverged: bool,
    /// The target's disks held content before the first frame.
    pub(super) adopted: bool,
}

#[derive(Debug)]
pub(super) struct Uplink {
    agent: String,
    stream: StreamInfo,
    backoff: Backoff,
    state: State,
    /// From the first welcome on.
    sender: Option<Sender>,
    outputs: VecDeque<Output>,
    /// Why the other side does not go on, as it says.
    pub(super) hold: Option<String>,
    /// Why the last connection ended.
    pub(super) error: Option<String>,
}

#[derive(Debug)]
enum State {
    Down { retry_at: Instant },
    Dialing,
    Greeting { link: Link, until: Instant },
    Up { link: Link, since: Instant },
}

impl Uplink {
    pub(super) fn new(agent: String, stream: StreamInfo, backoff: Backoff, now: Instant) -> Self {
        Self {
            agent,
            stream,
            backoff,
            state: State::Down { retry_at: now },
            sender: None,
            outputs: VecDeque::new(),
            hold: None,
            error: None,
        }
    }

    /// Since when frames can be sent; `None` if they cannot.
    pub(super) fn up_since(&self) -> Option<Instant> {
        match self.state {
            State::Up { since, .. } => Some(since),
            _ => None,
        }
    }

    /// Where frames go, if they can be sent now.
    pub(super) fn sender(&mut self) -> Option<&mut Sender> {
        self.up_since().and(self.sender.as_mut())
    }

    /// The sender as it stands, connected or not.
    pub(super) fn last_sender(&self) -> Option<&Sender> {
        self.sender.as_ref()
    }

    pub(super) fn handle_connected(&mut self, now: Instant) {
        let link = Link::new(Some(self.stream.id), now);
        self.state = State::Greeting { link, until: now + limits::HANDSHAKE };
        let (agent, stream) = (self.agent.clone(), self.stream.clone());
        self.say(&Control::Hello { protocol: PROTOCOL, agent, stream }, now);
    }

    /// The connection ended, or none came about.
    pub(super) fn handle_closed(&mut self, reason: String, now: Instant) {
        self.outputs.clear();
        self.hold = None;
        self.error = Some(reason);
        self.state = State::Down { retry_at: now + self.backoff.next_delay() };
    }

    /// Ends the connection.
    pub(super) fn close(&mut self, reason: String, now: Instant) {
        self.handle_closed(reason.clone(), now);
        self.outputs.push_back(Output::Close(reason));
    }

    pub(super) fn handle_bytes(&mut self, bytes: &[u8], now: Instant) -> Vec<News> {
        let (State::Greeting { link, .. } | State::Up { link, .. }) = &mut self.state else {
            return Vec::new();
        };
        link.handle_bytes(bytes, now);
        let mut news = Vec::new();
        loop {
            let (State::Greeting { link, .. } | State::Up { link, .. }) = &mut self.state else {
                return news;
            };
            let handled = match link.poll_message() {
                Ok(None) => return news,
                Ok(Some(Message::Control(control))) => self.handle_control(control, now),
                Ok(Some(Message::Frame(_))) => Err(SessionError::OutOfTurn("a frame of the stream")),
                Err(error) => Err(error),
            };
            match handled {
                Ok(found) => news.extend(found),
                Err(error) => self.close(error.to_string(), now),
            }
        }
    }

    fn handle_control(&mut self, control: Control, now: Instant) -> Result<Option<News>, SessionError> {
        let greeting = matches!(self.state, State::Greeting { .. });
        match control {
            Control::Welcome { position, durable, window, adopted } if greeting => {
                self.error = None;
                if let State::Greeting { link, .. } = std::mem::replace(&mut self.state, State::Dialing) {
                    self.state = State::Up { link, since: now };
                }
                Ok(Some(self.resume(position, durable, window, adopted)))
            }
            Control::Refused { why, reason } if greeting => {
                self.close(format!("refused ({why:?}): {reason}"), now);
                Ok(None)
            }
            Control::Ack { spooled, durable } if !greeting => {
                self.backoff.reset();
                let Some(sender) = &mut self.sender else { return Err(SessionError::OutOfTurn("ack")) };
                sender.handle_ack(spooled, durable)?;
                Ok(Some(News::Durable(durable)))
            }
            Control::Hold { reason } if !greeting => {
                self.hold = reason;
                Ok(None)
            }
            Control::Verify { leaves } if !greeting => Ok(Some(News::Verify(leaves))),
            Control::Resend { leaves } if !greeting => Ok(Some(News::Resend(leaves))),
            Control::Compared(compared) if !greeting => Ok(Some(News::Compared(compared))),
            Control::GroupOrder { barrier, order } if !greeting => Ok(Some(News::Order(barrier, order))),
            Control::GroupOrder { .. } => Err(SessionError::OutOfTurn("group-order")),
            Control::GroupReport { .. } => Err(SessionError::OutOfTurn("group-report")),
            Control::Hello { .. } => Err(SessionError::OutOfTurn("hello")),
            Control::Welcome { .. } => Err(SessionError::OutOfTurn("welcome")),
            Control::Refused { .. } => Err(SessionError::OutOfTurn("refused")),
            Control::Ack { .. } => Err(SessionError::OutOfTurn("ack")),
            Control::Hold { .. } => Err(SessionError::OutOfTurn("hold")),
            Control::Verify { .. } | Control::Resend { .. } => Err(SessionError::OutOfTurn("a verification")),
            Control::Compare(_) | Control::Compared(_) => Err(SessionError::OutOfTurn("a comparison")),
            Control::Ping => Ok(None),
        }
    }

    fn resume(&mut self, position: Position, durable: Seq, window: u64, adopted: bool) -> News {
        let set_back = self
            .sender
            .as_ref()
            .is_some_and(|sender| durable < sender.durable() || position.seq >= sender.released().seq);
        if let Some(sender) = &mut self.sender
            && sender.handle_reconnect(position, durable) == Resume::Exact
        {
            return News::Resumed(durable);
        }
        self.sender = Some(Sender::at(position, durable, window));
        let diverged = set_back || position.seq == Seq(0);
        News::Reset(Elsewhere { position, durable, diverged, adopted })
    }

    /// Tells how far the VM is with its group's barrier, if somebody is there to hear it.
    pub(super) fn report(&mut self, barrier: BarrierId, report: GroupReport, now: Instant) {
        if self.up_since().is_some() {
            self.say(&Control::GroupReport { barrier, report }, now);
        }
    }

    /// Asks the master target whether it has these leaves.
    pub(super) fn ask(&mut self, compare: &Compare, now: Instant) {
        if self.up_since().is_some() {
            self.say(&Control::Compare(compare.clone()), now);
        }
    }

    pub(super) fn poll_output(&mut self, now: Instant) -> Option<Output> {
        if let Some(output) = self.outputs.pop_front() {
            return Some(output);
        }
        let State::Up { link, .. } = &mut self.state else { return None };
        let frame = self.sender.as_mut()?.poll_transmit()?;
        link.handle_sent(now);
        Some(Output::Send(frame.bytes().clone()))
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        match &self.state {
            State::Down { retry_at } => Some(*retry_at),
            State::Dialing => None,
            State::Greeting { until, .. } => Some(*until),
            State::Up { link, .. } => Some(link.poll_timeout()),
        }
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) {
        match &mut self.state {
            State::Down { retry_at } if now >= *retry_at => {
                self.state = State::Dialing;
                self.outputs.push_back(Output::Dial);
            }
            State::Greeting { until, .. } if now >= *until => {
                self.close(SessionError::Silent(limits::HANDSHAKE.as_secs()).to_string(), now);
            }
            State::Up { link, .. } => match link.handle_timeout(now) {
                Ok(None) => (),
                Ok(Some(ping)) => self.say(&ping, now),
                Err(error) => self.close(error.to_string(), now),
            },
            _ => (),
        }
    }

    fn say(&mut self, control: &Control, now: Instant) {
        if let State::Greeting { link, .. } | State::Up { link, .. } = &mut self.state {
            link.handle_sent(now);
            let bytes: Bytes = control.to_frame(self.stream.id).bytes().clone();
            self.outputs.push_back(Output::Send(bytes));
        }
    }

    /// Short word for people.
    pub(super) fn state_word(&self) -> &'static str {
        match self.state {
            State::Down { .. } => "waiting to reconnect",
            State::Dialing => "connecting",
            State::Greeting { .. } => "greeting",
            State::Up { .. } => "connected",
        }
    }
}
