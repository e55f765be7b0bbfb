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
    FreezeError, Freezer, fs_ioctl,
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
    watchdog: Watchdog,
    frozen: Option<FrozenFileSystems>,
    last: Option<Duration>,
}

impl FileSystemFreezer {
    /// For the file systems on `disks`.
    #[must_use]
    pub fn new(disks: Vec<DeviceId>, watchdog: Watchdog) -> Self {
        Self { disks, watchdog, frozen: None, last: None }
    }

    /// How long they were frozen the last time.
    #[must_use]
    pub fn last_frozen_for(&self) -> Option<Duration> {
        self.last
    }

    fn freeze_all(&mut self, within: Duration) -> Result<(), Error> {
        let found = file_systems_on(&self.disks)?;
        if found.is_empty() {
            return Err(Error::NothingMounted);
        }
        let dirs: Vec<_> = found.iter().map(|one| one.dir.as_fd()).collect();
        self.watchdog.arm(&dirs, within)?;
        let frozen = FrozenFileSystems { since: Instant::now(), within, file_systems: Vec::new() };
        let outcome = self.frozen.insert(frozen).add_all(found);
        if outcome.is_err() {
            // Nothing frozen is counted on any more, so an early thaw does no harm.
            let _ = self.thaw_all();
        }
        outcome
    }

    fn thaw_all(&mut self) -> Result<(), Error> {
        let Some(mut frozen) = self.frozen.take() else { return Ok(()) };
        let outcome = frozen.thaw();
        self.last = Some(frozen.since.elapsed());
        if self.watchdog.disarm()? {
            return outcome.and_then(|()| Err(frozen.overrun()));
        }
        outcome
    }
}

impl Freezer for FileSystemFreezer {
    fn sync(&mut self) -> Result<(), FreezeError> {
        for one in file_systems_on(&self.disks).map_err(Error::from)? {
            syncfs(&one.dir).map_err(|source| one.failed("write out", source))?;
        }
        Ok(())
    }

    fn freeze(&mut self, within: Duration) -> Result<(), FreezeError> {
        Ok(self.freeze_all(within)?)
    }

    fn thaw(&mut self) -> Result<(), FreezeError> {
        Ok(self.thaw_all()?)
    }
}

impl Drop for FileSystemFreezer {
    fn drop(&mut self) {
        // As after a failed freeze.
        let _ = self.thaw_all();
    }
}

/// File systems frozen now, and watched.
#[derive(Debug)]
struct FrozenFileSystems {
    since: Instant,
    within: Duration,
    /// In the order in which they were frozen.
    file_systems: Vec<FileSystem>,
}

impl FrozenFileSystems {
    fn add_all(&mut self, found: Vec<FileSystem>) -> Result<(), Error> {
        let mut unsupported = None;
        for one in found {
            unsupported = self.add(one)?.or(unsupported);
            self.check_time()?;
        }
        match unsupported {
            Some(FileSystem { mount_point, kind, .. }) if self.file_systems.is_empty() => {
                Err(Error::Unsupported { mount_point, kind })
            }
            _ => Ok(()),
        }
    }

    /// Gives it back if it knows no freezing.
    fn add(&mut self, one: FileSystem) -> Result<Option<FileSystem>, Error> {
        match fs_ioctl::freeze(&one.dir) {
            Ok(()) => {
                self.file_systems.push(one);
                Ok(None)
            }
            Err(Errno::OPNOTSUPP) => Ok(Some(one)),
            Err(Errno::BUSY) => Err(Error::AlreadyFrozen { mount_point: one.mount_point }),
            Err(source) => Err(one.failed("freeze", source)),
        }
    }

    /// A freeze that waits for the disk cannot be broken off; but it can be found to have come too late.
    fn check_time(&self) -> Result<(), Error> {
        if self.since.elapsed() <= self.within { Ok(()) } else { Err(self.overrun()) }
    }

    /// Thaws everything, whatever fails; returns the first failure.
    fn thaw(&mut self) -> Result<(), Error> {
        let mut outcome = Ok(());
        while let Some(one) = self.file_systems.pop() {
            let thawed = fs_ioctl::thaw(&one.dir).map_err(|source| match source {
                Errno::INVAL => Error::Thawed { mount_point: one.mount_point.clone() },
                source => one.failed("thaw", source),
            });
            outcome = outcome.and(thawed);
        }
        outcome
    }

    fn overrun(&self) -> Error {
        Error::Overrun { took_ms: self.since.elapsed().as_millis(), within_ms: self.within.as_millis() }
    }
}

impl FileSystem {
    fn failed(&self, doing: &'static str, source: Errno) -> Error {
        Error::Io { doing, mount_point: self.mount_point.clone(), source }
    }
}
