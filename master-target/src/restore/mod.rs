//! Restore: the disks become what they were at a point, and can become again what they are now.
//!
//! A restore is a layer like any other: what it overwrites is saved first, so it survives a crash at any moment
//! (it is simply gone on with) and is undone like an epoch. While the disks are restored, replication waits. Once an
//! operator accepts it, the way forward is dropped: the disks stay, and older points can still be restored.

mod estimate;
mod pipeline;
mod select;

pub use self::{estimate::Estimate, select::Select};

use self::pipeline::Way;
use crate::{
    journal::{JournalError, Log, LogId, Mark, Phase, Record, RestoreState, SealedPoint, View},
    replica::{Replica, ReplicaError},
};

/// Called with bytes done and bytes in all.
pub type Progress<'a> = &'a mut dyn FnMut(u64, u64);

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
    /// damaged, nothing is changed, and replication goes on.
    pub fn restore(&mut self, point: &SealedPoint, progress: Progress<'_>) -> Result<(), ReplicaError> {
        // One that cannot be completed must not begin.
        pipeline::check(&View::at(&self.logs, self.state(), point.layer)?)?;
        let layer = self.state().next_layer();
        // They would be of other disks.
        self.digests.forget()?;
        self.catalogue.append(Record::RestoreBegun { to: point.layer, layer })?;
        self.run_restore(progress)
    }

    /// Makes the disks again what they were when replication stopped; after that it can go on.
    pub fn undo_restore(&mut self, progress: Progress<'_>) -> Result<(), ReplicaError> {
        if self.state().restore.is_none() {
            let what = "nothing to undo: the disks are not restored to a point";
            return Err(JournalError::Refused(what.into()).into());
        }
        self.catalogue.append(Record::UndoBegun)?;
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

    /// Completes what a crash interrupted.
    pub(crate) fn finish_restore(&mut self) -> Result<(), ReplicaError> {
        match self.state().restore.map(|restore| restore.phase) {
            Some(Phase::Restoring) => self.run_restore(&mut |_, _| {}),
            Some(Phase::Undoing) => self.run_undo(&mut |_, _| {}),
            Some(Phase::Restored) | None => Ok(()),
        }
    }

    fn run_restore(&mut self, progress: Progress<'_>) -> Result<(), ReplicaError> {
        let Some(restore) = self.state().restore else { return Ok(()) };
        let id = LogId::first(restore.layer);
        // What an interrupted restore saved stays; images saved twice do no harm, the older one counts.
        let mut log = match self.recover_log(id)? {
            Some(log) => log,
            None => self.logs.create(id)?,
        };
        // The view of the point needs no layer of this restore: it goes by the layers before it.
        let view = View::between(&self.logs, self.state(), restore.to, restore.layer - 1)?;
        self.follow(&view, restore.done, Some(&mut log), progress)?;
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
