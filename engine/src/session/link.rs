//! One connection: bytes to messages, and noticing when the peer has gone silent.

use std::time::{Duration, Instant};

use super::SessionError;
use crate::{
    frame::{Control, Deframer, Frame, Kind},
    limits,
    units::StreamId,
};

/// What arrived.
#[derive(Debug)]
pub enum Message {
    /// A frame of the stream, in the order it was sent.
    Frame(Frame),
    /// A message between neighbours.
    Control(Control),
}

/// One connection of one stream.
#[derive(Debug)]
pub struct Link {
    deframer: Deframer,
    /// Known from the start by the dialling side, from `Hello` on by the other.
    stream: Option<StreamId>,
    heard: Instant,
    said: Instant,
}

impl Link {
    /// A connection that was opened at `now`; the side that dials knows the stream.
    #[must_use]
    pub fn new(stream: Option<StreamId>, now: Instant) -> Self {
        Self { deframer: Deframer::default(), stream, heard: now, said: now }
    }

    /// Takes bytes in the order they arrived.
    pub fn handle_bytes(&mut self, bytes: &[u8], now: Instant) {
        self.heard = now;
        self.deframer.feed(bytes);
    }

    /// Notes that something was sent.
    pub fn handle_sent(&mut self, now: Instant) {
        self.said = now;
    }

    /// The next message. An error means: close the connection.
    pub fn poll_message(&mut self) -> Result<Option<Message>, SessionError> {
        loop {
            let Some(frame) = self.deframer.next_frame()? else { return Ok(None) };
            let found = frame.header().stream;
            let expected = *self.stream.get_or_insert(found);
            if found != expected {
                return Err(SessionError::Stream { expected, found });
            }
            if frame.header().kind != Kind::Control {
                return Ok(Some(Message::Frame(frame)));
            }
            match Control::from_frame(&frame)? {
                Control::Ping => {}
                control => return Ok(Some(Message::Control(control))),
            }
        }
    }

    /// When [`Self::handle_timeout`] should be called next.
    #[must_use]
    pub fn poll_timeout(&self) -> Instant {
        (self.said + PING).min(self.heard + limits::IDLE)
    }

    /// Says whether a ping is due; an error if the peer has been silent for too long.
    pub fn handle_timeout(&mut self, now: Instant) -> Result<Option<Control>, SessionError> {
        if now >= self.heard + limits::IDLE {
            return Err(SessionError::Silent(limits::IDLE.as_secs()));
        }
        Ok((now >= self.said + PING).then_some(Control::Ping))
    }
}

const PING: Duration = Duration::from_secs(limits::IDLE.as_secs() / 3);
