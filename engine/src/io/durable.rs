//! [`Storage`] on a real folder, and the sequences of steps that make a whole change durable.

use std::{
    ffi::OsString,
    fs::{self, File},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use rustix::fs::OFlags;

use rustix::fs::FallocateFlags;

use super::{
    Access, Backend, Device, Storage, StorageFile, lock::LOCK_NAME, open_device, sync_guard::SyncGuard,
};

/// A folder of the machine's file system. After a failed [`Storage::sync_dir`] it is dead, as its files are after
/// a failed sync; open it again.
#[derive(Debug)]
pub struct FolderStorage {
    root: PathBuf,
    backend: Backend,
    guard: SyncGuard,
}

impl FolderStorage {
    /// The folder `root`, which must exist. Its devices use `backend`.
    pub fn open(root: impl Into<PathBuf>, backend: Backend) -> io::Result<Self> {
        let root = root.into();
        fs::read_dir(&root)?;
        Ok(Self { guard: SyncGuard::new(root.display().to_string()), root, backend })
    }

    /// Where `path` is, unless the storage is dead or the path leads out of it.
    fn resolve(&self, path: &Path) -> io::Result<PathBuf> {
        self.guard.check()?;
        check_relative(path)?;
        Ok(self.root.join(path))
    }
}

/// Refuses paths that would lead out of a storage.
pub(super) fn check_relative(path: &Path) -> io::Result<()> {
    if path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir)) {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::InvalidInput,
        format!("path {} leads out of the storage: it must be relative and without ..", path.display()),
    ))
}

impl Storage for FolderStorage {
    fn open(&self, path: &Path) -> io::Result<Box<dyn StorageFile>> {
        let path = self.resolve(path)?;
        let file = File::options().read(true).write(true).open(&path)?;
        Ok(Box::new(FolderFile::new(&path, file)))
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn StorageFile>> {
        let path = self.resolve(path)?;
        let file = File::options().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
        Ok(Box::new(FolderFile::new(&path, file)))
    }

    fn device(&self, path: &Path) -> io::Result<Arc<dyn Device>> {
        Ok(open_device(&self.resolve(path)?, Access::ReadWrite, self.backend)?)
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        fs::create_dir_all(self.resolve(path)?)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let not_utf8 = |name: OsString| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("file name {name:?} is not valid UTF-8; rename it"),
            )
        };
        let mut names = fs::read_dir(self.resolve(dir)?)?
            .map(|entry| entry?.file_name().into_string().map_err(not_utf8))
            .filter(|name| name.as_ref().map_or(true, |name| name != LOCK_NAME))
            .collect::<io::Result<Vec<_>>>()?;
        names.sort_unstable();
        Ok(names)
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        self.resolve(path)?.try_exists()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(self.resolve(from)?, self.resolve(to)?)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(self.resolve(path)?)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let folder_only = OFlags::DIRECTORY.bits() as i32;
        let dir = File::options().read(true).custom_flags(folder_only).open(self.resolve(dir)?)?;
        self.guard.sync(|| dir.sync_all())
    }

    fn free_space(&self) -> io::Result<u64> {
        let found = rustix::fs::statvfs(self.resolve(Path::new(""))?)?;
        Ok(found.f_bavail.saturating_mul(found.f_frsize))
    }
}

struct FolderFile {
    file: File,
    guard: SyncGuard,
}

impl FolderFile {
    fn new(path: &Path, file: File) -> Self {
        Self { file, guard: SyncGuard::new(path.display().to_string()) }
    }
}

impl StorageFile for FolderFile {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.guard.check()?;
        self.file.read_exact_at(buf, offset)
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.guard.check()?;
        self.file.write_all_at(bytes, offset)
    }

    fn will_read(&self, offset: u64, len: u64) {
        /// The kernel fetches no more for one call.
        const CALL: u64 = 512 << 10;
        for at in (offset..offset + len).step_by(CALL as usize) {
            let len = std::num::NonZero::new(CALL.min(offset + len - at));
            // Only advice.
            let _ = rustix::fs::fadvise(&self.file, at, len, rustix::fs::Advice::WillNeed);
        }
    }

    fn wont_read(&self) {
        // Only advice.
        let _ = rustix::fs::fadvise(&self.file, 0, None, rustix::fs::Advice::DontNeed);
    }

    fn len(&self) -> io::Result<u64> {
        self.guard.check()?;
        Ok(self.file.metadata()?.len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.guard.check()?;
        self.file.set_len(len)
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        self.guard.check()?;
        // Unlike posix_fallocate this never falls back to writing zeros, which would take hours unasked.
        Ok(rustix::fs::fallocate(&self.file, FallocateFlags::empty(), 0, len)?)
    }

    fn sync(&self) -> io::Result<()> {
        // fdatasync: it covers the length, and leaves out only times and the like.
        self.guard.sync(|| self.file.sync_data())
    }
}

/// Replaces the file at `path`, or creates it, so that after a crash at any moment it holds either what it held
/// or all of `bytes`; once this has returned, `bytes`. What a crash leaves behind is `path` with `.tmp` appended;
/// the next call clears it away.
pub fn write_file_atomically(storage: &dyn Storage, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    let temporary = Path::new(&temporary);
    if storage.exists(temporary)? {
        storage.remove(temporary)?;
    }
    let file = storage.create(temporary)?;
    file.write_all_at(bytes, 0)?;
    file.sync()?;
    storage.rename(temporary, path)?;
    storage.sync_dir(parent_of(path))
}

/// Removes the file at `path` for good. Fine if it is gone already, as after a crash half-way.
pub fn remove_file_durably(storage: &dyn Storage, path: &Path) -> io::Result<()> {
    match storage.remove(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => storage.sync_dir(parent_of(path)),
    }
}

fn parent_of(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new(""))
}

#[cfg(test)]
mod tests;
