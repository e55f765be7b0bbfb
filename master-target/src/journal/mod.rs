//! The journal of one stream: undo logs of before-images and the catalogue of points.
//!
//! The disks are always the newest state; the journal leads back. Before a block is overwritten for the first time
//! in a layer, what it held is in the layer's log, synced. So a crash at any moment loses nothing: what was
//! committed stands, what was not is written again, and every sealed point is reached by undoing layers.
//! The journal never touches a disk itself: [`crate::replica`] does.

mod catalogue;
pub mod entry;
pub mod index;
mod layer;
pub mod layout;
mod log;
mod logs;
mod merge;
mod overlay;
mod recover;
mod scan;
mod view;

#[cfg(test)]
mod tests;

use std::{
    io,
    path::{Path, PathBuf},
};

pub(crate) use catalogue::Record;
pub use catalogue::{Catalogue, Mark, Phase, RestoreState, SealedPoint, State, TargetDisk};
pub use index::{Bounds, Piece};
pub(crate) use index::{Cursor, Gatherer, Key, Scratch, Sorted, Table};
pub use layer::{Layer, LogId};
pub(crate) use layout::IMAGE_BLOCKS;
pub use log::{Image, Log, LogFile};
pub(crate) use logs::Lease;
pub use logs::Logs;
pub use merge::{merge, plan};
pub(crate) use overlay::{Overlay, Watchers};
pub(crate) use recover::{OpenLayer, Saved, recover};
pub(crate) use scan::Place;
pub use view::View;

/// Why the journal could not do something.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The file system said no.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// No room; goes on when there is some.
    #[error("no space left for {}: free some, replication then goes on by itself", path.display())]
    NoSpace {
        /// The file that could not grow.
        path: PathBuf,
    },
    /// Bytes that were synced are no longer what they were.
    #[error("{} is damaged at byte {at}: {what}; points that need it cannot be restored, nothing was changed", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// Where.
        at: u64,
        /// How.
        what: entry::Malformed,
    },
    /// Written by another version of Homeward. Nothing of it was cut or replaced.
    #[error("{} is of format version {version}, which is unknown here: use the version of Homeward that wrote it", path.display())]
    Version {
        /// Which file.
        path: PathBuf,
        /// What it says.
        version: u32,
    },
    /// A log that must be there is not.
    #[error("{} is missing; points that need it cannot be restored, nothing was changed", path.display())]
    Missing {
        /// Which log.
        path: PathBuf,
    },
    /// What was asked for is not possible now.
    #[error("{0}")]
    Refused(String),
}

impl JournalError {
    /// Bytes at `at` that cannot be used.
    fn unusable(path: &Path, at: u64, what: entry::Malformed) -> Self {
        let path = path.to_owned();
        match what {
            entry::Malformed::Version(version) => Self::Version { path, version },
            what => Self::Damaged { path, at, what },
        }
    }
}
