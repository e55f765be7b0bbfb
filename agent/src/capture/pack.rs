//! Packing contents into frame bodies (compression and hashing: most of the agent's CPU time), in order.
//!
//! A pool of threads in the service, inline in simulations. What has been submitted and not collected is memory;
//! bounding it is the caller's business.

use std::collections::VecDeque;

use engine::{frame::Packed, work::Queue};

use super::{
    contents::FrameContent,
    level::{Chooser, Compression, Sealed},
};

/// Turns contents into bodies, first in, first out.
pub trait Packer: Send {
    /// Begins with one.
    fn submit(&mut self, content: FrameContent);

    /// The body of the oldest one submitted; `None` if there is none. May block.
    fn collect(&mut self) -> Option<Packed>;

    /// What is packed has to wait: the window is full.
    fn held_up(&mut self);

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

    fn held_up(&mut self) {}

    fn level(&self) -> i32 {
        self.level
    }
}

/// A few threads, which end when the pool is dropped.
#[derive(Debug)]
pub struct Pool {
    queue: Queue<(FrameContent, i32), Packed>,
    chooser: Chooser,
    /// The window was full since the last body was collected.
    held_up: bool,
}

impl Pool {
    /// `threads` threads that pack.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub fn start(threads: usize, compression: Compression) -> std::io::Result<Self> {
        let queue = Queue::start("pack", threads, |(content, level)| pack(&content, level))?;
        Ok(Self { queue, chooser: Chooser::new(compression), held_up: false })
    }
}

impl Packer for Pool {
    fn submit(&mut self, content: FrameContent) {
        self.queue.submit((content, self.chooser.level()));
    }

    fn collect(&mut self) -> Option<Packed> {
        // With less to do than threads, what is late says nothing.
        if self.queue.is_busy() {
            self.chooser.note(match self.held_up {
                _ if !self.queue.is_ready() => Sealed::Late,
                true => Sealed::HeldUp,
                false => Sealed::InTime,
            });
        }
        self.held_up = false;
        self.queue.collect()
    }

    fn held_up(&mut self) {
        self.held_up = true;
    }

    fn level(&self) -> i32 {
        self.chooser.level()
    }
}
