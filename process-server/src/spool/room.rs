//! How much room the spool has: for one stream, for all together, on the file system.
//!
//! It only counts and says no; what is done about it (the stream waits) is the node's business.

use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering},
};

use engine::limits as engine_limits;
use engine::service::quantity::Size;

use crate::limits;

/// The bounds of a spool, in bytes. `segment` ≤ `per_stream` / 4 and ≤ `total` / (4 · streams), so that segments
/// which are only waiting to become full never fill the spool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// All streams together.
    pub total: u64,
    /// Each stream.
    pub per_stream: u64,
    /// One segment file, unless one frame is longer.
    pub segment: u64,
    /// What is left free on the file system.
    pub keep_free: u64,
}

impl Bounds {
    /// Bounds for a spool of `total` bytes, of which one stream may take `per_stream`.
    #[must_use]
    pub fn new(total: u64, per_stream: u64) -> Self {
        let streams = engine_limits::STREAMS as u64;
        let segment = limits::SEGMENT.min(per_stream / 4).min(total / (4 * streams));
        Self { total, per_stream, segment, keep_free: limits::KEEP_FREE }
    }
}

/// The room that all streams of a process server share.
#[derive(Debug)]
pub struct Room {
    bounds: Bounds,
    used: AtomicU64,
}

/// Which bound was met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// This stream's share.
    Stream(u64),
    /// The spool as a whole.
    Total(u64),
    /// The file system.
    Disk,
}

impl fmt::Display for Full {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Full::Stream(limit) => write!(f, "this stream's share of the spool, {}, is full", Size(*limit)),
            Full::Total(limit) => write!(f, "the spool, {}, is full", Size(*limit)),
            Full::Disk => f.write_str("the spool's file system is full"),
        }
    }
}

impl Room {
    /// Empty.
    #[must_use]
    pub fn new(bounds: Bounds) -> Self {
        Self { bounds, used: AtomicU64::new(0) }
    }

    /// What it was made with.
    #[must_use]
    pub fn bounds(&self) -> &Bounds {
        &self.bounds
    }

    /// Bytes that all streams take.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }
}

/// The bytes that one stream takes of a [`Room`]. Gives them back when dropped.
#[derive(Debug)]
pub(super) struct Share {
    room: std::sync::Arc<Room>,
    bytes: u64,
}

impl Share {
    pub(super) fn new(room: std::sync::Arc<Room>) -> Self {
        Self { room, bytes: 0 }
    }

    pub(super) fn bounds(&self) -> &Bounds {
        self.room.bounds()
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Takes `bytes` more if they fit, with `free` bytes left on the file system.
    pub(super) fn take(&mut self, bytes: u64, free: u64) -> Result<(), Full> {
        let Bounds { total, per_stream, keep_free, .. } = *self.bounds();
        if self.bytes + bytes > per_stream {
            return Err(Full::Stream(per_stream));
        }
        if free < bytes + keep_free {
            return Err(Full::Disk);
        }
        let fits = |used: u64| (used + bytes <= total).then_some(used + bytes);
        if self.room.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_err() {
            return Err(Full::Total(total));
        }
        self.bytes += bytes;
        Ok(())
    }

    /// Sets it to what is there, bound or no bound: files that were found, or are gone.
    pub(super) fn set(&mut self, bytes: u64) {
        self.room.used.fetch_add(bytes, Ordering::Relaxed);
        self.room.used.fetch_sub(self.bytes, Ordering::Relaxed);
        self.bytes = bytes;
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.set(0);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn each_bound_is_held_and_named() {
        let room = Arc::new(Room::new(Bounds { total: 100, per_stream: 60, segment: 15, keep_free: 10 }));
        let (mut one, mut two) = (Share::new(room.clone()), Share::new(room.clone()));
        assert_eq!(one.take(60, 1000), Ok(()));
        assert_eq!(one.take(1, 1000), Err(Full::Stream(60)));
        assert_eq!(two.take(41, 1000), Err(Full::Total(100)));
        assert_eq!(two.take(40, 49), Err(Full::Disk));
        assert_eq!(two.take(40, 50), Ok(()));
        assert_eq!(room.used(), 100);
        one.set(5);
        assert_eq!(room.used(), 45);
        drop(two);
        assert_eq!(room.used(), 5);
    }

    #[test]
    fn segments_that_wait_to_become_full_cannot_fill_the_spool() {
        for total in [limits::SPOOL, 1 << 30, 1 << 40] {
            let bounds = Bounds::new(total, total);
            assert!(bounds.segment <= limits::SEGMENT);
            assert!(bounds.segment * engine_limits::STREAMS as u64 * 4 <= total);
        }
    }
}
