//! `homeward demo`: on any Linux machine, a disk in use is replicated, points are sealed, services are killed, and
//! every point is restored and compared with what the disk held at that moment.
//!
//! As root the disk is a loop device with a mounted ext4, and the kernel tracks its writes. Otherwise it is a file,
//! and the `scan` tracker makes points while the writers pause. It uses [`crate::lab`] for everything it starts, and
//! leaves nothing behind.
//!
//! Layers: `report`, `fill` → `disk` → `verify` → `stage`, the services and the disk together → the demo's course.

mod disk;
mod fill;
mod report;
mod stage;
mod verify;

use std::{fs, path::PathBuf};

use engine::service::{quantity::Size, shutdown::Shutdown};

pub use self::report::{FullCopy, PointReport, Report, Teller};
use self::stage::{Stage, Work};
use crate::lab::{LabError, build_services, check, ext4, is_release, tool};

/// The smallest disk: ext4, its journal and the writers need some room.
pub const SMALLEST: Size = Size(48 << 20);

/// The most points: each may need a copy of the disk to compare with.
pub const MOST_POINTS: usize = 50;

/// Bytes of the spool.
const SPOOL: u64 = 256 << 20;

/// Besides copies of the disk: journals, logs, what the services leave free.
const EXTRA: u64 = 512 << 20;

/// Records written before a point, between kill and restart, and after it.
const RECORDS: usize = 300;

/// What the demo is to do.
#[derive(Clone, Debug)]
pub struct Options {
    /// Size of the scratch disk; a multiple of 4 KiB is made of it.
    pub size: Size,
    /// Points to ask for; there may be one more, which every replication begins with.
    pub points: usize,
    /// Work here and leave everything, instead of in a temporary folder.
    pub keep: Option<PathBuf>,
}

/// Runs the demo. That a check does not hold is in the report and no error.
///
/// Call it from the main thread before others are started: as root it leaves the machine's mount namespace.
///
/// # Errors
/// If something needed is missing, or something that is not being tested fails.
pub fn run(options: &Options, stop: &Shutdown, tell: &Teller) -> Result<Report, LabError> {
    tool::require(&ext4::TOOLS)?;
    let work = Work::open(options.keep.as_deref())?;
    let bytes = options.size.0.next_multiple_of(4096);
    check_space(&work, bytes, options.points)?;
    let binaries = build_services(is_release())?;
    check(stop)?;

    let mut stage = Stage::set(work, binaries, bytes, stop, tell)?;
    stage.full_copy()?;
    for number in 1..=options.points {
        stage.let_write(RECORDS)?;
        if number == options.points.min(2) {
            stage.kill_agent(RECORDS)?;
        }
        if number == options.points.min(3) {
            stage.kill_master_target(RECORDS)?;
        }
        // The last one and every other: so both kinds are there.
        stage.point((options.points - number).is_multiple_of(2))?;
        if number == options.points / 2 {
            stage.restore_and_go_on()?;
        }
    }
    stage.verify_all()?;
    stage.finish(bytes)
}

/// So that a full disk is found before an hour of copying.
fn check_space(work: &Work, bytes: u64, points: usize) -> Result<(), LabError> {
    let dir = work.path();
    let found = rustix::fs::statvfs(dir).map_err(|error| LabError::io("look at", dir)(error.into()))?;
    let (free, needed) = (found.f_bavail * found.f_frsize, space_needed(bytes, points));
    if free >= needed {
        return Ok(());
    }
    let (free, needed) = (Size(free), Size(needed));
    Err(LabError::Refused(format!(
        "{free} are free in {}, but up to {needed} are needed; name another folder by TMPDIR, or a smaller --size",
        dir.display()
    )))
}

/// The disk, its VMDK, one copy to check, what is taken out of it, and a copy for every second point; all of them
/// sparse, of a disk that is two thirds full.
fn space_needed(bytes: u64, points: usize) -> u64 {
    let copies = 4 + points.div_ceil(2) as u64;
    (bytes / 3 * 2).saturating_mul(copies).saturating_add(SPOOL + EXTRA)
}

impl Work {
    /// The folder that was named, which must be empty; else a temporary one, where there is room: `/var/tmp` is on
    /// a disk where `/tmp` may be memory.
    fn open(keep: Option<&std::path::Path>) -> Result<Self, LabError> {
        if let Some(dir) = keep {
            fs::create_dir_all(dir).map_err(LabError::io("create", dir))?;
            let mut entries = fs::read_dir(dir).map_err(LabError::io("list", dir))?;
            if entries.next().is_some() {
                let what = format!("{} is not empty; name a new folder with --keep", dir.display());
                return Err(LabError::Refused(what));
            }
            return Ok(Self::Kept(fs::canonicalize(dir).map_err(LabError::io("find", dir))?));
        }
        let place = std::env::var_os("TMPDIR").map_or_else(|| "/var/tmp".into(), PathBuf::from);
        let temporary = tempfile::Builder::new().prefix("homeward-demo-").tempdir_in(&place);
        Ok(Self::Temporary(temporary.map_err(LabError::io("create a folder in", &place))?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn space_is_counted_and_does_not_overflow() {
        assert_eq!(space_needed(3 << 30, 4), (2 << 30) * 6 + SPOOL + EXTRA);
        assert_eq!(space_needed(u64::MAX, MOST_POINTS), u64::MAX);
    }

    #[test]
    fn a_folder_with_something_in_it_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Work::open(Some(&dir.path().join("new"))).is_ok());
        assert!(Work::open(Some(dir.path())).is_err());
    }
}
