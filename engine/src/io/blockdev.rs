//! What block devices have over files: identity, block size, and the ioctls that zero, discard and flush;
//! and hole punching, which both have.
//!
//! Thin wrappers, one system call each; [`super::open_device`] decides which to use when.

#![allow(unsafe_code)]

use std::{fmt, io, os::fd::AsFd};

use rustix::{
    fs::{FallocateFlags, FileType, fallocate, fstat, ioctl_blksszget, major, minor},
    ioctl::{Getter, NoArg, Opcode, Setter, ioctl, opcode},
};

/// A block device's number, which names it until it is detached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceId {
    /// The driver's number.
    pub major: u32,
    /// The device's number with its driver.
    pub minor: u32,
}

impl DeviceId {
    /// From a `dev_t` as `stat` reports it.
    #[must_use]
    pub fn from_dev_t(dev: u64) -> Self {
        Self { major: major(dev), minor: minor(dev) }
    }

    /// The kernel's own `dev_t`, as tracepoints show it: 12 bits of major, 20 of minor.
    #[must_use]
    pub fn kernel_dev_t(self) -> u32 {
        self.major << 20 | self.minor
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

/// What a block device says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockDevice {
    /// Its number.
    pub id: DeviceId,
    /// Size in bytes.
    pub size: u64,
    /// Bytes of a logical block: offsets and lengths of unbuffered I/O are multiples of it.
    pub logical_block: u32,
}

/// Describes the open block device `fd`; `None` if it is something else, as a file.
pub fn inspect(fd: impl AsFd) -> io::Result<Option<BlockDevice>> {
    let stat = fstat(&fd)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::BlockDevice {
        return Ok(None);
    }
    const BLKGETSIZE64: Opcode = opcode::read::<usize>(0x12, 114);
    // SAFETY: BLKGETSIZE64 stores one u64 through its argument, whatever the opcode's size field says.
    let size = unsafe { ioctl(&fd, Getter::<BLKGETSIZE64, u64>::new()) }?;
    let logical_block = ioctl_blksszget(&fd)?;
    Ok(Some(BlockDevice { id: DeviceId::from_dev_t(stat.st_rdev), size, logical_block }))
}

/// Tells the device that `len` bytes at `offset` are no longer needed. What they read as then is undefined.
pub fn discard(fd: impl AsFd, offset: u64, len: u64) -> io::Result<()> {
    const BLKDISCARD: Opcode = opcode::none(0x12, 119);
    // SAFETY: BLKDISCARD reads two u64 through its argument.
    Ok(unsafe { ioctl(fd, Setter::<BLKDISCARD, [u64; 2]>::new([offset, len])) }?)
}

/// Makes `len` bytes at `offset` of a block device read as zeros, by writing them if it has no quicker way.
pub fn zero_out(fd: impl AsFd, offset: u64, len: u64) -> io::Result<()> {
    const BLKZEROOUT: Opcode = opcode::none(0x12, 127);
    // SAFETY: BLKZEROOUT reads two u64 through its argument.
    Ok(unsafe { ioctl(fd, Setter::<BLKZEROOUT, [u64; 2]>::new([offset, len])) }?)
}

/// Writes back and drops the page cache of a block device, so that buffered reads see what others wrote past it.
pub fn flush_buffers(fd: impl AsFd) -> io::Result<()> {
    const BLKFLSBUF: Opcode = opcode::none(0x12, 97);
    // SAFETY: BLKFLSBUF takes no argument.
    Ok(unsafe { ioctl(fd, NoArg::<BLKFLSBUF>::new()) }?)
}

/// Makes `len` bytes at `offset` of a file or block device a hole, which reads as zeros. The size stays.
/// Fails with [`io::ErrorKind::Unsupported`] where the file system or device has no holes.
pub fn punch_hole(fd: impl AsFd, offset: u64, len: u64) -> io::Result<()> {
    Ok(fallocate(fd, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, len)?)
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Read, os::unix::fs::MetadataExt};

    use super::{super::testing::LoopDevice, *};

    #[test]
    fn numbers_are_those_of_the_kernel() {
        let id = DeviceId::from_dev_t(std::fs::metadata("/dev/null").unwrap().rdev());
        assert_eq!(id, DeviceId { major: 1, minor: 3 });
        assert_eq!(id.to_string(), "1:3");
        assert_eq!(id.kernel_dev_t(), 0x0010_0003);
    }

    #[test]
    fn a_file_is_no_block_device() {
        assert_eq!(inspect(tempfile::tempfile().unwrap()).unwrap(), None);
    }

    #[test]
    fn a_loop_device_is_described_zeroed_and_flushed() {
        const SIZE: usize = 5 * 512 * 1024 + 512;
        let Some(disk) = LoopDevice::over(&vec![7; SIZE]) else { return };
        let mut file = File::options().read(true).write(true).open(disk.path()).unwrap();
        let found = inspect(&file).unwrap().unwrap();
        let id = DeviceId::from_dev_t(std::fs::metadata(disk.path()).unwrap().rdev());
        assert_eq!(found, BlockDevice { id, size: SIZE as u64, logical_block: 512 });

        zero_out(&file, 512, 1024).unwrap();
        // Which of these a loop device offers depends on the file system under it.
        let unsupported = |error: &io::Error| error.kind() == io::ErrorKind::Unsupported;
        if punch_hole(&file, 8192, 4096).inspect_err(|error| assert!(unsupported(error))).is_err() {
            zero_out(&file, 8192, 4096).unwrap();
        }
        assert!(discard(&file, 1 << 20, 4096).err().as_ref().is_none_or(unsupported));
        flush_buffers(&file).unwrap();
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).unwrap();
        let zero = |i: usize| (512..1536).contains(&i) || (8192..12288).contains(&i);
        for (i, byte) in
            bytes.into_iter().enumerate().filter(|(i, _)| !(1 << 20..(1 << 20) + 4096).contains(i))
        {
            assert_eq!(byte, if zero(i) { 0 } else { 7 }, "at {i}");
        }
    }
}
