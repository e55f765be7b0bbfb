//! Freezing the mounted file systems of the protected disks, for a bounded time.
//!
//! While they are frozen every write to them waits, so the disks' contents stand still, and are clean as after an
//! unmount. Whoever writes to a disk past its file systems is not stopped, and neither is who writes to a file system
//! that knows no freezing (the vfat of an EFI partition): it is written out and left as it is. A freeze only makes
//! writes unlikely; that there were none the tracker says. A thaw may fail us only in that it came
//! too early (the watchdog's, or an administrator's): then it says so, and what was read is no point.
//!
//! This process touches none of them meanwhile, wherever its own files are: its log waits in memory
//! ([`engine::service::held_log`]), and its memory is locked. What it may still do is read: programs that lie on a frozen
//! file system run on.
//!
//! The time is measured from before the first freeze to after the last thaw.

#[cfg(test)]
mod tests;

use std::{
    os::fd::AsFd,
    path::PathBuf,
    time::{Duration, Instant},
};

use engine::{io::blockdev::DeviceId, service::held_log};
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
    /// What is captured could be swapped out, onto a disk that is frozen.
    #[error("the agent cannot lock its memory: allow it (root, or a higher `ulimit -l`)")]
    Memory(#[source] Errno),
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

/// Freezes the file systems of some disks. Dropping it thaws them.
#[derive(Debug)]
pub struct FileSystemFreezer {
    disks: Vec<DeviceId>,
    watchdog: Watchdog,
    /// What is frozen; the watchdog is armed as long as it is `Some`.
    frozen: Option<Frozen>,
    not_frozen: Vec<String>,
    last: Option<Duration>,
}

#[derive(Debug)]
struct Frozen {
    since: Instant,
    within: Duration,
    file_systems: Vec<FileSystem>,
}

impl FileSystemFreezer {
    /// For an agent: as [`Self::new`], and all memory of this process stays resident from now on.
    ///
    /// # Errors
    /// If memory cannot be locked.
    pub fn with_locked_memory(disks: Vec<DeviceId>, watchdog: Watchdog) -> Result<Self, Error> {
        fs_ioctl::lock_touched_memory().map_err(Error::Memory)?;
        Ok(Self::new(disks, watchdog))
    }

    /// For the file systems on `disks`.
    #[must_use]
    pub fn new(disks: Vec<DeviceId>, watchdog: Watchdog) -> Self {
        Self { disks, watchdog, frozen: None, not_frozen: Vec::new(), last: None }
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
        // Everything that takes memory comes before the first freeze.
        let mut file_systems = Vec::with_capacity(found.len());
        let mut not_frozen = Vec::with_capacity(found.len());
        let dirs: Vec<_> = found.iter().map(|one| one.dir.as_fd()).collect();
        self.watchdog.arm(&dirs, within)?;
        held_log::hold();
        let since = Instant::now();
        let frozen = found.into_iter().try_for_each(|one| {
            freeze_one(one, &mut file_systems, &mut not_frozen)?;
            check_time(since, within)
        });
        let any = !file_systems.is_empty();
        self.frozen = Some(Frozen { since, within, file_systems });
        let frozen = match not_frozen.last() {
            Some(FileSystem { mount_point, kind, .. }) if !any => frozen.and_then(|()| {
                Err(Error::Unsupported { mount_point: mount_point.clone(), kind: kind.clone() })
            }),
            _ => frozen,
        };
        if let Err(error) = frozen {
            // Nothing frozen is counted on any more, so an early thaw does no harm.
            let _ = self.thaw_all();
            return Err(error);
        }
        self.not_frozen = not_frozen.iter().map(|one| one.mount_point.display().to_string()).collect();
        Ok(())
    }

    /// Thaws everything, whatever fails; returns the first failure.
    fn thaw_all(&mut self) -> Result<(), Error> {
        let Some(Frozen { since, within, file_systems }) = self.frozen.take() else { return Ok(()) };
        let mut outcome = Ok(());
        for one in file_systems.iter().rev() {
            let thawed = fs_ioctl::thaw(&one.dir).map_err(|source| match source {
                Errno::INVAL => Error::Thawed { mount_point: one.mount_point.clone() },
                source => one.failed("thaw", source),
            });
            outcome = outcome.and(thawed);
        }
        self.last = Some(since.elapsed());
        held_log::go_on();
        if self.watchdog.disarm()? {
            outcome = outcome.and_then(|()| Err(overrun(since, within)));
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

    fn not_frozen(&self) -> &[String] {
        &self.not_frozen
    }
}

impl Drop for FileSystemFreezer {
    fn drop(&mut self) {
        // Nothing frozen is counted on any more, so an early thaw does no harm.
        let _ = self.thaw_all();
    }
}

/// A freeze that waits for the disk cannot be broken off; but it can be found to have come too late.
fn check_time(since: Instant, within: Duration) -> Result<(), Error> {
    if since.elapsed() <= within { Ok(()) } else { Err(overrun(since, within)) }
}

fn overrun(since: Instant, within: Duration) -> Error {
    Error::Overrun { took_ms: since.elapsed().as_millis(), within_ms: within.as_millis() }
}

/// Freezes a file system; if it knows no freezing, it goes to `not_frozen`.
fn freeze_one(
    one: FileSystem,
    frozen: &mut Vec<FileSystem>,
    not_frozen: &mut Vec<FileSystem>,
) -> Result<(), Error> {
    match fs_ioctl::freeze(&one.dir) {
        Ok(()) => frozen.push(one),
        Err(Errno::OPNOTSUPP) => not_frozen.push(one),
        Err(Errno::BUSY) => return Err(Error::AlreadyFrozen { mount_point: one.mount_point }),
        Err(source) => return Err(one.failed("freeze", source)),
    }
    Ok(())
}

impl FileSystem {
    fn failed(&self, doing: &'static str, source: Errno) -> Error {
        Error::Io { doing, mount_point: self.mount_point.clone(), source }
    }
}
