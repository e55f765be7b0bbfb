//! Small file systems, and files that take up their room until they are told not to.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use homeward::lab::{LabError, LoopDevice, Mount};
use rustix::fs::{FallocateFlags, fallocate, statvfs};

use crate::checkers::FileSystem;

/// A file system of its own. Drop it after what uses it.
pub struct Room {
    mount: Mount,
    filler: PathBuf,
    /// After the mount.
    _device: LoopDevice,
}

impl Room {
    /// One of `bytes` below the folder `dir`, named `name`.
    ///
    /// # Errors
    /// What cannot be made.
    pub fn new(dir: &Path, name: &str, bytes: u64) -> Result<Self, LabError> {
        let device = LoopDevice::create(&dir.join(format!("{name}.img")), bytes)?;
        FileSystem::Ext4.make(device.path())?;
        let mount = Mount::new(device.path(), &dir.join(name), "")?;
        let filler = mount.point().join("filler");
        Ok(Self { mount, filler, _device: device })
    }

    /// Its folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.mount.point()
    }

    /// Bytes that are free for everybody, root included.
    ///
    /// # Errors
    /// What the system says.
    pub fn free(&self) -> Result<u64, LabError> {
        let found =
            statvfs(self.path()).map_err(|error| LabError::io("measure", self.path())(error.into()))?;
        Ok(found.f_bfree * found.f_frsize)
    }

    /// Takes up room, or gives it back, until `bytes` are free.
    ///
    /// # Errors
    /// What the system says.
    pub fn leave(&self, bytes: u64) -> Result<(), LabError> {
        // Gone already if there was none.
        let _ = fs::remove_file(&self.filler);
        let take = self.free()?.saturating_sub(bytes);
        let file = File::create_new(&self.filler).map_err(LabError::io("create", &self.filler))?;
        if take > 0 {
            fallocate(&file, FallocateFlags::empty(), 0, take)
                .map_err(|error| LabError::io("fill", &self.filler)(error.into()))?;
        }
        Ok(())
    }
}
