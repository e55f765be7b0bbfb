//! One stream's way through the process server: from its agent into the spool, from the spool to the master target.
//!
//! It decides, and a driver does: bytes, connections and time come in through `handle_*`, wishes go out through
//! `poll_*`. No sockets, threads or clocks here; only the spool blocks, in the calls of its storage. `commit` is
//! the moment when received frames become safe: call it when no more input is waiting, so that many frames share
//! one sync.
//!
//! What it promises: a frame is acknowledged as spooled only after its sync, as durable only after the master
//! target said so; nothing received is dropped unless the agent learns by a new Welcome that it must send again;
//! where the master target and the spool disagree, the master target is right.

mod agent;
mod forward;
mod join;
mod status;
mod target;

#[cfg(test)]
mod tests;

use std::{
    collections::VecDeque,
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use engine::{
    frame::{GroupReport, Refusal},
    io::Storage,
    net::Backoff,
    point::BarrierId,
    units::{Epoch, Seq, StreamId},
};

pub use self::status::{Counts, StreamStatus, TargetStatus};
use self::{agent::Agent, target::Target};
use crate::{
    limits,
    spool::{Loss, Opened, Room, Spool, SpoolError},
};

/// Opens the spool folder: at start, and anew after an error, because a storage is dead after a failed sync.
pub type OpenStorage = dyn Fn() -> io::Result<Arc<dyn Storage>> + Send + Sync;

/// Tells connections apart, so that what comes late from an old one is not taken for a new one's. Agents'
/// are named by the driver, the master target's by the node; the two do not meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

/// What the node wants done, in this order.
#[derive(Clone, Debug)]
pub enum Output {
    /// Send to the agent.
    ToAgent(ConnectionId, Bytes),
    /// Send what is queued, then close; nothing more is heard of it.
    CloseAgent(ConnectionId),
    /// The VM's agent is connected and was welcomed: it can take part in its group.
    AgentUp(ConnectionId, String),
    /// It is not any more.
    AgentDown(String),
    /// It reports on its group's barrier; every frame before that is spooled.
    Report(BarrierId, GroupReport),
    /// Connect to the master target; answer with `handle_target_connected` or `handle_target_closed`.
    DialTarget(ConnectionId),
    /// Send to the master target.
    ToTarget(ConnectionId, Bytes),
    /// Send what is queued, then close; nothing more is heard of it. Or stop dialling.
    CloseTarget(ConnectionId),
}

/// The stream's spool.
#[derive(Debug)]
enum Store {
    /// It could not be read; it is tried again at that time.
    Broken(Instant),
    /// There is none: where the stream stands only the master target knows.
    Unknown,
    Known(Box<Spool>),
}

/// One stream.
pub struct StreamNode {
    id: StreamId,
    open_storage: Arc<OpenStorage>,
    room: Arc<Room>,
    store: Store,
    agent: Option<Agent>,
    target: Target,
    backoff: Backoff,
    /// The master target found a frame that is not what was sealed.
    distrusted: bool,
    /// Whether the disks at home held content before the first frame, as the master target said last; `None` until it has.
    adopted: Option<bool>,
    /// What the master target said last, if it was no.
    refused: Option<(Refusal, String)>,
    /// Why frames wait to be spooled.
    spool_hold: Option<String>,
    /// When a full or failed spool is tried again.
    spool_retry: Option<Instant>,
    /// Why the master target waits.
    target_hold: Option<String>,
    /// The last error, until what failed has succeeded.
    trouble: Option<String>,
    connections: u64,
    /// Since when there has been nothing to do.
    idle_since: Option<Instant>,
    finished: bool,
    outputs: VecDeque<Output>,
    counts: Counts,
}

impl StreamNode {
    /// The node of stream `id`, with what the spool folder holds of it. `seed` varies the waits between tries to
    /// connect.
    #[must_use]
    pub fn new(
        id: StreamId,
        open_storage: Arc<OpenStorage>,
        room: Arc<Room>,
        seed: u64,
        now: Instant,
    ) -> Self {
        let mut node = Self {
            id,
            open_storage,
            room,
            store: Store::Unknown,
            agent: None,
            target: Target::Idle { retry: None },
            backoff: Backoff::new(seed),
            distrusted: false,
            adopted: None,
            refused: None,
            spool_hold: None,
            spool_retry: None,
            target_hold: None,
            trouble: None,
            connections: 0,
            idle_since: Some(now),
            finished: false,
            outputs: VecDeque::new(),
            counts: Counts::default(),
        };
        node.open_store(now);
        node.connect_if_wanted(now);
        node
    }

    /// What to do next.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Whether nobody needs this node: all is forwarded and the agent has been away for long. What is left of
    /// the stream is in the spool folder.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.finished
    }

    /// When [`Self::handle_timeout`] should be called next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let store = match &self.store {
            Store::Broken(retry) => Some(*retry),
            _ => self.idle_since.map(|since| since + limits::LINGER),
        };
        let waits = [store, self.agent_timeout(), self.target_timeout(), self.spool_retry];
        if self.finished { None } else { waits.into_iter().flatten().min() }
    }

    /// Does what is due at `now`. Call [`Self::commit`] after it.
    pub fn handle_timeout(&mut self, now: Instant) {
        if matches!(self.store, Store::Broken(retry) if retry <= now) {
            self.open_store(now);
        }
        self.handle_agent_timeout(now);
        self.handle_target_timeout(now);
    }

    /// The stream as it stands.
    #[must_use]
    pub fn status(&self) -> StreamStatus {
        let spool = self.spool();
        let owner = spool.map(Spool::description).or(self.agent.as_ref().and_then(Agent::description));
        let position = spool.map(Spool::position);
        StreamStatus {
            stream: self.id,
            vm: owner.map(|owner| owner.stream.vm.clone()),
            agent: owner.map(|owner| owner.agent.clone()),
            agent_connected: self.agent.is_some(),
            target: self.target_status(),
            spooled: position.map_or(Seq(0), |position| position.seq),
            epoch: position.map_or(Epoch::FIRST, |position| position.epoch),
            durable: spool.map_or(Seq(0), |spool| spool.durable().seq),
            spool_bytes: engine::service::quantity::Size(spool.map_or(0, Spool::bytes)),
            in_flight: engine::service::quantity::Size(self.target.bytes_in_flight() as u64),
            hold: self.hold().map(ToOwned::to_owned),
            trouble: self.trouble.clone(),
            counts: self.counts,
        }
    }

    /// Counts since the node was made.
    #[must_use]
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    fn spool(&self) -> Option<&Spool> {
        match &self.store {
            Store::Known(spool) => Some(spool),
            _ => None,
        }
    }

    fn open_store(&mut self, now: Instant) {
        let storage = (self.open_storage)();
        let opened = storage.map_err(|error| error.to_string()).and_then(|storage| {
            Spool::open(storage, self.id, self.room.clone()).map_err(|error| error.to_string())
        });
        match opened {
            Ok(Opened { spool, loss }) => {
                if let Some(loss) = loss {
                    self.note_loss(&loss);
                }
                self.store = spool.map_or(Store::Unknown, |spool| Store::Known(Box::new(spool)));
                self.trouble = None;
            }
            Err(error) => {
                tracing::error!(stream = %self.id, %error, "the stream's spool cannot be opened; trying again");
                self.counts.spool_errors += 1;
                self.trouble = Some(error);
                self.store = Store::Broken(now + limits::SPOOL_RETRY);
            }
        }
    }

    fn note_loss(&mut self, loss: &Loss) {
        self.counts.spool_losses += 1;
        if loss.in_the_middle {
            tracing::error!(stream = %self.id, "{loss}");
        } else {
            tracing::warn!(stream = %self.id, "{loss}");
        }
    }

    /// The spool's storage failed: logs it, and opens the folder anew for the next try.
    fn note_spool_error(&mut self, error: &SpoolError) {
        tracing::error!(stream = %self.id, %error, "the spool failed; trying again");
        self.counts.spool_errors += 1;
        self.trouble = Some(error.to_string());
        // Should this fail too, the next operation does, and comes here again.
        if let (Store::Known(spool), Ok(storage)) = (&mut self.store, (self.open_storage)()) {
            spool.revive(storage);
        }
    }

    /// What the agent should be told about waiting.
    fn hold(&self) -> Option<&str> {
        self.spool_hold.as_deref().or(self.target_hold.as_deref())
    }

    fn finish_if_idle(&mut self, now: Instant) {
        let idle = self.agent.is_none()
            && match &self.store {
                Store::Known(spool) => spool.is_drained(),
                Store::Unknown => true,
                Store::Broken(_) => false,
            };
        // Of an unknown stream there is nothing to keep.
        let linger = if let Store::Unknown = self.store { Duration::ZERO } else { limits::LINGER };
        if !idle {
            self.idle_since = None;
        } else if *self.idle_since.get_or_insert(now) + linger <= now && !self.finished {
            self.close_target("nothing left to do", None);
            if let Store::Known(spool) = &mut self.store
                && let Err(error) = spool.compact()
            {
                // Only room would be gained.
                tracing::warn!(stream = %self.id, %error, "the spool of an idle stream was not tidied");
            }
            self.finished = true;
        }
    }
}
