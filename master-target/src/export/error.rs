//! Why a disk could not be exported.

use std::{io, path::PathBuf};

use engine::{
    digest::TreeError,
    service::{exit::Code, quantity::Size},
    units::Digest,
};

use crate::{
    replica::ReplicaError,
    vmdk::{geometry::CapacityError, sparse::SparseError, stream_optimized::TooLong},
};

/// Why a disk could not be exported. What was written by then is of no use.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// No such disk, or several.
    #[error("{what}; its disks are: {known}; name one with --disk")]
    Disk {
        /// What is wrong.
        what: String,
        /// The disks there are.
        known: String,
    },
    /// No VMDK can be of this size.
    #[error("the disk cannot be exported as a VMDK: {0}")]
    Capacity(#[from] CapacityError),
    /// No VMDK of this kind can hold it.
    #[error(transparent)]
    TooLong(#[from] TooLong),
    /// Not enough room.
    #[error(
        "{name} needs up to {need}, and there are {free} free: free some, put it elsewhere, or write to standard \
         output (-), which is not checked", name = name.display(), need = Size(*need), free = Size(*free)
    )]
    NoSpace {
        /// The file.
        name: PathBuf,
        /// Bytes that it takes at most.
        need: u64,
        /// Bytes there are.
        free: u64,
    },
    /// The point cannot be read.
    #[error("cannot read the point: {0}")]
    Read(#[from] ReplicaError),
    /// The file cannot be written.
    #[error("cannot {action} {name}, {offset} bytes of which are written: {source}", name = name.display())]
    Output {
        /// What was tried.
        action: &'static str,
        /// The file.
        name: PathBuf,
        /// Its length by then.
        offset: u64,
        /// What the system said.
        source: io::Error,
    },
    /// It was read again, and is damaged.
    #[error("the export was written, and cannot be read again: {0}; is its disk sound?")]
    Damaged(#[from] SparseError),
    /// It was read again, and something else came.
    #[error(
        "the export {name} was written, and reads as something else (root {found}, exported {root}): do not use it; is \
         its disk sound?", name = name.display()
    )]
    Different {
        /// The file.
        name: PathBuf,
        /// What it should be.
        root: Digest,
        /// What it is.
        found: Digest,
    },
    /// It was read again, and says of itself what was not written.
    #[error(
        "the export {name} was written, and reads as a disk of another form: do not use it; is its disk sound?",
        name = name.display()
    )]
    Reshaped {
        /// The file.
        name: PathBuf,
    },
    /// A digest is missing: a bug.
    #[error("cannot compute the root of the disk: {0}")]
    Root(#[from] TreeError),
    /// Whoever wanted it wants it no more.
    #[error("the export was interrupted")]
    Interrupted,
}

impl ExportError {
    /// What a command exits with.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::Disk { .. } | Self::Capacity(_) | Self::NoSpace { .. } => Code::Refused,
            Self::Damaged(_) | Self::Different { .. } | Self::Reshaped { .. } => Code::Different,
            Self::Interrupted => Code::Interrupted,
            Self::TooLong(_) | Self::Read(_) | Self::Output { .. } | Self::Root(_) => Code::Failed,
        }
    }
}
