//! What a start finds, decided by a table.
//!
//! | row | catalogue says | log of the open layer | then |
//! |---|---|---|---|
//! | A | any | absent | position is the layer's beginning; nothing was written in it |
//! | B | any | header torn | as A: a log is complete before anything relies on it |
//! | C | any | there, with commits | position is the last commit |
//! | D | any | there, torn behind the last commit | as C; the tail is cut |
//! | E | any | there, damaged before a commit, or of another version | error |
//!
//! Beside it: logs that the catalogue does not know, left by a crash while a layer was merged, retired or a restore
//! undone, are removed. A restore that the catalogue knows is gone on with, or kept, by `restore`.
//!
//! What follows the last commit on the disks is at most one batch, whose before-images are in the log and whose
//! frames will be sent again.

use engine::{extent::Extent, extent_set::ExtentSet, frame::Position};

use super::{Catalogue, JournalError, Log, Logs, layer::LogId};

/// Runs that a layer may remember as saved. Beyond it they are forgotten, and saved again: harmless.
const SAVED_RUNS: usize = 1 << 20;

/// The layer that replication appends to, as found or newly begun.
#[derive(Default)]
pub(crate) struct OpenLayer {
    /// Its log, once it has one.
    pub(crate) log: Option<Log>,
    /// Blocks whose before-images are in the log.
    pub(crate) saved: Saved,
}

/// Blocks whose before-images are in a log, by disk. May forget some: an image saved twice does no harm.
#[derive(Default)]
pub(crate) struct Saved(Vec<ExtentSet>);

impl Saved {
    /// None of so many disks.
    pub(crate) fn none(disks: usize) -> Self {
        Self(vec![ExtentSet::new(); disks])
    }

    /// What of an extent is not saved.
    pub(crate) fn gaps(&self, disk: usize, extent: Extent) -> Vec<Extent> {
        self.0.get(disk).map_or(vec![extent], |saved| saved.gaps(extent.start, extent.end()))
    }

    /// Remembers blocks.
    pub(crate) fn add(&mut self, disk: usize, extent: Extent) {
        let Some(saved) = self.0.get_mut(disk) else { return };
        if saved.runs() >= SAVED_RUNS {
            *saved = ExtentSet::new();
        }
        saved.insert_extent(extent);
    }
}

/// Finds where the stream stands.
pub(crate) fn recover(logs: &Logs, catalogue: &Catalogue) -> Result<(OpenLayer, Position), JournalError> {
    let state = catalogue.state();
    logs.sweep(state)?;
    let disks = state.stream.disks.len();
    let begun = (OpenLayer { log: None, saved: Saved::none(disks) }, state.opened_at);
    let id = LogId::first(state.open);
    if !logs.exists(id)? {
        return Ok(begun); // Row A.
    }
    let (log, committed) = match logs.open_or_torn(id)? {
        None => return Ok(begun),          // Row B: creating the log again replaces it.
        Some(file) => Log::recover(file)?, // Row E is its error; rows C and D go on.
    };
    let mut saved = Saved::none(disks);
    for found in log.file().entries(log.bytes())? {
        if let Some(image) = found?.image() {
            saved.add(usize::from(image.disk.0), image.extent);
        }
    }
    Ok((OpenLayer { log: Some(log), saved }, committed.unwrap_or(state.opened_at)))
}
