//! Packing contents into frame bodies (compression and hashing: most of the agent's CPU time), in order.
//!
//! A pool of threads in the service, inline in simulations. What has been submitted and not collected is memory;
//! bounding it is the caller's business.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use engine::{frame::Packed, work::Queue};

use super::{
    contents::FrameContent,
    level::{Chooser, Compression, Waited},
};

/// Turns contents into bodies, first in, first out.
pub trait Packer: Send {
    /// Begins with one.
    fn submit(&mut self, content: FrameContent);

    /// The body of the oldest one submitted; `None` if there is none. May block.
    fn collect(&mut self) -> Option<Packed>;

    /// Whether what is packed could go: the window has room. Call it when that changes, or more often.
    fn has_room(&mut self, room: bool);

    /// The zstd level of what is submitted next.
    fn level(&self) -> i32;
}

fn pack(content: &FrameContent, level: i32) -> Packed {
    Packed::data(content.disk, &content.bytes, content.extents, level)
}

/// Packs while submitting: for simulations, where everything happens in one thread.
#[derive(Debug)]
pub struct Inline {
    level: i32,
    packed: VecDeque<Packed>,
}

impl Inline {
    /// zstd `level`; 0 stores.
    #[must_use]
    pub fn new(level: i32) -> Self {
        Self { level, packed: VecDeque::new() }
    }
}

impl Packer for Inline {
    fn submit(&mut self, content: FrameContent) {
        self.packed.push_back(pack(&content, self.level));
    }

    fn collect(&mut self) -> Option<Packed> {
        self.packed.pop_front()
    }

    fn has_room(&mut self, _room: bool) {}

    fn level(&self) -> i32 {
        self.level
    }
}

/// A few threads, which end when the pool is dropped.
#[derive(Debug)]
pub struct Pool {
    queue: Queue<(FrameContent, i32), Packed>,
    chooser: Chooser,
    /// When the last body was collected.
    collected: Instant,
    /// Since when the window has been full, and for how long it was before, since `collected`.
    full_since: Option<Instant>,
    full: Duration,
}

impl Pool {
    /// `threads` threads that pack.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub fn start(threads: usize, compression: Compression) -> std::io::Result<Self> {
        let queue = Queue::start("pack", threads, |(content, level)| pack(&content, level))?;
        Ok(Self {
            queue,
            chooser: Chooser::new(compression),
            collected: Instant::now(),
            full_since: None,
            full: Duration::ZERO,
        })
    }
}

impl Packer for Pool {
    fn submit(&mut self, content: FrameContent) {
        self.queue.submit((content, self.chooser.level()));
    }

    fn collect(&mut self) -> Option<Packed> {
        // With less to do than threads, what is late says nothing.
        let is_busy = self.queue.is_busy();
        let began = Instant::now();
        let packed = self.queue.collect();
        let now = Instant::now();
        let for_room = std::mem::take(&mut self.full);
        if is_busy {
            self.chooser.note(Waited { in_all: now - self.collected, for_packing: now - began, for_room });
        }
        self.collected = now;
        packed
    }

    fn has_room(&mut self, room: bool) {
        match self.full_since {
            None if !room => self.full_since = Some(Instant::now()),
            Some(since) if room => {
                self.full += since.elapsed();
                self.full_since = None;
            }
            _ => {}
        }
    }

    fn level(&self) -> i32 {
        self.chooser.level()
    }
}
