//! An open disk: a file or block device by two descriptors, one unbuffered and one buffered, and the blocking
//! operations on them.
//!
//! Direct I/O is the rule. The buffered descriptor takes what the kernel would refuse there: the unaligned end of
//! a file, and everything where the file system has no direct I/O. Linux keeps the two coherent, but not within one
//! page at one time: a direct write beside a page that a buffered write makes dirty meanwhile fails the next sync.
//! So on files only whole pages are direct.

use std::{
    fs::{File, OpenOptions},
    io,
    os::{
        fd::{AsFd, AsRawFd},
        unix::fs::{FileExt, OpenOptionsExt},
    },
    path::Path,
};

use rustix::{
    fs::{AtFlags, OFlags, SeekFrom, StatxFlags, fdatasync, seek, statx},
    io::Errno,
};

use super::{AlignedBuf, Op, OpKind, blockdev, sync_guard::SyncGuard};
use crate::limits::IO_BYTES;

/// Alignment of direct I/O on files: a page, which is also enough where the kernel does not tell.
const PAGE: u32 = 4096;

/// Bytes of one system call: more would be cut short by the kernel anyway (at 2 GiB less a page).
pub(super) const CALL_BYTES: usize = 1 << 30;

pub(super) struct DiskFile {
    guard: SyncGuard,
    size: u64,
    writable: bool,
    is_block_device: bool,
    pub(super) buffered: File,
    pub(super) direct: Option<Direct>,
}

pub(super) struct Direct {
    pub(super) file: File,
    /// Offset, length and address must be multiples of it.
    alignment: u64,
}

impl DiskFile {
    /// Opens the file or block device at `path`. A block device opened for writing is claimed: that fails while
    /// it is mounted or otherwise in use.
    pub(super) fn open(path: &Path, writable: bool) -> io::Result<Self> {
        let kind = std::fs::metadata(path)?.file_type();
        let is_block_device = std::os::unix::fs::FileTypeExt::is_block_device(&kind);
        if !is_block_device && !kind.is_file() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "it is neither a file nor a block device",
            ));
        }
        let claim = if is_block_device && writable { OFlags::EXCL } else { OFlags::empty() };
        let buffered = open_with(path, writable, claim)?;
        let device = blockdev::inspect(&buffered)?;
        let size = match device {
            Some(device) => device.size,
            None => buffered.metadata()?.len(),
        };
        let direct = open_direct(&buffered, writable, device.map(|device| device.logical_block))?;
        let guard = SyncGuard::new(path.display().to_string());
        Ok(Self { guard, size, writable, is_block_device: device.is_some(), buffered, direct })
    }

    pub(super) fn size(&self) -> u64 {
        self.size
    }

    pub(super) fn name(&self) -> &str {
        self.guard.name()
    }

    /// Whether `op` may be tried at all.
    pub(super) fn check(&self, op: &Op) -> io::Result<()> {
        self.guard.check()?;
        if op.kind != OpKind::Read && !self.writable {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                "the disk was opened for reading only",
            ));
        }
        op.check(self.size)
    }

    /// Performs `op` on this thread.
    pub(super) fn perform(&self, op: &mut Op) -> io::Result<()> {
        match op.kind {
            OpKind::Read => self.read(&mut op.buf, op.offset),
            OpKind::Write => self.write(&op.buf, op.offset),
            OpKind::Zero => self.zero(op.offset, op.len),
        }
    }

    pub(super) fn zero(&self, offset: u64, len: u64) -> io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        match blockdev::punch_hole(&self.buffered, offset, len) {
            Err(error) if error.kind() != io::ErrorKind::Unsupported => Err(error),
            Ok(()) => Ok(()),
            Err(_) if self.is_block_device => blockdev::zero_out(&self.buffered, offset, len),
            Err(_) => self.write_zeros(offset, len),
        }
    }

    /// What of a range is a hole in a file; see [`super::Device::holes`].
    pub(super) fn holes(&self, offset: u64, len: u64) -> io::Result<Vec<(u64, bool)>> {
        let (mut at, end) = (offset, offset + len);
        let mut parts = Vec::new();
        let next = |from| match seek(&self.buffered, from) {
            Ok(found) => Ok(found.min(end)),
            Err(Errno::NXIO) => Ok(end),
            Err(error) => Err(error),
        };
        while at < end {
            let data = match next(SeekFrom::Data(at)) {
                // A block device: it knows no holes.
                Err(Errno::INVAL) => at,
                other => other?,
            };
            // A file that is written meanwhile may have changed between the two looks: go on in any case.
            let hole = match next(SeekFrom::Hole(data)) {
                Err(Errno::INVAL) => end,
                other => other?.max(data + u64::from(data < end)),
            };
            parts.extend([(data - at, true), (hole - data, false)]);
            at = hole;
        }
        parts.retain(|(len, _)| *len > 0);
        Ok(parts)
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        // Always by the same descriptor: each is told of a failed write-back separately.
        self.guard.sync(|| Ok(fdatasync(&self.buffered)?))
    }

    /// Whether the rest of an operation on `len` bytes at `offset`, of which `done` are done, can be direct.
    pub(super) fn can_be_direct(&self, offset: u64, len: usize, done: usize) -> bool {
        let done = done as u64;
        self.direct.as_ref().is_some_and(|direct| {
            [offset + done, len as u64 - done, done].iter().all(|n| n.is_multiple_of(direct.alignment))
        })
    }

    fn file_for(&self, offset: u64, len: usize, done: usize) -> &File {
        match &self.direct {
            Some(direct) if self.can_be_direct(offset, len, done) => &direct.file,
            _ => &self.buffered,
        }
    }

    fn read(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let mut done = 0;
        while done < buf.len() {
            let file = self.file_for(offset, buf.len(), done);
            let end = buf.len().min(done + CALL_BYTES);
            done += progress(file.read_at(&mut buf[done..end], offset + done as u64))?;
        }
        Ok(())
    }

    fn write(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut done = 0;
        while done < bytes.len() {
            let file = self.file_for(offset, bytes.len(), done);
            let end = bytes.len().min(done + CALL_BYTES);
            done += progress(file.write_at(&bytes[done..end], offset + done as u64))?;
        }
        Ok(())
    }

    fn write_zeros(&self, offset: u64, len: u64) -> io::Result<()> {
        let zeros = AlignedBuf::zeroed(len.min(IO_BYTES as u64) as usize);
        let mut done = 0;
        while done < len {
            let step = (len - done).min(zeros.len() as u64);
            self.write(&zeros[..step as usize], offset + done)?;
            done += step;
        }
        Ok(())
    }
}

/// Bytes that one system call moved: an error if it met the end of the file, 0 if it must simply be repeated.
pub(super) fn progress(result: io::Result<usize>) -> io::Result<usize> {
    match result {
        Ok(0) => Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "the disk ends before the range does: it has shrunk since it was opened",
        )),
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(0),
        other => other,
    }
}

fn open_with(path: &Path, writable: bool, flags: OFlags) -> io::Result<File> {
    OpenOptions::new().read(true).write(writable).custom_flags(flags.bits() as i32).open(path)
}

/// Opens `buffered` once more for direct I/O; `None` where the file system refuses that.
fn open_direct(buffered: &File, writable: bool, logical_block: Option<u32>) -> io::Result<Option<Direct>> {
    // By descriptor, so that it is the same file even if the path has meanwhile been given to another.
    let path = format!("/proc/self/fd/{}", buffered.as_raw_fd());
    let file = match open_with(path.as_ref(), writable, OFlags::DIRECT) {
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => return Ok(None),
        other => other?,
    };
    let alignment = match logical_block {
        Some(bytes) => bytes,
        None => file_alignment(&file)?,
    };
    Ok((alignment != 0).then_some(Direct { file, alignment: u64::from(alignment) }))
}

/// Alignment of direct I/O on a regular file; 0 if the file cannot do it.
fn file_alignment(file: impl AsFd) -> io::Result<u32> {
    let found = statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN)?;
    if !StatxFlags::from_bits_retain(found.stx_mask).contains(StatxFlags::DIOALIGN) {
        return Ok(PAGE); // Linux before 6.1, or a file system that keeps it to itself.
    }
    Ok(match found.stx_dio_offset_align {
        0 => 0,
        offset => offset.max(found.stx_dio_mem_align).max(PAGE),
    })
}
