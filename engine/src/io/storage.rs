//! What the journal, the catalogue and the spool need of a file system: a folder of files, with the syncs that
//! make each step durable spelled out.
//!
//! Nothing is durable until the matching sync returned: file contents and length by [`StorageFile::sync`],
//! creation, renaming and removal of names by [`Storage::sync_dir`].

use std::{io, path::Path, sync::Arc};

use super::Device;

/// A folder tree. Paths are relative to its root; `..` is refused.
pub trait Storage: Send + Sync {
    /// Opens an existing file for reading and writing.
    fn open(&self, path: &Path) -> io::Result<Box<dyn StorageFile>>;

    /// Creates a file that must not exist yet.
    fn create(&self, path: &Path) -> io::Result<Box<dyn StorageFile>>;

    /// Opens an existing file as a disk: unbuffered, many operations in flight.
    fn device(&self, path: &Path) -> io::Result<Arc<dyn Device>>;

    /// Creates a folder and its parents; fine if they exist.
    fn create_dir_all(&self, path: &Path) -> io::Result<()>;

    /// Names in a folder, sorted.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;

    /// Whether a file or folder of that name exists.
    fn exists(&self, path: &Path) -> io::Result<bool>;

    /// Renames, replacing what stood at `to`.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Makes names in `dir` durable. After an error the storage is dead: every later call fails, except on files
    /// that are open already.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;

    /// Bytes that can still be written.
    fn free_space(&self) -> io::Result<u64>;
}

/// An open file.
pub trait StorageFile: Send + Sync {
    /// Fills `buf` from `offset`; [`io::ErrorKind::UnexpectedEof`] if the file ends before.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;

    /// Writes all of `bytes` at `offset`, growing the file as needed.
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Says that these bytes will be read soon, so that they can be fetched meanwhile. Does not wait, and nothing depends
    /// on it.
    fn will_read(&self, offset: u64, len: u64) {
        let _ = (offset, len);
    }

    /// Says that what is durable of the file will not be read soon, so that it need not be kept in memory. Nothing
    /// depends on it.
    fn wont_read(&self) {}

    /// Length in bytes.
    fn len(&self) -> io::Result<u64>;

    /// Whether it has no bytes.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Cuts or grows (with a hole) to `len` bytes.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Grows the file to `len` bytes and sets their space aside, unwritten, so that writing them later cannot fail
    /// for lack of it. [`io::ErrorKind::Unsupported`] where the file system cannot promise that.
    fn allocate(&self, len: u64) -> io::Result<()> {
        let _ = len;
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Makes contents and length durable. After an error the handle is dead: every later call fails.
    fn sync(&self) -> io::Result<()>;
}
