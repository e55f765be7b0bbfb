//! The catalogue: what this replication is, which points are kept, whether a restore is under way.
//!
//! A log of small records, each a numbered line of JSON behind its CRC-32, appended and synced one at a time; the
//! state is their fold. Every line stands there twice, so that no single rotten byte loses a sealed point and a
//! record torn by a power cut is told from one that rotted. When the file has grown well beyond what its state
//! needs, it is written anew and renamed into place.
//!
//! The history of the disks is a sequence of *layers*, in the order of their numbers, each with an undo log that leads
//! from its end back to its beginning. Replication makes one layer per epoch; merging makes one of several; a restore
//! is a layer of its own, so that it can be undone like anything else. The newest layer is open. A point is the end of a
//! closed layer, or it is the disks as they were found before the first, the end of layer 0. A point that is dropped leaves its layer, which later points still need, until it is merged.

mod lines;
mod record;
mod state;

use std::{ops::Range, path::Path, sync::Arc};

use engine::{
    frame::{Position, StreamInfo},
    io::{Storage, StorageFile, write_file_atomically},
    units::{Epoch, StreamId},
};

use self::lines::{lines, parse};
pub(crate) use record::Record;
use record::VERSION;
pub use record::{Mark, SealedPoint, TargetDisk};
pub use state::{Phase, RestoreState, State};

use super::JournalError;

/// File name within the stream's folder.
const NAME: &str = "catalogue";

/// The catalogue of one stream, open for appending.
pub struct Catalogue {
    storage: Arc<dyn Storage>,
    dir: std::path::PathBuf,
    file: Box<dyn StorageFile>,
    len: u64,
    records: u64,
    /// Length when it was last written anew: it may grow to twice that and [`GROWTH`] before it is again.
    written: u64,
    state: State,
}

/// Bytes that a catalogue may grow before it is written anew.
const GROWTH: u64 = 1 << 20;

impl Catalogue {
    /// Whether `dir` has one.
    pub fn exists(storage: &dyn Storage, dir: &Path) -> Result<bool, JournalError> {
        let path = dir.join(NAME);
        storage.exists(&path).map_err(JournalError::io("look for", &path))
    }

    /// Creates the catalogue of a new stream, atomically: after a crash it is there or it is not.
    pub fn create(
        storage: &Arc<dyn Storage>,
        dir: &Path,
        agent: &str,
        stream: &StreamInfo,
        targets: Vec<TargetDisk>,
    ) -> Result<Self, JournalError> {
        Self::create_with(storage, dir, agent, stream, targets, None)
    }

    /// As [`Self::create`]. If the disks hold something, they are the point `found`, which is pinned, before anything is
    /// written to them.
    pub fn create_with(
        storage: &Arc<dyn Storage>,
        dir: &Path,
        agent: &str,
        stream: &StreamInfo,
        targets: Vec<TargetDisk>,
        found: Option<SealedPoint>,
    ) -> Result<Self, JournalError> {
        let (agent, stream) = (agent.to_owned(), stream.clone());
        let (open, position) = (Epoch::FIRST.0, Position::START);
        let created = Record::Created {
            version: VERSION,
            agent,
            stream,
            targets,
            oldest: 0,
            open,
            position,
            used: None,
            accepted: false,
        };
        let pinned = found.iter().map(|point| Record::Pinned { layer: point.layer, pinned: true });
        let kept = found.iter().map(|point| Record::Kept { point: point.clone() });
        let records = std::iter::once(created).chain(kept).chain(pinned);
        let bytes: Vec<u8> = (0..).zip(records).flat_map(|(number, record)| lines(number, &record)).collect();
        write_file_atomically(storage.as_ref(), &dir.join(NAME), &bytes)
            .map_err(JournalError::io("create", &dir.join(NAME)))?;
        Self::open(storage, dir)
    }

    /// What the catalogue in `dir` says, without touching it: somebody may be appending to it.
    pub fn peek(storage: &dyn Storage, dir: &Path) -> Result<State, JournalError> {
        Ok(read(storage, dir)?.1.state)
    }

    /// Opens a catalogue for appending. A torn last record, which cannot have been relied on, is cut off; a rotten
    /// copy of a record is replaced from the other one; damage of both is an error that names the place.
    pub fn open(storage: &Arc<dyn Storage>, dir: &Path) -> Result<Self, JournalError> {
        let path = dir.join(NAME);
        let (file, parsed) = read(storage.as_ref(), dir)?;
        file.set_len(parsed.end).and_then(|()| file.sync()).map_err(JournalError::io("cut", &path))?;
        let (storage, dir) = (Arc::clone(storage), dir.to_owned());
        let (len, records, state) = (parsed.end, parsed.records, parsed.state);
        let mut catalogue = Self { storage, dir, file, len, records, written: len, state };
        if let Some(at) = parsed.rotten {
            tracing::warn!(file = %path.display(), at, "catalogue had a damaged record; its second copy was good");
            catalogue.rewrite()?;
        } else if catalogue.state.version != VERSION {
            // Records of today must not stand behind a first one that promises others.
            catalogue.rewrite()?;
        }
        Ok(catalogue)
    }

    /// What it says.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Identity of its stream.
    #[must_use]
    pub fn stream(&self) -> StreamId {
        self.state.stream.id
    }

    /// Whether a record can follow.
    pub(crate) fn allows(&self, record: &Record) -> bool {
        self.state.allows(record)
    }

    /// Adds a record durably, then lets it count.
    pub(crate) fn append(&mut self, record: Record) -> Result<(), JournalError> {
        let path = self.dir.join(NAME);
        if !self.state.allows(&record) {
            return Err(JournalError::Refused(format!("{} does not allow {record:?} now", path.display())));
        }
        let bytes = lines(self.records, &record);
        if let Err(error) = self.file.write_all_at(&bytes, self.len) {
            self.file.set_len(self.len).map_err(JournalError::io("cut", &path))?;
            return Err(JournalError::io("append to", &path)(error));
        }
        self.file.sync().map_err(JournalError::io("sync", &path))?;
        self.len += bytes.len() as u64;
        self.records += 1;
        self.state.apply(record);
        if self.len > 2 * self.written + GROWTH {
            self.rewrite()?;
        }
        Ok(())
    }

    /// Reads the file again. If something in it is not what was written, says what and writes it anew from memory.
    pub(crate) fn recheck(&mut self) -> Result<Option<Range<u64>>, JournalError> {
        let bytes = read_bytes(self.storage.as_ref(), &self.path())?.1;
        let (written, found) = (self.len, bytes.len() as u64);
        let cut = (written != found).then(|| written.min(found)..written.max(found));
        let damaged = lines::damaged(&bytes).or(cut);
        if damaged.is_some() {
            self.rewrite()?;
        }
        Ok(damaged)
    }

    /// Its file.
    pub(crate) fn path(&self) -> std::path::PathBuf {
        self.dir.join(NAME)
    }

    pub(super) fn rewrite(&mut self) -> Result<(), JournalError> {
        let path = self.dir.join(NAME);
        self.state.version = VERSION;
        let records = self.state.records();
        let bytes: Vec<u8> = (0..).zip(&records).flat_map(|(number, record)| lines(number, record)).collect();
        write_file_atomically(self.storage.as_ref(), &path, &bytes)
            .map_err(JournalError::io("rewrite", &path))?;
        self.file = self.storage.open(&path).map_err(JournalError::io("open", &path))?;
        (self.len, self.written, self.records) =
            (bytes.len() as u64, bytes.len() as u64, records.len() as u64);
        Ok(())
    }
}

fn read(storage: &dyn Storage, dir: &Path) -> Result<(Box<dyn StorageFile>, lines::Parsed), JournalError> {
    let path = dir.join(NAME);
    let (file, bytes) = read_bytes(storage, &path)?;
    Ok((file, parse(&bytes, &path)?))
}

fn read_bytes(storage: &dyn Storage, path: &Path) -> Result<(Box<dyn StorageFile>, Vec<u8>), JournalError> {
    let file = storage.open(path).map_err(JournalError::io("open", path))?;
    let len = file.len().map_err(JournalError::io("measure", path))?;
    let mut bytes = vec![0; len as usize];
    file.read_exact_at(&mut bytes, 0).map_err(JournalError::io("read", path))?;
    Ok((file, bytes))
}
