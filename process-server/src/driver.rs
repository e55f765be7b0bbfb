//! Runs stream nodes on real sockets, clocks and disks: tasks for connections, a thread for each stream.
//!
//! It decides nothing about streams; it only limits how many there are, because each has its bounded memory.

mod agent;
mod event;
mod groups;
mod stream;
mod target;

use std::{
    collections::{HashMap, VecDeque},
    io,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use engine::{
    io::{Backend, FolderStorage, Storage},
    limits as engine_limits,
    net::{ClientTls, Listener},
    service::{
        quantity::{Rate, Size},
        shutdown::Shutdown,
    },
    units::StreamId,
};
use tokio::{
    runtime::Handle,
    sync::{mpsc, oneshot},
};

use self::{event::Event, groups::Groups};
use crate::{
    admin::{ServerStatus, StreamReport},
    group::{self, GroupPoint},
    metrics::Metrics,
    node::{ConnectionId, OpenStorage, StreamStatus},
    spool::{Bounds, Room, layout},
    throttle::Throttle,
};

/// How often rates are taken.
const SAMPLE: Duration = Duration::from_secs(2);

/// What a process server is made with.
#[derive(Clone)]
pub struct Settings {
    /// The master target, `host:port`.
    pub target: String,
    /// How to connect to it.
    pub target_tls: ClientTls,
    /// The spool folder; it exists and is this process's alone.
    pub spool: PathBuf,
    /// How much it may hold.
    pub bounds: Bounds,
    /// Bandwidth towards the master target.
    pub rate: Option<Rate>,
    /// Groups of VMs that share points.
    pub groups: Vec<group::Settings>,
}

/// All streams of this process server.
pub struct Server {
    settings: Settings,
    room: Arc<Room>,
    throttle: Mutex<Throttle>,
    metrics: Metrics,
    groups: Groups,
    streams: Mutex<Streams>,
    connections: AtomicU64,
    refused: AtomicU64,
    handle: Handle,
}

#[derive(Default)]
struct Streams {
    running: HashMap<StreamId, (Stream, JoinHandle<()>)>,
    /// Found in the spool, and too many to run at once.
    waiting: VecDeque<StreamId>,
}

/// A stream's thread, as others see it.
#[derive(Clone)]
struct Stream {
    events: mpsc::Sender<Event>,
    status: Arc<Mutex<StreamStatus>>,
    rates: Arc<Mutex<Rates>>,
}

/// Bytes a second, over the last [`SAMPLE`].
#[derive(Clone, Copy, Debug, Default)]
struct Rates {
    before: (u64, u64),
    now: (u64, u64),
}

impl Server {
    /// A server on `settings`. Must be called within a tokio runtime.
    #[must_use]
    pub fn new(settings: Settings, metrics: Metrics) -> Arc<Self> {
        let room = Arc::new(Room::new(settings.bounds));
        let throttle = Mutex::new(Throttle::new(settings.rate, Instant::now()));
        let groups = Groups::new(settings.groups.clone(), metrics.clone());
        Arc::new(Self {
            room,
            throttle,
            metrics,
            groups,
            settings,
            streams: Mutex::default(),
            connections: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            handle: Handle::current(),
        })
    }

    /// Goes on with every stream in the spool, and accepts agents, until asked to stop; then ends the threads.
    ///
    /// # Errors
    /// If the spool folder cannot be read.
    pub async fn serve(self: Arc<Self>, listener: Listener, stop: Shutdown) -> io::Result<()> {
        let names = self.open_storage()()?.list("".as_ref())?;
        lock(&self.streams).waiting = names.iter().filter_map(|name| layout::stream_of(name)).collect();
        self.start_waiting();
        tokio::spawn(Arc::clone(&self).sample(stop.clone()));
        let (server, until) = (Arc::clone(&self), stop.clone());
        tokio::spawn(async move { server.groups.run(until).await });
        loop {
            let incoming = tokio::select! {
                () = stop.requested() => break,
                incoming = listener.accept() => incoming,
            };
            let (server, stop) = (Arc::clone(&self), stop.clone());
            tokio::spawn(async move {
                tokio::select! {
                    () = stop.requested() => {}
                    () = agent::serve(server, incoming) => {}
                }
            });
        }
        // A thread ends when nobody can send it anything; one that reads a long spool first finishes that.
        let running = std::mem::take(&mut *lock(&self.streams)).running;
        let threads: Vec<_> = running.into_values().map(|(_, thread)| thread).collect();
        tokio::task::spawn_blocking(|| threads.into_iter().for_each(|thread| drop(thread.join()))).await?;
        Ok(())
    }

    /// How everything stands.
    #[must_use]
    pub fn status(&self) -> ServerStatus {
        let mut streams: Vec<_> = lock(&self.streams)
            .running
            .values()
            .map(|(stream, _)| {
                let (bytes_per_second_in, bytes_per_second_out) = lock(&stream.rates).now;
                StreamReport {
                    status: lock(&stream.status).clone(),
                    bytes_per_second_in,
                    bytes_per_second_out,
                }
            })
            .collect();
        streams.sort_by(|a, b| (&a.status.vm, a.status.stream).cmp(&(&b.status.vm, b.status.stream)));
        ServerStatus {
            target: self.settings.target.clone(),
            spool_used: Size(self.room.used()),
            spool_limit: Size(self.settings.bounds.total),
            rate_limit: self.settings.rate.map(|rate| rate.0),
            refused_connections: self.refused.load(Ordering::Relaxed),
            streams,
            groups: self.groups.status(),
        }
    }

    /// Asks for a common point of a group. The receiver gets it when it is durable at every member, or why there is
    /// none.
    ///
    /// # Errors
    /// If there is no such group: which there are.
    pub fn request_point(
        &self,
        group: &str,
        application: bool,
    ) -> Result<oneshot::Receiver<Result<GroupPoint, String>>, String> {
        self.groups.request(group, application).ok_or_else(|| {
            let known: Vec<_> = self.settings.groups.iter().map(|group| group.name.as_str()).collect();
            match &known[..] {
                [] => format!("no group {group:?}: the configuration has no [[group]]"),
                known => format!("no group {group:?}: there are {}", known.join(", ")),
            }
        })
    }

    /// What is wrong, for `/healthz`.
    ///
    /// # Errors
    /// The first stream's trouble.
    pub fn health(&self) -> Result<(), String> {
        let trouble = |report: StreamReport| {
            let StreamStatus { vm, stream, trouble, .. } = report.status;
            trouble.map(|trouble| format!("{}: {trouble}", vm.unwrap_or_else(|| stream.to_string())))
        };
        self.status().streams.into_iter().find_map(trouble).map_or(Ok(()), Err)
    }

    fn note_refused(&self, reason: &str) {
        self.refused.fetch_add(1, Ordering::Relaxed);
        self.metrics.refused(reason);
    }

    fn next_connection(&self) -> ConnectionId {
        ConnectionId(self.connections.fetch_add(1, Ordering::Relaxed))
    }

    /// The stream's thread, started if it does not run; none if too many run.
    fn stream(self: &Arc<Self>, id: StreamId) -> Option<Stream> {
        let mut streams = lock(&self.streams);
        if let Some((stream, _)) = streams.running.get(&id) {
            return Some(stream.clone());
        }
        if streams.running.len() >= engine_limits::STREAMS {
            return None;
        }
        let (stream, thread) = match stream::start(id, self) {
            Ok(started) => started,
            Err(error) => {
                tracing::error!(stream = %id, %error, "cannot start a thread for the stream");
                return None;
            }
        };
        streams.waiting.retain(|waiting| *waiting != id);
        streams.running.insert(id, (stream.clone(), thread));
        Some(stream)
    }

    /// The stream's thread wants to end: it may, unless somebody has sent it something.
    fn leave(self: &Arc<Self>, id: StreamId, inbox: &mut mpsc::Receiver<Event>) -> bool {
        let mut streams = lock(&self.streams);
        if !inbox.is_empty() {
            return false;
        }
        // Who has a handle already finds it closed, and is told to try again.
        inbox.close();
        streams.running.remove(&id);
        drop(streams);
        self.start_waiting();
        true
    }

    fn start_waiting(self: &Arc<Self>) {
        loop {
            let Some(id) = lock(&self.streams).waiting.front().copied() else { return };
            if self.stream(id).is_none() {
                return;
            }
        }
    }

    /// Opens the spool folder anew; each stream has its own handle, which dies alone.
    fn open_storage(&self) -> Arc<OpenStorage> {
        let path = self.settings.spool.clone();
        Arc::new(move || {
            let storage = FolderStorage::open(&path, Backend::Auto)?;
            Ok(Arc::new(storage) as Arc<dyn Storage>)
        })
    }

    async fn sample(self: Arc<Self>, stop: Shutdown) {
        loop {
            tokio::select! {
                () = stop.requested() => return,
                () = tokio::time::sleep(SAMPLE) => {}
            }
            self.metrics.spool(self.room.used(), self.settings.bounds.total);
            for (stream, _) in lock(&self.streams).running.values() {
                let counts = lock(&stream.status).counts;
                lock(&stream.rates).sample(counts.wire_bytes_in, counts.wire_bytes_out);
            }
        }
    }
}

impl Rates {
    fn sample(&mut self, bytes_in: u64, bytes_out: u64) {
        let per_second = |now: u64, before: u64| now.saturating_sub(before) / SAMPLE.as_secs();
        self.now = (per_second(bytes_in, self.before.0), per_second(bytes_out, self.before.1));
        self.before = (bytes_in, bytes_out);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is inside is replaced as a whole or step by whole step: a panic elsewhere leaves it good.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
