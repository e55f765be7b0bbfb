//! What can go wrong in a tracker.

use std::{error::Error, io, path::PathBuf};

use engine::units::DiskIndex;

/// An error of a tracker.
#[derive(Debug, thiserror::Error)]
pub enum TrackerError {
    /// The machine cannot do it.
    #[error("this machine cannot track writes with eBPF: {reason}")]
    Unsupported {
        /// What is missing, and what to do.
        reason: String,
    },
    /// The device is not one that can be tracked.
    #[error("cannot track {}: {reason}", path.display())]
    WrongDevice {
        /// The device.
        path: PathBuf,
        /// Why not, and what to do.
        reason: &'static str,
    },
    /// The disks together need larger maps than one BPF array can be.
    #[error("cannot track these disks: {reason}")]
    TooMuch {
        /// Which bound, and what to do.
        reason: String,
    },
    /// A tracker's name is not usable as a file name in bpffs.
    #[error("`{0}` is no name for a tracker: use 1 to 64 letters, digits, - and _")]
    BadName(String),
    /// Another process has it open.
    #[error("tracker `{0}` is in use by another process: stop that agent first")]
    InUse(String),
    /// A system call or file failed.
    #[error("cannot {doing} {}", path.display())]
    Io {
        /// What was attempted.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The kernel or the loader refused something of BPF.
    #[error("cannot {doing} of the tracker's BPF programs (this needs root)")]
    Bpf {
        /// What was attempted.
        doing: &'static str,
        /// The cause.
        source: Box<dyn Error + Send + Sync>,
    },
    /// [`super::Tracker::flip`] before the last generation was taken.
    #[error("the marks of {0} were not taken since the last flip")]
    NotTaken(DiskIndex),
    /// A generation did not become still in time.
    #[error("marks of the ended generation were still being set after {after_ms} ms: try again")]
    NotStill {
        /// How long it was waited for.
        after_ms: u128,
    },
    /// Writes of the generation that a flip would reuse did not complete in time.
    #[error(
        "{writes} writes issued before the last flip were still in flight after {after_ms} ms: try again"
    )]
    StillInFlight {
        /// How many.
        writes: usize,
        /// How long it was waited for.
        after_ms: u128,
    },
}

impl TrackerError {
    pub(super) fn io(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { doing, path, source }
    }

    pub(super) fn bpf<E: Error + Send + Sync + 'static>(doing: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Bpf { doing, source: Box::new(source) }
    }
}
