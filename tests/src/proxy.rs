//! A TCP proxy on loopback between two services: counts bytes, and spoils them on demand.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};

/// The counter's value when nothing is to be spoiled.
const NEVER: i64 = i64::MIN;

/// The proxy. It ends when it is dropped; connections end with their ends.
pub struct Proxy {
    addr: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    to: SocketAddr,
    closing: AtomicBool,
    up: AtomicU64,
    down: AtomicU64,
    /// Bytes that still pass upwards until one is spoiled.
    spoil_in: AtomicI64,
    spoiled: AtomicU64,
}

impl Proxy {
    /// A proxy for the service at `to`.
    ///
    /// # Errors
    /// If there is no port.
    pub fn start(to: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let shared = Arc::new(Shared {
            to,
            closing: AtomicBool::new(false),
            up: AtomicU64::new(0),
            down: AtomicU64::new(0),
            spoil_in: AtomicI64::new(NEVER),
            spoiled: AtomicU64::new(0),
        });
        let proxy = Self { addr: listener.local_addr()?, shared: Arc::clone(&shared) };
        thread::spawn(move || {
            for client in listener.incoming() {
                if shared.closing.load(SeqCst) {
                    return;
                }
                // A connection that cannot be passed on is closed, as if the service were not there.
                if let Ok(client) = client {
                    let _ = pass_on(client, &shared);
                }
            }
        });
        Ok(proxy)
    }

    /// Where it listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Bytes that went from who dialled to the service, over all connections.
    #[must_use]
    pub fn bytes_up(&self) -> u64 {
        self.shared.up.load(SeqCst)
    }

    /// Bytes that went the other way.
    #[must_use]
    pub fn bytes_down(&self) -> u64 {
        self.shared.down.load(SeqCst)
    }

    /// Flips a bit of the byte that goes up after `bytes` more.
    pub fn spoil_after(&self, bytes: u32) {
        self.shared.spoil_in.store(bytes.into(), SeqCst);
    }

    /// Bits flipped so far.
    #[must_use]
    pub fn spoiled(&self) -> u64 {
        self.shared.spoiled.load(SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.closing.store(true, SeqCst);
        // Wakes the listener up.
        let _ = TcpStream::connect(self.addr);
    }
}

fn pass_on(client: TcpStream, shared: &Arc<Shared>) -> io::Result<()> {
    let server = TcpStream::connect_timeout(&shared.to, Duration::from_secs(5))?;
    for stream in [&client, &server] {
        stream.set_nodelay(true)?;
    }
    let (down_from, down_to) = (server.try_clone()?, client.try_clone()?);
    let (up, down) = (Arc::clone(shared), Arc::clone(shared));
    thread::spawn(move || copy(client, server, |bytes| up.pass_up(bytes)));
    thread::spawn(move || {
        copy(down_from, down_to, |bytes| {
            down.down.fetch_add(bytes.len() as u64, SeqCst);
        });
    });
    Ok(())
}

/// Moves bytes until one side ends; then both do.
fn copy(mut from: TcpStream, mut to: TcpStream, mut look: impl FnMut(&mut [u8])) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(len @ 1..) = from.read(&mut buffer) {
        look(&mut buffer[..len]);
        if to.write_all(&buffer[..len]).is_err() {
            break;
        }
    }
    for stream in [from, to] {
        let _ = stream.shutdown(Shutdown::Both);
    }
}

impl Shared {
    fn pass_up(&self, bytes: &mut [u8]) {
        let len = bytes.len() as i64;
        self.up.fetch_add(len as u64, SeqCst);
        let left = self.spoil_in.load(SeqCst);
        if left == NEVER {
            return;
        }
        if left < len {
            bytes[left as usize] ^= 0x10;
            self.spoil_in.store(NEVER, SeqCst);
            self.spoiled.fetch_add(1, SeqCst);
        } else {
            self.spoil_in.store(left - len, SeqCst);
        }
    }
}
