//! The connection to the master target: frames out through the bandwidth limit, acknowledgements back.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use bytes::Bytes;
use engine::net::{NetError, connect};
use tokio::{
    io::{AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::mpsc,
    task::JoinHandle,
};

use super::{Server, event::Event, lock};
use crate::{limits, node::ConnectionId};

/// A connection, or the try to make one, as the stream's thread sees it. Dropping it ends it at once: frames are
/// in the spool.
pub(super) struct TargetConnection {
    pub(super) conn: ConnectionId,
    outgoing: mpsc::UnboundedSender<Bytes>,
    queued: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl TargetConnection {
    /// Begins to connect. The stream's thread hears of it through `events`.
    pub(super) fn dial(conn: ConnectionId, server: &Arc<Server>, events: mpsc::WeakSender<Event>) -> Self {
        let (outgoing, queue) = mpsc::unbounded_channel();
        let queued = Arc::new(AtomicUsize::new(0));
        let outbox = Outbox { queue, queued: Arc::clone(&queued) };
        let task = server.handle.spawn(run(conn, Arc::clone(server), outbox, events));
        Self { conn, outgoing, queued, task }
    }

    /// Whether frames may be sent. What is queued is bounded by [`limits::OUTBOX`], one frame and the few control
    /// messages of a connection.
    pub(super) fn has_room(&self) -> bool {
        self.queued.load(Ordering::Acquire) < limits::OUTBOX
    }

    pub(super) fn send(&self, bytes: Bytes) {
        self.queued.fetch_add(bytes.len(), Ordering::AcqRel);
        // A closed queue means that the connection has failed; its task says so.
        let _ = self.outgoing.send(bytes);
    }
}

impl Drop for TargetConnection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Outbox {
    queue: mpsc::UnboundedReceiver<Bytes>,
    queued: Arc<AtomicUsize>,
}

async fn run(conn: ConnectionId, server: Arc<Server>, outbox: Outbox, events: mpsc::WeakSender<Event>) {
    let reason = match converse(conn, &server, outbox, &events).await {
        Ok(()) => "the master target closed the connection".to_owned(),
        Err(error) => error.to_string(),
    };
    send(&events, Event::TargetClosed { conn, reason }).await;
}

async fn converse(
    conn: ConnectionId,
    server: &Server,
    outbox: Outbox,
    events: &mpsc::WeakSender<Event>,
) -> Result<(), NetError> {
    let peer = connect(&server.settings.target, &server.settings.target_tls).await?;
    send(events, Event::TargetConnected { conn }).await;
    let (mut reader, writer) = tokio::io::split(peer.stream);
    let read = async {
        let mut buffer = vec![0; limits::READ];
        loop {
            let read = reader.read(&mut buffer).await?;
            if read == 0 {
                return Ok(());
            }
            let bytes = Bytes::copy_from_slice(&buffer[..read]);
            send(events, Event::TargetBytes { conn, bytes }).await;
        }
    };
    let result = tokio::select! {
        result = read => result,
        result = write(server, writer, outbox, events) => result,
    };
    result.map_err(|error| NetError::from_io(&server.settings.target, error))
}

async fn write(
    server: &Server,
    mut writer: impl AsyncWrite + Unpin,
    mut outbox: Outbox,
    events: &mpsc::WeakSender<Event>,
) -> std::io::Result<()> {
    let chunk = lock(&server.throttle).chunk();
    while let Some(bytes) = outbox.queue.recv().await {
        for piece in bytes.chunks(chunk) {
            let wait = lock(&server.throttle).take(piece.len(), Instant::now());
            if !wait.is_zero() {
                writer.flush().await?;
                tokio::time::sleep(wait).await;
            }
            writer.write_all(piece).await?;
        }
        let before = outbox.queued.fetch_sub(bytes.len(), Ordering::AcqRel);
        if outbox.queue.is_empty() {
            writer.flush().await?;
        }
        if before >= limits::OUTBOX && before - bytes.len() < limits::OUTBOX {
            send(events, Event::TargetRoom).await;
        }
    }
    Ok(())
}

/// To the stream's thread, if it still runs.
async fn send(events: &mpsc::WeakSender<Event>, event: Event) {
    if let Some(events) = events.upgrade() {
        // The thread has ended: nobody is interested any more.
        let _ = events.send(event).await;
    }
}
