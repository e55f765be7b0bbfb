//! What keeps a journal in shape while replication goes on: points that are dropped, layers that are merged or indexed.
//!
//! Dropping is a record. The rest reads and writes logs that nobody changes any more, so it is a task of its own that
//! runs on whatever thread; only its result comes back here. It may be thrown away at any moment.

use std::sync::Arc;

use jiff::Timestamp;

use super::{Replica, ReplicaError};
use crate::{
    journal::{self, JournalError, Layer, LogId, Logs, Record, SealedPoint},
    retention::{self, Candidate, Policy},
};

/// Work on closed layers.
pub struct Task {
    logs: Arc<Logs>,
    what: What,
}

enum What {
    Index(Layer),
    Merge(Vec<Layer>),
}

/// What came of it.
pub struct TaskDone(Done);

enum Done {
    Indexed(LogId),
    Merged { parts: Vec<Layer>, merged: Layer },
    Interrupted,
}

impl Task {
    /// Does it. `go_on` is called now and then; when it says no, nothing comes of it.
    pub fn run(&self, go_on: &mut dyn FnMut(u64) -> bool) -> Result<TaskDone, JournalError> {
        Ok(TaskDone(match &self.what {
            What::Index(layer) => {
                self.logs.write_index(layer)?;
                Done::Indexed(layer.log())
            }
            What::Merge(parts) => match journal::merge(&self.logs, parts, go_on)? {
                Some(merged) => Done::Merged { parts: parts.clone(), merged },
                None => Done::Interrupted,
            },
        }))
    }
}

impl Replica {
    /// Drops the points that `policy` does not keep. While the disks are restored, none is.
    pub fn retire(&mut self, policy: &Policy, now: Timestamp) -> Result<(), ReplicaError> {
        let state = self.state();
        if state.restore.is_some() || state.accepted || state.points.len() < 2 {
            return Ok(());
        }
        // What merging will free must not cost a point, unless there is much too little space.
        let bytes = self.journal_bytes();
        let count_bytes =
            journal::plan(state).is_none() || bytes > policy.bytes.saturating_add(policy.bytes / 4);
        let costs = state.costs();
        let candidate = |(layer, sealed): (&u64, &SealedPoint)| Candidate {
            layer: *layer,
            // A clock that is ahead does not make a point younger than its arrival.
            taken_at: sealed.point.taken_at.min(sealed.sealed_at),
            application: sealed.is_application_consistent(),
            pinned: state.pinned.contains(layer),
            cost: costs.get(layer).copied().unwrap_or(0),
        };
        let points: Vec<Candidate> = state.points.iter().map(candidate).collect();
        let kept = retention::keep(&points, policy, count_bytes.then_some(bytes), now);
        let layers: Vec<u64> =
            points.iter().map(|point| point.layer).filter(|layer| !kept.contains(layer)).collect();
        if layers.is_empty() { Ok(()) } else { self.drop_points(layers) }
    }

    fn drop_points(&mut self, layers: Vec<u64>) -> Result<(), ReplicaError> {
        let before: Vec<Layer> = self.state().layers.values().copied().collect();
        self.catalogue.append(Record::Dropped { layers })?;
        let oldest = self.state().oldest;
        self.logs.remove(before.iter().take_while(|layer| layer.last <= oldest).map(Layer::log));
        Ok(())
    }

    /// Makes retention leave a point alone, or not any more.
    pub fn pin(&mut self, point: &SealedPoint, pinned: bool) -> Result<(), ReplicaError> {
        Ok(self.catalogue.append(Record::Pinned { layer: point.layer, pinned })?)
    }

    /// Work that should be done on closed layers, if any: one at a time.
    #[must_use]
    pub fn task(&self) -> Option<Task> {
        let task = |what| Task { logs: Arc::clone(&self.logs), what };
        if let Some(parts) = journal::plan(self.state()) {
            return Some(task(What::Merge(parts)));
        }
        let large =
            self.state().layers.values().filter(|layer| layer.log_bytes >= self.logs.bounds.unindexed);
        let layer = large.into_iter().find(|layer| !self.indexed.contains(&layer.log()))?;
        Some(task(What::Index(*layer)))
    }

    /// Takes the result of a task over. One that has become meaningless is thrown away.
    pub fn finish_task(&mut self, done: TaskDone) -> Result<(), ReplicaError> {
        match done.0 {
            Done::Indexed(log) => drop(self.indexed.insert(log)),
            Done::Merged { parts, merged } => {
                let record = Record::Merged { layer: merged };
                let are_there = parts.iter().all(|part| self.state().layers.get(&part.last) == Some(part));
                if are_there && self.catalogue.allows(&record) {
                    self.catalogue.append(record)?;
                    self.indexed.insert(merged.log());
                    self.logs.remove(parts.iter().map(Layer::log));
                } else {
                    self.logs.remove([merged.log()]);
                }
                let state = self.catalogue.state();
                self.indexed
                    .retain(|log| state.layers.get(&log.layer).is_some_and(|layer| layer.log() == *log));
            }
            Done::Interrupted => {}
        }
        Ok(())
    }
}
