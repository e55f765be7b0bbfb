//! Why a disk must not be written to: each reason with its place and what can be done about it.

use std::path::PathBuf;

use crate::vmdk::{
    descriptor::{CreateType, DescriptorError},
    flat::FlatError,
    geometry::CapacityError,
};

/// A disk that must not be written to.
#[derive(Debug, thiserror::Error)]
#[error("{descriptor} cannot be written to: {reason}", descriptor = descriptor.display())]
pub struct Refused {
    /// Its descriptor.
    pub descriptor: PathBuf,
    /// Why.
    pub reason: Refusal,
}

/// Why a disk must not be written to, and what can be done about it.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum Refusal {
    #[error(
        "there is no such file; look whether the datastore is mounted, and what the disk's descriptor is called"
    )]
    Missing,
    #[error("it is not a valid VMDK descriptor: {0}; name the small text file NAME.vmdk")]
    Invalid(#[from] DescriptorError),
    #[error("{0}")]
    File(#[from] FlatError),
    #[error(
        "it is {0} and not a descriptor; make a flat disk of it, for instance with vmkfstools -i or qemu-img convert, \
         and name that one's descriptor"
    )]
    InOneFile(&'static str),
    #[error("it is encrypted; attach it to the master target's VM and use its block device")]
    Encrypted,
    #[error(
        "an I/O filter is set on it (ddb.iofilters), which writes to the file would go around; detach the filter"
    )]
    Filtered,
    #[error(
        "it is a snapshot ({}); consolidate the VM's snapshots, and name the base disk",
        .hint.as_deref().unwrap_or("of an unnamed parent")
    )]
    SnapshotChild { hint: Option<String> },
    #[error("it is a native snapshot of the storage array; consolidate the VM's snapshots")]
    NativeSnapshot,
    #[error("{child} has it as its parent and would be corrupted; consolidate the VM's snapshots")]
    HasChild { child: String },
    #[error("{file} says that the VM has snapshots ({count}); consolidate them all in vCenter")]
    HasSnapshots { file: String, count: u32 },
    #[error("{file} says that the VM runs from {link}, a snapshot of it; consolidate the VM's snapshots")]
    RunsFromSnapshot { file: String, link: String },
    #[error(
        "{file} is the data of a snapshot of it, whose descriptor is missing; find out whether the VM needs it, and \
         move it away if not"
    )]
    Orphan { file: String },
    #[error(
        "{other} uses the same file {file:?}; two disks cannot share their bytes, remove the wrong descriptor"
    )]
    SharedExtent { other: String, file: String },
    #[error(
        "{neighbour}, beside it, cannot be read ({error}), so that it may tell of a snapshot of this disk; repair or \
         move it"
    )]
    UnreadableNeighbour { neighbour: String, error: DescriptorError },
    #[error(
        "ESXi tracks its changed blocks ({}) and would miss these writes, so that incremental backups would be wrong; \
         switch changed block tracking off for the VM, whose next backup must then be a full one",
        .path.as_ref().map_or_else(|| "its format version is 3".to_owned(), |path| format!("in {path:?}"))
    )]
    ChangeTracking { path: Option<String> },
    #[error(
        "its format version is {0}; only version 1 is understood well enough to write, clone it with vmkfstools -i"
    )]
    Version(u32),
    #[error("it maps a raw device ({0}); use the block device as the target")]
    RawDevice(&'static str),
    #[error("its type is {}, not a flat disk; convert it, for instance with vmkfstools -i", .0.as_str())]
    NotFlat(CreateType),
    #[error(
        "its bytes are a vSAN object ({0}); attach it to the master target's VM and use its block device"
    )]
    VsanObject(String),
    #[error("it has {0} extents; a flat disk has one, clone it with vmkfstools -i")]
    ExtentCount(usize),
    #[error("its extent is {found}, and {expected} is that of a disk of its type; repair the descriptor")]
    WrongExtent { found: String, expected: &'static str },
    #[error(
        "its bytes begin at sector {0} of their file, not at its start; convert it, for instance with vmkfstools -i"
    )]
    Offset(u64),
    #[error("its extent names {0:?}, which is not a file beside the descriptor; bring the two together")]
    OutsideFolder(String),
    #[error("{0}; repair the descriptor")]
    Capacity(#[from] CapacityError),
    #[error(
        "{file:?} has {found} bytes and the descriptor says {expected}; one of them is damaged: find out which before \
         anything is written"
    )]
    SizeMismatch { file: String, found: u64, expected: u64 },
    #[error("{0} says that it is in use; power the VM off (or remove the lock if no host holds it)")]
    Locked(String),
    #[error("{0} says that the VM runs; power it off (or remove the file if no host runs it)")]
    Running(String),
    #[error(
        "{0} says that the VM is suspended, and it would go on with a disk that has changed; power it off"
    )]
    Suspended(String),
}
