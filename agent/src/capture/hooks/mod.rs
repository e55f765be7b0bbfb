//! The operator's hooks: programs that make applications hold for a point, and let them go on.
//!
//! They are run by a process of their own ([`runner::run`]), started with the agent. So the agent never waits for a
//! hook, and if it is killed while applications hold, they are let go on all the same: the process notices, runs the
//! post hooks, and ends. A service manager must not kill it with the agent (systemd: `KillMode=process`). Should the
//! process itself be killed, another takes its place and runs the post hooks.

mod message;
mod program;
pub mod runner;

#[cfg(test)]
mod tests;

use std::{
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::process::CommandExt,
    },
    process::{Child, Command, Stdio},
    time::Duration,
};

use engine::{
    limits,
    point::{Application, FailedStep, Outcome, PointId, Stage},
};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, socketpair};

pub use self::message::Hook;
use self::message::{Ask, Session, Tell, receive, send};
use super::quiesce::{Quiesce, Quiescer};

/// What a point that lost its hooks process says of it.
const PROCESS: &str = "the hooks process";

/// Runs hooks, in their process.
pub struct Hooks {
    command: Box<dyn Fn() -> Command + Send>,
    vm: String,
    hooks: Vec<Hook>,
    hold: Duration,
    process: Option<Process>,
    /// What is under way.
    session: Option<Session>,
    held: bool,
    /// Set if the process was lost meanwhile.
    lost: Option<FailedStep>,
}

impl Hooks {
    /// For the hooks of `vm`. `command` must do nothing but call [`runner::run`]: this program with a hidden argument.
    ///
    /// # Errors
    /// If the process cannot be started.
    pub fn start(command: Box<dyn Fn() -> Command + Send>, vm: String, hooks: Vec<Hook>) -> io::Result<Self> {
        let process = Some(Process::start(command())?);
        Ok(Self { command, vm, hooks, hold: limits::HOLD, process, session: None, held: false, lost: None })
    }

    /// Tells the process something; it is started again if it was lost.
    fn ask(&mut self, ask: &Ask) -> io::Result<()> {
        if self.process.is_none() {
            self.process = Some(Process::start((self.command)())?);
        }
        self.process.as_ref().map_or(Ok(()), |process| send(&process.socket, ask))
    }

    fn poll_process(&mut self) -> io::Result<Option<Tell>> {
        let Some(process) = &self.process else { return Err(io::ErrorKind::NotConnected.into()) };
        receive(&process.socket, RecvFlags::DONTWAIT)
    }

    /// The process is gone: another lets applications go on. `None` if that cannot be either.
    fn recover(&mut self, error: &io::Error) -> Option<()> {
        tracing::error!(%error, "the hooks process is gone; another runs the post hooks");
        let (stage, outcome) = (Stage::Pre, Outcome::Failed(format!("it ended by itself ({error})")));
        let first = self.lost.replace(FailedStep { step: PROCESS.into(), stage, outcome }).is_none();
        self.process = None;
        let session = self.session.clone().filter(|_| first)?;
        self.ask(&Ask::Post(session)).ok()
    }
}

impl Quiescer for Hooks {
    fn hold(&mut self, id: PointId) {
        let session = Session {
            point: id,
            vm: self.vm.clone(),
            hooks: self.hooks.clone(),
            hold_ms: self.hold.as_millis() as u64,
        };
        self.session = Some(session.clone());
        self.held = false;
        self.lost = None;
        if self.ask(&Ask::Hold(session.clone())).is_err() {
            // It was lost while there was nothing to do.
            self.process = None;
            if let Err(error) = self.ask(&Ask::Hold(session)) {
                let outcome = Outcome::Failed(format!("it cannot be started: {error}"));
                self.lost = Some(FailedStep { step: PROCESS.into(), stage: Stage::Pre, outcome });
            }
        }
    }

    fn release(&mut self) {
        // If it is lost, polling finds out.
        let _ = self.ask(&Ask::Release);
    }

    fn poll(&mut self) -> Quiesce {
        let going_on = if self.held { Quiesce::Held } else { Quiesce::Working };
        match self.poll_process() {
            Ok(None) => going_on,
            Ok(Some(Tell::Held)) => {
                self.held = true;
                Quiesce::Held
            }
            Ok(Some(Tell::Over(report))) => {
                self.session = None;
                Quiesce::Over(Application { failed: self.lost.take().or(report.failed), ..report })
            }
            Err(error) => match self.recover(&error) {
                Some(()) => {
                    self.held = false;
                    Quiesce::Working
                }
                None => Quiesce::Over(Application { failed: self.lost.take(), ..Application::default() }),
            },
        }
    }
}

/// The agent's handle on the process.
struct Process {
    socket: OwnedFd,
    child: Child,
}

impl Process {
    fn start(mut command: Command) -> io::Result<Self> {
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        // A group of its own, so that what stops or interrupts the agent's does not stop it.
        command.stdin(theirs).stdout(Stdio::null()).process_group(0);
        let child = command.spawn()?;
        drop(command); // And with it the other end of the socket.
        Ok(Self { socket: ours, child })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It ends when it finds the socket closed, and after the post hooks that it may still have to run. Nobody
        // waits for these: whoever drops this is about to end, or has found the process gone.
        let _ = rustix::net::shutdown(self.socket.as_fd(), rustix::net::Shutdown::Both);
        let _ = self.child.try_wait();
    }
}
