//! An open file to read from, which never reads beyond its end and names the place of every failure.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use super::error::{SparseError, SparseErrorKind};

/// An open file, or bytes in memory.
pub trait ReadAt: Send + Sync {
    /// Length in bytes.
    fn bytes(&self) -> io::Result<u64>;

    /// Fills `buf` from `offset`.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;
}

impl ReadAt for &File {
    fn bytes(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.read_exact_at(buf, offset)
    }
}

impl ReadAt for &[u8] {
    fn bytes(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let part = usize::try_from(offset).ok().and_then(|at| self.get(at..)?.get(..buf.len()));
        buf.copy_from_slice(part.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// The file, its name for messages, and its length when it was opened.
pub(super) struct Source<F> {
    name: PathBuf,
    file: F,
    /// Bytes.
    pub(super) len: u64,
}

impl<F: ReadAt> Source<F> {
    pub(super) fn new(name: &Path, file: F) -> Result<Self, SparseError> {
        let failed = |error: io::Error| SparseError { file: name.to_owned(), offset: 0, kind: error.into() };
        let len = file.bytes().map_err(failed)?;
        Ok(Self { name: name.to_owned(), file, len })
    }

    pub(super) fn error(&self, offset: u64, kind: SparseErrorKind) -> SparseError {
        SparseError { file: self.name.clone(), offset, kind }
    }

    /// Reads `bytes`, which were bounded, at `offset`; nothing is allocated for what is not there.
    pub(super) fn read(&self, what: &'static str, offset: u64, bytes: u64) -> Result<Vec<u8>, SparseError> {
        let mut buf = Vec::new();
        self.read_into(what, offset, bytes, &mut buf)?;
        Ok(buf)
    }

    pub(super) fn read_into(
        &self,
        what: &'static str,
        offset: u64,
        bytes: u64,
        buf: &mut Vec<u8>,
    ) -> Result<(), SparseError> {
        if offset.checked_add(bytes).is_none_or(|end| end > self.len) {
            return Err(self.error(offset, SparseErrorKind::Beyond { what, bytes, end: self.len }));
        }
        buf.resize(bytes as usize, 0);
        self.file.read_at(offset, buf).map_err(|error| self.error(offset, error.into()))
    }
}
