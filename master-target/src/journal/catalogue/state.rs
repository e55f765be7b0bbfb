//! What the records of a catalogue add up to: a fold, without any I/O.

use std::collections::{BTreeMap, BTreeSet};

use engine::{
    frame::{Position, StreamInfo},
    limits,
    point::PointId,
};
use serde::{Deserialize, Serialize};

use super::record::{Mark, Record, SealedPoint, TargetDisk, VERSION};
use crate::journal::layer::{Layer, LogId};

/// A restore that changed, or is changing, the disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreState {
    /// The first restore's layer: undoing goes back to its beginning.
    pub first: u64,
    /// The newest restore's layer.
    pub layer: u64,
    /// The layer whose end it restores.
    pub to: u64,
    /// What is under way.
    pub phase: Phase,
    /// How far that is durable.
    pub done: Option<Mark>,
}

/// How far a restore is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Being written.
    Restoring,
    /// The disks are as of the point.
    Restored,
    /// Being undone.
    Undoing,
}

/// What the records add up to.
///
/// Invariants: every point ends a layer or is the oldest; the newest layer ends in a point; no layer lies at or before
/// the oldest point; layers neither overlap nor reach the open one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// Name of the agent that owns the stream.
    pub agent: String,
    /// What is replicated.
    pub stream: StreamInfo,
    /// Where it goes, disk by disk.
    pub targets: Vec<TargetDisk>,
    /// Kept points by layer, oldest first.
    pub points: BTreeMap<u64, SealedPoint>,
    /// Those of them that are never dropped by themselves.
    pub pinned: BTreeSet<u64>,
    /// Closed layers by their last epoch's number, oldest first.
    pub layers: BTreeMap<u64, Layer>,
    /// The disks can be led back to the end of this layer, not further.
    pub oldest: u64,
    /// The layer that replication appends to.
    pub open: u64,
    /// The stream's position at its beginning.
    pub opened_at: Position,
    /// A restore, if there was one since.
    pub restore: Option<RestoreState>,
    /// Bytes of the undo logs of completed restores, by layer.
    pub restore_logs: BTreeMap<u64, u64>,
    /// Whether a restore was accepted: the disks are not the stream's newest any more.
    pub accepted: bool,
    /// The highest number of a layer so far.
    used: u64,
    /// Of the file that it was read from.
    pub(super) version: u32,
}

impl State {
    /// The newest layer: the restore's, or the open one.
    #[must_use]
    pub fn newest_layer(&self) -> u64 {
        self.restore.map_or(self.open, |restore| restore.layer)
    }

    /// The number of the next new layer. None is used twice: somebody may still read the log that had it.
    #[must_use]
    pub fn next_layer(&self) -> u64 {
        // Version 1 did use them twice.
        if self.version == 1 { self.newest_layer() + 1 } else { self.used + 1 }
    }

    /// The point with this id.
    #[must_use]
    pub fn point(&self, id: PointId) -> Option<&SealedPoint> {
        self.points.values().find(|sealed| sealed.point.id == id)
    }

    /// The disks as they were before the first frame, if they held something and that is kept.
    #[must_use]
    pub fn before_failback(&self) -> Option<&SealedPoint> {
        self.points.get(&0)
    }

    /// The points that an agent made, oldest first.
    pub fn replicated(&self) -> impl DoubleEndedIterator<Item = &SealedPoint> {
        self.points.range(1..).map(|(_, sealed)| sealed)
    }

    /// Logs that belong to no closed layer, oldest first: the open layer's and those of restores. Their lengths, where
    /// they are complete.
    pub fn unlayered(&self) -> impl Iterator<Item = (LogId, Option<u64>)> + '_ {
        let restores = self.restore.into_iter().flat_map(|restore| restore.first..=restore.layer);
        let layers = std::iter::once(self.open).chain(restores);
        layers.map(|layer| (LogId::first(layer), self.restore_logs.get(&layer).copied()))
    }

    /// The newest place at or before the end of `layer` to which the logs lead back: merging may have taken it.
    #[must_use]
    pub fn boundary(&self, layer: u64) -> u64 {
        let around = self.layers.range(layer..).map(|(_, found)| found).next();
        around
            .filter(|found| found.first <= layer && layer < found.last)
            .map_or(layer, |found| found.first - 1)
    }

    /// Every log that there may be.
    pub fn logs(&self) -> impl Iterator<Item = LogId> + '_ {
        let layers = self.layers.values().map(Layer::log);
        layers.chain(self.unlayered().map(|(id, _)| id))
    }

    /// Bytes of the closed layers' logs.
    #[must_use]
    pub fn layer_bytes(&self) -> u64 {
        self.layers.values().fold(0, |sum, layer| sum.saturating_add(layer.log_bytes))
    }

    /// What each point costs: bytes of the logs that lead back to it from the point after it. Those of the oldest are
    /// what dropping it frees.
    #[must_use]
    pub fn costs(&self) -> BTreeMap<u64, u64> {
        let mut costs: BTreeMap<u64, u64> = self.points.keys().map(|layer| (*layer, 0)).collect();
        for layer in self.layers.values() {
            if let Some((_, cost)) = costs.range_mut(..layer.first).next_back() {
                *cost = cost.saturating_add(layer.log_bytes);
            }
        }
        costs
    }

    pub(super) fn start(record: Record) -> Option<Self> {
        let Record::Created { version, agent, stream, targets, oldest, open, position, used, accepted } =
            record
        else {
            return None;
        };
        let used = used.unwrap_or(open).max(open);
        let sensible = stream.check().is_ok()
            && targets.len() == stream.disks.len()
            && (if version == 1 { open == oldest.max(1) } else { open > oldest })
            && used < limits::STREAM_NUMBER
            && position.is_sensible();
        sensible.then(|| Self {
            agent,
            stream,
            targets,
            points: BTreeMap::new(),
            pinned: BTreeSet::new(),
            layers: BTreeMap::new(),
            oldest,
            open,
            opened_at: position,
            restore: None,
            restore_logs: BTreeMap::new(),
            accepted,
            used,
            version,
        })
    }

    /// Whether a record can follow.
    pub(super) fn allows(&self, record: &Record) -> bool {
        let idle = self.restore.is_none();
        let newest_point = self.points.keys().next_back().copied();
        match record {
            Record::Created { .. } => false,
            Record::Layer { layer } => {
                layer.is_sensible()
                    && layer.first > self.last_closed().max(self.oldest)
                    && layer.last < self.open
            }
            Record::Kept { point } => {
                is_labelled(point)
                    && newest_point.is_none_or(|newest| newest < point.layer)
                    && (point.layer == self.oldest || self.layers.contains_key(&point.layer))
            }
            Record::Sealed { point, position } => {
                is_labelled(point)
                    && idle
                    && !self.accepted
                    && point.layer == self.open
                    && position.is_sensible()
            }
            Record::Retired { oldest } => self.points.contains_key(oldest),
            Record::Dropped { layers } => {
                let droppable = |layer| self.points.contains_key(layer) && !self.pinned.contains(layer);
                idle && layers.iter().all(|layer| droppable(layer) && Some(*layer) != newest_point)
            }
            Record::Pinned { layer, .. } => self.points.contains_key(layer),
            Record::Merged { layer } => idle && self.can_become(layer),
            Record::RestoreBegun { to, layer } => {
                *layer == self.next_layer() && *layer < limits::STREAM_NUMBER && self.points.contains_key(to)
            }
            Record::RestoreAt { .. } => self.restore.is_some_and(|restore| restore.phase != Phase::Restored),
            Record::RestoreDone { layer, .. } => self
                .restore
                .is_some_and(|restore| restore.layer == *layer && restore.phase == Phase::Restoring),
            Record::UndoBegun | Record::UndoDone => !idle,
            Record::Accepted => self.restore.is_some_and(|restore| restore.phase == Phase::Restored),
        }
    }

    /// Whether `merged` is made of whole layers, at least two, with no point between them.
    fn can_become(&self, merged: &Layer) -> bool {
        let parts: Vec<&Layer> =
            self.layers.range(merged.first..=merged.last).map(|(_, layer)| layer).collect();
        match &parts[..] {
            [first, .., last] => {
                first.first == merged.first
                    && last.last == merged.last
                    && last.generation < merged.generation
                    && self.points.range(merged.first..merged.last).next().is_none()
            }
            _ => false,
        }
    }

    fn last_closed(&self) -> u64 {
        self.layers.keys().next_back().copied().unwrap_or(0)
    }

    /// Applies a record that is allowed.
    pub(super) fn apply(&mut self, record: Record) {
        match record {
            Record::Created { .. } => {}
            Record::Layer { layer } => drop(self.layers.insert(layer.last, layer)),
            Record::Kept { point } => drop(self.points.insert(point.layer, point)),
            Record::Sealed { point, position } => {
                self.open = self.next_layer();
                self.used = self.used.max(self.open);
                self.opened_at = position;
                let (last, log_bytes) = (point.layer, point.log_bytes);
                self.layers.insert(last, Layer { first: last, last, generation: 0, log_bytes });
                self.points.insert(last, point);
                self.forget_old();
            }
            Record::Retired { oldest } => {
                self.points.retain(|layer, _| *layer >= oldest);
                self.forget_old();
            }
            Record::Dropped { layers } => {
                layers.iter().for_each(|layer| drop(self.points.remove(layer)));
                self.forget_old();
            }
            Record::Pinned { layer, pinned: true } => drop(self.pinned.insert(layer)),
            Record::Pinned { layer, pinned: false } => drop(self.pinned.remove(&layer)),
            Record::Merged { layer } => {
                self.layers.retain(|last, _| !(layer.first..=layer.last).contains(last));
                self.layers.insert(layer.last, layer);
            }
            Record::RestoreBegun { to, layer } => {
                let first = self.restore.map_or(layer, |restore| restore.first);
                self.restore = Some(RestoreState { first, layer, to, phase: Phase::Restoring, done: None });
                self.used = self.used.max(layer);
            }
            Record::RestoreAt { mark } => self.change_restore(|restore| restore.done = Some(mark)),
            Record::RestoreDone { layer, log_bytes } => {
                self.change_restore(|restore| (restore.phase, restore.done) = (Phase::Restored, None));
                self.restore_logs.insert(layer, log_bytes);
            }
            Record::UndoBegun => {
                self.change_restore(|restore| (restore.phase, restore.done) = (Phase::Undoing, None));
            }
            Record::UndoDone => {
                self.restore = None;
                self.restore_logs.clear();
            }
            Record::Accepted => {
                let Some(restore) = self.restore.take() else { return };
                self.points.retain(|layer, _| *layer <= restore.to);
                self.pinned.retain(|layer| *layer <= restore.to);
                self.layers.retain(|last, _| *last <= restore.to);
                self.restore_logs.clear();
                // Its log goes with the others: the next new one has a number of its own.
                self.open = self.used + 1;
                self.used = self.open;
                self.accepted = true;
            }
        }
    }

    fn change_restore(&mut self, change: impl FnOnce(&mut RestoreState)) {
        if let Some(restore) = &mut self.restore {
            change(restore);
        }
    }

    /// Nothing leads further back than to the oldest point.
    fn forget_old(&mut self) {
        if let Some((&oldest, _)) = self.points.first_key_value() {
            self.oldest = oldest;
            while let Some(layer) = self.layers.first_entry().filter(|layer| layer.get().last <= oldest) {
                layer.remove();
            }
        }
    }

    /// The fewest records that add up to this state.
    pub(super) fn records(&self) -> Vec<Record> {
        let mut records = vec![Record::Created {
            version: VERSION,
            agent: self.agent.clone(),
            stream: self.stream.clone(),
            targets: self.targets.clone(),
            oldest: self.oldest,
            open: self.open,
            position: self.opened_at,
            used: Some(self.restore.map_or(self.used, |restore| restore.first - 1)),
            accepted: self.accepted,
        }];
        records.extend(self.layers.values().map(|layer| Record::Layer { layer: *layer }));
        records.extend(self.points.values().map(|point| Record::Kept { point: point.clone() }));
        records.extend(self.pinned.iter().map(|layer| Record::Pinned { layer: *layer, pinned: true }));
        let Some(restore) = self.restore else { return records };
        for layer in restore.first..=restore.layer {
            records.push(Record::RestoreBegun { to: restore.to, layer });
            let done = self.restore_logs.get(&layer);
            records.extend(done.map(|&log_bytes| Record::RestoreDone { layer, log_bytes }));
        }
        if restore.phase == Phase::Undoing {
            records.push(Record::UndoBegun);
        }
        records.extend(restore.done.map(|mark| Record::RestoreAt { mark }));
        records
    }
}

/// Whether a point says that it is of before the first frame just if it is.
fn is_labelled(point: &SealedPoint) -> bool {
    point.point.is_before_failback() == (point.layer == 0)
}
