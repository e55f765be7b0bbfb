//! The two ioctls that freeze and thaw a mounted file system, the locking of memory that must stay usable then, and
//! signals of the processes that outlive the agent.

#![allow(unsafe_code)]

use std::os::fd::AsFd;

use rustix::{
    io,
    ioctl::{NoArg, Opcode, ioctl, opcode},
    mm::{MlockAllFlags, mlockall},
};

/// Writes out the file system that `dir` is on and holds every write to it from now on.
/// `EBUSY`: it is frozen already. `EOPNOTSUPP`: it cannot be.
pub(super) fn freeze(dir: impl AsFd) -> io::Result<()> {
    const FIFREEZE: Opcode = opcode::read_write::<i32>(b'X', 119);
    // SAFETY: this opcode exists and takes no argument.
    unsafe { ioctl(dir, NoArg::<FIFREEZE>::new()) }
}

/// Lets writes go on. `EINVAL`: it is not frozen.
pub(super) fn thaw(dir: impl AsFd) -> io::Result<()> {
    const FITHAW: Opcode = opcode::read_write::<i32>(b'X', 120);
    // SAFETY: this opcode exists and takes no argument.
    unsafe { ioctl(dir, NoArg::<FITHAW>::new()) }
}

/// Keeps all memory of this process resident, now and from now on.
pub(super) fn lock_memory() -> io::Result<()> {
    mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE)
}

/// Keeps memory of this process resident once it has been touched, now and from now on: it is never swapped out, and
/// costs no more than what is used. For a process whose mappings are larger than that, as stacks of threads are.
pub(super) fn lock_touched_memory() -> io::Result<()> {
    mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT)
}

/// Holds back the signals by which a service is asked to end. Programs that are started are not affected: they begin
/// with no signal held back.
pub(super) fn block_termination() {
    // SAFETY: the set is initialised before it is used, and the calls change only this process's mask.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
            libc::sigaddset(&raw mut set, signal);
        }
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
    }
}

/// Ignores the signals by which a service is asked to end.
pub(super) fn ignore_termination() {
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
        // SAFETY: ignoring a signal installs no handler, and these signals exist.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}
