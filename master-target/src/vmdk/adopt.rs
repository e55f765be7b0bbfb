//! Which existing disks may be written to: a flat base disk that nothing depends on, and nothing else.
//!
//! Every reason against it is its own error, found before a byte is written. What files cannot show is not
//! found here and is vCenter's to say: that the VM is off, and that no linked clone in another folder has this
//! disk as its parent.

use std::path::{Path, PathBuf};

use engine::io::Storage;

use super::{
    content_id::ContentId,
    descriptor::{Access, CreateType, Descriptor, DescriptorError, Extent, ExtentType, RawDescriptor},
    flat::{FlatDisk, FlatError, FlatErrorKind, at, length, read_text},
    geometry::{Capacity, CapacityError},
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
    #[error("it is not a valid VMDK descriptor: {0}")]
    Invalid(#[from] DescriptorError),
    #[error("{0}")]
    File(#[from] FlatError),
    #[error("it is encrypted; attach it to the master target's VM and use its block device")]
    Encrypted,
    #[error(
        "an I/O filter is set on it (ddb.iofilters), which writes to the file would go around; detach the filter"
    )]
    Filtered,
    #[error("it is a snapshot ({}); consolidate the VM's snapshots", .hint.as_deref().unwrap_or("of an unnamed parent"))]
    SnapshotChild { hint: Option<String> },
    #[error("it is a native snapshot of the storage array; consolidate the VM's snapshots")]
    NativeSnapshot,
    #[error("{child} has it as its parent and would be corrupted; consolidate the VM's snapshots")]
    HasChild { child: String },
    #[error(
        "{other} uses the same file {file:?}; two disks cannot share their bytes, remove the wrong descriptor"
    )]
    SharedExtent { other: String, file: String },
    #[error(
        "{neighbour}, beside it, cannot be read ({error}), so that it may be a snapshot of this disk; repair or move it"
    )]
    UnreadableNeighbour { neighbour: String, error: DescriptorError },
    #[error(
        "ESXi tracks its changed blocks in {path:?} and would miss these writes, so that incremental backups would \
         be wrong; switch changed block tracking off"
    )]
    ChangeTracking { path: String },
    #[error("its format version is {0}; only version 1 is understood well enough to write")]
    Version(u32),
    #[error("it maps a raw device ({}); use the block device as the target", .0.as_str())]
    RawDevice(CreateType),
    #[error("its type is {}, not a flat disk of ESXi; convert it, for instance with vmkfstools -i", .0.as_str())]
    NotFlat(CreateType),
    #[error(
        "its bytes are a vSAN object ({0}); attach it to the master target's VM and use its block device"
    )]
    VsanObject(String),
    #[error("it has {0} extents; a flat disk of ESXi has one")]
    ExtentCount(usize),
    #[error("its extent is {0:?}, expected RW VMFS")]
    WrongExtent(Extent),
    #[error("its extent names {0:?}, which is not a file beside the descriptor")]
    OutsideFolder(String),
    #[error("{0}")]
    Capacity(#[from] CapacityError),
    #[error("{file:?} has {found} bytes and the descriptor says {expected}; one of them is damaged")]
    SizeMismatch { file: String, found: u64, expected: u64 },
    #[error("{0} says that it is in use; power the VM off (or remove the lock if no host holds it)")]
    Locked(String),
}

/// Checks that the disk of `descriptor` may be written to, and finds its bytes. Changes nothing.
pub fn open_for_writing(storage: &dyn Storage, descriptor: &Path) -> Result<FlatDisk, Refused> {
    check(storage, descriptor).map_err(|reason| Refused { descriptor: descriptor.to_owned(), reason })
}

fn check(storage: &dyn Storage, path: &Path) -> Result<FlatDisk, Refusal> {
    let raw = RawDescriptor::parse(&read_text(storage, path)?)?;
    let descriptor = Descriptor::try_from(&raw)?;
    check_kind(&descriptor)?;
    let (file, capacity) = check_extent(&descriptor)?;

    let dir = path.parent().unwrap_or(Path::new(""));
    let flat = dir.join(file);
    check_neighbours(storage, dir, path, file)?;
    let found = length(storage, &flat)?;
    if found != capacity.bytes() {
        return Err(Refusal::SizeMismatch { file: file.to_owned(), found, expected: capacity.bytes() });
    }
    Ok(FlatDisk { descriptor: path.to_owned(), flat, capacity, uuid: descriptor.uuid })
}

/// What the descriptor says of the disk as a whole. What tells the operator most comes first.
fn check_kind(descriptor: &Descriptor) -> Result<(), Refusal> {
    if descriptor.encrypted {
        return Err(Refusal::Encrypted);
    }
    match descriptor.create_type {
        CreateType::Vmfs => {}
        CreateType::VmfsSparse | CreateType::SeSparse | CreateType::VsanSparse => {
            return Err(Refusal::SnapshotChild { hint: descriptor.parent_hint.clone() });
        }
        CreateType::VmfsRawDeviceMap | CreateType::VmfsPassthroughRawDeviceMap | CreateType::VmfsRaw => {
            return Err(Refusal::RawDevice(descriptor.create_type));
        }
        hosted => return Err(Refusal::NotFlat(hosted)),
    }
    if descriptor.parent_content_id != ContentId::NO_PARENT || descriptor.parent_hint.is_some() {
        return Err(Refusal::SnapshotChild { hint: descriptor.parent_hint.clone() });
    }
    if descriptor.native_snapshot {
        return Err(Refusal::NativeSnapshot);
    }
    if descriptor.filtered {
        return Err(Refusal::Filtered);
    }
    if let Some(path) = &descriptor.change_tracking {
        return Err(Refusal::ChangeTracking { path: path.clone() });
    }
    match descriptor.version {
        1 => Ok(()),
        other => Err(Refusal::Version(other)),
    }
}

/// The flat file's name and size.
fn check_extent(descriptor: &Descriptor) -> Result<(&str, Capacity), Refusal> {
    let [extent] = &descriptor.extents[..] else {
        return Err(Refusal::ExtentCount(descriptor.extents.len()));
    };
    let (Access::ReadWrite, ExtentType::Vmfs, Some(file)) = (extent.access, extent.kind, &extent.file) else {
        return Err(Refusal::WrongExtent(extent.clone()));
    };
    if file.starts_with("vsan:") {
        return Err(Refusal::VsanObject(file.clone()));
    }
    if file.is_empty() || file.contains(['/', '\\']) || file == "." || file == ".." {
        return Err(Refusal::OutsideFolder(file.clone()));
    }
    Ok((file, Capacity::from_sectors(extent.sectors)?))
}

/// Looks through the folder for whatever depends on the disk or holds it.
fn check_neighbours(storage: &dyn Storage, dir: &Path, path: &Path, flat: &str) -> Result<(), Refusal> {
    let own = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let names = storage.list(dir).map_err(at(dir, "list the folder"))?;
    for name in names {
        // ESXi's on NFS cannot be told apart by disk; hosted products' can.
        let lock = name.strip_suffix(".lck").is_some_and(|of| of == own || of == flat);
        if lock || name.starts_with(".lck-") {
            return Err(Refusal::Locked(name));
        }
        let is_vmdk = name.len() > 5 && name.to_ascii_lowercase().ends_with(".vmdk");
        if !is_vmdk || name == own || name == flat {
            continue;
        }
        check_neighbour(storage, dir, name, own, flat)?;
    }
    Ok(())
}

fn check_neighbour(
    storage: &dyn Storage,
    dir: &Path,
    name: String,
    own: &str,
    flat: &str,
) -> Result<(), Refusal> {
    let text = match read_text(storage, &dir.join(&name)) {
        Ok(text) => text,
        // Not a descriptor but the bytes of one.
        Err(FlatError { kind: FlatErrorKind::Descriptor(_), .. }) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let raw = match RawDescriptor::parse(&text) {
        Ok(raw) => raw,
        Err(error) if text.starts_with(b"#") => {
            return Err(Refusal::UnreadableNeighbour { neighbour: name, error });
        }
        Err(_) => return Ok(()),
    };
    // The hint may be a path. A parent of this name elsewhere is taken for this one, to be safe.
    let parent = raw.get("parentFileNameHint").map(|hint| hint.value);
    let parent = parent.and_then(|path| path.rsplit(|byte| matches!(byte, b'/' | b'\\')).next());
    if parent == Some(own.as_bytes()) {
        return Err(Refusal::HasChild { child: name });
    }
    let quoted = format!("\"{flat}\"");
    let mut extents = raw.extent_lines();
    if extents.any(|(_, line)| line.windows(quoted.len()).any(|part| part == quoted.as_bytes())) {
        return Err(Refusal::SharedExtent { other: name, file: flat.to_owned() });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
