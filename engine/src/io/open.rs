//! Opening a file or block device as a [`Device`]: the choice of back end, and what all back ends have in common.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    Device, Op,
    disk_file::DiskFile,
    queue::{self, Submit},
    threads::Threads,
    uring::{self, Uring},
};

/// What a device is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reads only; the descriptors cannot write.
    ReadOnly,
    /// Reads and writes. Claims a block device, which fails while it is mounted.
    ReadWrite,
}

/// How operations reach the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Backend {
    /// io_uring where this process may use it, else threads.
    #[default]
    Auto,
    /// io_uring, or an error.
    Uring,
    /// A pool of threads with blocking calls.
    Threads,
}

/// Why a device could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file or block device itself.
    #[error("cannot open disk {path} for {}: {source}{}", purpose(*.access), hint(source))]
    Disk {
        /// Its path.
        path: PathBuf,
        /// What for.
        access: Access,
        /// Why.
        source: io::Error,
    },
    /// io_uring was asked for and is refused.
    #[error(
        "cannot use io_uring for disk {path}: {source}; allow it (sysctl kernel.io_uring_disabled=0, the container's \
         seccomp profile) or choose the threads back end"
    )]
    Uring {
        /// The disk's path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

fn purpose(access: Access) -> &'static str {
    match access {
        Access::ReadOnly => "reading",
        Access::ReadWrite => "reading and writing",
    }
}

fn hint(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::ResourceBusy => "; unmount it, or stop whatever else uses it",
        io::ErrorKind::PermissionDenied => "; run as root, or give the service's user access to it",
        _ => "",
    }
}

impl From<OpenError> for io::Error {
    fn from(error: OpenError) -> Self {
        let (OpenError::Disk { source, .. } | OpenError::Uring { source, .. }) = &error;
        Self::new(source.kind(), error)
    }
}

/// Opens the file or block device at `path`. Its size is what it is now.
///
/// I/O is unbuffered for whole logical blocks of a block device and whole 4 KiB pages of a file; the rest, and all
/// of it where the file system has no unbuffered I/O, goes through the page cache.
pub fn open_device(path: &Path, access: Access, backend: Backend) -> Result<Arc<dyn Device>, OpenError> {
    let file = DiskFile::open(path, access == Access::ReadWrite).map_err(|source| OpenError::Disk {
        path: path.into(),
        access,
        source,
    })?;
    let disk = Disk::new(file, backend).map_err(|source| OpenError::Uring { path: path.into(), source })?;
    Ok(Arc::new(disk))
}

pub(super) struct Disk {
    // Before `file`, so that it ends before its last descriptor is closed.
    backend: Box<dyn Submit>,
    file: Arc<DiskFile>,
}

impl Disk {
    /// Fails only if `backend` is io_uring and the kernel refuses it.
    pub(super) fn new(file: DiskFile, backend: Backend) -> io::Result<Self> {
        let file = Arc::new(file);
        let uring = match backend {
            Backend::Auto => uring::is_allowed(),
            Backend::Uring => true,
            Backend::Threads => false,
        };
        let backend: Box<dyn Submit> = match uring {
            true => Box::new(Uring::start(file.clone())?),
            false => Box::new(Threads::new(file.clone())),
        };
        Ok(Self { backend, file })
    }
}

impl Device for Disk {
    fn size(&self) -> u64 {
        self.file.size()
    }

    fn name(&self) -> &str {
        self.file.name()
    }

    fn run(&self, ops: &mut dyn Iterator<Item = Op>, done: &mut dyn FnMut(Op, io::Result<()>)) {
        queue::run(&self.file, &*self.backend, ops, done);
    }

    fn holes(&self, offset: u64, len: u64) -> io::Result<Vec<(u64, bool)>> {
        self.file.holes(offset, len)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync()
    }
}

#[cfg(test)]
mod tests;
