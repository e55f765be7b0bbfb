//! A stream's thread: feeds its node, and does what it wants.

use std::{
    io,
    sync::{Arc, Mutex},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use bytes::Bytes;
use engine::units::StreamId;
use tokio::{sync::mpsc, time::timeout};

use super::{Rates, Server, Stream, event::Event, lock, target::TargetConnection};
use crate::{
    limits,
    metrics::StreamMetrics,
    node::{ConnectionId, Output, StreamNode, StreamStatus},
};

/// A look at the clock is worth this much sleep at most.
const NAP: Duration = Duration::from_secs(60);

/// Starts the thread of stream `id`. What the spool holds of it is read there, which may take a while.
pub(super) fn start(id: StreamId, server: &Arc<Server>) -> io::Result<(Stream, JoinHandle<()>)> {
    let (events, inbox) = mpsc::channel(limits::INBOX);
    let status = Arc::new(Mutex::new(StreamStatus::at_start(id)));
    let rates = Arc::new(Mutex::new(Rates::default()));
    // Weak, so that the thread does not keep its own inbox open.
    let weak = events.downgrade();
    let stream = Stream { events, status: Arc::clone(&status), rates };
    let server = Arc::clone(server);
    let body = move || {
        let now = Instant::now();
        let (storage, room) = (server.open_storage(), Arc::clone(&server.room));
        let node = StreamNode::new(id, storage, room, id.0.as_u128() as u64, now);
        let metrics = StreamMetrics::new(server.metrics.clone());
        Thread { id, server, node, events: weak, inbox, status, metrics, agents: Vec::new(), target: None }
            .run();
    };
    let thread = std::thread::Builder::new().name("stream".into()).spawn(body)?;
    Ok((stream, thread))
}

struct Thread {
    id: StreamId,
    server: Arc<Server>,
    node: StreamNode,
    events: mpsc::WeakSender<Event>,
    inbox: mpsc::Receiver<Event>,
    status: Arc<Mutex<StreamStatus>>,
    metrics: StreamMetrics,
    /// The ways to the agent: of the present connection, and of one that is being replaced or refused.
    agents: Vec<(ConnectionId, mpsc::Sender<Bytes>)>,
    target: Option<TargetConnection>,
}

impl Thread {
    fn run(mut self) {
        loop {
            self.obey();
            self.publish();
            if self.node.is_finished() && self.server.leave(self.id, &mut self.inbox) {
                return;
            }
            let now = Instant::now();
            let nap = self.node.poll_timeout().map_or(NAP, |at| at.saturating_duration_since(now).min(NAP));
            let wait = async { timeout(nap, self.inbox.recv()).await };
            match self.server.handle.clone().block_on(wait) {
                Ok(Some(event)) => self.handle(event),
                // The service stops.
                Ok(None) => return,
                Err(_) => {}
            }
            // What has come meanwhile shares the commit, up to a bound.
            while self.node.pending_bytes() < limits::COMMIT
                && let Ok(event) = self.inbox.try_recv()
            {
                self.handle(event);
            }
            let now = Instant::now();
            if self.node.poll_timeout().is_some_and(|at| at <= now) {
                self.node.handle_timeout(now);
            }
            self.node.commit(Instant::now());
        }
    }

    fn handle(&mut self, event: Event) {
        let now = Instant::now();
        match event {
            Event::AgentConnected { conn, hello, answers } => {
                self.agents.push((conn, answers));
                self.node.handle_agent_connected(conn, *hello, now);
            }
            Event::AgentBytes { conn, bytes } => self.node.handle_agent_bytes(conn, &bytes, now),
            Event::AgentClosed { conn } => {
                self.agents.retain(|(agent, _)| *agent != conn);
                self.node.handle_agent_closed(conn);
            }
            Event::TargetConnected { conn } => self.node.handle_target_connected(conn, now),
            Event::TargetBytes { conn, bytes } => self.node.handle_target_bytes(conn, &bytes, now),
            Event::TargetRoom => {}
            Event::TargetClosed { conn, reason } => {
                self.target.take_if(|target| target.conn == conn);
                self.node.handle_target_closed(conn, &reason, now);
            }
        }
        self.obey();
    }

    /// Does what the node wants, as far as there is room for it.
    fn obey(&mut self) {
        loop {
            let output = match self.node.poll_output() {
                None if self.target.as_ref().is_some_and(TargetConnection::has_room) => {
                    self.node.poll_frame(Instant::now())
                }
                output => output,
            };
            // A frame that cannot be read leaves wishes behind.
            let Some(output) = output.or_else(|| self.node.poll_output()) else { return };
            match output {
                Output::ToAgent(conn, bytes) => self.answer(conn, bytes),
                Output::CloseAgent(conn) => self.agents.retain(|(agent, _)| *agent != conn),
                Output::AgentUp(conn, vm) => {
                    if let Some((_, answers)) = self.agents.iter().find(|(agent, _)| *agent == conn) {
                        self.server.groups.up(self.id, &vm, answers.clone());
                    }
                }
                Output::AgentDown(vm) => self.server.groups.down(self.id, &vm),
                Output::Report(barrier, report) => self.server.groups.report(self.id, barrier, report),
                Output::DialTarget(conn) => {
                    let events = self.events.clone();
                    self.target = Some(TargetConnection::dial(conn, &self.server, events));
                }
                Output::ToTarget(conn, bytes) => {
                    if let Some(target) = self.target.as_ref().filter(|target| target.conn == conn) {
                        target.send(bytes);
                    }
                }
                Output::CloseTarget(conn) => {
                    self.target.take_if(|target| target.conn == conn);
                }
            }
        }
    }

    fn answer(&mut self, conn: ConnectionId, bytes: Bytes) {
        let Some((_, answers)) = self.agents.iter().find(|(agent, _)| *agent == conn) else { return };
        if answers.try_send(bytes).is_err() {
            tracing::warn!(stream = %self.id, "the agent does not read what it is answered; closing");
            self.agents.retain(|(agent, _)| *agent != conn);
            self.node.handle_agent_closed(conn);
        }
    }

    fn publish(&mut self) {
        let status = self.node.status();
        self.metrics.update(&status);
        *lock(&self.status) = status;
    }
}
