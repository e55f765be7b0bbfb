//! Freezing the mounted file systems of the protected disks, for a bounded time.
//!
//! While they are frozen every write to them waits, so the disks' contents stand still, and are clean as after an
//! unmount. Whoever writes to a disk past its file systems is not stopped, and neither is who writes to a file system
//! that knows no freezing (the vfat of an EFI partition): it is written out and left as it is. A freeze only makes
//! writes unlikely; that there were none the tracker says. A thaw may fail us only in that it came
//! too early (the watchdog's, or an administrator's): then it says so, and what was read is no point.
//!
//! The time is measured from before the first freeze to after the last thaw.

#[cfg(test)]
mod tests;

use std::{
    os::fd::AsFd,
    path::PathBuf,
    time::{Duration, Instant},
};

use engine::io::blockdev::DeviceId;
use rustix::{fs::syncfs, io::Errno};

use super::{
    FreezeError, Freezer, Frozen, fs_ioctl,
    mounts::{FileSystem, MountsError, file_systems_on},
    watchdog::{Watchdog, WatchdogError},
};

/// Why file systems could not be frozen, or were not frozen all along.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// They could not be found.
    #[error(transparent)]
    Mounts(#[from] MountsError),
    /// There are none.
    #[error("no file system is mounted from the protected disks, so their writers cannot be stopped")]
    NothingMounted,
    /// There is nobody to thaw them should this process fail.
    #[error(transparent)]
    Watchdog(#[from] WatchdogError),
    /// None of them can be frozen.
    #[error("no file system on the protected disks can be frozen, the last being {kind} at {}", mount_point.display())]
    Unsupported {
        /// Where it is mounted.
        mount_point: PathBuf,
        /// Its type.
        kind: String,
    },
    /// Somebody else has one frozen.
    #[error("{} is frozen by somebody else: `fsfreeze --unfreeze` thaws it", mount_point.display())]
    AlreadyFrozen {
        /// Where it is mounted.
        mount_point: PathBuf,
    },
    /// One could not be written out, frozen or thawed.
    #[error("cannot {doing} {}", mount_point.display())]
    Io {
        /// What was attempted.
        doing: &'static str,
        /// Where it is mounted.
        mount_point: PathBuf,
        /// Why.
        source: Errno,
    },
    /// It took too long.
    #[error("it took {took_ms} ms, and {within_ms} ms are allowed: try again when the disks are less busy")]
    Overrun {
        /// How long.
        took_ms: u128,
        /// How long it may take.
        within_ms: u128,
    },
    /// One was thawed before it should be.
    #[error("{} was thawed too early", mount_point.display())]
    Thawed {
        /// Where it is mounted.
        mount_point: PathBuf,
    },
}

impl From<Error> for FreezeError {
    fn from(error: Error) -> Self {
        Self(Box::new(error))
    }
}

/// Freezes the file systems of some disks.
#[derive(Debug)]
pub struct FileSystemFreezer {
    disks: Vec<DeviceId>,
    within: Duration,
    watchdog: Watchdog,
    last: Option<Duration>,
}

impl FileSystemFreezer {
    /// For the file systems on `disks`, which may be frozen for `within` that time.
    #[must_use]
    pub fn new(disks: Vec<DeviceId>, within: Duration, watchdog: Watchdog) -> Self {
        Self { disks, within, watchdog, last: None }
    }

    /// How long they were frozen the last time.
    #[must_use]
    pub fn last_frozen_for(&self) -> Option<Duration> {
        self.last
    }

    fn freeze_all(&mut self) -> Result<FrozenFileSystems<'_>, Error> {
        let found = file_systems_on(&self.disks)?;
        if found.is_empty() {
            return Err(Error::NothingMounted);
        }
        let dirs: Vec<_> = found.iter().map(|one| one.dir.as_fd()).collect();
        self.watchdog.arm(&dirs, self.within)?;
        let mut frozen =
            FrozenFileSystems { freezer: self, since: Instant::now(), frozen: Vec::new(), armed: true };
        let mut unsupported = None;
        for one in found {
            // Should anything fail here, dropping `frozen` thaws what it has.
            unsupported = frozen.add(one)?.or(unsupported);
            frozen.check_time()?;
        }
        match unsupported {
            Some(FileSystem { mount_point, kind, .. }) if frozen.frozen.is_empty() => {
                Err(Error::Unsupported { mount_point, kind })
            }
            _ => Ok(frozen),
        }
    }
}

impl Freezer for FileSystemFreezer {
    fn sync(&mut self) -> Result<(), FreezeError> {
        for one in file_systems_on(&self.disks).map_err(Error::from)? {
            syncfs(&one.dir).map_err(|source| one.failed("write out", source))?;
        }
        Ok(())
    }

    fn freeze(&mut self) -> Result<Box<dyn Frozen + '_>, FreezeError> {
        Ok(Box::new(self.freeze_all()?))
    }
}

/// File systems frozen now.
struct FrozenFileSystems<'a> {
    freezer: &'a mut FileSystemFreezer,
    since: Instant,
    frozen: Vec<FileSystem>,
    armed: bool,
}

impl FrozenFileSystems<'_> {
    /// Gives it back if it knows no freezing.
    fn add(&mut self, one: FileSystem) -> Result<Option<FileSystem>, Error> {
        match fs_ioctl::freeze(&one.dir) {
            Ok(()) => {
                self.frozen.push(one);
                Ok(None)
            }
            Err(Errno::OPNOTSUPP) => Ok(Some(one)),
            Err(Errno::BUSY) => Err(Error::AlreadyFrozen { mount_point: one.mount_point }),
            Err(source) => Err(one.failed("freeze", source)),
        }
    }

    /// A freeze that waits for the disk cannot be broken off; but it can be found to have come too late.
    fn check_time(&self) -> Result<(), Error> {
        let (took, within) = (self.since.elapsed(), self.freezer.within);
        if took <= within { Ok(()) } else { Err(self.overrun()) }
    }

    /// Thaws everything, whatever fails; returns the first failure.
    fn thaw_all(&mut self) -> Result<(), Error> {
        let mut outcome = Ok(());
        while let Some(one) = self.frozen.pop() {
            let thawed = fs_ioctl::thaw(&one.dir).map_err(|source| match source {
                Errno::INVAL => Error::Thawed { mount_point: one.mount_point.clone() },
                source => one.failed("thaw", source),
            });
            outcome = outcome.and(thawed);
        }
        if std::mem::take(&mut self.armed) {
            self.freezer.last = Some(self.since.elapsed());
            if self.freezer.watchdog.disarm()? {
                outcome = outcome.and_then(|()| Err(self.overrun()));
            }
        }
        outcome
    }

    fn overrun(&self) -> Error {
        Error::Overrun {
            took_ms: self.since.elapsed().as_millis(),
            within_ms: self.freezer.within.as_millis(),
        }
    }
}

impl Frozen for FrozenFileSystems<'_> {
    fn thaw(mut self: Box<Self>) -> Result<(), FreezeError> {
        Ok(self.thaw_all()?)
    }
}

impl Drop for FrozenFileSystems<'_> {
    fn drop(&mut self) {
        // Nothing frozen is counted on any more, so an early thaw does no harm.
        let _ = self.thaw_all();
    }
}

impl FileSystem {
    fn failed(&self, doing: &'static str, source: Errno) -> Error {
        Error::Io { doing, mount_point: self.mount_point.clone(), source }
    }
}
