//! A stream's background work: a thread of its own that merges and indexes closed layers, one task at a time.
//!
//! It rests as long as it works, so that it takes at most half of what a disk gives, and can be stopped at any moment.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crate::{
    journal::JournalError,
    replica::{Task, TaskDone},
};

/// How long to wait after a task failed.
const PAUSE: Duration = Duration::from_secs(300);

/// The longest rest at a time.
const REST: Duration = Duration::from_millis(500);

/// The thread, if one runs.
#[derive(Default)]
pub(crate) struct Background {
    running: Option<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
    not_before: Option<Instant>,
}

impl Background {
    /// Whether a task may be begun.
    pub(crate) fn is_free(&self, now: Instant) -> bool {
        self.running.is_none() && self.not_before.is_none_or(|until| now >= until)
    }

    /// Begins a task; `done` is called with its result on the task's thread.
    pub(crate) fn begin(
        &mut self,
        task: Task,
        done: impl FnOnce(Result<TaskDone, JournalError>) + Send + 'static,
    ) {
        let stop = Arc::clone(&self.stop);
        let body = move || {
            let mut worked = Instant::now();
            let mut go_on = |_| {
                thread::sleep(worked.elapsed().min(REST));
                worked = Instant::now();
                !stop.load(Ordering::Relaxed)
            };
            done(task.run(&mut go_on));
        };
        match thread::Builder::new().name("upkeep".into()).spawn(body) {
            Ok(thread) => self.running = Some(thread),
            Err(error) => self.failed(&format!("cannot start a thread: {error}")),
        }
    }

    /// The task has told its result.
    pub(crate) fn ended(&mut self) {
        // It has nothing left to do but to end.
        let _ = self.running.take().map(JoinHandle::join);
    }

    /// It went wrong: the next one waits.
    pub(crate) fn failed(&mut self, error: &str) {
        tracing::warn!(error, pause = ?PAUSE, "cannot merge or index layers of the journal; replication goes on");
        self.not_before = Some(Instant::now() + PAUSE);
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.ended();
    }
}
