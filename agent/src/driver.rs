//! Runs a node on the machine: its own thread for disks and tracker, tokio for sockets, channels between.
//!
//! Bounds: what comes from the network waits in a channel of [`INBOX`] events of at most [`READ_BYTES`]; what goes
//! there waits in one that never holds more than the session's window, because the node emits nothing else than
//! unacknowledged frames and a few control messages.

use std::{
    collections::HashMap,
    thread,
    time::{Duration, Instant},
};

use bytes::{BufMut, Bytes, BytesMut};
use engine::{
    net::{ClientTls, NetError, Peer, connect},
    point::{Consistency, Point},
    service::shutdown::Shutdown,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf},
    runtime::Handle,
    sync::{mpsc, oneshot, watch},
    task::AbortHandle,
    time::timeout,
};

use crate::{
    metrics::Metrics,
    node::{Node, NodeStatus, Output, RequestId, Step, Waiting},
};

/// Events that wait for the node.
const INBOX: usize = 64;

/// Bytes read from the connection at once; acknowledgements are small.
const READ_BYTES: usize = 16 << 10;

/// Time between two looks at how the node stands.
const STATUS_EVERY: Duration = Duration::from_millis(500);

/// Looking must not take more than this part of the time.
const STATUS_SHARE: u32 = 100;

type Answer = oneshot::Sender<Result<Point, String>>;

enum Event {
    /// Of connection number…
    Connected(u64, mpsc::UnboundedSender<Bytes>),
    Received(u64, Bytes),
    Closed(u64, String),
    Point(Consistency, Answer),
    Stop,
}

/// A handle on the thread that runs a node.
pub struct Driver {
    inbox: mpsc::Sender<Event>,
    status: watch::Receiver<NodeStatus>,
}

impl Driver {
    /// Starts `node`, which connects to `server`. Within a tokio runtime.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub fn start(node: Node, server: String, tls: ClientTls, metrics: Metrics) -> std::io::Result<Self> {
        let (inbox, events) = mpsc::channel(INBOX);
        let (publish, status) = watch::channel(node.status(Instant::now()));
        let machine = Machine {
            node,
            dial: Dial { server, tls, inbox: inbox.clone() },
            runtime: Handle::current(),
            connection: None,
            connections: 0,
            waiting: HashMap::new(),
            publish,
            publish_at: Instant::now(),
            metrics,
        };
        thread::Builder::new().name("node".into()).spawn(move || machine.run(events))?;
        Ok(Self { inbox, status })
    }

    /// How the node stood a moment ago.
    #[must_use]
    pub fn status(&self) -> NodeStatus {
        self.status.borrow().clone()
    }

    /// Asks for a point. The receiver gets it when it is durable, or why there is none.
    pub async fn request_point(&self, wanted: Consistency) -> oneshot::Receiver<Result<Point, String>> {
        let (answer, receiver) = oneshot::channel();
        // If the node is gone, the dropped sender says so.
        let _ = self.inbox.send(Event::Point(wanted, answer)).await;
        receiver
    }

    /// Waits for the wish to stop, then ends the node, at most one piece of work later. What it had under way is
    /// still marked dirty.
    ///
    /// # Errors
    /// If the node ended by itself, which only a bug can make.
    pub async fn run_until(&self, stop: &Shutdown) -> anyhow::Result<()> {
        tokio::select! {
            () = stop.requested() => (),
            () = self.inbox.closed() => anyhow::bail!("the node has ended by itself; its panic is in the log"),
        }
        let _ = self.inbox.send(Event::Stop).await;
        self.inbox.closed().await;
        Ok(())
    }

    /// Whether the node's thread has ended.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.inbox.is_closed()
    }
}

/// What the thread owns.
struct Machine {
    node: Node,
    dial: Dial,
    runtime: Handle,
    connection: Option<Connection>,
    /// Number of the last one dialled: events of older ones are void.
    connections: u64,
    waiting: HashMap<RequestId, Answer>,
    publish: watch::Sender<NodeStatus>,
    publish_at: Instant,
    metrics: Metrics,
}

struct Connection {
    task: AbortHandle,
    /// `None` while it is being made.
    out: Option<mpsc::UnboundedSender<Bytes>>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Machine {
    fn run(mut self, mut events: mpsc::Receiver<Event>) {
        loop {
            while let Ok(event) = events.try_recv() {
                if !self.handle(event) {
                    return;
                }
            }
            let now = Instant::now();
            if self.node.poll_timeout().is_some_and(|due| due <= now) {
                self.node.handle_timeout(now);
            }
            let step = self.node.step(now);
            self.outputs();
            self.publish();
            let Step::Waits(waiting) = step else { continue };
            let publish_at = (!self.node.is_frozen()).then_some(self.publish_at);
            let wake = [self.node.poll_timeout(), moment(waiting), publish_at];
            let wake = wake.into_iter().flatten().min().unwrap_or(self.publish_at);
            let sleep = wake.saturating_duration_since(Instant::now());
            let Ok(event) = self.runtime.block_on(async { timeout(sleep, events.recv()).await }) else {
                continue;
            };
            if !event.is_some_and(|event| self.handle(event)) {
                return;
            }
        }
    }

    /// False when it is over.
    fn handle(&mut self, event: Event) -> bool {
        let now = Instant::now();
        match event {
            Event::Stop => return false,
            Event::Point(wanted, answer) => {
                let request = self.node.handle_point_request(wanted);
                self.waiting.insert(request, answer);
            }
            Event::Connected(number, out) if self.is_current(number) => {
                if let Some(connection) = &mut self.connection {
                    connection.out = Some(out);
                }
                self.node.handle_connected(now);
            }
            Event::Received(number, bytes) if self.is_current(number) => self.node.handle_bytes(&bytes, now),
            Event::Closed(number, reason) if self.is_current(number) => {
                self.connection = None;
                // Before the log is written: it thaws what is frozen.
                self.node.handle_closed(reason.as_str(), now);
                tracing::warn!(server = self.dial.server, reason, "not connected; trying again");
            }
            // Of a connection that the node has given up.
            Event::Connected(..) | Event::Received(..) | Event::Closed(..) => (),
        }
        self.outputs();
        true
    }

    fn is_current(&self, number: u64) -> bool {
        self.connection.is_some() && number == self.connections
    }

    fn outputs(&mut self) {
        while let Some(output) = self.node.poll_output(Instant::now()) {
            match output {
                Output::Dial => {
                    self.connections += 1;
                    let task = self.runtime.spawn(self.dial.clone().run(self.connections)).abort_handle();
                    self.connection = Some(Connection { task, out: None });
                }
                Output::Send(bytes) => {
                    if let Some(out) = self.connection.as_ref().and_then(|connection| connection.out.as_ref())
                    {
                        // A connection that has ended says so itself.
                        let _ = out.send(bytes);
                    }
                }
                Output::Close(_) => self.connection = None,
                Output::Answer(request, answer) => {
                    if let Some(waiting) = self.waiting.remove(&request) {
                        // Whoever asked may have gone.
                        let _ = waiting.send(answer);
                    }
                }
            }
        }
    }

    fn publish(&mut self) {
        let now = Instant::now();
        if now >= self.publish_at && !self.node.is_frozen() {
            self.waiting.retain(|_, answer| !answer.is_closed());
            let status = self.node.status(now);
            self.metrics.update(&status);
            self.publish.send_replace(status);
            // Large maps take time to count.
            self.publish_at = now + STATUS_EVERY.max(now.elapsed() * STATUS_SHARE);
        }
    }
}

fn moment(waiting: Waiting) -> Option<Instant> {
    match waiting {
        Waiting::Until(moment) => Some(moment),
        Waiting::Connection | Waiting::Window => None,
    }
}

/// One connection's task.
#[derive(Clone)]
struct Dial {
    server: String,
    tls: ClientTls,
    inbox: mpsc::Sender<Event>,
}

impl Dial {
    async fn run(self, number: u64) {
        let reason = match connect(&self.server, &self.tls).await {
            Ok(peer) => self.serve(number, peer).await,
            Err(error) => error,
        };
        let _ = self.inbox.send(Event::Closed(number, reason.to_string())).await;
    }

    /// Moves bytes until the connection ends; says why it did.
    async fn serve(&self, number: u64, peer: Peer) -> NetError {
        tracing::debug!(peer = %peer.identity, addr = %peer.addr, "connected");
        let (reader, writer) = tokio::io::split(peer.stream);
        let (out, outgoing) = mpsc::unbounded_channel();
        if self.inbox.send(Event::Connected(number, out)).await.is_err() {
            return NetError::from_io(&self.server, std::io::ErrorKind::ConnectionAborted.into());
        }
        let result = tokio::select! {
            result = self.receive(number, reader) => result,
            result = send(writer, outgoing) => result,
        };
        let error = result.err().unwrap_or_else(|| std::io::ErrorKind::UnexpectedEof.into());
        NetError::from_io(&self.server, error)
    }

    async fn receive(
        &self,
        number: u64,
        mut reader: ReadHalf<impl AsyncReadExt + Unpin>,
    ) -> std::io::Result<()> {
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(READ_BYTES);
            if reader.read_buf(&mut (&mut buffer).limit(READ_BYTES)).await? == 0 {
                return Ok(());
            }
            if self.inbox.send(Event::Received(number, buffer.split().freeze())).await.is_err() {
                return Ok(());
            }
        }
    }
}

async fn send(
    mut writer: WriteHalf<impl AsyncWriteExt + Unpin>,
    mut outgoing: mpsc::UnboundedReceiver<Bytes>,
) -> std::io::Result<()> {
    while let Some(bytes) = outgoing.recv().await {
        writer.write_all(&bytes).await?;
        if outgoing.is_empty() {
            writer.flush().await?;
        }
    }
    Ok(())
}
