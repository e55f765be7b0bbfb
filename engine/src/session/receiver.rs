//! The receiving end of a hop: takes frames strictly in order and says how far they are safe.
//!
//! Invariant: `durable ≤ spooled ≤ position.seq`.

use std::collections::VecDeque;

use super::SessionError;
use crate::{
    frame::{Control, Frame, Position},
    limits,
    units::Seq,
};

/// Where one hop of one stream stands at its receiver.
#[derive(Debug)]
pub struct Receiver {
    position: Position,
    spooled: Seq,
    durable: Seq,
    acked: (Seq, Seq),
    /// Sizes of the frames after `spooled`.
    unspooled: VecDeque<usize>,
    unspooled_bytes: usize,
}

impl Receiver {
    /// Holds everything up to `position` safely.
    #[must_use]
    pub fn at(position: Position, durable: Seq) -> Self {
        let spooled = position.seq;
        let unspooled = VecDeque::new();
        Self { position, spooled, durable, acked: (spooled, durable), unspooled, unspooled_bytes: 0 }
    }

    /// The last frame taken, safe or not.
    #[must_use]
    pub fn position(&self) -> Position {
        self.position
    }

    /// Takes a frame that must be the next one. Whether its content is right is for the owner to see.
    pub fn handle_frame(&mut self, frame: &Frame) -> Result<(), SessionError> {
        let header = frame.header();
        let expected = self.position.seq.next();
        if header.seq != expected {
            return Err(SessionError::Gap { expected, found: header.seq });
        }
        if header.epoch != self.position.epoch {
            let (found, open) = (header.epoch, self.position.epoch);
            return Err(SessionError::Epoch { frame: header.seq, found, open });
        }
        let bytes = frame.bytes().len();
        // The sender may start a frame while one byte of its window is left.
        if !self.unspooled.is_empty() && self.unspooled_bytes >= limits::WINDOW_BYTES {
            let bytes = self.unspooled_bytes + bytes;
            return Err(SessionError::Window { bytes, window: limits::WINDOW_BYTES });
        }
        self.unspooled.push_back(bytes);
        self.unspooled_bytes += bytes;
        self.position = Position::after(header);
        Ok(())
    }

    /// Frames up to `seq` are safe here.
    pub fn handle_spooled(&mut self, seq: Seq) {
        debug_assert!(seq <= self.position.seq);
        while self.spooled < seq {
            self.spooled = self.spooled.next();
            self.unspooled_bytes -= self.unspooled.pop_front().unwrap_or(0);
        }
    }

    /// Frames up to `seq` are durable at the master target.
    pub fn handle_durable(&mut self, seq: Seq) {
        self.handle_spooled(seq);
        self.durable = self.durable.max(seq);
    }

    /// The acknowledgement that is due, if anything is new.
    pub fn poll_ack(&mut self) -> Option<Control> {
        let (spooled, durable) = (self.spooled, self.durable);
        (self.acked != (spooled, durable)).then(|| {
            self.acked = (spooled, durable);
            Control::Ack { spooled, durable }
        })
    }

    /// For tests and fuzzing: checks the invariant.
    ///
    /// # Panics
    /// If it is broken.
    pub fn check(&self) {
        assert!(self.durable <= self.spooled && self.spooled <= self.position.seq);
        assert_eq!(self.unspooled.len() as u64, self.position.seq.0 - self.spooled.0);
        assert_eq!(self.unspooled_bytes, self.unspooled.iter().sum::<usize>());
    }
}
