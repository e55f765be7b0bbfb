//! Where clients of a drill connect: TCP or a Unix socket, behind one type.

use std::{
    fmt,
    fs::{self, Permissions},
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    os::{
        fd::AsFd,
        unix::{
            fs::{FileTypeExt, PermissionsExt},
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    time::Duration,
};

use engine::limits::IDLE;
use rustix::net::sockopt;
use serde::{Deserialize, Serialize};

/// Where a drill listens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// An address and a port; port 0 is any that is free.
    Listen(SocketAddr),
    /// The path of a Unix socket, which is made.
    Socket(PathBuf),
}

impl Place {
    /// Whether only this machine gets there.
    #[must_use]
    pub fn is_local(&self) -> bool {
        match self {
            Self::Listen(addr) => addr.ip().is_loopback(),
            Self::Socket(_) => true,
        }
    }

    /// How NBD clients name one of its exports.
    #[must_use]
    pub fn uri(&self, export: &str) -> String {
        match self {
            Self::Listen(addr) if self.is_local() => format!("nbd://{addr}/{export}"),
            Self::Listen(addr) => format!("nbds://{addr}/{export}"),
            Self::Socket(path) => format!("nbd+unix:///{export}?socket={}", path.display()),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Listen(addr) => addr.fmt(f),
            Self::Socket(path) => path.display().fmt(f),
        }
    }
}

/// A place that is listened at. A Unix socket is removed with it.
pub(super) enum Acceptor {
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf),
}

impl Acceptor {
    /// Listens.
    pub(super) fn bind(place: &Place) -> io::Result<Self> {
        match place {
            Place::Listen(addr) => Ok(Self::Tcp(TcpListener::bind(addr)?)),
            Place::Socket(path) => {
                remove_stale(path)?;
                let listener = UnixListener::bind(path)?;
                fs::set_permissions(path, Permissions::from_mode(0o600))?;
                Ok(Self::Unix(listener, path.clone()))
            }
        }
    }

    /// Where: with the port that was found.
    pub(super) fn place(&self) -> io::Result<Place> {
        Ok(match self {
            Self::Tcp(listener) => Place::Listen(listener.local_addr()?),
            Self::Unix(_, path) => Place::Socket(path.clone()),
        })
    }

    /// The next client. Fails for good after [`Self::close`].
    pub(super) fn accept(&self) -> io::Result<Socket> {
        match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept()?;
                stream.set_nodelay(true)?;
                // A client that vanished without a word gives its place free.
                sockopt::set_socket_keepalive(&stream, true)?;
                sockopt::set_tcp_keepidle(&stream, IDLE / 2)?;
                sockopt::set_tcp_keepintvl(&stream, IDLE / 6)?;
                sockopt::set_tcp_user_timeout(&stream, IDLE.as_millis() as u32)?;
                Ok(Socket::Tcp(stream))
            }
            Self::Unix(listener, _) => Ok(Socket::Unix(listener.accept()?.0)),
        }
    }

    /// Wakes who accepts.
    pub(super) fn close(&self) {
        let fd = match self {
            Self::Tcp(listener) => listener.as_fd(),
            Self::Unix(listener, _) => listener.as_fd(),
        };
        // Fails only if it is closed already.
        let _ = rustix::net::shutdown(fd, rustix::net::Shutdown::Both);
    }
}

impl Drop for Acceptor {
    fn drop(&mut self) {
        if let Self::Unix(_, path) = self {
            // What remains is taken for stale by the next.
            let _ = fs::remove_file(path);
        }
    }
}

/// Takes away what a dead process left; anything else there makes the bind fail.
fn remove_stale(path: &Path) -> io::Result<()> {
    let is_socket = fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
    let refused = |e: io::Error| e.kind() == io::ErrorKind::ConnectionRefused;
    if is_socket && UnixStream::connect(path).is_err_and(refused) { fs::remove_file(path) } else { Ok(()) }
}

/// A connection.
pub(super) enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Socket {
    pub(super) fn try_clone(&self) -> io::Result<Self> {
        Ok(match self {
            Self::Tcp(stream) => Self::Tcp(stream.try_clone()?),
            Self::Unix(stream) => Self::Unix(stream.try_clone()?),
        })
    }

    /// How long a read may take; `None` for ever.
    pub(super) fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.set_read_timeout(timeout),
            Self::Unix(stream) => stream.set_read_timeout(timeout),
        }
    }

    /// Ends it for everybody who has a clone.
    pub(super) fn close(&self) {
        // Fails only if it is closed already.
        let _ = match self {
            Self::Tcp(stream) => stream.shutdown(Shutdown::Both),
            Self::Unix(stream) => stream.shutdown(Shutdown::Both),
        };
    }
}

impl Read for Socket {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(buf),
            Self::Unix(stream) => stream.read(buf),
        }
    }
}

impl Write for Socket {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(buf),
            Self::Unix(stream) => stream.write(buf),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
