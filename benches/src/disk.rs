//! A scratch disk: a loop device, with an ext4 on it where that is wanted. Gone when it is dropped.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context;
use homeward::lab::{LoopDevice, Mount, tool::Tool};
use tempfile::TempDir;

/// Where scratch disks are made, and how large.
#[derive(Clone, Debug)]
pub struct Scratch {
    /// Folder of their files.
    pub dir: PathBuf,
    /// Size of each in bytes.
    pub bytes: u64,
}

impl Scratch {
    /// A disk of zeros.
    pub fn device(&self) -> anyhow::Result<Device> {
        let dir = tempfile::Builder::new().prefix("homeward-bench-").tempdir_in(&self.dir);
        let dir = dir.with_context(|| format!("cannot make a folder in {}", self.dir.display()))?;
        Ok(Device { device: LoopDevice::create(&dir.path().join("disk.img"), self.bytes)?, dir })
    }

    /// A disk with a mounted ext4 that does nothing by itself.
    pub fn mounted(&self) -> anyhow::Result<Mounted> {
        let device = self.device()?;
        // No work left for later: it would write while the load is measured.
        let eager = ["-q", "-t", "ext4", "-E", "lazy_itable_init=0,lazy_journal_init=0"];
        Tool::new("mke2fs").args(eager).arg(device.path()).run()?;
        Ok(Mounted { mount: Mount::new(device.path(), &device.dir.path().join("mnt"), "noatime")?, device })
    }
}

/// A block device over a file in a folder of its own.
#[derive(Debug)]
pub struct Device {
    // Before `dir`, which its file is in.
    device: LoopDevice,
    dir: TempDir,
}

impl Device {
    /// `/dev/loopN`.
    pub fn path(&self) -> &Path {
        self.device.path()
    }

    /// A folder for whatever belongs to it.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Whether the loop driver bypasses the page cache of the file below.
    pub fn is_direct(&self) -> bool {
        fs::read_to_string(self.sys("loop/dio")).is_ok_and(|dio| dio.trim() == "1")
    }

    /// Writes that the kernel has completed so far.
    pub fn writes(&self) -> anyhow::Result<u64> {
        let stat = fs::read_to_string(self.sys("stat"))?;
        let field = stat.split_whitespace().nth(4).and_then(|writes| writes.parse().ok());
        field.context("the kernel's statistics of the disk make no sense")
    }

    fn sys(&self, file: &str) -> PathBuf {
        Path::new("/sys/block").join(self.path().file_name().unwrap_or_default()).join(file)
    }
}

/// A disk with a mounted file system.
#[derive(Debug)]
pub struct Mounted {
    // Before the device it is on.
    pub mount: Mount,
    pub device: Device,
}
