//! What can be wrong with a hosted sparse file. Each error names the file and the byte.

use std::{io, path::PathBuf};

use crate::vmdk::descriptor::DescriptorError;

/// Why a file cannot be read as a disk, or one of its grains as data.
#[derive(Debug, thiserror::Error)]
#[error("{file}, at byte {offset}: {kind}", file = file.display())]
pub struct SparseError {
    /// The file.
    pub file: PathBuf,
    /// Where in it.
    pub offset: u64,
    /// What is wrong.
    pub kind: SparseErrorKind,
}

/// What is wrong.
#[derive(Debug, thiserror::Error)]
pub enum SparseErrorKind {
    /// The file cannot be read.
    #[error("cannot read: {0}")]
    Io(#[from] io::Error),
    /// It ends too early.
    #[error(
        "{what} of {bytes} bytes reaches beyond the file's end at {end}: the file was cut off or is damaged"
    )]
    Beyond {
        /// What should be there.
        what: &'static str,
        /// Its length.
        bytes: u64,
        /// Length of the file.
        end: u64,
    },
    /// Not this format.
    #[error(
        "no hosted sparse VMDK: it begins with {found:02x?} and not with \"KDMV\"; is it a flat disk or a descriptor?"
    )]
    Magic {
        /// First bytes.
        found: [u8; 4],
    },
    /// The delta of a snapshot.
    #[error(
        "this is the delta of a snapshot on ESXi (vmfsSparse), not a whole disk: merge the snapshot first"
    )]
    Snapshot,
    /// Line ends were changed.
    #[error("its test of line ends is damaged: the file was transferred as text; transfer it as binary")]
    TransferredAsText,
    /// Somebody has it open, or had it when it crashed.
    #[error("the disk is marked as open: close the program that has it open, or let that one repair it")]
    Unclean,
    /// A field of the header.
    #[error("{field} is {value}, expected {expected}")]
    Field {
        /// As in VMware's specification.
        field: &'static str,
        /// What stands there.
        value: u64,
        /// What could.
        expected: &'static str,
    },
    /// The embedded descriptor cannot be understood.
    #[error("in the embedded descriptor: {0}")]
    Descriptor(#[from] DescriptorError),
    /// The embedded descriptor says something that cannot be read as a disk of its own.
    #[error("{0}")]
    Refused(&'static str),
    /// A marker that should stand here does not.
    #[error("no {0} stands here: the file is damaged, or its end is missing")]
    NoMarker(&'static str),
    /// The footer is another file's.
    #[error("the footer contradicts the header")]
    Footer,
    /// An entry of a directory or table points to where no such thing can be.
    #[error("{what} {index} is said to begin at sector {sector}, where it cannot be")]
    Misplaced {
        /// Grain table or grain.
        what: &'static str,
        /// Its number.
        index: u64,
        /// Where.
        sector: u64,
    },
    /// A compressed grain of another place.
    #[error("here should be the data of sector {expected} of the disk, but its marker says {found}")]
    OtherGrain {
        /// Sector of the disk.
        expected: u64,
        /// What stands there.
        found: u64,
    },
    /// A compressed grain that is not whole.
    #[error("the compressed data of sector {sector} of the disk is damaged: {reason}")]
    Inflate {
        /// Sector of the disk.
        sector: u64,
        /// What zlib says.
        reason: String,
    },
}
