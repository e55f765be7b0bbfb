//! A service's local admin interface: how `serve` answers `status`, `point`, `restore`.
//!
//! A unix-domain socket that only the service's user and root can use. One request in each connection, JSON, one
//! value a line; a request at most [`limits::ADMIN_LINE`] bytes, an answer [`limits::ADMIN_ANSWER`]:
//!
//! ```text
//! → {"command":"restore","point":7}
//! ← {"progress":{"what":"restoring","done":1048576,"total":4194304}}      any number, some may be dropped
//! ← {"ok":{"restored":7}}                                                 or
//! ← {"error":{"message":"no point 7","code":"refused"}}
//! ```
//!
//! With a request may come an open file, which [`Reporter::file`] has.
//!
//! A request goes on when its client goes away, unless its handler asks [`Reporter::is_gone`] and gives up.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read},
    os::unix::{fs::FileTypeExt, net::UnixStream as BlockingStream},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use thiserror::Error;

use super::{code::Code, progress::Step};
use crate::limits;

mod handover;
mod server;

pub use server::{AdminServer, Reporter};

/// The interface could not be used, or the service refused.
#[derive(Debug, Error)]
pub enum AdminError {
    /// Nobody answers at the socket.
    #[error(
        "the service is not running: nobody answers at {path}; start it, or name its configuration with --config"
    )]
    NotRunning {
        /// The socket.
        path: PathBuf,
    },
    /// Somebody answers at the socket that was to be ours.
    #[error(
        "the service is already running: somebody answers at {path}; stop it first, or use another state folder"
    )]
    AlreadyRunning {
        /// The socket.
        path: PathBuf,
    },
    /// What stands where the socket should be is none.
    #[error("{path} is in the way: it is no socket; move it, or set another path for the admin socket")]
    NotASocket {
        /// The socket.
        path: PathBuf,
    },
    /// The system refused.
    #[error(
        "cannot use the admin socket {path}: {source}; does its folder exist, and are you the service's user or root?"
    )]
    Io {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The request is too large.
    #[error(
        "a request of {bytes} bytes is too long for the admin interface; the limit is {}",
        limits::ADMIN_LINE
    )]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// The answer was none: too long, no JSON, or cut off.
    #[error("no proper answer from the service at {path}: {why}; its log may say more")]
    BadAnswer {
        /// The socket.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The service understood, and says no.
    #[error(transparent)]
    Failed(#[from] Failure),
}

/// A request's failure, as it travels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Error)]
#[error("{message}")]
pub struct Failure {
    /// What failed, where, why, and what to do.
    pub message: String,
    /// What the command that asked exits with.
    pub code: Code,
}

/// A line of an answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Answer<T> {
    Progress(Step),
    Ok(T),
    Error(Failure),
}

/// Asks the service at the socket `path`, and blocks until it answers; `on_progress` is called on the way.
///
/// # Errors
/// [`AdminError::NotRunning`], [`AdminError::Failed`] with what the service says, and as the variants say.
pub fn call<T: DeserializeOwned>(
    path: &Path,
    request: &impl Serialize,
    on_progress: impl FnMut(Step),
) -> Result<T, AdminError> {
    call_with_file(path, request, None, on_progress)
}

/// As [`call`], and hands over a file.
///
/// # Errors
/// As for [`call`].
pub fn call_with_file<T: DeserializeOwned>(
    path: &Path,
    request: &impl Serialize,
    file: Option<&File>,
    mut on_progress: impl FnMut(Step),
) -> Result<T, AdminError> {
    let io_error = |source| AdminError::Io { path: path.into(), source };
    let bad = |why: String| AdminError::BadAnswer { path: path.into(), why };

    let request = to_line(request).map_err(|error| io_error(error.into()))?;
    if request.len() > limits::ADMIN_LINE {
        return Err(AdminError::TooLong { bytes: request.len() });
    }
    let mut stream = BlockingStream::connect(path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            AdminError::NotRunning { path: path.into() }
        }
        _ => io_error(source),
    })?;
    handover::send(&mut stream, &request, file).map_err(io_error)?;

    let mut answers = BufReader::new(stream);
    loop {
        let mut line = Vec::new();
        let limit = limits::ADMIN_ANSWER as u64;
        answers.by_ref().take(limit).read_until(b'\n', &mut line).map_err(io_error)?;
        if line.last() != Some(&b'\n') {
            let why = if line.is_empty() { "it hung up" } else { "a line is cut off or too long" };
            return Err(bad(why.into()));
        }
        match serde_json::from_slice(&line).map_err(|error| bad(error.to_string()))? {
            Answer::Progress(step) => on_progress(step),
            Answer::Ok(value) => return Ok(value),
            Answer::Error(failure) => return Err(failure.into()),
        }
    }
}

/// Takes a socket left behind by a dead service away.
fn remove_stale(path: &Path) -> Result<(), AdminError> {
    let io_error = |source| AdminError::Io { path: path.into(), source };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io_error(error)),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(AdminError::NotASocket { path: path.into() });
        }
        Ok(_) => (),
    }
    match BlockingStream::connect(path) {
        Ok(_) => Err(AdminError::AlreadyRunning { path: path.into() }),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(io_error)
        }
        Err(error) => Err(io_error(error)),
    }
}

fn to_line(value: &impl Serialize) -> serde_json::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    Ok(line)
}

#[cfg(test)]
mod tests;
