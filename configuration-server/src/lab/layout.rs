//! Where everything of a lab is, below one folder, and free ports for its services.
//!
//! ```text
//! keys/        the CA and all certificates        run/         admin sockets
//! NAME.toml    a configuration per service        log/         a log per service
//! agent-VM/    an agent's state                   spool/       the process server's
//! journal/     the master target's                datastore/   with a folder per VM
//! drills/      what drills write
//! ```

use std::{
    collections::BTreeSet,
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with, sockopt};

use super::error::LabError;

/// Longest path of a unix socket.
const SOCKET_PATH: usize = 107;

/// First port tried.
const FIRST_PORT: u16 = 10_240;

/// The folder of a lab.
#[derive(Clone, Debug)]
pub struct Layout {
    root: PathBuf,
}

impl Layout {
    /// Makes the folders below `root`, which must exist.
    ///
    /// # Errors
    /// If they cannot be made, or would be too deep for a socket.
    pub(super) fn create(root: &Path) -> Result<Self, LabError> {
        let root = fs::canonicalize(root).map_err(LabError::io("find", root))?;
        let layout = Self { root };
        let longest = layout.admin("process-server");
        if longest.as_os_str().len() > SOCKET_PATH {
            let source =
                std::io::Error::other("a socket's path has at most 107 bytes; take a folder nearer to /");
            return Err(LabError::Io { doing: "use", path: longest, source });
        }
        for dir in ["run", "log", "spool", "journal", "datastore"] {
            let dir = layout.dir(dir);
            fs::create_dir_all(&dir).map_err(LabError::io("create", &dir))?;
        }
        Ok(layout)
    }

    /// A folder or file below.
    #[must_use]
    pub fn dir(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Where the VMDKs are.
    #[must_use]
    pub fn datastore(&self) -> PathBuf {
        self.dir("datastore")
    }

    pub(super) fn config(&self, service: &str) -> PathBuf {
        self.dir(&format!("{service}.toml"))
    }

    pub(super) fn log(&self, service: &str) -> PathBuf {
        self.dir("log").join(format!("{service}.log"))
    }

    /// Sockets have short paths: an agent's VM is left to its number.
    pub(super) fn admin(&self, service: &str) -> PathBuf {
        self.dir("run").join(format!("{service}.sock"))
    }
}

/// Hands out loopback ports that nobody listens on, from below those that the kernel gives to outgoing connections:
/// one of these would be in the way when a service comes back.
#[derive(Debug, Default)]
pub(super) struct Ports(BTreeSet<u16>);

impl Ports {
    pub(super) fn next(&mut self) -> Result<SocketAddr, LabError> {
        let end = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok();
        let end = end.and_then(|range| range.split_whitespace().next()?.parse().ok());
        let end = end.filter(|&end| end > FIRST_PORT + 1000).unwrap_or(32_768);
        for _ in 0..1000 {
            let port = rand::random_range(FIRST_PORT..end);
            let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
            if is_free(addr) && self.0.insert(port) {
                return Ok(addr);
            }
        }
        Err(LabError::io("find a free port on", "127.0.0.1")(std::io::Error::other("a thousand tries")))
    }
}

/// Whether a service could listen there. It is bound to and not listened on: a process that another thread forks just
/// now has a copy of the socket until it runs its program, and a copy that listened would be in the service's way.
fn is_free(addr: SocketAddr) -> bool {
    let probe = || {
        let kind = SocketType::STREAM;
        let socket = socket_with(AddressFamily::INET, kind, SocketFlags::CLOEXEC, None)?;
        // As services do it: two may be bound to one port while neither listens.
        sockopt::set_socket_reuseaddr(&socket, true)?;
        bind(&socket, &addr)
    };
    probe().is_ok()
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, process::Command};

    use super::*;

    #[test]
    fn ports_are_free_and_differ() {
        let mut ports = Ports::default();
        let taken: Vec<_> = (0..20).map(|_| TcpListener::bind(ports.next().unwrap()).unwrap()).collect();
        assert_eq!(ports.0.len(), taken.len());
        assert!(taken.iter().all(|listener| !is_free(listener.local_addr().unwrap())));
    }

    /// Children have copies of all sockets for a moment: none of them is in the way.
    #[test]
    fn ports_are_free_while_processes_are_started() {
        std::thread::scope(|scope| {
            let starting =
                scope.spawn(|| (0..200).for_each(|_| drop(Command::new("true").output().unwrap())));
            while !starting.is_finished() {
                drop(TcpListener::bind(Ports::default().next().unwrap()).unwrap());
            }
        });
    }

    #[test]
    fn a_folder_too_deep_for_sockets_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("x".repeat(100));
        fs::create_dir(&deep).unwrap();
        assert!(Layout::create(&deep).unwrap_err().to_string().contains("107"));
        let layout = Layout::create(dir.path()).unwrap();
        assert!(layout.datastore().is_dir());
    }
}
