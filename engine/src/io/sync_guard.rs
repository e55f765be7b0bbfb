//! The rule that a handle is dead after a failed sync, in one place.
//!
//! The kernel reports a failed write-back once and may then forget the pages it could not write, so a second
//! sync can succeed although bytes are lost. Whoever wants to go on opens again and starts from what is durable.

use std::{
    io,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

/// What every call on a dead handle answers.
#[derive(Debug, thiserror::Error)]
#[error(
    "{name}: an earlier sync failed, so writes since the last good one may be lost; \
     check the disk, open again and continue from what is known to be durable"
)]
pub struct DeadHandle {
    /// The disk or file.
    pub name: String,
}

/// Remembers whether a sync of one handle has failed.
#[derive(Debug)]
pub(super) struct SyncGuard {
    name: String,
    dead: AtomicBool,
    /// One sync at a time: the kernel tells of a failure only once, and a sync beside the one that is told would
    /// take its own success for the truth.
    syncing: Mutex<()>,
}

impl SyncGuard {
    pub(super) fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), dead: AtomicBool::new(false), syncing: Mutex::new(()) }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// An error if the handle is dead.
    pub(super) fn check(&self) -> io::Result<()> {
        if self.dead.load(Ordering::Acquire) {
            return Err(io::Error::other(DeadHandle { name: self.name.clone() }));
        }
        Ok(())
    }

    /// Runs `sync` unless the handle is dead; if it fails, the handle is.
    pub(super) fn sync(&self, sync: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let _one_at_a_time = self.syncing.lock().unwrap_or_else(PoisonError::into_inner);
        self.check()?;
        sync().inspect_err(|_| self.dead.store(true, Ordering::Release))
    }
}
