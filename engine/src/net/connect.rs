//! TCP and the TLS handshake, on tokio: listen, accept, connect.
//!
//! A [`Peer`] is the only way to a stream, and having one means that certificates and roles are right. What it
//! may do (which disks an agent may write) is decided by those who know, from [`Peer::identity`].

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use rustix::net::sockopt;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::{
    net::{TcpListener, TcpStream, lookup_host},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use super::{
    error::{NetError, Refusal},
    identity::{Identity, IdentityError, TLS_NAME},
    tls::{ClientTls, ServerTls},
};
use crate::limits;

/// Pause after the system would not accept a connection (out of file descriptors, mostly).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The other end of a connection, verified.
#[derive(Debug)]
pub struct Peer {
    /// Who it is.
    pub identity: Identity,
    /// Where it is.
    pub addr: SocketAddr,
    /// The way to it.
    pub stream: TlsStream<TcpStream>,
}

/// Listens for peers of the roles its settings allow.
#[derive(Debug)]
pub struct Listener {
    tcp: TcpListener,
    tls: ServerTls,
    handshakes: Arc<Semaphore>,
}

impl Listener {
    /// Listens on `addr`, `host:port`.
    ///
    /// # Errors
    /// [`NetError::Bind`].
    pub async fn bind(addr: &str, tls: ServerTls) -> Result<Self, NetError> {
        let tcp =
            TcpListener::bind(addr).await.map_err(|source| NetError::Bind { addr: addr.into(), source })?;
        Ok(Self { tcp, tls, handshakes: Arc::new(Semaphore::new(limits::HANDSHAKES)) })
    }

    /// Where it listens: the port, if 0 was asked for.
    ///
    /// # Errors
    /// What the system says.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.tcp.local_addr()
    }

    /// The next TCP connection. Cancel-safe; run its [`Incoming::handshake`] in a task of its own, so that a slow
    /// client stands in nobody's way. At most [`limits::HANDSHAKES`] are open at once; then this waits.
    pub async fn accept(&self) -> Incoming {
        loop {
            // Never closed, so this fails never; taken first, so that a dropped future drops no connection.
            let Ok(permit) = self.handshakes.clone().acquire_owned().await else { continue };
            match self.tcp.accept().await {
                Ok((stream, addr)) => {
                    return Incoming { stream, addr, tls: self.tls.clone(), _permit: permit };
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection; trying again");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

/// A TCP connection of nobody knows whom.
#[derive(Debug)]
pub struct Incoming {
    stream: TcpStream,
    addr: SocketAddr,
    tls: ServerTls,
    _permit: OwnedSemaphorePermit,
}

impl Incoming {
    /// Where it comes from.
    #[must_use]
    pub const fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Finds out who it is, within [`limits::HANDSHAKE`].
    ///
    /// # Errors
    /// [`NetError::Refused`] with the reason, [`NetError::Timeout`], [`NetError::Io`].
    pub async fn handshake(self) -> Result<Peer, NetError> {
        let Incoming { stream, addr, tls, _permit } = self;
        let handshake = async {
            prepare(&stream)?;
            TlsAcceptor::from(tls.0).accept(stream).await
        };
        finish(addr.to_string(), addr, handshake).await
    }
}

/// Connects to `addr`, `host:port`, where the role its settings expect must answer. Each address the name
/// resolves to is tried; the whole takes [`limits::HANDSHAKE`] at most, for TCP and TLS each.
///
/// # Errors
/// [`NetError::Connect`], [`NetError::Timeout`], [`NetError::Refused`] if the server is not who it must be,
/// [`NetError::Io`]. That the server refuses *us* may show only at the first read: see [`NetError::from_io`].
pub async fn connect(addr: &str, tls: &ClientTls) -> Result<Peer, NetError> {
    let (stream, peer_addr) = timeout(limits::HANDSHAKE, connect_tcp(addr))
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        .map_err(|source| NetError::Connect { addr: addr.into(), source })?;
    let handshake = async {
        prepare(&stream)?;
        let name = ServerName::try_from(TLS_NAME).map_err(io::Error::other)?;
        TlsConnector::from(tls.0.clone()).connect(name, stream).await
    };
    finish(addr.into(), peer_addr, handshake).await
}

async fn connect_tcp(addr: &str) -> io::Result<(TcpStream, SocketAddr)> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for candidate in lookup_host(addr).await? {
        match TcpStream::connect(candidate).await {
            Ok(stream) => return Ok((stream, candidate)),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Small frames leave at once; a peer that vanished without a word is noticed within [`limits::IDLE`], even
/// while unacknowledged bytes wait in the kernel.
fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, limits::IDLE / 2)?;
    sockopt::set_tcp_keepintvl(stream, limits::IDLE / 6)?;
    sockopt::set_tcp_user_timeout(stream, limits::IDLE.as_millis() as u32)?;
    Ok(())
}

async fn finish<S: Into<TlsStream<TcpStream>>>(
    peer: String,
    addr: SocketAddr,
    handshake: impl Future<Output = io::Result<S>>,
) -> Result<Peer, NetError> {
    let stream = match timeout(limits::HANDSHAKE, handshake).await {
        Err(_) => return Err(NetError::Timeout { peer, after: limits::HANDSHAKE }),
        Ok(Err(error)) => return Err(NetError::from_io(peer, error)),
        Ok(Ok(stream)) => stream.into(),
    };
    match identity(&stream) {
        Ok(identity) => Ok(Peer { identity, addr, stream }),
        Err(error) => Err(NetError::Refused { peer, why: Box::new(Refusal::NoIdentity(error)) }),
    }
}

/// The verifiers have read it already, and rustls keeps the certificate but not what they found.
fn identity(stream: &TlsStream<TcpStream>) -> Result<Identity, IdentityError> {
    let (_, connection) = stream.get_ref();
    let certificate: &CertificateDer<'_> =
        connection.peer_certificates().and_then(|chain| chain.first()).ok_or(IdentityError::Missing)?;
    Identity::from_certificate(certificate)
}
