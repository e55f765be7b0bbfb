//! Runs the coordinator of groups: what streams report goes in from their threads, orders go straight to the agents'
//! connections, and a task looks after the time.

use std::{
    collections::HashMap,
    sync::Mutex,
    time::{Duration, Instant},
};

use bytes::Bytes;
use engine::{
    frame::{Control, GroupReport},
    point::BarrierId,
    service::shutdown::Shutdown,
    units::StreamId,
};
use tokio::sync::{Notify, mpsc, oneshot};

use super::lock;
use crate::{
    group::{Coordinator, GroupPoint, GroupStatus, Output, RequestId, Settings},
    metrics::{GroupMetrics, Metrics},
};

/// A look at the clock is worth this much sleep at most.
const NAP: Duration = Duration::from_secs(60);

/// What becomes of a wish for a common point.
pub type Answer = Result<GroupPoint, String>;

/// All groups.
pub(super) struct Groups {
    state: Mutex<State>,
    /// The time of the next look has changed.
    changed: Notify,
}

struct State {
    coordinator: Coordinator,
    /// The way to each agent that is connected.
    agents: HashMap<StreamId, mpsc::Sender<Bytes>>,
    waiting: HashMap<RequestId, oneshot::Sender<Answer>>,
    metrics: GroupMetrics,
}

impl Groups {
    pub(super) fn new(groups: Vec<Settings>, metrics: Metrics) -> Self {
        let coordinator = Coordinator::new(groups, Box::new(BarrierId::random), Instant::now());
        let metrics = GroupMetrics::new(metrics);
        let state = State { coordinator, agents: HashMap::new(), waiting: HashMap::new(), metrics };
        Self { state: Mutex::new(state), changed: Notify::new() }
    }

    /// The agent of `vm` is connected; `answers` leads to it.
    pub(super) fn up(&self, stream: StreamId, vm: &str, answers: mpsc::Sender<Bytes>) {
        self.with(|state, now| {
            state.agents.insert(stream, answers);
            state.coordinator.handle_connected(vm, stream, now);
        });
    }

    /// It is not any more.
    pub(super) fn down(&self, stream: StreamId, vm: &str) {
        self.with(|state, now| {
            state.agents.remove(&stream);
            state.coordinator.handle_disconnected(vm, stream, now);
        });
    }

    pub(super) fn report(&self, stream: StreamId, barrier: BarrierId, report: GroupReport) {
        self.with(|state, now| state.coordinator.handle_report(stream, barrier, report, now));
    }

    /// Asks for a common point; `None` if there is no such group.
    pub(super) fn request(&self, group: &str, application: bool) -> Option<oneshot::Receiver<Answer>> {
        let (answer, receiver) = oneshot::channel();
        self.with(|state, now| {
            let request = state.coordinator.handle_request(group, application, now)?;
            state.waiting.insert(request, answer);
            Some(receiver)
        })
    }

    pub(super) fn status(&self) -> Vec<GroupStatus> {
        lock(&self.state).coordinator.status(Instant::now())
    }

    /// Looks after the time, until asked to stop.
    pub(super) async fn run(&self, stop: Shutdown) {
        loop {
            let now = Instant::now();
            let next = lock(&self.state).coordinator.poll_timeout();
            let nap = next.map_or(NAP, |at| at.saturating_duration_since(now).min(NAP));
            tokio::select! {
                () = stop.requested() => return,
                () = self.changed.notified() => {}
                () = tokio::time::sleep(nap) => {}
            }
            self.with(|state, now| {
                if state.coordinator.poll_timeout().is_some_and(|at| at <= now) {
                    state.coordinator.handle_timeout(now);
                }
                let status = state.coordinator.status(now);
                state.metrics.update(&status);
            });
        }
    }

    fn with<T>(&self, body: impl FnOnce(&mut State, Instant) -> T) -> T {
        let mut state = lock(&self.state);
        let before = state.coordinator.poll_timeout();
        let result = body(&mut state, Instant::now());
        state.outputs();
        if state.coordinator.poll_timeout() != before {
            self.changed.notify_one();
        }
        result
    }
}

impl State {
    fn outputs(&mut self) {
        while let Some(output) = self.coordinator.poll_output() {
            match output {
                Output::Order(stream, barrier, order) => {
                    if let Some(agent) = self.agents.get(&stream) {
                        let frame = Control::GroupOrder { barrier, order }.to_frame(stream);
                        // One that does not read what it is told is soon found too slow, and its connection closed.
                        let _ = agent.try_send(frame.bytes().clone());
                    }
                }
                Output::Answer(request, answer) => {
                    if let Some(waiting) = self.waiting.remove(&request) {
                        // Whoever asked may have gone.
                        let _ = waiting.send(answer);
                    }
                }
            }
        }
    }
}
