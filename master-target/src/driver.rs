//! Runs stream nodes on real sockets, clocks and disks: a task per connection, a thread per stream.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use engine::{
    digest::LEAF_BYTES,
    frame::{Control, Frame, PROTOCOL, Refusal, StreamInfo},
    limits,
    net::{Incoming, Listener, NetError, Peer},
    point::PointId,
    service::{admin::Reporter, shutdown::Shutdown},
    session::{Link, Message},
    units::StreamId,
};
use jiff::Timestamp;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    runtime::Handle,
    sync::{mpsc, oneshot},
};

use crate::{
    home::{Home, Rejected},
    image::PointImage,
    journal::{self, JournalError, SealedPoint},
    metrics::Metrics,
    node::{Output, StreamNode},
    opening::Openers,
    proof::{Phase, ScrubPlan, Sign, Verdict, Verified},
    replica::{Replica, ReplicaError, TaskDone},
    restore::{Estimate, Select},
    retention::Policy,
    status::{PointStatus, StreamStatus},
    tasks::Background,
};

/// Bytes of one read from a socket; times [`QUEUE`] bounds what waits for a stream's thread.
const READ: usize = 64 << 10;
const QUEUE: usize = 32;

/// Threads that open frames, at most.
const OPENERS: usize = 4;

/// How often those who wait for a verification look at it.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How often points are looked at for their age; also the longest that a stream's thread sleeps.
const LOOK: Duration = Duration::from_secs(60);

/// All streams of this master target.
pub struct Server {
    home: Home,
    retention: Policy,
    scrub: ScrubPlan,
    metrics: Metrics,
    /// Signs certificates.
    signer: Arc<dyn Sign>,
    /// Open frames for all streams.
    openers: Mutex<Openers>,
    streams: Mutex<HashMap<StreamId, Stream>>,
    connections: AtomicU64,
    /// Whether everything is to end: a restore is interrupted then.
    ending: AtomicBool,
    handle: Handle,
}

/// A stream's thread, as others see it.
#[derive(Clone)]
struct Stream {
    events: mpsc::Sender<Event>,
    status: Arc<Mutex<StreamStatus>>,
}

enum Event {
    Connected {
        connection: u64,
        link: Link,
        replies: mpsc::UnboundedSender<Bytes>,
    },
    Bytes {
        connection: u64,
        bytes: Bytes,
    },
    Closed {
        connection: u64,
    },
    Restore {
        request: RestoreRequest,
        reporter: Reporter,
        done: oneshot::Sender<Result<StreamStatus, String>>,
    },
    Verify {
        select: Select,
        again: bool,
        done: oneshot::Sender<Result<Verified, ReplicaError>>,
    },
    /// Something with the replica that takes no time to speak of; who asked is told by it.
    With(Box<dyn FnOnce(&mut Replica) + Send>),
    TaskDone(Result<TaskDone, JournalError>),
    Stop,
}

/// What to do with a VM's disks.
#[derive(Clone, Debug)]
pub enum RestoreRequest {
    /// Make them what they were at a point.
    To(Select),
    /// Make them again what they were when replication stopped.
    Undo,
    /// Keep them as they are restored, for good.
    Accept,
}

impl RestoreRequest {
    /// What is under way while it is done.
    fn phase(&self) -> Option<journal::Phase> {
        match self {
            Self::To(_) => Some(journal::Phase::Restoring),
            Self::Undo => Some(journal::Phase::Undoing),
            Self::Accept => None,
        }
    }
}

impl Server {
    /// A server for `home`. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// If the system gives no threads.
    pub fn new(
        home: Home,
        retention: Policy,
        scrub: ScrubPlan,
        metrics: Metrics,
        signer: Arc<dyn Sign>,
    ) -> io::Result<Arc<Self>> {
        let threads = thread::available_parallelism().map_or(1, usize::from).min(OPENERS);
        let openers = Mutex::new(Openers::start("open", threads, Frame::unpack)?);
        let streams = Mutex::default();
        Ok(Arc::new(Self {
            home,
            retention,
            scrub,
            metrics,
            signer,
            openers,
            streams,
            connections: AtomicU64::new(0),
            ending: AtomicBool::new(false),
            handle: Handle::current(),
        }))
    }

    /// Accepts connections until asked to stop; then every stream completes what it is doing.
    pub async fn serve(self: Arc<Self>, listener: Listener, stop: Shutdown) {
        loop {
            let incoming = tokio::select! {
                () = stop.requested() => return self.end_streams().await,
                incoming = listener.accept() => incoming,
            };
            let (server, stop) = (Arc::clone(&self), stop.clone());
            tokio::spawn(async move {
                tokio::select! {
                    () = stop.requested() => {}
                    () = server.connection(incoming) => {}
                }
            });
        }
    }

    async fn end_streams(&self) {
        self.ending.store(true, Ordering::Relaxed);
        let streams = std::mem::take(&mut *lock(&self.streams));
        for stream in streams.into_values() {
            // A stream that has ended by itself is as good.
            let _ = stream.events.send(Event::Stop).await;
            stream.events.closed().await;
        }
    }

    async fn connection(self: Arc<Self>, incoming: Incoming) {
        let addr = incoming.addr();
        match incoming.handshake().await {
            Ok(peer) => {
                let who = peer.identity.to_string();
                match Arc::clone(&self).converse(peer).await {
                    Ok(()) => tracing::info!(peer = %who, %addr, "disconnected"),
                    Err(reason) => tracing::warn!(peer = %who, %addr, %reason, "closed a connection"),
                }
            }
            Err(error) => {
                self.metrics.refused(error.label());
                tracing::warn!(%error, "refused a connection");
            }
        }
    }

    /// One connection: its `Hello`, then frames until it ends.
    async fn converse(self: Arc<Self>, peer: Peer) -> Result<(), String> {
        let who = peer.identity.to_string();
        let (mut reader, mut writer) = tokio::io::split(peer.stream);
        let mut link = Link::new(None, Instant::now());
        let mut buffer = vec![0; READ];
        let hello = async {
            loop {
                if let Some(message) = link.poll_message().map_err(|e| e.to_string())? {
                    return Ok(message);
                }
                let read =
                    reader.read(&mut buffer).await.map_err(|e| NetError::from_io(&who, e).to_string())?;
                if read == 0 {
                    return Err("closed before it said hello".to_owned());
                }
                link.handle_bytes(&buffer[..read], Instant::now());
            }
        };
        let message =
            tokio::time::timeout(limits::HANDSHAKE, hello).await.map_err(|_| "no hello in time")??;
        let Message::Control(Control::Hello { protocol, agent, stream }) = message else {
            return Err("expected a hello".into());
        };
        tracing::info!(peer = %who, vm = %stream.vm, stream = %stream.id, agent, "connected");
        let id = stream.id;
        let handle = match Arc::clone(&self).admit(protocol, agent, stream).await {
            Ok(handle) => handle,
            Err(Rejected { why, reason }) => {
                self.metrics.refused("stream");
                let refused = Control::Refused { why, reason: reason.clone() }.to_frame(id);
                // The refusal is courtesy: the connection ends either way.
                let _ = writer.write_all(refused.bytes()).await;
                let _ = writer.shutdown().await;
                return Err(reason);
            }
        };
        let connection = self.connections.fetch_add(1, Ordering::Relaxed);
        let (replies, mut outgoing) = mpsc::unbounded_channel::<Bytes>();
        let gone = |_| "the stream has stopped".to_owned();
        handle.events.send(Event::Connected { connection, link, replies }).await.map_err(gone)?;
        let write = async {
            while let Some(bytes) = outgoing.recv().await {
                writer.write_all(&bytes).await?;
                writer.flush().await?;
            }
            // The node closed the connection: say goodbye properly, so that what was written arrives.
            writer.shutdown().await
        };
        let read = async {
            loop {
                let read = reader.read(&mut buffer).await?;
                if read == 0 {
                    return Ok(());
                }
                let bytes = Bytes::copy_from_slice(&buffer[..read]);
                if handle.events.send(Event::Bytes { connection, bytes }).await.is_err() {
                    return Ok(());
                }
            }
        };
        let result: io::Result<()> = tokio::select! { result = read => result, result = write => result };
        // The stream may have stopped already.
        let _ = handle.events.send(Event::Closed { connection }).await;
        result.map_err(|e| NetError::from_io(&who, e).to_string())
    }

    async fn admit(
        self: Arc<Self>,
        protocol: u16,
        agent: String,
        stream: StreamInfo,
    ) -> Result<Stream, Rejected> {
        if protocol != PROTOCOL {
            let reason = format!(
                "the process server speaks protocol {protocol}, this master target {PROTOCOL}: upgrade the older"
            );
            return Err(Rejected { why: Refusal::Protocol, reason });
        }
        let task = tokio::task::spawn_blocking(move || {
            self.home.prepare(&agent, &stream)?;
            self.stream_to_write(stream.id)
        });
        task.await.unwrap_or_else(|e| Err(Rejected { why: Refusal::Unavailable, reason: e.to_string() }))
    }

    /// The thread of a stream whose disks are about to change. Blocks.
    fn stream_to_write(self: &Arc<Self>, id: StreamId) -> Result<Stream, Rejected> {
        let stream = self.stream(id)?;
        self.home.mark_written(id)?;
        Ok(stream)
    }

    /// The stream's thread, started if it does not run. Blocks.
    fn stream(self: &Arc<Self>, id: StreamId) -> Result<Stream, Rejected> {
        let mut streams = lock(&self.streams);
        streams.retain(|_, stream| !stream.events.is_closed());
        if let Some(stream) = streams.get(&id) {
            return Ok(stream.clone());
        }
        if streams.len() >= limits::STREAMS {
            let reason =
                format!("{} streams are served already, the most this master target takes", limits::STREAMS);
            return Err(Rejected { why: Refusal::Unavailable, reason });
        }
        let mut node = StreamNode::new(self.home.open(id)?, self.retention.clone());
        node.scrub(self.scrub, Instant::now());
        node.use_openers(lock(&self.openers).another());
        let (events, inbox) = mpsc::channel(QUEUE);
        let status = Arc::new(Mutex::new(StreamStatus::of(&node)));
        let stream = Stream { events, status: Arc::clone(&status) };
        let server = Arc::clone(self);
        let (to_itself, background) = (stream.events.downgrade(), Background::default());
        let looked = Instant::now();
        let body = move || {
            Actor { node, inbox, status, server, connection: None, background, events: to_itself, looked }
                .run();
        };
        thread::Builder::new().name("stream".into()).spawn(body).map_err(|e| Rejected {
            why: Refusal::Unavailable,
            reason: format!("cannot start a thread: {e}"),
        })?;
        streams.insert(id, stream.clone());
        Ok(stream)
    }

    /// All streams: those that run as they are now, others as their catalogue says. Blocks.
    pub fn statuses(&self) -> anyhow::Result<Vec<StreamStatus>> {
        let running = lock(&self.streams).clone();
        let streams = self.home.streams()?.into_iter().map(|id| match running.get(&id) {
            Some(stream) if !stream.events.is_closed() => Ok(lock(&stream.status).clone()),
            _ => Ok(StreamStatus::at_rest(&self.home.state(id)?)),
        });
        streams.collect()
    }

    /// What a stream's catalogue says. Blocks.
    pub fn points(&self, stream: StreamId) -> anyhow::Result<Vec<PointStatus>> {
        Ok(PointStatus::all(&self.home.state(stream)?))
    }

    /// Restores a stream's disks, or undoes that. Interrupted if nobody waits for it any more, or the service ends.
    pub async fn restore(
        self: Arc<Self>,
        stream: StreamId,
        request: RestoreRequest,
        reporter: Reporter,
    ) -> anyhow::Result<StreamStatus> {
        let server = Arc::clone(&self);
        let handle = tokio::task::spawn_blocking(move || server.stream_to_write(stream)).await??;
        let (done, result) = oneshot::channel();
        let stopped = || anyhow::anyhow!("the stream has stopped; look into the log");
        handle.events.send(Event::Restore { request, reporter, done }).await.map_err(|_| stopped())?;
        result.await.map_err(|_| stopped())?.map_err(anyhow::Error::msg)
    }

    /// Begins to verify a point of a stream; with `wait`, goes on until that is over.
    pub async fn verify(
        self: Arc<Self>,
        stream: StreamId,
        select: Select,
        again: bool,
        wait: Option<Reporter>,
    ) -> anyhow::Result<Verified> {
        let server = Arc::clone(&self);
        let handle = tokio::task::spawn_blocking(move || server.stream(stream)).await??;
        let stopped = || anyhow::anyhow!("the stream has stopped; look into the log");
        let ask = async |select, again| {
            let (done, result) = oneshot::channel();
            let event = Event::Verify { select, again, done };
            handle.events.send(event).await.map_err(|_| stopped())?;
            anyhow::Ok(result.await.map_err(|_| stopped())??)
        };
        let mut verified: Verified = ask(select, again).await?;
        let Some(reporter) = wait else { return Ok(verified) };
        while verified.report.as_ref().is_some_and(|report| !report.is_over())
            && verified.certificate.is_none()
        {
            tokio::time::sleep(LOOK_EVERY).await;
            if handle.events.is_closed() {
                return Err(stopped());
            }
            let now = lock(&handle.status).verification.clone();
            let Some(report) = now.filter(|report| report.point == verified.point) else {
                anyhow::bail!("another point was to be verified meanwhile");
            };
            reporter.report(
                "comparing",
                report.coverage.done() * LEAF_BYTES,
                report.coverage.leaves * LEAF_BYTES,
            );
            verified.certificate = report.certificate.clone();
            if report.phase == Phase::Different {
                verified.verdict = Some(Verdict::Different);
            }
            verified.report = Some(report);
        }
        Ok(verified)
    }

    /// Which points of a stream were verified. Blocks.
    pub fn verdicts(&self, stream: StreamId) -> BTreeMap<PointId, Verdict> {
        self.home.verdicts(stream)
    }

    /// The point of a stream that is meant. Blocks.
    pub fn find_point(&self, stream: StreamId, select: &Select) -> anyhow::Result<SealedPoint> {
        Ok(select.among(&self.home.state(stream)?)?)
    }

    /// The disks of a stream at a point, to be read while replication goes on.
    pub async fn open_image(
        self: Arc<Self>,
        stream: StreamId,
        point: &SealedPoint,
    ) -> anyhow::Result<PointImage> {
        let point = point.clone();
        self.with(stream, move |replica| replica.open_image(&point)).await
    }

    /// What restoring a point would do. Changes nothing.
    pub async fn estimate(self: Arc<Self>, stream: StreamId, select: Select) -> anyhow::Result<Estimate> {
        self.with(stream, move |replica| replica.estimate(&replica.select(&select)?)).await
    }

    /// Pins a point, or lets retention have it again.
    pub async fn pin(
        self: Arc<Self>,
        stream: StreamId,
        select: Select,
        pinned: bool,
    ) -> anyhow::Result<SealedPoint> {
        let pin = move |replica: &mut Replica| {
            let point = replica.select(&select)?;
            replica.pin(&point, pinned).map(|()| point)
        };
        self.with(stream, pin).await
    }

    /// Does something with a stream's replica, on its thread.
    async fn with<T: Send + 'static>(
        self: Arc<Self>,
        stream: StreamId,
        what: impl FnOnce(&mut Replica) -> Result<T, ReplicaError> + Send + 'static,
    ) -> anyhow::Result<T> {
        let server = Arc::clone(&self);
        let handle = tokio::task::spawn_blocking(move || server.stream(stream)).await??;
        let (done, result) = oneshot::channel();
        let stopped = || anyhow::anyhow!("the stream has stopped; look into the log");
        // Who asked may have gone.
        let event = Event::With(Box::new(move |replica| drop(done.send(what(replica)))));
        handle.events.send(event).await.map_err(|_| stopped())?;
        Ok(result.await.map_err(|_| stopped())??)
    }
}

/// A stream's thread.
struct Actor {
    node: StreamNode,
    inbox: mpsc::Receiver<Event>,
    status: Arc<Mutex<StreamStatus>>,
    server: Arc<Server>,
    /// The present connection and the way to its socket.
    connection: Option<(u64, mpsc::UnboundedSender<Bytes>)>,
    background: Background,
    /// To itself.
    events: mpsc::WeakSender<Event>,
    /// When points were last looked at for their age.
    looked: Instant,
}

impl Actor {
    fn run(mut self) {
        let vm = self.node.replica().state().stream.vm.clone();
        loop {
            while let Ok(event) = self.inbox.try_recv() {
                if !self.handle(event) {
                    return;
                }
            }
            let now = Instant::now();
            if self.node.work_at(now).is_some_and(|due| now >= due) {
                self.node.work(now, Timestamp::now());
                self.flush();
            }
            if self.node.has_work(now) {
                match self.node.commit(now, Timestamp::now()) {
                    Ok(sealed) => sealed.iter().for_each(|point| {
                        tracing::info!(vm, point = %point.point.id, layer = point.layer, "sealed a point");
                    }),
                    Err(error) => {
                        tracing::error!(vm, %error, "stopped the stream; it is opened again when its sender comes back");
                        self.server.metrics.error(&vm);
                        return;
                    }
                }
                self.flush();
                self.look_after(now);
                continue;
            }
            self.flush();
            self.look_after(now);
            // A minute without anything to do is worth a look at the clock.
            let due = self.node.poll_timeout().into_iter().chain(self.node.work_at(now)).min();
            let until = due.unwrap_or(now + LOOK).min(now + LOOK);
            // The timer is made within the runtime: this thread is none of its own.
            let wait = async { tokio::time::timeout_at(until.into(), self.inbox.recv()).await };
            match self.server.handle.clone().block_on(wait) {
                Ok(event) => {
                    if !event.is_some_and(|event| self.handle(event)) {
                        return;
                    }
                }
                Err(_) => self.node.handle_timeout(Instant::now()),
            }
        }
    }

    /// Points age and layers are merged, whatever else happens.
    fn look_after(&mut self, now: Instant) {
        if now >= self.looked + LOOK {
            self.looked = now;
            if let Err(error) = self.node.retire(Timestamp::now()) {
                tracing::warn!(stream = %self.node.replica().state().stream.id, %error, "cannot drop old points");
            }
        }
        if !self.background.is_free(now) {
            return;
        }
        let (Some(task), Some(events)) = (self.node.replica().task(), self.events.upgrade()) else { return };
        // The stream may have stopped; then the result is a leftover that the next start removes.
        self.background.begin(task, move |result| drop(events.blocking_send(Event::TaskDone(result))));
    }

    /// False when it is over.
    fn handle(&mut self, event: Event) -> bool {
        let now = Instant::now();
        let current = self.connection.as_ref().map(|(connection, _)| *connection);
        match event {
            Event::Connected { connection, link, replies } => {
                self.connection = Some((connection, replies));
                self.node.handle_connected(link, now);
            }
            Event::Bytes { connection, bytes } if Some(connection) == current => {
                self.node.handle_bytes(&bytes, now)
            }
            Event::Closed { connection } if Some(connection) == current => {
                self.connection = None;
                self.node.handle_closed();
            }
            Event::Bytes { .. } | Event::Closed { .. } => {}
            Event::Stop => {
                self.node.replica_mut().flush_digests();
                return false;
            }
            Event::Restore { request, reporter, done } => {
                // Replication waits from here on: its sender is told so when it connects again.
                self.connection = None;
                self.node.handle_restore();
                if let Some(phase) = request.phase() {
                    lock(&self.status).restore = Some(phase);
                }
                let result = self.restore(&request, &reporter).map_err(|e| e.to_string());
                self.flush();
                // Who asked may have gone.
                let _ = done.send(result);
            }
            Event::Verify { select, again, done } => {
                // Who asked may have gone.
                let _ = done.send(self.verify(&select, again));
            }
            Event::With(what) => what(self.node.replica_mut()),
            Event::TaskDone(result) => {
                self.background.ended();
                let finished = result.map_err(ReplicaError::from);
                let finished = finished.and_then(|done| self.node.replica_mut().finish_task(done));
                // What was freed decides whether more points must go.
                let retired = finished.and_then(|()| self.node.retire(Timestamp::now()));
                if let Err(error) = retired {
                    self.background.failed(&error.to_string());
                }
            }
        }
        self.flush();
        true
    }

    fn restore(
        &mut self,
        request: &RestoreRequest,
        reporter: &Reporter,
    ) -> Result<StreamStatus, ReplicaError> {
        let replica = self.node.replica_mut();
        let ending = &self.server.ending;
        let go_on = |what, done, all| {
            reporter.report(what, done, all);
            !reporter.is_gone() && !ending.load(Ordering::Relaxed)
        };
        match request {
            RestoreRequest::To(select) => {
                let point = replica.select(select)?;
                replica.restore(&point, &mut |done, all| go_on("restoring", done, all))?;
            }
            RestoreRequest::Undo => replica.undo_restore(&mut |done, all| go_on("undoing", done, all))?,
            RestoreRequest::Accept => replica.accept_restore()?,
        }
        Ok(StreamStatus::of(&self.node))
    }

    /// Begins to verify a point, unless it is being verified or there is a certificate.
    fn verify(&mut self, select: &Select, again: bool) -> Result<Verified, ReplicaError> {
        let point = match self.node.proof().under_way() {
            // Asked again, "latest" means what it meant when the verification began.
            Some(point) if *select == Select::Latest => point.clone(),
            _ => self.node.replica().select(select)?,
        };
        let known = self.node.proof().of_point(self.node.replica(), point.point.id);
        if known.certificate.is_some() && !again {
            return Ok(known);
        }
        self.node.verify(&point, Arc::clone(&self.server.signer), Timestamp::now(), Instant::now())?;
        let begun = self.node.proof().of_point(self.node.replica(), point.point.id);
        Ok(Verified { certificate: None, ..begun })
    }

    /// Sends what the node wants sent, and tells others how it stands.
    fn flush(&mut self) {
        while let Some(output) = self.node.poll_output() {
            match output {
                Output::Send(bytes) => {
                    if let Some((_, replies)) = &self.connection {
                        // A closed channel means that the socket is gone; its reader says so.
                        let _ = replies.send(bytes);
                    }
                }
                Output::Close(reason) => {
                    tracing::warn!(stream = %self.node.replica().state().stream.id, reason, "closing the connection");
                    self.connection = None;
                }
            }
        }
        let status = StreamStatus::of(&self.node);
        self.server.metrics.stream(&status);
        *lock(&self.status) = status;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // The data is replaced as a whole: a panic elsewhere leaves it whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
