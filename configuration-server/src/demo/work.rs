//! The folder that the demo works in, and whether there is room enough.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
};

use engine::service::quantity::Size;

use super::SPOOL;
use crate::lab::LabError;

/// Besides copies of the disk: journals, logs, what the services leave free.
const EXTRA: u64 = 512 << 20;

/// The folder that everything is in.
pub(super) enum Work {
    /// Removed at the end.
    Temporary(tempfile::TempDir),
    /// Left as it is.
    Kept(PathBuf),
}

impl Work {
    /// The folder that was named, which must be empty; else a temporary one, where there is room: `/var/tmp` is on
    /// a disk where `/tmp` may be memory.
    pub(super) fn open(keep: Option<&Path>) -> Result<Self, LabError> {
        if let Some(dir) = keep {
            fs::create_dir_all(dir).map_err(LabError::io("create", dir))?;
            let mut entries = fs::read_dir(dir).map_err(LabError::io("list", dir))?;
            if entries.next().is_some() {
                let what = format!("{} is not empty; name a new folder with --keep", dir.display());
                return Err(LabError::Refused(what));
            }
            return Ok(Self::Kept(fs::canonicalize(dir).map_err(LabError::io("find", dir))?));
        }
        let place = env::var_os("TMPDIR").map_or_else(|| "/var/tmp".into(), PathBuf::from);
        let temporary = tempfile::Builder::new().prefix("homeward-demo-").tempdir_in(&place);
        Ok(Self::Temporary(temporary.map_err(LabError::io("create a folder in", &place))?))
    }

    pub(super) fn path(&self) -> &Path {
        match self {
            Self::Temporary(dir) => dir.path(),
            Self::Kept(dir) => dir,
        }
    }

    /// So that a full disk is found before an hour of copying.
    pub(super) fn check_space(&self, bytes: u64, points: usize) -> Result<(), LabError> {
        let dir = self.path();
        let found =
            rustix::fs::statvfs(dir).map_err(io::Error::from).map_err(LabError::io("look at", dir))?;
        let (free, needed) = (found.f_bavail * found.f_frsize, space_needed(bytes, points));
        if free >= needed {
            return Ok(());
        }
        let (free, needed, dir) = (Size(free), Size(needed), dir.display());
        Err(LabError::Refused(format!(
            "{free} are free in {dir}, but up to {needed} are needed; name another folder by TMPDIR, or a smaller --size"
        )))
    }
}

/// The disk, its VMDK, one copy to check, what files it is made of, and a copy for each point; all of them sparse, of
/// a disk that is two thirds full.
fn space_needed(bytes: u64, points: usize) -> u64 {
    (bytes / 3 * 2).saturating_mul(4 + points as u64).saturating_add(SPOOL + EXTRA)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::MOST_POINTS;

    #[test]
    fn space_is_counted_and_does_not_overflow() {
        assert_eq!(space_needed(3 << 30, 4), (2 << 30) * 8 + SPOOL + EXTRA);
        assert_eq!(space_needed(u64::MAX, MOST_POINTS), u64::MAX);
    }

    #[test]
    fn a_folder_with_something_in_it_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Work::open(Some(&dir.path().join("new"))).is_ok());
        assert!(Work::open(Some(dir.path())).is_err());
    }
}
