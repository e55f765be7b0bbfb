//! What is on its way to the master target. The frames themselves are in the spool; here are only their places,
//! so that a window costs no memory and a new connection starts from the spool.
//!
//! Invariant: `flying` are the frames sent and not known to be durable, in order, without gap.

use std::collections::VecDeque;

use engine::{
    frame::{Frame, Position},
    limits,
    session::SessionError,
    units::Seq,
};

#[derive(Debug)]
pub(super) struct Forward {
    flying: VecDeque<(Position, usize)>,
    bytes: usize,
    window: usize,
    acked: (Seq, Seq),
    sent: Seq,
}

impl Forward {
    /// Nothing sent yet to a target that stands at `position` and allows `window` bytes.
    pub(super) fn after(position: &Position, window: u64) -> Self {
        let window = (window as usize).min(limits::WINDOW_BYTES);
        let seq = position.seq;
        Self { flying: VecDeque::new(), bytes: 0, window, acked: (seq, seq), sent: seq }
    }

    /// Whether another frame may be sent. One is always allowed.
    pub(super) fn has_room(&self) -> bool {
        self.flying.is_empty() || (self.bytes < self.window && self.flying.len() < limits::WINDOW_FRAMES)
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn handle_sent(&mut self, frame: &Frame) {
        let position = Position::after(frame.header());
        self.sent = position.seq;
        self.bytes += frame.bytes().len();
        self.flying.push_back((position, frame.bytes().len()));
    }

    /// Takes an acknowledgement; returns up to where the stream is durable now, if that is news.
    pub(super) fn handle_ack(
        &mut self,
        spooled: Seq,
        durable: Seq,
    ) -> Result<Option<Position>, SessionError> {
        let sent = self.sent;
        if durable > spooled || spooled > sent || spooled < self.acked.0 || durable < self.acked.1 {
            return Err(SessionError::Ack { spooled, durable, sent });
        }
        self.acked = (spooled, durable);
        let mut news = None;
        while let Some((position, bytes)) = self.flying.pop_front_if(|(position, _)| position.seq <= durable)
        {
            self.bytes -= bytes;
            news = Some(position);
        }
        Ok(news)
    }
}
