//! Help for this module's own tests: loop devices, which need root.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::NamedTempFile;

/// A loop device over a file, detached on drop.
pub(super) struct LoopDevice {
    path: PathBuf,
    /// Removed with it, if it is ours.
    _backing: Option<NamedTempFile>,
}

impl LoopDevice {
    /// A loop device that holds `bytes`; `None` without root.
    pub(super) fn over(bytes: &[u8]) -> Option<Self> {
        if !is_root() {
            return None;
        }
        let backing = NamedTempFile::new().unwrap();
        fs::write(backing.path(), bytes).unwrap();
        let mut disk = Self::over_file(backing.path());
        disk._backing = Some(backing);
        Some(disk)
    }

    /// A loop device over the file at `backing`. Needs root.
    pub(super) fn over_file(backing: &Path) -> Self {
        let path = run("losetup", &["--find", "--show", backing.to_str().unwrap()]);
        Self { path: path.trim().into(), _backing: None }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        run("losetup", &["--detach", self.path.to_str().unwrap()]);
    }
}

/// Whether the test runs as root; if not, says that it is skipped.
pub(super) fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("skipped: loop devices and mounts need root");
    }
    root
}

/// Runs a command, which must succeed, and returns what it printed.
pub(super) fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
