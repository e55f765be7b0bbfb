//! The harness's folder: disks that are kept between runs, and what a run leaves, which is not.

use std::{
    fs::{self, DirBuilder, File, TryLockError},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use anyhow::Context;
use engine::service::exit::{Code, WithCode};
use tempfile::TempDir;

/// How folders of runs begin.
const RUN: &str = "run-";

/// The folder, ours as long as this lives.
pub struct Work {
    dir: PathBuf,
    _lock: File,
}

impl Work {
    /// Makes it where there is none, and removes what runs that were killed have left.
    pub fn open(dir: &Path) -> anyhow::Result<Self> {
        let inside = || format!("cannot work in {}", dir.display());
        // Disks here hold what not everybody may read on the machine.
        DirBuilder::new().recursive(true).mode(0o700).create(dir).with_context(inside)?;
        let lock = File::create(dir.join("lock")).with_context(inside)?;
        match lock.try_lock() {
            Ok(()) => (),
            Err(TryLockError::WouldBlock) => {
                let busy = anyhow::anyhow!("another homeward-bench works in {}: wait for it", dir.display());
                return Err(busy).with_code(Code::Refused);
            }
            Err(TryLockError::Error(error)) => return Err(error).with_context(inside),
        }
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(RUN) {
                fs::remove_dir_all(entry.path()).with_context(inside)?;
            }
        }
        Ok(Self { dir: dir.to_owned(), _lock: lock })
    }

    /// A file or folder that is kept.
    pub fn kept(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// A folder for one run, gone when it is dropped.
    pub fn run(&self) -> anyhow::Result<TempDir> {
        let dir = tempfile::Builder::new().prefix(RUN).tempdir_in(&self.dir);
        dir.with_context(|| format!("cannot make a folder in {}", self.dir.display()))
    }
}

/// Writes out and forgets what the kernel keeps of files and devices, so that whoever reads next reads the disk.
pub fn forget_cached() -> anyhow::Result<()> {
    rustix::fs::sync();
    fs::write("/proc/sys/vm/drop_caches", "3").context("cannot empty the page cache")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_one_at_a_time_and_begins_clean() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("run-killed")).unwrap();
        fs::write(dir.path().join("disk"), "kept").unwrap();
        let work = Work::open(dir.path()).unwrap();
        assert!(!dir.path().join("run-killed").exists() && work.kept("disk").exists());
        let refused = Work::open(dir.path()).map(drop).unwrap_err().to_string();
        assert!(refused.contains("another"), "{refused}");
    }
}
