//! Restore: the disks become what they were at a point, and can become again what they are now.
//!
//! A restore is a layer like any other: what it overwrites is saved first, so it may be interrupted at any moment, be it
//! by a crash, and is undone like an epoch. Asked for again it goes on where it was interrupted. While the disks are
//! restored, or half restored, replication waits. Once an operator accepts it, the way forward is dropped: the disks
//! stay, and older points can still be restored.

mod batch;
mod estimate;
mod group;
mod pipeline;
mod select;

pub use self::{
    estimate::{DiskEstimate, Estimate},
    group::{Member, Shared, shared_point, vms_of},
    select::Select,
};

use self::pipeline::Way;
use crate::{
    journal::{JournalError, Log, LogId, Mark, Phase, Record, RestoreState, SealedPoint, View},
    replica::{Replica, ReplicaError},
};

/// Called with bytes done and bytes in all; it interrupts by saying no.
pub type Progress<'a> = &'a mut dyn FnMut(u64, u64) -> bool;

impl Replica {
    /// The point that `select` means.
    pub fn select(&self, select: &Select) -> Result<SealedPoint, ReplicaError> {
        select.among(self.state())
    }

    /// Whether the disks are restored, or being restored, to a point.
    #[must_use]
    pub fn restore_state(&self) -> Option<RestoreState> {
        self.state().restore
    }

    /// Makes the disks what they were at `point`. Goes on where an interrupted one stopped. If a log that it needs is
    /// damaged, the disks become again what they were, and replication goes on.
    pub fn restore(&mut self, point: &SealedPoint, progress: Progress<'_>) -> Result<(), ReplicaError> {
        let before = self.state().restore;
        let same = before.filter(|restore| restore.to == point.layer);
        let view = match same.map(|restore| restore.phase) {
            Some(Phase::Restored) => return Ok(()),
            // The way to the point goes by the layers before this restore's.
            Some(Phase::Restoring) => self.way_back(point.layer)?,
            Some(Phase::Undoing) | None => {
                let view = View::at(&self.logs, self.state(), point.layer)?;
                if before.is_some() {
                    // There is no way back to another point: one that cannot be completed must not begin.
                    pipeline::check(&view)?;
                }
                let layer = self.state().next_layer();
                // They would be of other disks.
                self.digests.forget()?;
                self.catalogue.append(Record::RestoreBegun { to: point.layer, layer })?;
                view
            }
        };
        let result = self.run_restore(&view, progress);
        let is_first = self.state().restore.is_some_and(|restore| restore.first == restore.layer);
        if is_first && result.as_ref().is_err_and(ReplicaError::is_damage) {
            self.undo_restore(&mut |_, _| true)?;
        }
        result
    }

    /// Makes the disks again what they were when replication stopped; after that it can go on.
    pub fn undo_restore(&mut self, progress: Progress<'_>) -> Result<(), ReplicaError> {
        match self.state().restore.map(|restore| restore.phase) {
            None => {
                let what = "nothing to undo: the disks are not restored to a point";
                return Err(JournalError::Refused(what.into()).into());
            }
            Some(Phase::Undoing) => {}
            Some(Phase::Restoring | Phase::Restored) => self.catalogue.append(Record::UndoBegun)?,
        }
        self.run_undo(progress)
    }

    /// Keeps the disks as they are restored, for good: what was newer is dropped, and replication does not go on.
    pub fn accept_restore(&mut self) -> Result<(), ReplicaError> {
        if !self.catalogue.allows(&Record::Accepted) {
            let what = "nothing to accept: the disks are not restored to a point";
            return Err(JournalError::Refused(what.into()).into());
        }
        let before: Vec<LogId> = self.state().logs().collect();
        self.catalogue.append(Record::Accepted)?;
        let after: Vec<LogId> = self.state().logs().collect();
        self.logs.remove(before.into_iter().filter(|log| !after.contains(log)));
        self.forget_open_layer();
        Ok(())
    }

    /// What leads to the end of layer `to` from where the restore under way began.
    fn way_back(&self, to: u64) -> Result<View, JournalError> {
        View::between(&self.logs, self.state(), to, self.state().newest_layer() - 1)
    }

    fn run_restore(&mut self, view: &View, progress: Progress<'_>) -> Result<(), ReplicaError> {
        let Some(restore) = self.state().restore else { return Ok(()) };
        let id = LogId::first(restore.layer);
        // What an interrupted restore saved stays; images saved twice do no harm, the older one counts.
        let mut log = match self.recover_log(id)? {
            Some(log) => log,
            None => self.logs.create(id)?,
        };
        self.follow(view, restore.done, Some(&mut log), progress)?;
        let (layer, log_bytes) = (restore.layer, log.bytes());
        Ok(self.catalogue.append(Record::RestoreDone { layer, log_bytes })?)
    }

    fn run_undo(&mut self, progress: Progress<'_>) -> Result<(), ReplicaError> {
        let Some(restore) = self.state().restore else { return Ok(()) };
        let view = View::between(&self.logs, self.state(), restore.first - 1, restore.layer)?;
        self.follow(&view, restore.done, None, progress)?;
        self.catalogue.append(Record::UndoDone)?;
        self.begin_digests_again()?;
        self.logs.remove((restore.first..=restore.layer).map(LogId::first));
        Ok(())
    }

    /// Writes the view's pieces from `done` on to the disks, saving what they overwrite to `log`.
    fn follow(
        &mut self,
        view: &View,
        done: Option<Mark>,
        log: Option<&mut Log>,
        progress: Progress<'_>,
    ) -> Result<(), ReplicaError> {
        let way = Way { view, targets: &self.targets, watchers: &self.watchers, from: done, log };
        let catalogue = &mut self.catalogue;
        way.follow(progress, &mut |mark| Ok(catalogue.append(Record::RestoreAt { mark })?))
    }

    fn recover_log(&self, id: LogId) -> Result<Option<Log>, JournalError> {
        if !self.logs.exists(id)? {
            return Ok(None);
        }
        let Some(file) = self.logs.open_or_torn(id)? else { return Ok(None) };
        Ok(Some(Log::recover(file)?.0))
    }
}
