//! A process of its own that thaws what the agent froze, should the agent die or stall.
//!
//! It is started before anything is frozen, locks its memory, and is handed open descriptors of the file systems.
//! Told that they are about to be frozen, it thaws them when the deadline passes or the agent is gone (its end of
//! the socket closes), and goes on thawing until it is told otherwise, since a freeze may complete late. It
//! never opens, logs or allocates on its own, so no frozen file system can stop it.
//!
//! A service manager must not kill it with the agent: let it kill the main process only (systemd:
//! `KillMode=process`). It ends by itself when the agent does.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::process::CommandExt,
    },
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
    sockopt::{Timeout, set_socket_timeout},
};

use super::fs_ioctl;

/// File systems that can be watched at once: what one message can carry.
pub(super) const FILE_SYSTEMS: usize = 250;

/// How long an answer may take. The machine may be very busy, but nothing is frozen while it is waited for.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// Pause between attempts to thaw after the deadline.
const AGAIN: Duration = Duration::from_millis(20);

/// Why the watchdog cannot be relied on; then nothing may be frozen.
#[derive(Debug, thiserror::Error)]
pub enum WatchdogError {
    /// It could not be started.
    #[error("cannot start the watchdog process")]
    Start(#[source] io::Error),
    /// It could not lock its memory.
    #[error("the watchdog process cannot lock its memory: allow it (root, or a higher `ulimit -l`)")]
    Memory,
    /// It does not answer.
    #[error("the watchdog process does not answer: restart the agent")]
    Silent(#[source] io::Error),
    /// There are too many file systems.
    #[error("{0} file systems are more than the {FILE_SYSTEMS} that the watchdog can watch")]
    TooMany(usize),
}

/// First byte of each message; the answer to it begins with the same.
mod message {
    /// From the watchdog, once: it is ready (1) or not (0).
    pub(super) const READY: u8 = b'R';
    /// With descriptors, and nanoseconds, u64: thaw these after that time unless disarmed.
    pub(super) const ARM: u8 = b'A';
    /// Do not thaw any more, and close the descriptors. The answer says whether it did thaw (1) or not (0).
    pub(super) const DISARM: u8 = b'D';
}

/// The agent's handle on its watchdog process. Dropping it ends the process.
#[derive(Debug)]
pub struct Watchdog {
    socket: Option<OwnedFd>,
    process: Child,
}

impl Watchdog {
    /// Starts `command`, which must do nothing but call [`run`]: this program with a hidden argument.
    pub fn start(mut command: Command) -> Result<Self, WatchdogError> {
        let pair = || socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
        let (ours, theirs) = pair().map_err(|error| WatchdogError::Start(error.into()))?;
        set_socket_timeout(&ours, Timeout::Recv, Some(ANSWER_WITHIN))
            .map_err(|error| WatchdogError::Start(error.into()))?;
        // A group of its own, so that what stops or interrupts the agent's does not stop it.
        command.stdin(theirs).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        let process = command.spawn().map_err(WatchdogError::Start)?;
        drop(command); // And with it the other end of the socket.
        let watchdog = Self { socket: Some(ours), process };
        match watchdog.answer(message::READY)? {
            1 => Ok(watchdog),
            _ => Err(WatchdogError::Memory),
        }
    }

    /// From its return on, these file systems, given in the order in which they will be frozen, are thawed `within`
    /// that time, or when this process ends.
    pub(super) fn arm(&mut self, dirs: &[BorrowedFd], within: Duration) -> Result<(), WatchdogError> {
        if dirs.len() > FILE_SYSTEMS {
            return Err(WatchdogError::TooMany(dirs.len()));
        }
        let mut bytes = vec![message::ARM];
        bytes.extend((within.as_nanos() as u64).to_le_bytes());
        self.ask(&bytes, dirs).map(drop)
    }

    /// Leaves the file systems alone again. Returns whether it had to thaw them.
    pub(super) fn disarm(&mut self) -> Result<bool, WatchdogError> {
        Ok(self.ask(&[message::DISARM], &[])? == 1)
    }

    /// Kills the process, as anybody might.
    #[cfg(test)]
    pub(super) fn kill_for_test(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    fn ask(&self, bytes: &[u8], dirs: &[BorrowedFd]) -> Result<u8, WatchdogError> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILE_SYSTEMS))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !dirs.is_empty() {
            ancillary.push(SendAncillaryMessage::ScmRights(dirs));
        }
        sendmsg(self.socket(), &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL)
            .map_err(|error| WatchdogError::Silent(error.into()))?;
        self.answer(bytes[0])
    }

    /// The second byte of the answer, which must begin with `to`.
    fn answer(&self, to: u8) -> Result<u8, WatchdogError> {
        let mut bytes = [0; 2];
        let answer = rustix::net::recv(self.socket(), &mut bytes[..], RecvFlags::empty());
        match answer.map(|(length, _)| length) {
            Ok(2) if bytes[0] == to => Ok(bytes[1]),
            Ok(_) => Err(WatchdogError::Silent(io::ErrorKind::UnexpectedEof.into())),
            Err(error) => Err(WatchdogError::Silent(error.into())),
        }
    }

    #[expect(clippy::expect_used)] // Only drop takes it.
    fn socket(&self) -> &OwnedFd {
        self.socket.as_ref().expect("the socket is open until the drop")
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        // It ends when it finds the socket closed.
        self.socket = None;
        let _ = self.process.wait();
    }
}

/// The watchdog process itself, on the socket that is its standard input. Returns when the agent is gone.
pub fn run() -> io::Result<()> {
    let stdin = io::stdin();
    let socket = stdin.as_fd();
    fs_ioctl::ignore_termination();
    let locked = fs_ioctl::lock_memory().is_ok();
    send(socket, [message::READY, u8::from(locked)])?;
    let mut watched = Watched { dirs: Vec::with_capacity(FILE_SYSTEMS), deadline: None, thawed: false };
    loop {
        set_socket_timeout(socket, Timeout::Recv, watched.patience())?;
        let mut bytes = [0; 9];
        match receive(socket, &mut bytes, &mut watched.dirs) {
            Ok(0) => {
                watched.thaw();
                return Ok(());
            }
            Ok(_) => {
                let answer = watched.handle(bytes);
                send(socket, [bytes[0], answer])?;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => watched.thaw_if_due(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                watched.thaw();
                return Err(error);
            }
        }
    }
}

/// What the watchdog process watches.
struct Watched {
    dirs: Vec<OwnedFd>,
    /// Set while armed.
    deadline: Option<Instant>,
    thawed: bool,
}

impl Watched {
    /// Does what a message says, and returns the second byte of the answer. Descriptors were received already.
    fn handle(&mut self, [kind, nanoseconds @ ..]: [u8; 9]) -> u8 {
        match kind {
            message::ARM => {
                self.deadline = Some(Instant::now() + Duration::from_nanos(u64::from_le_bytes(nanoseconds)));
                self.thawed = false;
                0
            }
            message::DISARM => {
                self.deadline = None;
                self.dirs.clear();
                u8::from(self.thawed)
            }
            _ => 0,
        }
    }

    /// How long to wait for a message; `None` is for ever.
    fn patience(&self) -> Option<Duration> {
        let left = self.deadline?.saturating_duration_since(Instant::now());
        Some(if self.thawed { AGAIN } else { left.max(Duration::from_millis(1)) })
    }

    fn thaw_if_due(&mut self) {
        if self.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            self.thaw();
        }
    }

    /// Thaws everything, if armed; the last frozen first.
    fn thaw(&mut self) {
        if self.deadline.is_some() {
            self.thawed = true;
            for dir in self.dirs.iter().rev() {
                // It may not be frozen (yet, or any more), and there is nobody to tell.
                let _ = fs_ioctl::thaw(dir);
            }
        }
    }
}

fn send(socket: BorrowedFd, bytes: [u8; 2]) -> io::Result<()> {
    rustix::net::send(socket, &bytes, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Receives one message; its descriptors go to `dirs`.
fn receive(socket: BorrowedFd, bytes: &mut [u8; 9], dirs: &mut Vec<OwnedFd>) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILE_SYSTEMS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut into = [IoSliceMut::new(bytes)];
    let length = recvmsg(socket, &mut into, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?.bytes;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            dirs.extend(received);
        }
    }
    Ok(length)
}
