//! The server's end of a TLS connection on threads: one reads while others write.
//!
//! For services whose work per message is a blocking one, such as serving disks. Everything else is the same as in
//! [`super::connect`]: the same settings, the same verifiers, the same bound on the handshake.

use std::{
    io::{self, Read, Write},
    net::TcpStream,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rustls::ServerConnection;

use super::{error::NetError, tls::ServerTls};
use crate::limits;

/// Bytes of one read from the socket: a TLS record and its head.
const READ: usize = 17 << 10;

/// Bytes that are encrypted at once.
const WRITE: usize = 64 << 10;

/// The connection and its socket, shared by both halves. Locked in this order: `sending`, `tls`.
struct Shared {
    tls: Mutex<ServerConnection>,
    socket: TcpStream,
    /// Records leave in the order in which they were made.
    sending: Mutex<()>,
}

/// What the client says.
pub struct TlsReader {
    shared: Arc<Shared>,
    buffer: Box<[u8; READ]>,
}

/// What the client is told.
pub struct TlsWriter(Arc<Shared>);

impl ServerTls {
    /// Finds out who is at the other end of `socket`, within [`limits::HANDSHAKE`] for each message.
    ///
    /// # Errors
    /// [`NetError::Refused`] with the reason, [`NetError::Timeout`], [`NetError::Io`].
    pub fn accept_blocking(&self, socket: TcpStream) -> Result<(TlsReader, TlsWriter), NetError> {
        let peer = socket.peer_addr().map_or_else(|_| "a client".into(), |addr| addr.to_string());
        let handshake = || -> io::Result<ServerConnection> {
            socket.set_read_timeout(Some(limits::HANDSHAKE))?;
            let mut tls = ServerConnection::new(self.0.clone()).map_err(io::Error::other)?;
            while tls.is_handshaking() {
                tls.complete_io(&mut &socket)?;
            }
            socket.set_read_timeout(None)?;
            Ok(tls)
        };
        match handshake() {
            Ok(mut tls) => {
                tls.set_buffer_limit(Some(WRITE * 2));
                let shared = Arc::new(Shared { tls: Mutex::new(tls), socket, sending: Mutex::new(()) });
                Ok((
                    TlsReader { shared: Arc::clone(&shared), buffer: Box::new([0; READ]) },
                    TlsWriter(shared),
                ))
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                Err(NetError::Timeout { peer, after: limits::HANDSHAKE })
            }
            Err(error) => Err(NetError::from_io(peer, error)),
        }
    }
}

impl Shared {
    fn tls(&self) -> MutexGuard<'_, ServerConnection> {
        self.tls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Encrypts what `make` gives the connection, and sends it.
    fn send(&self, make: impl FnOnce(&mut ServerConnection) -> io::Result<usize>) -> io::Result<usize> {
        let _sending = self.sending.lock().unwrap_or_else(PoisonError::into_inner);
        let mut records = Vec::new();
        let made = {
            let mut tls = self.tls();
            let made = make(&mut tls)?;
            while tls.wants_write() {
                tls.write_tls(&mut records)?;
            }
            made
        };
        (&self.socket).write_all(&records)?;
        Ok(made)
    }
}

impl Read for TlsReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.shared.tls().reader().read(buf) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                other => return other,
            }
            // Without the lock: this may take as long as the client likes.
            let read = (&self.shared.socket).read(&mut self.buffer[..])?;
            let mut records = &self.buffer[..read];
            let mut answer = false;
            loop {
                let mut tls = self.shared.tls();
                tls.read_tls(&mut records)?;
                tls.process_new_packets().map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
                answer |= tls.wants_write();
                if records.is_empty() {
                    break;
                }
            }
            if answer {
                self.shared.send(|_| Ok(0))?;
            }
        }
    }
}

impl Write for TlsWriter {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0.send(|tls| tls.writer().write(&buf[..buf.len().min(WRITE)]))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
