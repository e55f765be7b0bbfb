//! The bandwidth limit towards the master target: a token bucket, shared by all streams.
//!
//! In every second at most `rate · 1.03` bytes: a burst of 20 ms after a pause and one chunk of 10 ms. Who waits
//! waits for a place in time that was already given to him, so chunks take turns and late wake-ups are caught up
//! with. Counted are bytes of frames; TLS adds 22 to a chunk, TCP and IP some 3 %. No clock and no sleeping here.

use std::time::{Duration, Instant};

use engine::service::quantity::Rate;

/// What may be sent at once after a pause.
const BURST: Duration = Duration::from_millis(20);

/// Bounds of a chunk: small enough to share the line, large enough to be worth a TLS record.
const CHUNK: std::ops::RangeInclusive<u64> = 512..=16 << 10;

/// The least rate that can be held well.
pub const LEAST: Rate = Rate(64 << 10);

/// Gives out places in time.
#[derive(Debug)]
pub struct Throttle {
    rate: Option<Rate>,
    /// When the next byte may go.
    next: Instant,
}

impl Throttle {
    /// A limit of `rate`, or none.
    #[must_use]
    pub fn new(rate: Option<Rate>, now: Instant) -> Self {
        Self { rate, next: now }
    }

    /// The limit.
    #[must_use]
    pub fn rate(&self) -> Option<Rate> {
        self.rate
    }

    /// Bytes to ask for at once.
    #[must_use]
    pub fn chunk(&self) -> usize {
        let chunk = |rate: Rate| (rate.0 / 100).clamp(*CHUNK.start(), *CHUNK.end());
        self.rate.map_or(*CHUNK.end(), chunk) as usize
    }

    /// Takes the next place for `bytes`, at most [`Self::chunk`]; says how long to wait for it. It is taken also
    /// if nothing is sent then.
    pub fn take(&mut self, bytes: usize, now: Instant) -> Duration {
        let Some(Rate(rate)) = self.rate else { return Duration::ZERO };
        let start = self.next.max(now.checked_sub(BURST).unwrap_or(now));
        self.next = start + Duration::from_nanos((bytes as u64).saturating_mul(1_000_000_000) / rate.max(1));
        start.saturating_duration_since(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Streams that always have something to send, each waking up to `late_us` too late: when how much was sent,
    /// by whom.
    fn run(rate: u64, streams: usize, late_us: u64, seconds: u64) -> Vec<(Duration, usize, usize)> {
        let start = Instant::now();
        let mut throttle = Throttle::new(Some(Rate(rate)), start);
        let mut wakes = vec![Duration::ZERO; streams];
        let mut asked = vec![0; streams];
        let (mut sent, mut noise) = (Vec::new(), 7u64);
        loop {
            let stream = (0..streams).min_by_key(|stream| wakes[*stream]).unwrap();
            let now = wakes[stream];
            if now > Duration::from_secs(seconds) {
                return sent;
            }
            if asked[stream] > 0 {
                sent.push((now, stream, asked[stream]));
            }
            asked[stream] = throttle.chunk();
            let wait = throttle.take(asked[stream], start + now);
            noise = noise.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let late = if wait.is_zero() { 1 } else { 1 + (noise >> 33) % (late_us + 1) };
            wakes[stream] = now + wait + Duration::from_micros(late);
        }
    }

    fn sent_in(sent: &[(Duration, usize, usize)], from: Duration, len: Duration) -> u64 {
        sent.iter().filter(|(at, ..)| *at >= from && *at < from + len).map(|(.., n)| *n as u64).sum()
    }

    #[test]
    fn holds_within_5_percent_in_any_second_and_over_a_minute() {
        for rate in [LEAST.0, 125_000, 1_000_000, 25_000_000] {
            for (streams, late) in [(1, 0), (1, 2000), (5, 1000), (16, 4000)] {
                let sent = run(rate, streams, late, 62);
                let within = |bytes: u64, seconds: u64, what: &str| {
                    let share = bytes as f64 / (rate * seconds) as f64;
                    assert!((0.95..=1.05).contains(&share), "{what}, {rate} B/s, {streams} streams: {share}");
                };
                for from in (0..60_000).step_by(1370) {
                    let second = sent_in(&sent, Duration::from_millis(from), Duration::from_secs(1));
                    within(second, 1, "a second");
                }
                within(sent_in(&sent, Duration::ZERO, Duration::from_secs(60)), 60, "a minute");
                let of = |stream| sent.iter().filter(|(_, s, _)| *s == stream).count() as f64;
                let share = of(0) / sent.len() as f64 * streams as f64;
                assert!((0.9..=1.1).contains(&share), "stream 0 has {share} of its share");
            }
        }
    }

    #[test]
    fn a_pause_is_not_saved_up() {
        let start = Instant::now();
        let mut throttle = Throttle::new(Some(Rate(1_000_000)), start);
        let later = start + Duration::from_secs(3600);
        let at_once = (0..).take_while(|_| throttle.take(10_000, later).is_zero()).count();
        assert!((2..=4).contains(&at_once), "{at_once} chunks of 10 ms");
    }

    #[test]
    fn without_a_limit_nobody_waits() {
        let now = Instant::now();
        let mut throttle = Throttle::new(None, now);
        assert!((0..1000).all(|_| throttle.take(throttle.chunk(), now).is_zero()));
    }
}
