//! What others say about our disks: readers of VMDKs, and file systems with their checkers.

use std::path::{Path, PathBuf};

use homeward::lab::{
    LabError, LoopDevice, Mount, Vmdk, image,
    tool::{Done, Tool},
};

/// A file system under test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileSystem {
    /// ext4.
    Ext4,
    /// XFS.
    Xfs,
    /// Btrfs.
    Btrfs,
}

impl FileSystem {
    /// Makes one on `device`.
    ///
    /// # Errors
    /// What `mkfs` says.
    pub fn make(self, device: &Path) -> Result<(), LabError> {
        let (program, options): (&str, &[&str]) = match self {
            Self::Ext4 => ("mke2fs", &["-q", "-t", "ext4"]),
            Self::Xfs => ("mkfs.xfs", &["-q", "-f"]),
            Self::Btrfs => ("mkfs.btrfs", &["-q", "-f"]),
        };
        Tool::new(program).args(options).arg(device).run().map(drop)
    }

    /// Its checker, told to change nothing, on a file system that is not mounted.
    ///
    /// # Errors
    /// What it finds.
    pub fn check(self, device: &Path) -> Result<(), LabError> {
        let (program, options): (&str, &[&str]) = match self {
            Self::Ext4 => ("e2fsck", &["-f", "-n"]),
            Self::Xfs => ("xfs_repair", &["-n"]),
            Self::Btrfs => ("btrfs", &["check", "--readonly", "--check-data-csum"]),
        };
        Tool::new(program).args(options).arg(device).run().map(drop)
    }
}

/// A copy of a restored disk, as a device of its own: what looks at it may write to it.
pub struct Copy {
    device: LoopDevice,
    mount_point: PathBuf,
    file_system: FileSystem,
}

impl Copy {
    /// Copies `flat` into the folder `dir`.
    ///
    /// # Errors
    /// What cannot be made.
    pub fn of(flat: &Path, dir: &Path, file_system: FileSystem) -> Result<Self, LabError> {
        let device = LoopDevice::create(&dir.join("copy.img"), image::size(flat)?)?;
        // Through the device, so that its caches hold nothing else.
        Tool::new("dd")
            .args(["bs=1M", "conv=sparse,fsync", "oflag=direct"])
            .arg(format!("if={}", flat.display()))
            .arg(format!("of={}", device.path().display()))
            .run()?;
        Ok(Self { device, mount_point: dir.join("copy"), file_system })
    }

    /// Mounts it, which replays the file system's journal.
    ///
    /// # Errors
    /// What `mount` says.
    pub fn mount(&self) -> Result<Mount, LabError> {
        Mount::new(self.device.path(), &self.mount_point, "")
    }

    /// The file system's checker, on the copy after it was mounted and unmounted.
    ///
    /// # Errors
    /// What it finds.
    pub fn check(&self) -> Result<(), LabError> {
        self.file_system.check(self.device.path())
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        if self.file_system == FileSystem::Btrfs {
            // The kernel remembers devices by the file system's id, which the next copy has, too.
            let _ = Tool::new("btrfs").args(["device", "scan", "--forget"]).arg(self.device.path()).run();
        }
    }
}

/// `qemu-img` and `vmdkinfo` open the disk without complaint.
///
/// # Panics
/// If they do not.
pub fn vmdk_opens(vmdk: &Vmdk, bytes: u64) {
    let run = |tool: Tool| -> Done {
        let done = tool.arg(&vmdk.descriptor).run().unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(done.stderr, "", "complains about {}", vmdk.descriptor.display());
        done
    };
    let info = run(Tool::new("qemu-img").args(["info", "-f", "vmdk", "--output=json"])).stdout;
    let info: serde_json::Value = serde_json::from_str(&info).unwrap();
    assert_eq!(info["virtual-size"], bytes);
    assert_eq!(info["format-specific"]["data"]["create-type"], "vmfs");
    run(Tool::new("qemu-img").args(["check", "-f", "vmdk"]));
    let info = run(Tool::new("vmdkinfo")).stdout;
    assert!(info.contains("VMFS flat") && info.contains(&format!("({bytes} bytes)")), "{info}");
}

/// The VMDK holds exactly the bytes of `raw`, says `qemu-img`.
///
/// # Panics
/// If it does not.
pub fn vmdk_equals(vmdk: &Vmdk, raw: &Path) {
    let compare =
        Tool::new("qemu-img").args(["compare", "-f", "raw", "-F", "vmdk"]).arg(raw).arg(&vmdk.descriptor);
    let said = compare.run().unwrap_or_else(|error| panic!("{error}")).stdout;
    assert!(said.contains("identical"), "{said}");
}
