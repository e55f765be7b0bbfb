//! Children that never outlive us, and mounts that nobody else sees. The lab's only unsafe code.

#![allow(unsafe_code)]

use std::{
    io,
    os::unix::process::CommandExt,
    process::{Child, Command},
    sync::mpsc,
    thread,
};

use rustix::{
    io::Errno,
    mount::{MountFlags, MountPropagationFlags, mount, mount_change},
    process::{Signal, getpid, getppid, set_parent_process_death_signal},
    thread::{UnshareFlags, unshare_unsafe},
};

/// Makes `command`'s process die with the *thread* that starts it, and keeps a terminal's ^C from it.
pub(super) fn tie(command: &mut Command) -> &mut Command {
    let us = getpid();
    let die_with_us = move || {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        // We may have died before that call.
        if getppid() == Some(us) { Ok(()) } else { Err(Errno::CHILD.into()) }
    };
    // SAFETY: between fork and exec only async-signal-safe calls are allowed: these are two bare system calls.
    unsafe { command.pre_exec(die_with_us) }.process_group(0)
}

/// A thread that starts long-lived children, because they die with the thread that started them.
pub(super) struct Spawner(mpsc::Sender<Job>);

type Job = (Command, mpsc::Sender<io::Result<Child>>);

impl Spawner {
    /// The thread ends when the spawner is dropped, and with it every child that is left.
    pub(super) fn new() -> io::Result<Self> {
        let (jobs, inbox) = mpsc::channel::<Job>();
        let body = move || {
            for (mut command, reply) in inbox {
                // Who asked waits for it.
                let _ = reply.send(tie(&mut command).spawn());
            }
        };
        thread::Builder::new().name("spawner".into()).spawn(body)?;
        Ok(Self(jobs))
    }

    pub(super) fn spawn(&self, command: Command) -> io::Result<Child> {
        let gone = || io::Error::other("the spawner thread is gone");
        let (reply, answer) = mpsc::channel();
        self.0.send((command, reply)).map_err(|_| gone())?;
        answer.recv().map_err(|_| gone())?
    }
}

/// Gives this thread, and what it starts from now on, mounts of its own and a BPF file system of its own: however
/// we end, even by `kill -9`, they end with us. Needs root.
///
/// Call it before other threads are started; they keep the machine's mounts.
///
/// # Errors
/// What the kernel refuses, for example in a container.
pub fn isolate() -> io::Result<()> {
    // SAFETY: only the mount namespace is left: file descriptors and memory stay as they are.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }?;
    // What the machine unmounts later goes here, too; nothing of ours goes there.
    mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("bpf", "/sys/fs/bpf", "bpf", flags, c"mode=700")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path, process::Stdio};

    use super::*;
    use crate::lab::wait::soon;

    #[test]
    fn children_outlive_the_asking_thread_but_not_the_spawner() {
        let spawner = Spawner::new().unwrap();
        let sleep = || {
            let mut command = Command::new("sleep");
            command.arg("600").stdin(Stdio::null());
            command
        };
        let mut child = thread::scope(|s| s.spawn(|| spawner.spawn(sleep()).unwrap()).join().unwrap());
        assert!(child.try_wait().unwrap().is_none());
        drop(spawner);
        soon("the child dies", || child.try_wait().unwrap().is_some());
    }

    #[test]
    fn isolated_mounts_are_seen_by_nobody_else() {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: mounting needs root");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        thread::scope(|s| {
            s.spawn(|| {
                isolate().unwrap();
                mount("none", dir.path(), "tmpfs", MountFlags::empty(), None).unwrap();
                fs::write(dir.path().join("here"), "").unwrap();
            });
        });
        assert!(!dir.path().join("here").exists());
        assert!(!Path::new("/sys/fs/bpf/homeward-lab-test").exists());
    }
}
