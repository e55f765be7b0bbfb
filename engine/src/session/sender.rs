//! The sending end of a hop: frames kept until acknowledged, at most a window of them.
//!
//! Invariant: the frames held are numbered `released + 1 ..= last.seq`, without gap, and the first `unsent`
//! index splits them into sent and not yet sent on the present connection.

use std::collections::VecDeque;

use super::SessionError;
use crate::{
    frame::{Frame, Position},
    limits,
    units::Seq,
};

/// What a new connection means for the frames held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resume {
    /// The receiver goes on at a frame that is still held.
    Exact,
    /// The receiver stands where this sender has nothing to join on: unacknowledged content must be sent anew.
    Reset,
}

/// Frames on their way over one hop of one stream.
#[derive(Debug)]
pub struct Sender {
    /// Where the receiver stood when the oldest frame held was due.
    released: Position,
    frames: VecDeque<Frame>,
    unsent: usize,
    bytes: usize,
    window: usize,
    last: Position,
    durable: Seq,
}

impl Sender {
    /// Nothing sent yet to a receiver that stands at `position` and allows `window` bytes.
    #[must_use]
    pub fn at(position: Position, durable: Seq, window: u64) -> Self {
        let window = (window as usize).min(limits::WINDOW_BYTES);
        let frames = VecDeque::new();
        Self { released: position, frames, unsent: 0, bytes: 0, window, last: position, durable }
    }

    /// The position after the last frame pushed: where the next one goes.
    #[must_use]
    pub fn last(&self) -> Position {
        self.last
    }

    /// Position of the last frame that is no longer held, being safe elsewhere.
    #[must_use]
    pub fn released(&self) -> Position {
        self.released
    }

    /// The last frame known to be durable at the master target.
    #[must_use]
    pub fn durable(&self) -> Seq {
        self.durable
    }

    /// Whether everything pushed has been released.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.frames.is_empty()
    }

    /// Frame bytes held.
    #[must_use]
    pub fn bytes_held(&self) -> usize {
        self.bytes
    }

    /// Whether another frame may be pushed. One frame is always allowed.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.frames.is_empty() || (self.bytes < self.window && self.frames.len() < limits::WINDOW_FRAMES)
    }

    /// Takes the next frame, sealed after [`Self::last`].
    pub fn push(&mut self, frame: Frame) {
        debug_assert_eq!(frame.header().seq, self.last.seq.next());
        self.last = Position::after(frame.header());
        self.bytes += frame.bytes().len();
        self.frames.push_back(frame);
    }

    /// The next frame to put on the present connection, which must keep within the window:
    /// what was released makes room.
    pub fn poll_transmit(&mut self) -> Option<Frame> {
        let frame = self.frames.get(self.unsent)?.clone();
        self.unsent += 1;
        Some(frame)
    }

    /// Takes an acknowledgement: frames up to `spooled` are released.
    pub fn handle_ack(&mut self, spooled: Seq, durable: Seq) -> Result<(), SessionError> {
        let sent = Seq(self.released.seq.0 + self.unsent as u64);
        if durable > spooled || spooled > sent || spooled < self.released.seq || durable < self.durable {
            return Err(SessionError::Ack { spooled, durable, sent });
        }
        self.release(spooled);
        self.durable = durable;
        Ok(())
    }

    /// A new connection, whose receiver stands at `position`.
    pub fn handle_reconnect(&mut self, position: Position, durable: Seq) -> Resume {
        let held = if position.seq == self.released.seq {
            self.released == position
        } else {
            self.frames.iter().any(|frame| Position::after(frame.header()) == position)
        };
        if !held || durable < self.durable {
            return Resume::Reset;
        }
        self.release(position.seq);
        self.unsent = 0;
        self.durable = durable;
        Resume::Exact
    }

    fn release(&mut self, to: Seq) {
        while let Some(frame) = self.frames.front().filter(|frame| frame.header().seq <= to) {
            self.bytes -= frame.bytes().len();
            self.released = Position::after(frame.header());
            self.frames.pop_front();
            self.unsent = self.unsent.saturating_sub(1);
        }
    }

    /// For tests and fuzzing: checks the invariant.
    ///
    /// # Panics
    /// If it is broken.
    pub fn check(&self) {
        let mut at = self.released.seq;
        for frame in &self.frames {
            at = at.next();
            assert_eq!(frame.header().seq, at);
        }
        assert_eq!(at, self.last.seq);
        assert!(self.unsent <= self.frames.len());
        assert_eq!(self.bytes, self.frames.iter().map(|f| f.bytes().len()).sum::<usize>());
    }
}
