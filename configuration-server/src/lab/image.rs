//! Images of disks: copied with their holes, and compared byte for byte.

use std::{
    fs::{self, File},
    os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt},
    path::Path,
};

use engine::{io::AlignedBuf, service::shutdown::Shutdown};
use rustix::{
    fs::{OFlags, SeekFrom, seek},
    io::Errno,
};

use super::{error::LabError, wait::check};

/// Bytes handled at once.
const CHUNK: usize = 1 << 20;

/// Granularity of holes.
const HOLE: usize = 4096;

/// Copies a disk, device or file, to the new file `to`; zeros become holes.
///
/// # Errors
/// What the system refuses, [`LabError::Interrupted`].
pub fn copy(from: &Path, to: &Path, stop: &Shutdown) -> Result<(), LabError> {
    let source = open(from)?;
    let target = File::create_new(to).map_err(LabError::io("create", to))?;
    let size = size(from)?;
    target.set_len(size).map_err(LabError::io("size", to))?;
    let mut buf = AlignedBuf::zeroed(CHUNK);
    let mut at = 0;
    while let Some(offset) = next_data(&source, at, size) {
        check(stop)?;
        let len = (size - offset).min(CHUNK as u64 - offset % CHUNK as u64) as usize;
        let chunk = &mut buf[..len];
        source.read_exact_at(chunk, offset).map_err(LabError::io("read", from))?;
        for (index, piece) in chunk.chunks(HOLE).enumerate() {
            if piece.iter().any(|&byte| byte != 0) {
                let offset = offset + (index * HOLE) as u64;
                target.write_all_at(piece, offset).map_err(LabError::io("write", to))?;
            }
        }
        at = offset + len as u64;
    }
    Ok(())
}

/// The offset of the first byte in which two disks differ; `None` if they are equal.
///
/// # Errors
/// What the system refuses, [`LabError::Interrupted`].
pub fn first_difference(a: &Path, b: &Path, stop: &Shutdown) -> Result<Option<u64>, LabError> {
    let (size_a, size_b) = (size(a)?, size(b)?);
    let (file_a, file_b) = (open(a)?, open(b)?);
    let (mut buf_a, mut buf_b) = (AlignedBuf::zeroed(CHUNK), AlignedBuf::zeroed(CHUNK));
    let common = size_a.min(size_b);
    let mut at = 0;
    // Where both have holes both are zero.
    while let Some(offset) = [&file_a, &file_b].iter().filter_map(|file| next_data(file, at, common)).min() {
        check(stop)?;
        let len = (common - offset).min(CHUNK as u64) as usize;
        let (part_a, part_b) = (&mut buf_a[..len], &mut buf_b[..len]);
        file_a.read_exact_at(part_a, offset).map_err(LabError::io("read", a))?;
        file_b.read_exact_at(part_b, offset).map_err(LabError::io("read", b))?;
        if part_a != part_b {
            let differs = part_a.iter().zip(&*part_b).position(|(a, b)| a != b).unwrap_or(0);
            return Ok(Some(offset + differs as u64));
        }
        at = offset + len as u64;
    }
    Ok((size_a != size_b).then_some(common))
}

/// Bytes of a disk, device or file.
///
/// # Errors
/// What the system refuses.
pub fn size(path: &Path) -> Result<u64, LabError> {
    let mut file = File::open(path).map_err(LabError::io("open", path))?;
    std::io::Seek::seek(&mut file, std::io::SeekFrom::End(0)).map_err(LabError::io("measure", path))
}

/// A device is read past its page cache: what a file system above it writes does not go through that.
fn open(path: &Path) -> Result<File, LabError> {
    let is_device = fs::metadata(path).is_ok_and(|found| found.file_type().is_block_device());
    let flags = if is_device { OFlags::DIRECT.bits() as i32 } else { 0 };
    File::options().read(true).custom_flags(flags).open(path).map_err(LabError::io("open", path))
}

/// The first offset at or after `at`, below `end`, that may hold data.
fn next_data(file: &File, at: u64, end: u64) -> Option<u64> {
    if at >= end {
        return None;
    }
    match seek(file, SeekFrom::Data(at)) {
        Ok(offset) => Some(offset).filter(|&offset| offset < end),
        Err(Errno::NXIO) => None,
        // Devices and some file systems know no holes.
        Err(_) => Some(at),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_equal_and_has_holes_and_a_difference_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let [a, b, c] = ["a", "b", "c"].map(|name| dir.path().join(name));
        let stop = Shutdown::manual();
        let file = File::create_new(&a).unwrap();
        file.set_len(40 << 20).unwrap();
        file.write_all_at(&[7; 5000], (9 << 20) + 100).unwrap();
        file.write_all_at(&vec![0; 2 << 20], 20 << 20).unwrap();

        copy(&a, &b, &stop).unwrap();
        assert_eq!(first_difference(&a, &b, &stop).unwrap(), None);
        let blocks = |path: &Path| std::os::unix::fs::MetadataExt::blocks(&fs::metadata(path).unwrap());
        assert!(blocks(&b) * 512 < 1 << 20, "{} blocks", blocks(&b));

        let other = File::options().write(true).open(&b).unwrap();
        other.write_all_at(&[1], 30 << 20).unwrap();
        assert_eq!(first_difference(&a, &b, &stop).unwrap(), Some(30 << 20));
        assert_eq!(first_difference(&b, &a, &stop).unwrap(), Some(30 << 20));
        other.write_all_at(&[0], 30 << 20).unwrap();
        other.set_len((40 << 20) + 4096).unwrap();
        assert_eq!(first_difference(&a, &b, &stop).unwrap(), Some(40 << 20));

        stop.request();
        assert!(matches!(copy(&a, &c, &stop), Err(LabError::Interrupted)));
    }
}
