//! An agent's first words: who it is, and which stream it wants to send. Until they are said a connection belongs
//! to no stream.
//!
//! It checks what can be checked without knowing the stream: the bytes, the version, and that the agent is who its
//! certificate says. The rest is the stream's node's business.

use std::time::Instant;

use engine::{
    frame::{Control, Frame, PROTOCOL, Refusal},
    session::{Link, Message, SessionError},
    units::StreamId,
};

use crate::spool::Description;

/// A connection from which no Hello has come yet.
#[derive(Debug)]
pub struct Greeting {
    peer: String,
    link: Link,
}

/// An agent that said what it wants.
#[derive(Debug)]
pub struct Hello {
    /// Its name and its stream.
    pub description: Description,
    /// Its connection from here on.
    pub link: Link,
}

/// Why a connection goes no further.
#[derive(Debug, thiserror::Error)]
pub enum GreetingError {
    /// It does not speak as it should; there is nothing to answer.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// It is told why not.
    #[error("refused: {reason}")]
    Refused {
        /// The stream it asked for.
        stream: StreamId,
        /// The kind of no.
        why: Refusal,
        /// For people.
        reason: String,
    },
}

impl GreetingError {
    /// The answer, if there is one.
    #[must_use]
    pub fn answer(&self) -> Option<Frame> {
        match self {
            GreetingError::Session(_) => None,
            GreetingError::Refused { stream, why, reason } => {
                Some(Control::Refused { why: *why, reason: reason.clone() }.to_frame(*stream))
            }
        }
    }
}

impl Greeting {
    /// A connection opened at `now`, of the agent that is called `peer` in its certificate.
    #[must_use]
    pub fn new(peer: impl Into<String>, now: Instant) -> Self {
        Self { peer: peer.into(), link: Link::new(None, now) }
    }

    /// Takes bytes until the Hello is whole.
    ///
    /// # Errors
    /// [`GreetingError`]; close the connection, after [`GreetingError::answer`].
    pub fn handle_bytes(mut self, bytes: &[u8], now: Instant) -> Result<Result<Hello, Self>, GreetingError> {
        self.link.handle_bytes(bytes, now);
        let (protocol, agent, stream) = match self.link.poll_message()? {
            None => return Ok(Err(self)),
            Some(Message::Control(Control::Hello { protocol, agent, stream })) => (protocol, agent, stream),
            Some(_) => return Err(SessionError::OutOfTurn("something else than a Hello").into()),
        };
        let refused = |why, reason| Err(GreetingError::Refused { stream: stream.id, why, reason });
        if protocol != PROTOCOL {
            let reason = format!(
                "this process server speaks version {PROTOCOL}, the agent {protocol}; upgrade the older"
            );
            return refused(Refusal::Protocol, reason);
        }
        if agent != self.peer {
            let reason =
                format!("agent {:?} cannot speak for {agent:?}; use the certificate of that name", self.peer);
            return refused(Refusal::NotYours, reason);
        }
        Ok(Ok(Hello { description: Description { agent, stream }, link: self.link }))
    }
}

#[cfg(test)]
mod tests {
    use engine::frame::{DiskInfo, StreamInfo};

    use super::*;

    const STREAM: StreamId = StreamId(uuid::Uuid::from_u128(3));

    fn hello(protocol: u16) -> Control {
        let disk = DiskInfo { name: "sda".into(), bytes: 1 << 30, used_bytes: 0 };
        let stream = StreamInfo { id: STREAM, vm: "web".into(), disks: vec![disk] };
        Control::Hello { protocol, agent: "web-agent".into(), stream }
    }

    fn say(peer: &str, message: &Control) -> Result<Hello, GreetingError> {
        let now = Instant::now();
        let mut greeting = Greeting::new(peer, now);
        for byte in message.to_frame(STREAM).bytes().chunks(7) {
            match greeting.handle_bytes(byte, now)? {
                Ok(hello) => return Ok(hello),
                Err(waiting) => greeting = waiting,
            }
        }
        panic!("the whole message was said");
    }

    #[test]
    fn a_hello_is_understood_however_it_arrives() {
        let hello = say("web-agent", &hello(PROTOCOL)).unwrap();
        assert_eq!(hello.description.stream.id, STREAM);
    }

    #[test]
    fn strangers_other_versions_and_other_words_are_turned_away() {
        let refusal = |result: Result<Hello, GreetingError>| {
            let error = result.unwrap_err();
            error.answer().map(|frame| match Control::from_frame(&frame).unwrap() {
                Control::Refused { why, .. } => why,
                other => panic!("{other:?}"),
            })
        };
        assert_eq!(refusal(say("db-agent", &hello(PROTOCOL))), Some(Refusal::NotYours));
        assert_eq!(refusal(say("web-agent", &hello(PROTOCOL + 1))), Some(Refusal::Protocol));
        assert_eq!(refusal(say("web-agent", &Control::Hold { reason: None })), None);
    }
}
