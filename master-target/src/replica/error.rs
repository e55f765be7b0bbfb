//! Why something with disks and journal did not work out.

use std::io;

use engine::{frame::FrameError, units::Seq};

use super::Target;
use crate::journal::JournalError;

/// Why a batch, restore or point did not work out. Nothing wrong was acknowledged.
#[derive(Debug, thiserror::Error)]
pub enum ReplicaError {
    /// From the journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// A frame that must not be applied.
    #[error("refused a frame: {0}")]
    Frame(#[from] FrameError),
    /// A frame that names blocks or disks that are not there.
    #[error("refused {frame}: {what}")]
    OutOfPlace {
        /// Which frame.
        frame: Seq,
        /// What is wrong with it.
        what: String,
    },
    /// A disk said no.
    #[error("cannot {action} {disk} at byte {offset}: {source}")]
    Disk {
        /// What was tried.
        action: &'static str,
        /// On which device.
        disk: String,
        /// Where.
        offset: u64,
        /// What the system said.
        source: io::Error,
    },
    /// Whoever wanted a restore or its undoing wants it no more.
    #[error(
        "interrupted, and nothing is lost: the same command goes on where it stopped, `restore --undo` leads back"
    )]
    Interrupted,
    /// No room on the datastore; goes on when there is some.
    #[error("no space left on the datastore for {disk}: free some, replication then goes on by itself")]
    NoSpace {
        /// Which disk.
        disk: String,
    },
}

impl ReplicaError {
    /// Whether it goes away when somebody frees space.
    #[must_use]
    pub fn is_no_space(&self) -> bool {
        matches!(self, Self::NoSpace { .. } | Self::Journal(JournalError::NoSpace { .. }))
    }

    /// Whether something of the journal is not what was written.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        matches!(self, Self::Journal(JournalError::Damaged { .. } | JournalError::Missing { .. }))
    }

    /// Whether the peer sent something that must not be applied.
    #[must_use]
    pub fn is_peers_fault(&self) -> bool {
        matches!(self, Self::Frame(_) | Self::OutOfPlace { .. })
    }
}

/// An I/O error with its place; running out of space is its own kind.
pub(crate) fn disk_error(
    action: &'static str,
    target: &Target,
    offset: u64,
    source: io::Error,
) -> ReplicaError {
    let disk = target.device.name().to_owned();
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ReplicaError::NoSpace { disk },
        _ => ReplicaError::Disk { action, disk, offset, source },
    }
}
