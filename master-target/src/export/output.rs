//! Where an export goes: a file with holes, or a pipe, which gets its bytes from beginning to end.

use std::{
    fs::File,
    io::{self, Write},
    os::{fd::AsRawFd, unix::fs::FileExt},
    path::PathBuf,
};

use rustix::fs::{Advice, fadvise, fstatvfs};

use super::error::ExportError;

/// An open file or pipe.
pub(super) struct Output<'a> {
    file: &'a File,
    name: PathBuf,
    /// Bytes from the beginning to the end of what was put.
    end: u64,
    /// Whether holes must be written as zeros.
    is_stream: bool,
}

impl<'a> Output<'a> {
    pub(super) fn new(file: &'a File, is_stream: bool) -> Self {
        // The name is for messages: the file was opened by others.
        let name = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()));
        Self { file, name: name.unwrap_or_else(|_| "the output".into()), end: 0, is_stream }
    }

    pub(super) fn name(&self) -> &PathBuf {
        &self.name
    }

    /// The file, to be read again, unless it is a stream. Its bytes are durable, and are read from the disk.
    pub(super) fn written(&self) -> Result<Option<&'a File>, ExportError> {
        if self.is_stream {
            return Ok(None);
        }
        self.file.sync_all().map_err(|error| self.error("sync", error))?;
        // Helps the check only: without it, it may read what is in memory.
        let _ = fadvise(self.file, 0, None, Advice::DontNeed);
        Ok(Some(self.file))
    }

    /// Refuses if the file system has less than `need` bytes free. What takes a stream is not known.
    pub(super) fn check_space(&self, need: u64) -> Result<(), ExportError> {
        if self.is_stream {
            return Ok(());
        }
        let found = fstatvfs(self.file).map_err(|error| self.error("measure the space for", error.into()))?;
        let free = found.f_bavail.saturating_mul(found.f_frsize);
        if free >= need {
            return Ok(());
        }
        Err(ExportError::NoSpace { name: self.name.clone(), need, free })
    }

    /// Puts `bytes` at `offset`, behind all that was put before; what is between reads as zeros.
    pub(super) fn put(&mut self, offset: u64, bytes: &[u8]) -> Result<(), ExportError> {
        debug_assert!(offset >= self.end);
        if self.is_stream {
            self.fill(offset)?;
            self.file.write_all(bytes).map_err(|error| self.error("write to", error))?;
        } else {
            self.file.write_all_at(bytes, offset).map_err(|error| self.error("write to", error))?;
        }
        self.end = offset + bytes.len() as u64;
        Ok(())
    }

    /// Puts `bytes` behind all that was put before.
    pub(super) fn append(&mut self, bytes: &[u8]) -> Result<(), ExportError> {
        self.put(self.end, bytes)
    }

    /// Bytes from beginning to end, holes included.
    pub(super) fn len(&self) -> u64 {
        self.end
    }

    /// Ends with zeros up to `len` bytes.
    pub(super) fn finish(&mut self, len: u64) -> Result<(), ExportError> {
        if self.is_stream {
            return self.fill(len);
        }
        self.end = len;
        self.file.set_len(len).map_err(|error| self.error("set the length of", error))
    }

    fn fill(&mut self, end: u64) -> Result<(), ExportError> {
        const ZEROS: &[u8] = &[0; 64 << 10];
        while self.end < end {
            let part = (end - self.end).min(ZEROS.len() as u64);
            self.file.write_all(&ZEROS[..part as usize]).map_err(|error| self.error("write to", error))?;
            self.end += part;
        }
        Ok(())
    }

    pub(super) fn error(&self, action: &'static str, source: io::Error) -> ExportError {
        ExportError::Output { action, name: self.name.clone(), offset: self.end, source }
    }
}
