//! Packing contents into frame bodies (compression and hashing: most of the agent's CPU time), in order.
//!
//! A pool of threads in the service, inline in simulations. What has been submitted and not collected is memory;
//! bounding it is the caller's business.

use std::{
    collections::VecDeque,
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread,
};

use crossbeam_channel::Sender;
use engine::frame::Packed;

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
    jobs: Sender<Job>,
    threads: usize,
    results: VecDeque<Receiver<Packed>>,
    chooser: Chooser,
    /// The window was full since the last result was collected.
    held_up: bool,
}

/// A content, its zstd level, and who waits for the body.
type Job = (FrameContent, i32, SyncSender<Packed>);

impl Pool {
    /// `threads` threads that pack.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub fn start(threads: usize, compression: Compression) -> std::io::Result<Self> {
        let (jobs, queue) = crossbeam_channel::unbounded::<Job>();
        let threads = threads.max(1);
        for number in 0..threads {
            let queue = queue.clone();
            thread::Builder::new().name(format!("pack-{number}")).spawn(move || {
                // A result nobody waits for any more is no error: the pool was dropped.
                queue.iter().for_each(|(content, level, result)| drop(result.send(pack(&content, level))));
            })?;
        }
        let chooser = Chooser::new(compression);
        Ok(Self { jobs, threads, results: VecDeque::new(), chooser, held_up: false })
    }
}

impl Packer for Pool {
    #[expect(
        clippy::expect_used,
        reason = "the threads end only after `jobs` is dropped, and packing does not panic"
    )]
    fn submit(&mut self, content: FrameContent) {
        let (result, receiver) = sync_channel(1);
        let job = (content, self.chooser.level(), result);
        self.jobs.send(job).expect("a packing thread is there");
        self.results.push_back(receiver);
    }

    #[expect(clippy::expect_used, reason = "packing does not panic, so every job has a result")]
    fn collect(&mut self) -> Option<Packed> {
        // With less to do than threads, what is late says nothing.
        let is_busy = self.results.len() > self.threads;
        let result = self.results.pop_front()?;
        let ready = result.try_recv();
        if is_busy {
            self.chooser.note(match &ready {
                Err(_) => Sealed::Late,
                Ok(_) if self.held_up => Sealed::HeldUp,
                Ok(_) => Sealed::InTime,
            });
        }
        self.held_up = false;
        Some(ready.unwrap_or_else(|_| result.recv().expect("every job is packed")))
    }

    fn held_up(&mut self) {
        self.held_up = true;
    }

    fn level(&self) -> i32 {
        self.chooser.level()
    }
}

#[cfg(test)]
mod tests {
    use engine::{
        frame::{Opened, Position},
        units::{Block, DiskIndex, StreamId},
    };

    use super::*;
    use crate::capture::contents::Contents;

    #[test]
    fn a_pool_gives_results_in_order() {
        let mut pool = Pool::start(3, Compression::Level(1)).unwrap();
        for number in 1..=40u64 {
            // Of very different cost, so that later ones are ready before earlier ones.
            let blocks = if number % 7 == 0 { 256 } else { 1 };
            let mut made = Vec::new();
            let mut contents = Contents::new(DiskIndex(0), 1);
            contents.add(Block(number), &vec![number as u8; blocks * 4096], &mut made);
            contents.finish(&mut made);
            pool.submit(made.remove(0));
        }
        let mut at = Position::START;
        for number in 1..=40u64 {
            let frame = pool.collect().unwrap().seal(StreamId::random(), &at);
            let Opened::Data(content) = frame.open(at.chain).unwrap() else { panic!("data was packed") };
            assert_eq!(content.extents().next().unwrap().0.start, Block(number));
            at = Position::after(frame.header());
        }
        assert!(pool.collect().is_none());
    }
}
