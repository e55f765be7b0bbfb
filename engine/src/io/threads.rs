//! Disk I/O with blocking system calls on a pool of threads, for where io_uring is refused.

use std::{
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
};

use crossbeam_channel::{Receiver, Sender, unbounded};

use super::{
    disk_file::DiskFile,
    queue::{Request, Submit},
};

/// Threads of one disk.
const WORKERS: usize = 32;

/// Ample for one system call.
const STACK_BYTES: usize = 128 << 10;

/// At most [`WORKERS`] threads per disk, started as they are needed.
pub(super) struct Threads {
    /// `None` once dropped, which ends the threads.
    queue: Option<Sender<Request>>,
    shared: Arc<Shared>,
    workers: Mutex<Vec<JoinHandle<()>>>,
}

struct Shared {
    file: Arc<DiskFile>,
    /// Bounded by its submitters, who have at most [`crate::limits::IO_DEPTH`] requests each.
    requests: Receiver<Request>,
    unanswered: AtomicUsize,
}

impl Threads {
    pub(super) fn new(file: Arc<DiskFile>) -> Self {
        let (queue, requests) = unbounded();
        let shared = Arc::new(Shared { file, requests, unanswered: AtomicUsize::new(0) });
        Self { queue: Some(queue), shared, workers: Mutex::default() }
    }

    /// Starts threads until each unanswered request has one, within the limit. One thread suffices to go on.
    fn start_workers(&self) -> io::Result<()> {
        let mut workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        while workers.len() < self.shared.unanswered.load(Ordering::Relaxed).min(WORKERS) {
            let shared = self.shared.clone();
            let worker = thread::Builder::new().name("disk-io".into()).stack_size(STACK_BYTES);
            match worker.spawn(move || shared.work()) {
                Ok(worker) => workers.push(worker),
                Err(error) if workers.is_empty() => return Err(error),
                Err(_) => break,
            }
        }
        Ok(())
    }
}

impl Submit for Threads {
    fn submit(&self, batch: Vec<Request>) {
        self.shared.unanswered.fetch_add(batch.len(), Ordering::Relaxed);
        if let Err(error) = self.start_workers() {
            self.shared.unanswered.fetch_sub(batch.len(), Ordering::Relaxed);
            batch.into_iter().for_each(|request| request.answer(Err(io::Error::from(error.kind()))));
            return;
        }
        for request in batch {
            // The receiver lives as long as `self`; a request that found none would answer itself.
            let _ = self.queue.as_ref().map(|queue| queue.send(request));
        }
    }
}

impl Shared {
    fn work(&self) {
        for request in &self.requests {
            request.perform(&self.file);
            self.unanswered.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.queue = None;
        let workers = std::mem::take(&mut *self.workers.lock().unwrap_or_else(PoisonError::into_inner));
        workers.into_iter().for_each(|worker| _ = worker.join());
    }
}
