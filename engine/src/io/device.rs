//! What a disk is to the engine: sized, read and written by position, many operations in flight.
//!
//! A device knows no blocks, frames or journals; ordering between operations is the caller's, who must not
//! have two operations on the same bytes in flight.

use std::io;

use super::AlignedBuf;

/// What an operation does with its range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpKind {
    /// Fills the buffer from the disk.
    Read,
    /// Writes the buffer to the disk.
    Write,
    /// Makes the range read as zeros, as a hole where the device can. The buffer is not used.
    Zero,
}

/// One operation on a device. `offset` and `len` are bytes.
#[derive(Debug)]
pub struct Op {
    /// What to do.
    pub kind: OpKind,
    /// First byte of the range.
    pub offset: u64,
    /// Length of the range; for reads and writes, of the buffer.
    pub len: u64,
    /// The bytes; empty for [`OpKind::Zero`]. Comes back with the completion.
    pub buf: AlignedBuf,
    /// The caller's own name for it.
    pub tag: u64,
}

impl Op {
    /// A read of `len` bytes at `offset` into a new buffer.
    #[must_use]
    pub fn read(offset: u64, len: usize, tag: u64) -> Self {
        Self { kind: OpKind::Read, offset, len: len as u64, buf: AlignedBuf::zeroed(len), tag }
    }

    /// A write of `buf` at `offset`.
    #[must_use]
    pub fn write(offset: u64, buf: AlignedBuf, tag: u64) -> Self {
        Self { kind: OpKind::Write, offset, len: buf.len() as u64, buf, tag }
    }

    /// Zeroes `len` bytes at `offset`.
    #[must_use]
    pub fn zero(offset: u64, len: u64, tag: u64) -> Self {
        Self { kind: OpKind::Zero, offset, len, buf: AlignedBuf::zeroed(0), tag }
    }

    /// Length of its buffer, also after that was taken out.
    pub(super) fn buffer_bytes(&self) -> u64 {
        if self.kind == OpKind::Zero { 0 } else { self.len }
    }

    /// Whether it fits its buffer and a device of `size` bytes.
    pub(super) fn check(&self, size: u64) -> io::Result<()> {
        let fits_buffer = self.kind == OpKind::Zero || self.len == self.buf.len() as u64;
        if !fits_buffer || self.offset.checked_add(self.len).is_none_or(|end| end > size) {
            let Self { kind, offset, len, buf, .. } = self;
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "{kind:?} of {len} bytes at {offset} with a buffer of {} on a disk of {size}",
                    buf.len()
                ),
            ));
        }
        Ok(())
    }
}

/// A disk. Offsets and lengths must be multiples of its logical block (512 bytes at most 4096), except that a
/// range may end with the device.
pub trait Device: Send + Sync {
    /// Size in bytes.
    fn size(&self) -> u64;

    /// What messages call it: a path.
    fn name(&self) -> &str;

    /// Runs all of `ops`, up to [`crate::limits::IO_DEPTH`] and about [`crate::limits::IO_FLIGHT_BYTES`] at once, drawing the next only when there is room;
    /// calls `done` for each as it completes, in the order of completion. A read or write is whole or an error.
    /// Returns when all have completed. A failed operation does not stop the others.
    fn run(&self, ops: &mut dyn Iterator<Item = Op>, done: &mut dyn FnMut(Op, io::Result<()>));

    /// Cuts a range into what is known to be a hole, and so zeros, and what may be data: lengths and whether it is a
    /// hole, in order. All data where the device cannot tell.
    fn holes(&self, offset: u64, len: u64) -> io::Result<Vec<(u64, bool)>> {
        let _ = offset;
        Ok(if len == 0 { Vec::new() } else { vec![(len, false)] })
    }

    /// Makes every completed write durable. After an error the device is dead: every later call fails,
    /// because the kernel may have dropped what it could not write.
    fn sync(&self) -> io::Result<()>;
}

/// Reads `len` bytes at `offset`.
pub fn read_exact_at(device: &dyn Device, offset: u64, len: usize) -> io::Result<AlignedBuf> {
    let mut result = Ok(AlignedBuf::zeroed(0));
    device.run(&mut std::iter::once(Op::read(offset, len, 0)), &mut |op, outcome| {
        result = outcome.map(|()| op.buf);
    });
    result
}

/// Writes `bytes` at `offset`.
pub fn write_all_at(device: &dyn Device, offset: u64, bytes: &[u8]) -> io::Result<()> {
    let mut result = Ok(());
    let op = Op::write(offset, AlignedBuf::copy_of(bytes), 0);
    device.run(&mut std::iter::once(op), &mut |_, outcome| result = outcome);
    result
}
