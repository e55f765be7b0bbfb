//! What the agent and its hooks process say to each other: one JSON text in each packet of a socket.

use std::{io, os::fd::AsFd, path::PathBuf};

use engine::point::{Application, PointId};
use rustix::net::{RecvFlags, SendFlags};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// Bytes of one message. [`engine::limits::HOOKS`] paths of usual length are far below.
const PACKET: usize = 128 << 10;

/// A program, run with `--pre` and with `--post`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hook {
    /// Which.
    pub path: PathBuf,
    /// Milliseconds that each run may take.
    pub within_ms: u64,
}

/// For what hooks are run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Session {
    pub(super) point: PointId,
    pub(super) vm: String,
    /// In the order of their pre runs.
    pub(super) hooks: Vec<Hook>,
    /// Milliseconds after which applications go on unless they are let go on before.
    pub(super) hold_ms: u64,
}

/// From the agent.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Ask {
    /// Run the pre hooks; then, when told to or when time is up, the post hooks.
    Hold(Session),
    /// Let applications go on.
    Release,
    /// Run all post hooks: another process ended before it could.
    Post(Session),
}

/// To the agent.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Tell {
    /// Applications hold.
    Held,
    /// They were let go on.
    Over(Application),
}

/// Sends one message.
///
/// # Errors
/// If nobody is there to receive it.
pub(super) fn send(socket: impl AsFd, message: &impl Serialize) -> io::Result<()> {
    let bytes = serde_json::to_vec(message)?;
    rustix::net::send(socket, &bytes, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Receives one; `None` if there is none, which `flags` may forbid to wait for.
///
/// # Errors
/// `UnexpectedEof` if the other end is gone; `InvalidData` if it speaks otherwise.
pub(super) fn receive<T: DeserializeOwned>(socket: impl AsFd, flags: RecvFlags) -> io::Result<Option<T>> {
    let mut bytes = vec![0; PACKET];
    match rustix::net::recv(socket, &mut bytes[..], flags).map(|(length, _)| length) {
        Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
        Ok(length) => Ok(Some(serde_json::from_slice(&bytes[..length])?)),
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
