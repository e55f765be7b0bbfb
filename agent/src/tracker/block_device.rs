//! What sysfs tells of a block device: its number, size and identity, and the writes in flight on it.
//!
//! Reads only; everything here is by device number, so it stays right when names change.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{FileExt, FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

use engine::{io::blockdev::DeviceId, units::Digest};

use super::TrackerError;

/// A block device as it is now.
#[derive(Debug)]
pub(super) struct BlockDevice {
    pub(super) id: DeviceId,
    pub(super) bytes: u64,
    /// Tells it from any other device that has or had its number; `None` if nothing does.
    pub(super) identity: Option<u128>,
    sys: PathBuf,
    inflight: File,
}

impl BlockDevice {
    /// Describes the block device at `path`; `None` if that is something else.
    pub(super) fn find(path: &Path) -> Result<Option<Self>, TrackerError> {
        let metadata = fs::metadata(path).map_err(TrackerError::io("look at", path))?;
        if !metadata.file_type().is_block_device() {
            return Ok(None);
        }
        let id = DeviceId::from_dev_t(metadata.rdev());
        let sys = PathBuf::from(format!("/sys/dev/block/{id}"));
        let sectors = read_number(&sys.join("size"))?;
        let inflight = sys.join("inflight");
        let inflight = File::open(&inflight).map_err(TrackerError::io("open", inflight))?;
        Ok(Some(Self { id, bytes: sectors * 512, identity: identity(&sys), sys, inflight }))
    }

    /// Whether it is a part of another device.
    pub(super) fn is_partition(&self) -> bool {
        self.sys.join("partition").exists()
    }

    /// Whether writes to it become requests, which tracepoints show. Stacked devices (device mapper, RAID) pass
    /// theirs on to the devices below unseen.
    pub(super) fn makes_requests(&self) -> bool {
        self.sys.join("mq").exists()
    }

    /// Path of a file of its in sysfs.
    pub(super) fn sys(&self, file: &str) -> PathBuf {
        self.sys.join(file)
    }

    /// Whether no write was in flight at some instant during the call. False also when the device does not
    /// count its requests.
    pub(super) fn is_quiet(&self) -> Result<bool, TrackerError> {
        // `inflight` looks at each request, so one in flight all along is surely seen. It sees none of a disk
        // whose statistics are switched off.
        let counted = self.sys(if self.is_partition() { "../queue/iostats" } else { "queue/iostats" });
        if read_number(&counted)? == 0 {
            return Ok(false);
        }
        let text = read_again(&self.inflight).map_err(TrackerError::io("read", self.sys("inflight")))?;
        // "reads writes", right-aligned.
        Ok(text.split_whitespace().nth(1) == Some("0"))
    }
}

/// Reads a file of sysfs that is kept open.
pub(super) fn read_again(file: &File) -> io::Result<String> {
    let mut text = [0; 512];
    let len = file.read_at(&mut text, 0)?;
    Ok(String::from_utf8_lossy(&text[..len]).into_owned())
}

fn read_number(path: &Path) -> Result<u64, TrackerError> {
    let text = fs::read_to_string(path).map_err(TrackerError::io("read", path))?;
    text.trim()
        .parse()
        .map_err(|error| TrackerError::io("read", path)(io::Error::new(io::ErrorKind::InvalidData, error)))
}

/// `diskseq` never repeats while the machine runs; serial number and world-wide name tell disks apart beyond.
fn identity(sys: &Path) -> Option<u128> {
    let names = ["diskseq", "../diskseq", "device/wwid", "wwid", "serial", "device/serial"];
    let found: Vec<String> = names
        .iter()
        .filter_map(|name| Some(format!("{name}={}", fs::read_to_string(sys.join(name)).ok()?.trim())))
        .collect();
    (!found.is_empty()).then(|| truncated(Digest::of(found.join("\n").as_bytes())))
}

/// The first 16 bytes of a digest.
pub(super) fn truncated(digest: Digest) -> u128 {
    let mut first = [0; 16];
    first.copy_from_slice(&digest.0[..16]);
    u128::from_le_bytes(first)
}
