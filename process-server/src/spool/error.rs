//! What can go wrong with a spool, apart from frames: those are the sender's.

use std::{io, path::PathBuf};

use super::{room::Full, segment::Flaw};

/// Why the spool did not do what it was asked. What it acknowledged before holds after each of these.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// No room now; there will be when the master target has taken more.
    #[error("{0}")]
    Full(Full),
    /// The storage failed. Try again; the spool first makes sure of its files again.
    #[error("cannot {doing} {path}: {source}; check the disk of the spool folder", path = path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To which file or folder of the spool.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A frame that was good when it was written is no longer: [`super::Spool::cut`] gives it up.
    #[error("{path} is damaged at byte {offset}: {flaw}", path = path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// First byte of the bad frame.
        offset: u64,
        /// What is wrong with it.
        flaw: Flaw,
    },
}

impl SpoolError {
    /// An error of the storage. One that says "no space" is [`SpoolError::Full`].
    pub(super) fn io(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => SpoolError::Full(Full::Disk),
            _ => SpoolError::Io { doing, path, source },
        }
    }
}
