//! One process at a time in a folder: the journal's or the spool's.
//!
//! The lock is advisory (`flock`): it binds those who take it. It ends with the process, however that ends.

use std::{
    fs::{File, TryLockError},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

/// The file that is locked. It stays in the folder; [`super::FolderStorage`] does not list it.
pub(super) const LOCK_NAME: &str = ".lock";

/// A folder that this process has to itself, until it is dropped.
#[derive(Debug)]
pub struct DirLock {
    file: File,
}

/// Why a folder could not be locked.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody else has it.
    #[error("folder {dir} is in use by {holder}; stop that first, or choose another folder", holder = who(*.pid))]
    Held {
        /// The folder.
        dir: PathBuf,
        /// The process that has it, as it wrote down itself; `None` if it has not come to that yet.
        pid: Option<u32>,
    },
    /// The lock file could not be used.
    #[error("cannot lock folder {dir}: {source}; check that it exists and may be written")]
    Io {
        /// The folder.
        dir: PathBuf,
        /// Why.
        source: io::Error,
    },
}

fn who(pid: Option<u32>) -> String {
    pid.map_or_else(|| "another process".into(), |pid| format!("process {pid}"))
}

impl DirLock {
    /// Locks the folder `dir`, which must exist. Does not wait.
    pub fn acquire(dir: &Path) -> Result<Self, LockError> {
        let failed = |source| LockError::Io { dir: dir.into(), source };
        let path = dir.join(LOCK_NAME);
        // Not truncated: until it is locked, the pid in it may be somebody else's.
        let mut file =
            File::options().read(true).write(true).create(true).truncate(false).open(path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                file.read_to_string(&mut pid).map_err(failed)?;
                return Err(LockError::Held { dir: dir.into(), pid: pid.trim().parse().ok() });
            }
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
        file.set_len(0).map_err(failed)?;
        writeln!(file, "{}", std::process::id()).map_err(failed)?;
        Ok(Self { file })
    }
}

impl Drop for DirLock {
    fn drop(&mut self) {
        // Closing it is not enough: a process being started holds a copy of the descriptor for a moment.
        let _ = self.file.unlock();
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_second_holder_is_told_who_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let held = DirLock::acquire(dir.path()).unwrap();
        let error = DirLock::acquire(dir.path()).unwrap_err();
        assert!(matches!(&error, LockError::Held { pid, .. } if *pid == Some(std::process::id())), "{error}");
        assert!(error.to_string().contains(&format!("process {}", std::process::id())));
        drop(held);
        DirLock::acquire(dir.path()).unwrap();
    }

    #[test]
    fn it_holds_between_processes_and_ends_with_them() {
        let dir = tempfile::tempdir().unwrap();
        let lock = dir.path().join(LOCK_NAME);
        // `flock` keeps the lock for as long as `cat` reads our pipe.
        let mut other = Command::new("flock")
            .arg(&lock)
            .args(["sh", "-c", "echo locked; cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = [0; 7];
        other.stdout.as_mut().unwrap().read_exact(&mut line).unwrap();
        assert!(matches!(DirLock::acquire(dir.path()), Err(LockError::Held { pid: None, .. })));
        drop(other.stdin.take());
        other.wait().unwrap();
        DirLock::acquire(dir.path()).unwrap();
    }

    #[test]
    fn a_missing_folder_is_an_error_with_its_name() {
        let error = DirLock::acquire(Path::new("/nonexistent/journal")).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/journal"), "{error}");
    }
}
