//! A drill that runs: a place where NBD clients connect, and the disks they find there.

use std::{
    collections::HashMap,
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use engine::net::ServerTls;

use super::{
    connection,
    disk::DrillDisk,
    limits,
    nbd::Export,
    socket::{Acceptor, Place, Socket},
};

/// Pause after the system would not accept a connection (out of file descriptors, mostly).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves disks until it is dropped, which waits for what is being answered.
pub struct NbdServer {
    shared: Arc<Shared>,
    place: Place,
    accepting: Option<JoinHandle<()>>,
}

struct Shared {
    acceptor: Acceptor,
    exports: Vec<Export>,
    disks: Vec<Arc<DrillDisk>>,
    /// Demanded if it is there.
    tls: Option<ServerTls>,
    /// Clients, so that they can be sent away.
    clients: Mutex<HashMap<u64, Socket>>,
    stopping: AtomicBool,
}

impl NbdServer {
    /// Listens at `place` and serves `disks`, each with what clients are told of it. `tls`, for places that others get
    /// to, is then demanded.
    pub fn start(place: &Place, disks: Vec<(Export, DrillDisk)>, tls: Option<ServerTls>) -> io::Result<Self> {
        let acceptor = Acceptor::bind(place)?;
        let place = acceptor.place()?;
        let (exports, disks) = disks.into_iter().map(|(export, disk)| (export, Arc::new(disk))).unzip();
        let (clients, stopping) = (Mutex::default(), AtomicBool::new(false));
        let shared = Arc::new(Shared { acceptor, exports, disks, tls, clients, stopping });
        let accepting = Arc::clone(&shared);
        let accepting =
            thread::Builder::new().name("drill-accept".into()).spawn(move || accepting.accept())?;
        Ok(Self { shared, place, accepting: Some(accepting) })
    }

    /// Where it listens.
    #[must_use]
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// What clients find.
    #[must_use]
    pub fn exports(&self) -> &[Export] {
        &self.shared.exports
    }

    /// Clients at present.
    #[must_use]
    pub fn clients(&self) -> usize {
        self.shared.clients().len()
    }
}

impl Drop for NbdServer {
    fn drop(&mut self) {
        self.shared.stopping.store(true, SeqCst);
        self.shared.acceptor.close();
        self.shared.clients().values().for_each(Socket::close);
        // A panic there is in the log.
        let _ = self.accepting.take().map(JoinHandle::join);
    }
}

impl Shared {
    fn accept(self: Arc<Self>) {
        let mut threads: Vec<JoinHandle<()>> = Vec::new();
        for id in 0.. {
            let accepted = self.acceptor.accept();
            if self.stopping.load(SeqCst) {
                break;
            }
            threads.retain(|thread| !thread.is_finished());
            let started = accepted.and_then(|socket| Self::start(&self, id, socket));
            match started {
                Ok(thread) => threads.extend(thread),
                Err(error) => {
                    tracing::warn!(%error, "cannot take in a client of a drill");
                    thread::sleep(ACCEPT_PAUSE);
                }
            }
        }
        for thread in threads {
            // A panic there is in the log.
            let _ = thread.join();
        }
    }

    fn start(self: &Arc<Self>, id: u64, socket: Socket) -> io::Result<Option<JoinHandle<()>>> {
        {
            let mut clients = self.clients();
            // Who stops it says so first, and then sends away whom it finds here.
            if self.stopping.load(SeqCst) {
                return Ok(None);
            }
            if clients.len() >= limits::CONNECTIONS {
                tracing::warn!(
                    limit = limits::CONNECTIONS,
                    "too many clients of a drill; one was turned away"
                );
                return Ok(None);
            }
            clients.insert(id, socket.try_clone()?);
        }
        let shared = Arc::clone(self);
        let client = Client { id, shared: Arc::clone(self) };
        let serve = move || {
            let _client = client;
            let served = connection::serve(socket, &shared.exports, &shared.disks, shared.tls.as_ref());
            match served {
                Err(error) if !shared.stopping.load(SeqCst) => {
                    tracing::info!(%error, "a drill's client was closed");
                }
                _ => {}
            }
        };
        thread::Builder::new().name("drill".into()).spawn(serve).map(Some)
    }

    fn clients(&self) -> MutexGuard<'_, HashMap<u64, Socket>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A client's place among those that are served, given free when it is dropped.
struct Client {
    id: u64,
    shared: Arc<Shared>,
}

impl Drop for Client {
    fn drop(&mut self) {
        if let Some(socket) = self.shared.clients().remove(&self.id) {
            socket.close();
        }
    }
}
