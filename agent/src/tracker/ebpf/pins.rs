//! Where maps and links are pinned so that they outlive the process: `/sys/fs/bpf/homeward/NAME/SET/`.
//!
//! There are at most two sets, `0` and `1`: the one in use, and while disks are added the one that will follow it.

use std::{
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
};

use rustix::{
    fs::statfs,
    mount::{MountFlags, mount},
};

use super::super::TrackerError;

const BPFFS: &str = "/sys/fs/bpf";

/// The pins of one tracker, which this process has to itself until it is dropped.
#[derive(Debug)]
pub(super) struct Pins {
    dir: PathBuf,
    _lock: File,
}

impl Pins {
    /// Opens the folder of the tracker `name`, and makes it if need be.
    pub(super) fn open(name: &str) -> Result<Self, TrackerError> {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if name.is_empty() || name.len() > 64 || !name.chars().all(plain) {
            return Err(TrackerError::BadName(name.to_owned()));
        }
        mount_bpffs()?;
        let dir = Path::new(BPFFS).join("homeward").join(name);
        fs::create_dir_all(&dir).map_err(TrackerError::io("create", &dir))?;
        let lock = File::open(&dir).map_err(TrackerError::io("open", &dir))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { dir, _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(TrackerError::InUse(name.to_owned())),
            Err(TryLockError::Error(error)) => Err(TrackerError::io("lock", dir)(error)),
        }
    }

    /// The folders that a set may be in.
    pub(super) fn sets(&self) -> [PathBuf; 2] {
        ["0", "1"].map(|set| self.dir.join(set))
    }

    /// Removes everything.
    pub(super) fn remove(self) -> Result<(), TrackerError> {
        self.sets().iter().try_for_each(|set| remove_set(set))?;
        fs::remove_dir(&self.dir).map_err(TrackerError::io("remove", &self.dir))
    }
}

/// Removes one set: detaches its programs, frees its maps. Fine if there is none.
pub(super) fn remove_set(dir: &Path) -> Result<(), TrackerError> {
    let removed = || {
        // Its links first: should this be interrupted, a set without links is plainly dead.
        let mut pins = fs::read_dir(dir)?.map(|pin| Ok(pin?.path())).collect::<io::Result<Vec<_>>>()?;
        pins.sort_by_key(|pin| !pin.to_string_lossy().contains(super::programs::LINK_PREFIX));
        pins.iter().try_for_each(fs::remove_file)?;
        fs::remove_dir(dir)
    };
    match removed() {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(TrackerError::io("remove", dir)(error)),
        _ => Ok(()),
    }
}

fn mount_bpffs() -> Result<(), TrackerError> {
    const BPF_FS_MAGIC: u64 = 0xcafe_4a11;
    let failed = |doing| move |error: rustix::io::Errno| TrackerError::io(doing, BPFFS)(error.into());
    if statfs(BPFFS).map_err(failed("look at"))?.f_type as u64 == BPF_FS_MAGIC {
        return Ok(());
    }
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("bpf", BPFFS, "bpf", flags, c"mode=700").map_err(failed("mount the BPF file system at"))
}
