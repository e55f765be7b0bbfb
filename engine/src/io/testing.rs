//! Help for this module's own tests: loop devices, which need root, and a kernel that refuses io_uring.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use rustix::io::Errno;
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

/// Has the kernel refuse io_uring_setup to this thread and those it starts, as containers' profiles do.
#[allow(unsafe_code)]
pub(super) fn refuse_io_uring(errno: Errno) {
    let load_number = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    let equal = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    let answer = libc::BPF_RET | libc::BPF_K;
    let step = |code: u32, k: u32, jf: u8| libc::sock_filter { code: code as u16, jt: 0, jf, k };
    let mut filter = [
        step(load_number, 0, 0),
        step(equal, libc::SYS_io_uring_setup as u32, 1),
        step(answer, libc::SECCOMP_RET_ERRNO | errno.raw_os_error() as u32, 0),
        step(answer, libc::SECCOMP_RET_ALLOW, 0),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: `program` and the filter it points to live until the call returns.
    let results = unsafe {
        [
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
            libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program),
        ]
    };
    assert_eq!(results, [0, 0]);
}
