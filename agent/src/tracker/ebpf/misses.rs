//! How often the kernel skipped the programs, because they were running on that CPU already.
//!
//! It says so where it describes an open program: `recursion_misses` in `/proc/self/fdinfo/N` (Linux 5.12,
//! `bpf_prog_show_fdinfo` in kernel/bpf/syscall.c).

use std::{
    fs, io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
};

use super::super::TrackerError;

/// The two programs.
#[derive(Debug)]
pub(super) struct Misses {
    pub(super) issue: OwnedFd,
    pub(super) complete: OwnedFd,
}

impl Misses {
    /// Issues that were not marked, since the programs were loaded.
    pub(super) fn issues(&self) -> Result<u64, TrackerError> {
        count(&self.issue)
    }

    /// Completions that were not seen.
    pub(super) fn completions(&self) -> Result<u64, TrackerError> {
        count(&self.complete)
    }
}

fn count(program: &OwnedFd) -> Result<u64, TrackerError> {
    let path = format!("/proc/self/fdinfo/{}", program.as_fd().as_raw_fd());
    let text = fs::read_to_string(&path).map_err(TrackerError::io("read", &path))?;
    let line = text.lines().find_map(|line| line.strip_prefix("recursion_misses:"));
    line.and_then(|count| count.trim().parse().ok()).ok_or_else(|| {
        let reason = "it has no count of skipped programs (`recursion_misses`), which Linux has since 5.12";
        TrackerError::io("understand", path)(io::Error::new(io::ErrorKind::InvalidData, reason))
    })
}
