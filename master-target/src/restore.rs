//! Restore: the disks become what they were at a point, and can become again what they are now.
//!
//! A restore is a layer like any other: what it overwrites is saved first, so it survives a crash at any moment
//! (it is simply gone on with) and is undone like an epoch. While the disks are restored, replication waits.

use engine::{extent_set::ExtentSet, limits, point::PointId, units::DiskIndex};

use crate::{
    journal::{self, JournalError, Log, Phase, Record, RestoreState, SealedPoint, State, View, log_path},
    replica::{Replica, ReplicaError, disk_error, save_images, write_extents},
};

/// Which point an operator means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Select {
    /// The newest sealed one.
    Latest,
    /// By id.
    Id(PointId),
    /// The newest that was taken at or before this time.
    At(jiff::Timestamp),
}

impl std::str::FromStr for Select {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "latest" {
            return Ok(Self::Latest);
        }
        let id = text.parse().map(|id| Self::Id(PointId(id)));
        let at = || text.parse().map(Self::At);
        id.or_else(|_| at()).map_err(|_| {
            format!("'{text}' is neither 'latest', nor a point's id, nor a time like 2026-11-23T02:00:00Z")
        })
    }
}

impl Select {
    /// The point that is meant.
    pub fn among(&self, state: &State) -> Result<SealedPoint, ReplicaError> {
        let points = &state.points;
        let found = match self {
            Self::Latest => points.values().next_back(),
            Self::Id(id) => state.point(*id),
            Self::At(time) => points.values().rev().find(|sealed| sealed.point.taken_at <= *time),
        };
        found.cloned().ok_or_else(|| {
            let what = format!("no such point: {} are kept; list them with `points`", points.len());
            JournalError::Refused(what).into()
        })
    }
}

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
        View::at(&self.storage, &self.dir, self.state(), point.layer)?.check()?;
        let layer = self.state().newest_layer() + 1;
        journal::remove_log(&self.storage, &self.dir, layer)?;
        // They would be of other disks.
        self.digests.forget()?;
        self.catalogue.append(Record::RestoreBegun { to: point.layer, layer })?;
        self.run_restore(progress)
    }

    /// Makes the disks again what they were when replication stopped; after that it can go on.
    pub fn undo_restore(&mut self, progress: Progress<'_>) -> Result<(), ReplicaError> {
        if self.state().restore.is_none() {
            return Err(JournalError::Refused(
                "nothing to undo: the disks are not restored to a point".into(),
            )
            .into());
        }
        self.catalogue.append(Record::UndoBegun)?;
        self.run_undo(progress)
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
        let path = log_path(&self.dir, restore.layer);
        let stream = self.catalogue.stream();
        // What an interrupted restore saved stays; images saved twice do no harm, the older one counts.
        let exists = self.storage.exists(&path).map_err(JournalError::io("look for", &path))?;
        let mut log = if exists {
            let (mut log, mut scan) = Log::open(&self.storage, &path, stream, restore.layer)?;
            log.recover(&mut scan)?;
            if scan.end == 0 { Log::create(&self.storage, &path, stream, restore.layer)? } else { log }
        } else {
            Log::create(&self.storage, &path, stream, restore.layer)?
        };
        // The view of the point needs no layer of this restore: it goes by the layers before it.
        let view = View::at(&self.storage, &self.dir, self.state(), restore.to)?;
        self.write_view(&view, Some(&mut log), progress)?;
        let (layer, log_bytes) = (restore.layer, log.bytes());
        Ok(self.catalogue.append(Record::RestoreDone { layer, log_bytes })?)
    }

    fn run_undo(&mut self, progress: Progress<'_>) -> Result<(), ReplicaError> {
        let Some(restore) = self.state().restore else { return Ok(()) };
        let view = View::at(&self.storage, &self.dir, self.state(), restore.first - 1)?;
        self.write_view(&view, None, progress)?;
        self.catalogue.append(Record::UndoDone)?;
        self.begin_digests_again()?;
        for layer in restore.first..=restore.layer {
            journal::remove_log(&self.storage, &self.dir, layer)?;
        }
        Ok(())
    }

    /// Writes the view's pieces to the disks, a batch at a time, saving what they overwrite to `log`.
    fn write_view(
        &self,
        view: &View,
        mut log: Option<&mut Log>,
        progress: Progress<'_>,
    ) -> Result<(), ReplicaError> {
        let (mut done, all) = (0, view.bytes());
        let mut saved = vec![ExtentSet::new(); self.targets.len()];
        for (at, target) in self.targets.iter().enumerate() {
            let mut rest = view.pieces(DiskIndex(at as u16));
            while !rest.is_empty() {
                let mut bytes = 0;
                let mut fits = |piece: &journal::Piece| {
                    bytes += piece.extent.bytes();
                    bytes <= limits::BATCH_BYTES as u64
                };
                let (batch, later) = rest.split_at(rest.iter().take_while(|p| fits(p)).count().max(1));
                rest = later;
                // Read and check everything before anything is overwritten.
                let contents = batch.iter().map(|piece| view.read(piece)).collect::<Result<Vec<_>, _>>()?;
                if let Some(log) = log.as_deref_mut() {
                    let mut touched = vec![ExtentSet::new(); self.targets.len()];
                    touched[at] = batch.iter().map(|piece| piece.extent).collect();
                    save_images(log, &self.targets, &touched, &mut saved, &self.watchers)?;
                }
                let extents =
                    batch.iter().zip(&contents).map(|(piece, bytes)| (piece.extent, Some(&bytes[..])));
                write_extents(target, extents)?;
                done += batch.iter().map(|piece| piece.extent.bytes()).sum::<u64>();
                progress(done, all);
            }
            target.device.sync().map_err(|e| disk_error("sync", target, 0, e))?;
        }
        Ok(())
    }
}
