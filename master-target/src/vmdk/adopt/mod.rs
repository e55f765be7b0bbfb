//! Which existing disks may be written to: a flat base disk that nothing depends on, and nothing else.
//!
//! Every reason against it is its own error ([`Refusal`]), found before a byte is written. What files cannot show is not
//! found here and is vCenter's to say: that the VM is off and nobody else has the disk attached (locks and swap
//! files of a running VM are seen), and that no linked clone in another folder has this disk as its parent.

mod folder;
mod refusal;

use std::{io, path::Path};

use engine::io::Storage;

pub use self::refusal::{Refusal, Refused};
use super::{
    content_id::ContentId,
    descriptor::{Access, CreateType, Descriptor, Extent, ExtentType, RawDescriptor},
    flat::{FlatDisk, at, length, read_text},
    geometry::Capacity,
};

/// Checks that the disk of `descriptor` may be written to, and finds its bytes. Changes nothing.
pub fn open_for_writing(storage: &dyn Storage, descriptor: &Path) -> Result<FlatDisk, Refused> {
    check(storage, descriptor).map_err(|reason| Refused { descriptor: descriptor.to_owned(), reason })
}

fn check(storage: &dyn Storage, path: &Path) -> Result<FlatDisk, Refusal> {
    check_magic(storage, path)?;
    let raw = RawDescriptor::parse(&read_text(storage, path)?)?;
    let descriptor = Descriptor::try_from(&raw)?;
    check_kind(&descriptor)?;
    let (file, capacity) = check_extent(&descriptor)?;

    let flat = path.parent().unwrap_or(Path::new("")).join(file);
    folder::check(storage, path, file, descriptor.content_id)?;
    let found = length(storage, &flat)?;
    if found != capacity.bytes() {
        return Err(Refusal::SizeMismatch { file: file.to_owned(), found, expected: capacity.bytes() });
    }
    let (descriptor, uuid, thin) = (path.to_owned(), descriptor.uuid, descriptor.thin);
    Ok(FlatDisk { descriptor, flat, capacity, uuid, thin })
}

/// Disks that have descriptor and bytes in one file are told by how it begins.
fn check_magic(storage: &dyn Storage, path: &Path) -> Result<(), Refusal> {
    if !storage.exists(path).map_err(at(path, "look for it"))? {
        return Err(Refusal::Missing);
    }
    let mut magic = [0; 4];
    let file = storage.open(path).map_err(at(path, "open"))?;
    match file.read_exact_at(&mut magic, 0) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
        Err(error) => return Err(at(path, "read")(error).into()),
    }
    match &magic {
        b"KDMV" => Err(Refusal::InOneFile("a disk in one file (hosted sparse or streamOptimized)")),
        b"COWD" => Err(Refusal::InOneFile("a disk in one file (COWD), or the data of a snapshot")),
        _ => Ok(()),
    }
}

/// What the descriptor says of the disk as a whole. What tells the operator most comes first.
fn check_kind(descriptor: &Descriptor) -> Result<(), Refusal> {
    if descriptor.encrypted {
        return Err(Refusal::Encrypted);
    }
    match descriptor.create_type {
        CreateType::Vmfs | CreateType::MonolithicFlat => {}
        CreateType::VmfsSparse | CreateType::SeSparse | CreateType::VsanSparse => {
            return Err(Refusal::SnapshotChild { hint: descriptor.parent_hint.clone() });
        }
        raw @ (CreateType::VmfsRawDeviceMap
        | CreateType::VmfsPassthroughRawDeviceMap
        | CreateType::VmfsRaw) => return Err(Refusal::RawDevice(raw.as_str())),
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
    if descriptor.change_tracking.is_some() || descriptor.version == 3 {
        return Err(Refusal::ChangeTracking { path: descriptor.change_tracking.clone() });
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
    let (kind, expected) = match descriptor.create_type {
        CreateType::MonolithicFlat => (ExtentType::Flat, "RW FLAT"),
        _ => (ExtentType::Vmfs, "RW VMFS"),
    };
    if let ExtentType::VmfsRdm | ExtentType::VmfsRaw = extent.kind {
        return Err(Refusal::RawDevice(extent.kind.as_str()));
    }
    let Extent { access: Access::ReadWrite, file: Some(file), .. } = extent else {
        return Err(wrong_extent(extent, expected));
    };
    if extent.kind != kind {
        return Err(wrong_extent(extent, expected));
    }
    if let Some(offset @ 1..) = extent.offset {
        return Err(Refusal::Offset(offset));
    }
    if file.starts_with("vsan:") {
        return Err(Refusal::VsanObject(file.clone()));
    }
    if file.is_empty() || file.contains(['/', '\\']) || file == "." || file == ".." {
        return Err(Refusal::OutsideFolder(file.clone()));
    }
    Ok((file, Capacity::from_sectors(extent.sectors)?))
}

fn wrong_extent(extent: &Extent, expected: &'static str) -> Refusal {
    Refusal::WrongExtent { found: format!("{} {}", extent.access.as_str(), extent.kind.as_str()), expected }
}

#[cfg(test)]
mod tests;
