//! Loop devices, mounts and freezes that end when they are dropped. All of it needs root.
//!
//! A loop device is made to detach itself when its last user is gone, so that even `kill -9` leaves none; together
//! with [`super::isolate`] that holds for mounts on it, too.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use super::{error::LabError, tool::Tool};

/// A block device over a file.
#[derive(Debug)]
pub struct LoopDevice {
    path: PathBuf,
    backing: PathBuf,
    /// Whether the file stays when the device goes.
    keeps: bool,
    /// The device lives as long as somebody has it open.
    holder: Option<File>,
}

impl LoopDevice {
    /// Makes the file `backing`, of `bytes` zeros, and a device over it that bypasses the page cache where it can. The
    /// file goes with it.
    ///
    /// # Errors
    /// What `losetup` or the system refuses.
    pub fn create(backing: &Path, bytes: u64) -> Result<Self, LabError> {
        let file = File::create_new(backing).map_err(LabError::io("create", backing))?;
        let device = Self::unattached(backing, false);
        file.set_len(bytes).map_err(LabError::io("size", backing))?;
        device.attach(&[])
    }

    /// The same over the file `backing` that there is, and that stays.
    ///
    /// # Errors
    /// What `losetup` or the system refuses.
    pub fn over(backing: &Path) -> Result<Self, LabError> {
        Self::unattached(backing, true).attach(&[])
    }

    /// A device over the file `backing`, which holds a partition table: its partitions are devices, too. The file goes
    /// with it.
    ///
    /// # Errors
    /// What `losetup` or the system refuses.
    pub fn with_partitions(backing: &Path) -> Result<Self, LabError> {
        let device = Self::unattached(backing, false).attach(&["--partscan"])?;
        // Not every kernel reads partition tables itself.
        Tool::new("partx").arg("--update").arg(&device.path).run()?;
        Ok(device)
    }

    fn unattached(backing: &Path, keeps: bool) -> Self {
        Self { path: PathBuf::new(), backing: backing.into(), keeps, holder: None }
    }

    fn attach(mut self, options: &[&str]) -> Result<Self, LabError> {
        let (backing, device) = (self.backing.clone(), &mut self);
        let attach = |direct: &str| {
            Tool::new("losetup").args(["--find", "--show", direct]).args(options).arg(&backing).run()
        };
        // Not every file system can do direct I/O.
        let attached = attach("--direct-io=on").or_else(|_| attach("--direct-io=off"))?;
        device.path = attached.stdout.trim().into();
        let opened = File::open(&device.path);
        // Detaching a device in use is put off until nobody uses it, whatever becomes of us.
        Tool::new("losetup").arg("--detach").arg(&device.path).run()?;
        device.holder = Some(opened.map_err(LabError::io("open", &device.path))?);
        Ok(self)
    }

    /// A partition, counted from 1.
    #[must_use]
    pub fn partition(&self, number: u32) -> PathBuf {
        format!("{}p{number}", self.path.display()).into()
    }

    /// `/dev/loopN`.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file below it.
    #[must_use]
    pub fn backing(&self) -> &Path {
        &self.backing
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        self.holder = None;
        if !self.keeps {
            // Gone already if the whole folder is.
            let _ = fs::remove_file(&self.backing);
        }
    }
}

/// A mounted file system.
#[derive(Debug)]
pub struct Mount {
    point: PathBuf,
}

impl Mount {
    /// Mounts the file system on `device` at the folder `point`, which is made if need be. `options` as for
    /// `mount -o`; may be empty.
    ///
    /// # Errors
    /// What `mount` says.
    pub fn new(device: &Path, point: &Path, options: &str) -> Result<Self, LabError> {
        fs::create_dir_all(point).map_err(LabError::io("create", point))?;
        let with = if options.is_empty() { "defaults" } else { options };
        Tool::new("mount").args(["-o", with]).arg(device).arg(point).run()?;
        Ok(Self { point: point.into() })
    }

    /// Where.
    #[must_use]
    pub fn point(&self) -> &Path {
        &self.point
    }

    /// Writes everything out and stops all writers, until the guard is dropped.
    ///
    /// # Errors
    /// What `fsfreeze` says.
    pub fn freeze(&self) -> Result<Frozen<'_>, LabError> {
        Tool::new("fsfreeze").arg("--freeze").arg(&self.point).run()?;
        Ok(Frozen(self))
    }

    /// Writes everything out.
    ///
    /// # Errors
    /// What the system says.
    pub fn sync(&self) -> Result<(), LabError> {
        let synced = File::open(&self.point).and_then(|dir| Ok(rustix::fs::syncfs(dir)?));
        synced.map_err(LabError::io("sync", &self.point))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // A file system that someone left frozen would stay behind, mounted or not.
        let _ = Tool::new("fsfreeze").arg("--unfreeze").arg(&self.point).run();
        if let Err(error) = Tool::new("umount").arg(&self.point).run() {
            tracing::warn!(%error, "unmounting lazily");
            let _ = Tool::new("umount").arg("--lazy").arg(&self.point).run();
        }
    }
}

/// A frozen file system; dropping it lets writers go on.
#[derive(Debug)]
pub struct Frozen<'a>(&'a Mount);

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        if let Err(error) = Tool::new("fsfreeze").arg("--unfreeze").arg(&self.0.point).run() {
            tracing::warn!(%error, "a file system stays frozen until it is unmounted");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::wait::soon;

    fn attached(device: &Path) -> bool {
        let Some(name) = device.file_name() else { return false };
        Path::new("/sys/block").join(name).join("loop/backing_file").exists()
    }

    #[test]
    fn all_of_it_is_gone_after_a_panic() {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: loop devices need root");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let (backing, point) = (dir.path().join("disk.img"), dir.path().join("mnt"));
        let mut path = PathBuf::new();
        let body = std::panic::AssertUnwindSafe(|| {
            let device = LoopDevice::create(&backing, 32 << 20).unwrap();
            path = device.path().into();
            assert!(attached(&path));
            Tool::new("mke2fs").args(["-q", "-t", "ext4"]).arg(&path).run().unwrap();
            let mount = Mount::new(&path, &point, "").unwrap();
            fs::write(mount.point().join("file"), "x").unwrap();
            let frozen = mount.freeze().unwrap();
            // Left frozen, as by a helper that was killed.
            std::mem::forget(frozen);
            panic!("on purpose");
        });
        assert!(std::panic::catch_unwind(body).is_err());
        assert!(!point.join("file").exists() && !backing.exists());
        soon("the device is detached", || !attached(&path));
    }
}
