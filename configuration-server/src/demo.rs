//! `homeward demo`: on any Linux machine, a disk in use is replicated, points are sealed, services are killed, and
//! every point is restored and compared with what the disk held at that moment.
//!
//! As root the disk is a loop device with a mounted ext4, and the kernel tracks its writes. Otherwise it is a file,
//! and the `scan` tracker makes points while the writers pause. It uses [`crate::lab`] for everything it starts, and
//! leaves nothing behind.
//!
//! Layers: `report`, `work`, `fill` → `disk` → `setup`, `verify` → `stage`, the services and the disk together → the
//! demo's course.

mod disk;
mod fill;
mod report;
mod setup;
mod stage;
mod verify;
mod work;

use std::path::PathBuf;

use engine::service::{quantity::Size, shutdown::Shutdown};

pub use self::report::{FullCopy, PointReport, Report, Teller};
use self::{stage::Stage, work::Work};
use crate::lab::{LabError, build_services, check, ext4, is_release, tool};

/// The smallest disk: ext4, its journal and the writers need some room.
pub const SMALLEST: Size = Size(48 << 20);

/// The most points: each may need a copy of the disk to compare with.
pub const MOST_POINTS: usize = 50;

/// Bytes of the spool.
const SPOOL: u64 = 256 << 20;

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
    work.check_space(bytes, options.points)?;
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
