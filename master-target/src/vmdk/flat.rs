//! New flat VMDKs, as ESXi writes them, and the one change a descriptor gets later: its content id.
//!
//! A disk is two files: `NAME-flat.vmdk` with the bytes, and the descriptor `NAME.vmdk` which makes it a disk.
//! Creation never replaces a file and can be cut off anywhere:
//!
//! 1. The complete descriptor is written as `NAME.vmdk.homeward-new`, the *mark*, and made durable.
//! 2. The flat file is created (it must not exist), sized, given space or zeros as asked for, and made durable.
//! 3. The mark is renamed to `NAME.vmdk`. Only now there is a disk.
//!
//! So what a cut leaves is decided by a table (mark, flat file, descriptor):
//!
//! | mark | flat | descriptor | meaning | next creation |
//! |---|---|---|---|---|
//! | –   | –   | –   | nothing there | creates |
//! | any | any | yes | a disk | refuses |
//! | –   | yes | –   | someone lost the descriptor of a disk | refuses |
//! | yes | –   | –   | cut off in step 1 or 2 | removes the mark, creates |
//! | yes | yes | –   | cut off in step 2 or 3: nobody can have opened it | removes both if the flat file is empty or of the mark's size, else refuses |

use std::{
    io,
    path::{Path, PathBuf},
};

use engine::{
    io::{Storage, StorageFile, write_file_atomically},
    limits::IO_BYTES,
};
use rand::Rng;
use serde::{Deserialize, Serialize};

use super::{
    content_id::ContentId,
    descriptor::{self, CreateType, Descriptor, DescriptorError, NewText, RawDescriptor, random_long_prefix},
    geometry::{AdapterType, Capacity, DiskUuid},
};
use crate::datastore::EntryName;

/// When the space of a disk is taken, and when it is zeroed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Provisioning {
    /// Both as blocks are written. The flat file is sparse.
    #[default]
    Thin,
    /// Taken now, zeroed as blocks are written.
    LazilyZeroed,
    /// Both now.
    EagerlyZeroed,
}

/// What to create.
#[derive(Clone, Debug)]
pub struct NewDisk {
    /// Stem of the file names.
    pub name: EntryName,
    /// Size.
    pub capacity: Capacity,
    /// When its space is taken.
    pub provisioning: Provisioning,
    /// Controller it is made for.
    pub adapter: AdapterType,
    /// Identity. Who notes it before creating can tell its own disk after a crash.
    pub uuid: DiskUuid,
}

/// A flat disk: its two files, relative to the datastore, and its size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlatDisk {
    /// The descriptor.
    pub descriptor: PathBuf,
    /// The bytes.
    pub flat: PathBuf,
    /// Size.
    pub capacity: Capacity,
    /// Identity, where the descriptor has one.
    pub uuid: Option<DiskUuid>,
    /// Whether its space is taken as blocks are written.
    pub thin: bool,
}

/// A failure at one of the files. The message is whole: it holds those of its causes.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {kind}", path = path.display())]
pub struct FlatError {
    /// The file.
    pub path: PathBuf,
    /// What happened.
    pub kind: FlatErrorKind,
}

/// What can go wrong with a flat disk.
#[derive(Debug, thiserror::Error)]
pub enum FlatErrorKind {
    /// There is such a disk.
    #[error("a disk of this name exists already; choose another name, or replicate into that disk")]
    Exists,
    /// There are the bytes of such a disk, which are not ours.
    #[error(
        "the descriptor is missing beside this file, and no creation of Homeward was cut off here: \
         it may hold someone's data; restore its descriptor or move it away"
    )]
    NoDescriptor,
    /// A mark of ours, but the flat file is not what it would have created.
    #[error(
        "a creation was cut off here, but this file has {found} bytes and not the {expected} it would have: \
         look whose it is, then remove it and {mark}", mark = mark.display()
    )]
    NotOurs {
        /// Its length.
        found: u64,
        /// The length it would have.
        expected: u64,
        /// The mark.
        mark: PathBuf,
    },
    /// The file system cannot set space aside.
    #[error("this datastore cannot reserve space ({0}); make the disk thin or eagerly zeroed")]
    CannotReserve(io::Error),
    /// The descriptor cannot be understood.
    #[error("not a valid VMDK descriptor: {0}")]
    Descriptor(#[from] DescriptorError),
    /// Anything else.
    #[error("cannot {0}: {1}")]
    Io(&'static str, io::Error),
}

/// Creates a disk in folder `dir`; one call per name at a time. `progress` is called with the zeroed and all
/// bytes while zeros are written. What an error leaves is removed, at the latest by the next call.
pub fn create(
    storage: &dyn Storage,
    dir: &Path,
    disk: &NewDisk,
    rng: &mut dyn Rng,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<FlatDisk, FlatError> {
    let descriptor = dir.join(format!("{}.vmdk", disk.name));
    let flat = dir.join(format!("{}-flat.vmdk", disk.name));
    let mark = mark_of(&descriptor);

    storage.create_dir_all(dir).map_err(at(dir, "create the folder"))?;
    dir.ancestors().filter(|dir| dir.parent().is_some()).try_for_each(|dir| sync_parent(storage, dir))?;
    if exists(storage, &descriptor)? {
        return Err(FlatError { path: descriptor, kind: FlatErrorKind::Exists });
    }
    remove_leftover(storage, &flat, &mark)?;

    write_new(storage, &mark, esxi_text(disk, rng).as_bytes())?;
    let file = storage.create(&flat).map_err(|error| {
        // Not ours if it exists. Removal is best effort here and below: what stays is recognised next time.
        let _ = storage.remove(&mark);
        at(&flat, "create")(error)
    })?;
    let filled = fill(&*file, disk, progress).map_err(|kind| FlatError { path: flat.clone(), kind });
    filled.and_then(|()| sync_parent(storage, &flat)).inspect_err(|_| {
        let _ = remove_leftover(storage, &flat, &mark);
    })?;
    storage.rename(&mark, &descriptor).map_err(at(&descriptor, "rename into place"))?;
    sync_parent(storage, &descriptor)?;
    let thin = disk.provisioning == Provisioning::Thin;
    Ok(FlatDisk { descriptor, flat, capacity: disk.capacity, uuid: Some(disk.uuid), thin })
}

/// Gives the disk a new content id, as its content has changed: a crash leaves the old text or the new one.
pub fn change_content_id(
    storage: &dyn Storage,
    descriptor: &Path,
    rng: &mut dyn Rng,
) -> Result<ContentId, FlatError> {
    let wrong = |error| FlatError { path: descriptor.to_owned(), kind: FlatErrorKind::Descriptor(error) };
    let mut raw = RawDescriptor::parse(&read_text(storage, descriptor)?).map_err(wrong)?;
    let old = Descriptor::try_from(&raw).map_err(wrong)?.content_id;
    let new = ContentId::after(old, rng);
    raw.set_content_id(new).map_err(wrong)?;

    write_file_atomically(storage, descriptor, &raw.to_bytes()).map_err(at(descriptor, "rewrite"))?;
    Ok(new)
}

/// Reads a file as a descriptor; one that is too long fails without being read.
pub(super) fn read_text(storage: &dyn Storage, path: &Path) -> Result<Vec<u8>, FlatError> {
    let file = storage.open(path).map_err(at(path, "open"))?;
    let bytes = file.len().map_err(at(path, "find the length"))?;
    let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
    if bytes > descriptor::MAX_BYTES {
        return Err(FlatError { path: path.to_owned(), kind: DescriptorError::TooLong { bytes }.into() });
    }
    let mut text = vec![0; bytes];
    file.read_exact_at(&mut text, 0).map_err(at(path, "read"))?;
    Ok(text)
}

/// Removes the traces of a creation that was cut off, or says why it must not. See the table above.
fn remove_leftover(storage: &dyn Storage, flat: &Path, mark: &Path) -> Result<(), FlatError> {
    let marked = exists(storage, mark)?;
    if exists(storage, flat)? {
        if !marked {
            return Err(FlatError { path: flat.to_owned(), kind: FlatErrorKind::NoDescriptor });
        }
        let expected = marked_length(storage, mark)?;
        let found = length(storage, flat)?;
        if found != 0 && found != expected {
            let kind = FlatErrorKind::NotOurs { found, expected, mark: mark.to_owned() };
            return Err(FlatError { path: flat.to_owned(), kind });
        }
        storage.remove(flat).map_err(at(flat, "remove what a crash left"))?;
    }
    if marked {
        // The flat file goes first for good: alone, it would look like someone's data.
        sync_parent(storage, mark)?;
        storage.remove(mark).map_err(at(mark, "remove what a crash left"))?;
    }
    Ok(())
}

/// How long the flat file of a cut-off creation may be. The mark was durable before the flat file existed.
fn marked_length(storage: &dyn Storage, mark: &Path) -> Result<u64, FlatError> {
    let wrong = |error| FlatError { path: mark.to_owned(), kind: FlatErrorKind::Descriptor(error) };
    let raw = RawDescriptor::parse(&read_text(storage, mark)?).map_err(wrong)?;
    let sectors =
        Descriptor::try_from(&raw).map_err(wrong)?.extents.iter().map(|extent| extent.sectors).sum();
    Ok(Capacity::from_sectors(sectors).map_or(0, Capacity::bytes))
}

/// Gives the new flat file its length, and its space or zeros.
fn fill(
    file: &dyn StorageFile,
    disk: &NewDisk,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(), FlatErrorKind> {
    let io = |action| move |error| FlatErrorKind::Io(action, error);
    let bytes = disk.capacity.bytes();
    // The length alone first, and durable: a power cut leaves none or all of it, which tells the file as ours.
    file.set_len(bytes).map_err(io("set the length"))?;
    file.sync().map_err(io("sync"))?;
    match disk.provisioning {
        Provisioning::Thin => return Ok(()),
        Provisioning::LazilyZeroed => file.allocate(bytes).map_err(|error| match error.kind() {
            io::ErrorKind::Unsupported => FlatErrorKind::CannotReserve(error),
            _ => FlatErrorKind::Io("reserve its space", error),
        })?,
        Provisioning::EagerlyZeroed => write_zeros(file, bytes, progress).map_err(io("write zeros"))?,
    }
    file.sync().map_err(io("sync"))
}

fn write_zeros(file: &dyn StorageFile, bytes: u64, progress: &mut dyn FnMut(u64, u64)) -> io::Result<()> {
    let zeros = vec![0; IO_BYTES];
    let mut done = 0;
    while done < bytes {
        let part = (bytes - done).min(IO_BYTES as u64);
        file.write_all_at(&zeros[..part as usize], done)?;
        done += part;
        progress(done, bytes);
    }
    Ok(())
}

/// Writes a small file that must not exist, and makes it durable.
fn write_new(storage: &dyn Storage, path: &Path, bytes: &[u8]) -> Result<(), FlatError> {
    let file = storage.create(path).map_err(at(path, "create"))?;
    file.write_all_at(bytes, 0).map_err(at(path, "write"))?;
    file.sync().map_err(at(path, "sync"))?;
    sync_parent(storage, path)
}

/// The text of a new disk's descriptor.
fn esxi_text(disk: &NewDisk, rng: &mut dyn Rng) -> String {
    let text = NewText {
        create_type: CreateType::Vmfs,
        extent: ("RW", "VMFS"),
        file: &format!("{}-flat.vmdk", disk.name),
        capacity: disk.capacity,
        adapter: disk.adapter,
        thin: disk.provisioning == Provisioning::Thin,
        uuid: Some(disk.uuid),
        content_id: ContentId::FRESH,
        long_prefix: random_long_prefix(rng),
    };
    text.to_string()
}

fn mark_of(descriptor: &Path) -> PathBuf {
    let mut name = descriptor.as_os_str().to_owned();
    name.push(".homeward-new");
    name.into()
}

fn exists(storage: &dyn Storage, path: &Path) -> Result<bool, FlatError> {
    storage.exists(path).map_err(at(path, "look for it"))
}

/// Makes the names in the folder of `path` durable.
fn sync_parent(storage: &dyn Storage, path: &Path) -> Result<(), FlatError> {
    let dir = path.parent().unwrap_or(Path::new(""));
    storage.sync_dir(dir).map_err(at(dir, "sync the folder"))
}

pub(super) fn length(storage: &dyn Storage, path: &Path) -> Result<u64, FlatError> {
    storage.open(path).and_then(|file| file.len()).map_err(at(path, "find the length"))
}

/// Puts an I/O error into context.
pub(super) fn at(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> FlatError {
    move |error| FlatError { path: path.to_owned(), kind: FlatErrorKind::Io(action, error) }
}

#[cfg(test)]
mod power_cut_tests;
#[cfg(test)]
mod tests;
