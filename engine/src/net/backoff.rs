//! How long to wait before the next try to connect: 100 ms, doubling to 10 s, each drawn from its upper half.
//!
//! The jitter keeps many agents from returning all at once after a process server was restarted. No clock and no
//! sleeping here: the caller waits. The same seed gives the same delays.

use std::time::Duration;

use rand::{RngExt, SeedableRng, rngs::StdRng};

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(10);

/// The delays between tries to reach one peer.
#[derive(Debug)]
pub struct Backoff {
    rng: StdRng,
    /// Upper bound of the next delay; FIRST <= ceiling <= LONGEST.
    ceiling: Duration,
}

impl Backoff {
    /// Starts at the shortest delay.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { rng: StdRng::seed_from_u64(seed), ceiling: FIRST }
    }

    /// A [`Backoff`] unlike every other.
    #[must_use]
    pub fn from_entropy() -> Self {
        Self::new(rand::random())
    }

    /// How long to wait now, after one more failure. Between half of the ceiling and the ceiling, which then doubles.
    pub fn next_delay(&mut self) -> Duration {
        let delay = self.rng.random_range(self.ceiling / 2..=self.ceiling);
        self.ceiling = LONGEST.min(self.ceiling * 2);
        delay
    }

    /// Back to the shortest delay. Call it when the peer has done something useful, not when TCP connected: a
    /// peer that accepts and at once hangs up would else be hammered.
    pub fn reset(&mut self) {
        self.ceiling = FIRST;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_within_its_bounds_and_resets() {
        for seed in 0..100 {
            let mut backoff = Backoff::new(seed);
            let mut ceiling = FIRST;
            for _ in 0..12 {
                let delay = backoff.next_delay();
                assert!(ceiling / 2 <= delay && delay <= ceiling, "seed {seed}: {delay:?} of {ceiling:?}");
                ceiling = LONGEST.min(ceiling * 2);
            }
            assert_eq!(ceiling, LONGEST);
            backoff.reset();
            assert!(backoff.next_delay() <= FIRST);
        }
    }

    #[test]
    fn seeds_differ_and_replay() {
        let delays = |seed| {
            let mut backoff = Backoff::new(seed);
            [(); 5].map(|()| backoff.next_delay())
        };
        assert_eq!(delays(1), delays(1));
        assert_ne!(delays(1), delays(2));
    }
}
