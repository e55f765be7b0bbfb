//! The log files of a stream: opens them when they are read, and removes them when nobody needs them any more.
//!
//! A month of points may be a hundred thousand logs, so only a few are open at once. Retention and merging remove logs
//! that an open image or a restore may still read: whoever reads holds a lease, and a log goes with the last lease that
//! is older than its removal. What a crash leaves is removed at the next start, because the catalogue does not know it.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use engine::{io::Storage, units::StreamId};

use super::{
    Bounds, Gatherer, JournalError, Piece, Scratch, Sorted, State,
    layer::{Layer, LogId},
    layout::HEADER,
    log::{Log, LogFile},
};

/// Log files that are open at once.
const OPEN: usize = 64;

/// The log files of a stream.
pub struct Logs {
    pub(crate) storage: Arc<dyn Storage>,
    pub(crate) dir: PathBuf,
    pub(super) stream: StreamId,
    pub(crate) bounds: Bounds,
    pub(super) scratch: Scratch,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// The last used comes last.
    open: Vec<Arc<LogFile>>,
    next_lease: u64,
    leases: BTreeSet<u64>,
    /// Files to remove, each when no lease before this number is left.
    doomed: Vec<(u64, PathBuf)>,
}

/// While it lives, no log is removed that was there when it began.
pub(crate) struct Lease {
    logs: Arc<Logs>,
    number: u64,
}

impl Logs {
    /// Those in the folder of `stream`.
    #[must_use]
    pub fn new(storage: Arc<dyn Storage>, dir: &Path, stream: StreamId) -> Arc<Self> {
        Self::with_bounds(storage, dir, stream, Bounds::default())
    }

    /// As [`Self::new`], with other bounds on memory.
    #[must_use]
    pub fn with_bounds(storage: Arc<dyn Storage>, dir: &Path, stream: StreamId, bounds: Bounds) -> Arc<Self> {
        let dir = dir.to_owned();
        let scratch = Scratch::new(Arc::clone(&storage), dir.clone(), bounds.pieces);
        Arc::new(Self { storage, dir, stream, bounds, scratch, inner: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Every change leaves it whole: a panic elsewhere does no harm.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps every log that is there now.
    pub(crate) fn lease(self: &Arc<Self>) -> Lease {
        let mut inner = self.lock();
        let number = inner.next_lease;
        inner.next_lease += 1;
        inner.leases.insert(number);
        Lease { logs: Arc::clone(self), number }
    }

    /// Creates a log for appending.
    pub(crate) fn create(&self, id: LogId) -> Result<Log, JournalError> {
        Log::create(&self.storage, &self.dir, self.stream, id)
    }

    /// Opens a log, or finds it open.
    pub(crate) fn open(&self, id: LogId) -> Result<Arc<LogFile>, JournalError> {
        if let Some(open) = self.lock().find(id) {
            return Ok(open);
        }
        if !self.exists(id)? {
            return Err(JournalError::Missing { path: id.path(&self.dir) });
        }
        let log = Arc::new(LogFile::open(self.storage.as_ref(), &self.dir, self.stream, id)?);
        let mut inner = self.lock();
        if inner.open.len() >= OPEN {
            inner.open.remove(0);
        }
        inner.open.push(Arc::clone(&log));
        Ok(log)
    }

    /// Opens a log that was being appended to; `None` if its header is torn and nothing can have relied on it.
    pub(crate) fn open_or_torn(&self, id: LogId) -> Result<Option<LogFile>, JournalError> {
        match LogFile::open(self.storage.as_ref(), &self.dir, self.stream, id) {
            Err(JournalError::Damaged { path, at, what }) => {
                let file = self.storage.open(&path).map_err(JournalError::io("open", &path))?;
                let torn = LogFile { file, path: path.clone(), id };
                let len = torn.len()?;
                if len > HEADER as u64 && torn.commit_behind(HEADER as u64, len)? {
                    return Err(JournalError::Damaged { path, at, what });
                }
                Ok(None)
            }
            log => log.map(Some),
        }
    }

    /// The bytes of a piece, checked, into `bytes`, which are as many.
    pub(crate) fn read_into(&self, piece: &Piece, bytes: &mut [u8]) -> Result<(), JournalError> {
        if piece.image.zeros {
            bytes.fill(0);
            return Ok(());
        }
        let log = self.open(piece.log)?;
        if piece.extent == piece.image.extent {
            return log.read_image_into(&piece.image, bytes);
        }
        // The checksum is that of the whole image.
        let image = log.read_image(&piece.image)?;
        bytes.copy_from_slice(&image[piece.skip()..][..bytes.len()]);
        Ok(())
    }

    /// Tells a log's file that bytes `from..to` are about to be read. If it cannot be opened, whoever reads it says so.
    pub(crate) fn will_read(&self, id: LogId, from: u64, to: u64) {
        if let Ok(log) = self.open(id) {
            log.file.will_read(from, to - from);
        }
    }

    /// Whether a log is there.
    pub(crate) fn exists(&self, id: LogId) -> Result<bool, JournalError> {
        let path = id.path(&self.dir);
        self.storage.exists(&path).map_err(JournalError::io("look for", &path))
    }

    /// The images of a closed layer, oldest first of each block, in order of place.
    pub(crate) fn index(&self, layer: &Layer) -> Result<Option<Sorted>, JournalError> {
        Sorted::open(self.storage.as_ref(), &self.dir, self.stream, layer)
    }

    /// Adds the images of a closed layer.
    pub(crate) fn gather(&self, layer: &Layer, into: &mut Gatherer<'_>) -> Result<(), JournalError> {
        if let Some(index) = self.index(layer)? {
            return into.push_all(index);
        }
        self.gather_log(layer.log(), Some(layer.log_bytes), into)
    }

    /// Adds the images of a log, which must be `bytes` long; if that is not known, it may still be appended to.
    pub(crate) fn gather_log(
        &self,
        id: LogId,
        bytes: Option<u64>,
        into: &mut Gatherer<'_>,
    ) -> Result<(), JournalError> {
        let Some(bytes) = bytes else { return self.gather_open(id, into) };
        gather_entries(self.open_whole(id, bytes)?.as_ref(), bytes, into)
    }

    /// Opens a log and checks its header, also if it is open already.
    pub(crate) fn open_anew(&self, id: LogId) -> Result<LogFile, JournalError> {
        if !self.exists(id)? {
            return Err(JournalError::Missing { path: id.path(&self.dir) });
        }
        LogFile::open(self.storage.as_ref(), &self.dir, self.stream, id)
    }

    /// The index of a closed layer, if there is one, whose pages are still to be checked.
    pub(crate) fn index_unread(&self, layer: &Layer) -> Result<Option<Sorted>, JournalError> {
        Sorted::open_unread(self.storage.as_ref(), &self.dir, self.stream, layer)
    }

    /// Removes an index, to be made again.
    pub(crate) fn remove_index(&self, id: LogId) -> Result<(), JournalError> {
        let path = id.index_path(&self.dir);
        self.storage.remove(&path).map_err(JournalError::io("remove", &path))
    }

    /// Opens a log that must be `bytes` long.
    fn open_whole(&self, id: LogId, bytes: u64) -> Result<Arc<LogFile>, JournalError> {
        let log = self.open(id)?;
        log.check_len(bytes)?;
        Ok(log)
    }

    /// Adds the images of a log that may still be appended to, if it is there.
    fn gather_open(&self, id: LogId, into: &mut Gatherer<'_>) -> Result<(), JournalError> {
        if !self.exists(id)? {
            return Ok(());
        }
        let Some(log) = self.open_or_torn(id)? else { return Ok(()) };
        let end = log.end()?;
        gather_entries(&log, end.bytes, into)
    }

    /// Writes the index of a closed layer, if it is worth one and has none.
    pub(crate) fn write_index(&self, layer: &Layer) -> Result<(), JournalError> {
        if layer.log_bytes < self.bounds.unindexed || self.index(layer)?.is_some() {
            return Ok(());
        }
        let mut gatherer = Gatherer::new(&self.scratch, &self.bounds);
        self.gather_log(layer.log(), Some(layer.log_bytes), &mut gatherer)?;
        gatherer.finish()?.save(self.storage.as_ref(), &self.dir, self.stream, layer)
    }

    /// Removes logs and their indexes, each when it is not leased any more. What cannot be removed stays until the
    /// next start, and is only in the way.
    pub(crate) fn remove(&self, ids: impl IntoIterator<Item = LogId>) {
        let mut inner = self.lock();
        for id in ids {
            inner.open.retain(|log| log.id != id);
            let number = inner.next_lease;
            inner.doomed.extend([(number, id.path(&self.dir)), (number, id.index_path(&self.dir))]);
        }
        drop(inner);
        self.reap();
    }

    /// Removes what is doomed and not leased.
    fn reap(&self) {
        let mut inner = self.lock();
        let oldest = inner.leases.first().copied().unwrap_or(u64::MAX);
        let (now, later) =
            std::mem::take(&mut inner.doomed).into_iter().partition(|(number, _)| *number <= oldest);
        inner.doomed = later;
        drop(inner);
        let now: Vec<(u64, PathBuf)> = now;
        for (_, path) in &now {
            let removed = self.storage.exists(path).and_then(|exists| match exists {
                true => self.storage.remove(path),
                false => Ok(()),
            });
            if let Err(error) = removed {
                tracing::warn!(file = %path.display(), %error, "cannot remove a file that is not needed any more");
            }
        }
    }

    /// Bytes that can still be written.
    pub(crate) fn free_space(&self) -> Result<u64, JournalError> {
        self.storage.free_space().map_err(JournalError::io("measure", &self.dir))
    }

    /// How long it takes to write so many bytes and sync them.
    pub(crate) fn time_to_write(&self, bytes: u64) -> Result<Duration, JournalError> {
        self.scratch.time_to_write(bytes)
    }

    /// Removes whatever looks like a log or an index and is not known to the catalogue: what a crash left.
    pub(super) fn sweep(&self, state: &State) -> Result<(), JournalError> {
        let failed = JournalError::io("list", &self.dir);
        let known: BTreeSet<PathBuf> =
            state.logs().flat_map(|id| [id.path(Path::new("")), id.index_path(Path::new(""))]).collect();
        for name in self.storage.list(&self.dir).map_err(&failed)? {
            let ours = name.starts_with("layer-") && (name.ends_with(".undo") || name.ends_with(".index"));
            let scratch =
                name.ends_with(".tmp") && (name.starts_with("scratch-") || name.starts_with("layer-"));
            if scratch || ours && !known.contains(Path::new(&name)) {
                let path = self.dir.join(&name);
                self.storage.remove(&path).map_err(JournalError::io("remove", &path))?;
            }
        }
        Ok(())
    }
}

fn gather_entries(log: &LogFile, len: u64, into: &mut Gatherer<'_>) -> Result<(), JournalError> {
    for found in log.entries(len)? {
        if let Some(image) = found?.image() {
            into.push(&Piece::whole(image, log.id))?;
        }
    }
    Ok(())
}

impl Inner {
    fn find(&mut self, id: LogId) -> Option<Arc<LogFile>> {
        let at = self.open.iter().rposition(|log| log.id == id)?;
        let log = self.open.remove(at);
        self.open.push(Arc::clone(&log));
        Some(log)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.logs.lock().leases.remove(&self.number);
        self.logs.reap();
    }
}
