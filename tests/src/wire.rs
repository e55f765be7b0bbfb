//! A simulated connection: bytes on their way in both directions, and what can happen to them.

use rand::{RngExt, rngs::StdRng};

/// One direction.
#[derive(Debug, Default)]
pub struct Way {
    bytes: Vec<u8>,
    /// The sender has closed it behind these bytes.
    pub closed: bool,
}

impl Way {
    /// Puts bytes on the way.
    pub fn send(&mut self, bytes: &[u8]) {
        if !self.closed {
            self.bytes.extend_from_slice(bytes);
        }
    }

    /// Takes the first `most` bytes off it.
    pub fn take(&mut self, most: usize) -> Vec<u8> {
        let most = most.min(self.bytes.len());
        self.bytes.drain(..most).collect()
    }

    /// Whether nothing is on the way.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Flips a bit, loses some bytes, or swaps two runs of them, as TLS would not let happen.
    pub fn damage(&mut self, rng: &mut StdRng) {
        let len = self.bytes.len();
        if len < 2 {
            return;
        }
        let at = rng.random_range(0..len - 1);
        match rng.random_range(0..3) {
            0 => self.bytes[at] ^= 1 << rng.random_range(0..8),
            1 => drop(self.bytes.drain(at..rng.random_range(at + 1..len))),
            _ => self.bytes[at..].rotate_left(rng.random_range(0..len - at)),
        }
    }
}

/// A connection.
#[derive(Debug, Default)]
pub struct Wire {
    /// From the side that dialled.
    pub up: Way,
    /// To the side that dialled.
    pub down: Way,
}
