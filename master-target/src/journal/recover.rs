//! What a start finds, decided by a table.
//!
//! | row | catalogue says | log of the open layer | log of a layer behind it | then |
//! |---|---|---|---|---|
//! | A | no restore | absent | absent | position is the layer's beginning; nothing was written in it |
//! | B | no restore | header torn | absent | as A: a log is complete before anything relies on it |
//! | C | no restore | there, with commits | absent | position is the last commit |
//! | D | no restore | there, torn behind the last commit | absent | as C; the tail is cut |
//! | E | no restore | there, damaged before a commit, or of another version | any | error |
//! | F | no restore | any | there | leftover of an undone restore: removed |
//! | G | restore | as A to E | belongs to the restore | as A to E; the restore is gone on with, or kept |
//!
//! What follows the last commit on the disks is at most one batch, whose before-images are in the log and whose
//! frames will be sent again.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use engine::{extent_set::ExtentSet, frame::Position, io::Storage};

use super::{Catalogue, JournalError, Log, Scan, State, entry::Malformed};

/// The layer that replication appends to, as found or newly begun.
#[derive(Default)]
pub(crate) struct OpenLayer {
    /// Its log, once it has one.
    pub(crate) log: Option<Log>,
    /// Blocks whose before-images are in the log, by disk. May forget some: an image saved twice does no harm.
    pub(crate) saved: Vec<ExtentSet>,
}

/// File of a layer's log in a stream's folder.
#[must_use]
pub(crate) fn log_path(dir: &Path, layer: u64) -> PathBuf {
    dir.join(format!("layer-{layer:010}.undo"))
}

/// Finds where the stream in `dir` stands.
pub(crate) fn recover(
    storage: &Arc<dyn Storage>,
    dir: &Path,
    catalogue: &Catalogue,
) -> Result<(OpenLayer, Position), JournalError> {
    let state = catalogue.state();
    if state.restore.is_none() {
        // Row F.
        remove_log(storage, dir, state.open + 1)?;
    }
    let begun =
        (OpenLayer { log: None, saved: vec![ExtentSet::new(); state.stream.disks.len()] }, state.opened_at);
    let path = log_path(dir, state.open);
    if !storage.exists(&path).map_err(JournalError::io("look for", &path))? {
        return Ok(begun); // Row A.
    }
    let (mut log, mut scan) = Log::open(storage, &path, catalogue.stream(), state.open)?;
    log.recover(&mut scan)?; // Row E is its error; rows C and D go on.
    if scan.end == 0 {
        return Ok(begun); // Row B: creating the log again replaces it.
    }
    let position = scan.committed.unwrap_or(state.opened_at);
    let saved = saved(&scan, state.stream.disks.len());
    Ok((OpenLayer { log: Some(log), saved }, position))
}

fn saved(scan: &Scan, disks: usize) -> Vec<ExtentSet> {
    let mut saved = vec![ExtentSet::new(); disks];
    for image in &scan.images {
        if let Some(set) = saved.get_mut(usize::from(image.disk.0)) {
            set.insert_extent(image.extent);
        }
    }
    saved
}

/// Opens the log of a layer for reading. A closed layer's must be as long as it was when it was closed.
pub(crate) fn read_log(
    storage: &Arc<dyn Storage>,
    dir: &Path,
    state: &State,
    layer: u64,
) -> Result<Option<(Log, Scan)>, JournalError> {
    let path = log_path(dir, layer);
    let expected = state.log_bytes(layer);
    if !storage.exists(&path).map_err(JournalError::io("look for", &path))? {
        // An open layer without writes has no log yet.
        return if expected.is_none() { Ok(None) } else { Err(JournalError::Missing { path }) };
    }
    let (mut log, mut scan) = Log::open(storage, &path, state.stream.id, layer)?;
    match expected {
        None => log.recover(&mut scan)?,
        Some(expected) if scan.damage.is_some() || scan.end != expected => {
            let what = scan
                .damage
                .unwrap_or(Malformed::Nonsense("the log is not as long as it was when it was closed"));
            return Err(JournalError::unusable(&path, scan.end, what));
        }
        Some(_) => {}
    }
    Ok(Some((log, scan)))
}

/// Removes a layer's log if it is there, durably.
pub(crate) fn remove_log(storage: &Arc<dyn Storage>, dir: &Path, layer: u64) -> Result<(), JournalError> {
    let path = log_path(dir, layer);
    let failed = JournalError::io("remove", &path);
    if storage.exists(&path).map_err(&failed)? {
        storage.remove(&path).and_then(|()| storage.sync_dir(dir)).map_err(failed)?;
    }
    Ok(())
}
