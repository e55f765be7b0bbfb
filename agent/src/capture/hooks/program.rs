//! One run of a hook: in a process group of its own, waited for within its time, killed with its group after it.

use std::{
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::process::CommandExt,
    },
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use engine::point::Outcome;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, kill_process_group, pidfd_open, waitid},
};

/// A run that was started. The program is reaped only when this is dropped, so that until then its process group
/// keeps its number, and killing it hits nobody else.
pub(super) struct Run {
    child: Child,
    /// Readable once the program has ended.
    ended: OwnedFd,
}

/// How waiting for a run ended.
pub(super) enum Waited {
    /// The program has ended.
    Ended(Result<(), Outcome>),
    /// The deadline has passed; the program goes on.
    TimedOut,
    /// There is something to read on the socket; the program goes on.
    Interrupted,
}

impl Run {
    /// Starts `command`. What it prints goes to stderr, as the log does.
    pub(super) fn start(mut command: Command) -> io::Result<Self> {
        let log = || io::stderr().as_fd().try_clone_to_owned().map_or_else(|_| Stdio::null(), Stdio::from);
        command.stdin(Stdio::null()).stdout(log()).stderr(log()).process_group(0);
        let child = command.spawn()?;
        let ended = pidfd_open(Pid::from_child(&child), PidfdFlags::empty())?;
        Ok(Self { child, ended })
    }

    /// Waits until it ends, until `deadline`, or until there is something to read on `socket`.
    pub(super) fn wait(&self, deadline: Instant, socket: Option<BorrowedFd>) -> Waited {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Waited::TimedOut;
            }
            let mut fds = vec![PollFd::new(&self.ended, PollFlags::IN)];
            fds.extend(socket.as_ref().map(|socket| PollFd::new(socket, PollFlags::IN)));
            // Interrupted by a signal, it is tried again.
            let _ = poll(&mut fds, timespec(left).as_ref());
            if !fds[0].revents().is_empty() {
                return Waited::Ended(self.outcome());
            }
            if fds.get(1).is_some_and(|fd| !fd.revents().is_empty()) {
                return Waited::Interrupted;
            }
        }
    }

    /// Kills the program, if it still runs, and whatever it started and left in its process group.
    pub(super) fn kill(&self) {
        // Nobody may be left.
        let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
    }

    fn outcome(&self) -> Result<(), Outcome> {
        let id = WaitId::Pid(Pid::from_child(&self.child));
        let status = waitid(id, WaitIdOptions::EXITED | WaitIdOptions::NOWAIT);
        match status {
            Ok(Some(status)) => match (status.exit_status(), status.terminating_signal()) {
                (Some(0), _) => Ok(()),
                (Some(status), _) => Err(Outcome::Exited(status)),
                (None, signal) => Err(Outcome::Killed(signal.unwrap_or_default())),
            },
            Ok(None) => Err(Outcome::Failed("it has ended, yet has no status".into())),
            Err(error) => Err(Outcome::Failed(format!("its status cannot be had: {error}"))),
        }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        // One that was just killed, and is not gone yet, stays a zombie until this process ends.
        let _ = self.child.try_wait();
    }
}

/// `None`, which is for ever, for what is longer than the kernel's time.
fn timespec(time: Duration) -> Option<Timespec> {
    Timespec::try_from(time).ok()
}

/// Whether there is something to read on `socket` within `time`.
pub(super) fn readable(socket: BorrowedFd, time: Duration) -> bool {
    let deadline = Instant::now() + time;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut fds = [PollFd::new(&socket, PollFlags::IN)];
        let _ = poll(&mut fds, timespec(left).as_ref());
        if !fds[0].revents().is_empty() {
            return true;
        }
        if left.is_zero() {
            return false;
        }
    }
}
