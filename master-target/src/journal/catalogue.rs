//! The catalogue: what this replication is, which points are sealed, whether a restore is under way.
//!
//! A log of small records, each a numbered line of JSON behind its CRC-32, appended and synced one at a time; the
//! state is their fold. Every line stands there twice, so that no single rotten byte loses a sealed point and a
//! record torn by a power cut is told from one that rotted. When the file has grown well beyond what its state
//! needs, it is written anew and renamed into place.
//!
//! The history of the disks is a sequence of *layers*, numbered from 1, each with an undo log that leads from its
//! end back to its beginning. Replication makes one layer per epoch; a restore is a layer of its own, so that it
//! can be undone like anything else. The newest layer is open. A point is the end of a sealed layer.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use engine::{
    frame::{Position, StreamInfo},
    io::{Storage, StorageFile, write_file_atomically},
    limits,
    point::{Point, PointId},
    units::{Digest, Epoch, StreamId},
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{JournalError, entry::Malformed};

/// File name within the stream's folder.
const NAME: &str = "catalogue";

/// Version of the catalogue, in its first record. 1, 2026-11: the first.
const VERSION: u32 = 1;

/// Where a disk of the VM is at home.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum TargetDisk {
    /// A VMDK: the path of its descriptor, within a datastore.
    Vmdk {
        /// Name of the datastore.
        datastore: String,
        /// Descriptor, relative to the datastore.
        descriptor: String,
        /// Whether holes may be made in it.
        thin: bool,
    },
    /// A block device, such as a hot-added VMDK.
    Device {
        /// Its path.
        path: String,
    },
}

/// A sealed point as the master target keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedPoint {
    /// What the agent observed.
    #[serde(flatten)]
    pub point: Point,
    /// The layer it is the end of.
    pub layer: u64,
    /// Bytes of the layer's undo log, whole.
    pub log_bytes: u64,
    /// When it was durable here, by this machine's clock.
    pub sealed_at: Timestamp,
    /// Digest that names exactly the frames that made it.
    pub chain: Digest,
}

/// A change of the catalogue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "record", rename_all = "kebab-case")]
pub(crate) enum Record {
    /// The first record: what is replicated, whose it is, where it goes. Written again when the catalogue is.
    Created {
        version: u32,
        agent: String,
        stream: StreamInfo,
        targets: Vec<TargetDisk>,
        oldest: u64,
        open: u64,
        position: Position,
    },
    /// A layer was sealed; replication goes on in the next one, after `position`.
    Sealed { point: SealedPoint, position: Position },
    /// Logs up to this layer are no longer needed, points that need them are gone.
    Retired { oldest: u64 },
    /// A restore to the end of layer `to` begins, as layer `layer`.
    RestoreBegun { to: u64, layer: u64 },
    /// It is complete, and so is its undo log.
    RestoreDone { layer: u64, log_bytes: u64 },
    /// All restores since replication stopped are being undone.
    UndoBegun,
    /// The disks are again as replication left them.
    UndoDone,
}

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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// Name of the agent that owns the stream.
    pub agent: String,
    /// What is replicated.
    pub stream: StreamInfo,
    /// Where it goes, disk by disk.
    pub targets: Vec<TargetDisk>,
    /// Sealed points by layer, oldest first.
    pub points: BTreeMap<u64, SealedPoint>,
    /// Logs of layers after this one exist (as far as the layers had any writes).
    pub oldest: u64,
    /// The layer that replication appends to.
    pub open: u64,
    /// The stream's position at its beginning.
    pub opened_at: Position,
    /// A restore, if there was one since.
    pub restore: Option<RestoreState>,
    /// Bytes of the undo logs of completed restores, by layer.
    pub restore_logs: BTreeMap<u64, u64>,
}

impl State {
    /// The newest layer: the restore's, or the open one.
    #[must_use]
    pub fn newest_layer(&self) -> u64 {
        self.restore.map_or(self.open, |restore| restore.layer)
    }

    /// Bytes that the log of a closed layer must have; `None` for one that is still appended to.
    #[must_use]
    pub fn log_bytes(&self, layer: u64) -> Option<u64> {
        let sealed = self.points.get(&layer).map(|point| point.log_bytes);
        sealed.or_else(|| self.restore_logs.get(&layer).copied())
    }

    /// The point with this id.
    #[must_use]
    pub fn point(&self, id: PointId) -> Option<&SealedPoint> {
        self.points.values().find(|sealed| sealed.point.id == id)
    }

    fn start(record: Record) -> Option<Self> {
        let Record::Created { version: _, agent, stream, targets, oldest, open, position } = record else {
            return None;
        };
        let sensible = stream.check().is_ok()
            && targets.len() == stream.disks.len()
            && open == oldest.max(1)
            && open < limits::STREAM_NUMBER
            && position.is_sensible();
        if !sensible {
            return None;
        }
        let (points, restore_logs) = (BTreeMap::new(), BTreeMap::new());
        let opened_at = position;
        Some(Self { agent, stream, targets, points, oldest, open, opened_at, restore: None, restore_logs })
    }

    /// Applies a record; `None` if it cannot follow.
    fn apply(&mut self, record: Record) -> Option<()> {
        match record {
            Record::Created { .. } => return None,
            Record::Sealed { point, position } => {
                if self.restore.is_some() || point.layer != self.open || !position.is_sensible() {
                    return None;
                }
                self.open = point.layer + 1;
                self.opened_at = position;
                self.points.insert(point.layer, point);
            }
            Record::Retired { oldest } => {
                if !self.points.contains_key(&oldest) {
                    return None;
                }
                self.oldest = oldest;
                self.points.retain(|layer, _| *layer >= oldest);
            }
            Record::RestoreBegun { to, layer } => {
                if layer != self.newest_layer() + 1 || !self.points.contains_key(&to) {
                    return None;
                }
                let first = self.restore.map_or(layer, |restore| restore.first);
                self.restore = Some(RestoreState { first, layer, to, phase: Phase::Restoring });
            }
            Record::RestoreDone { layer, log_bytes } => {
                let restore = self.restore.as_mut().filter(|restore| restore.layer == layer)?;
                restore.phase = Phase::Restored;
                self.restore_logs.insert(layer, log_bytes);
            }
            Record::UndoBegun => self.restore.as_mut()?.phase = Phase::Undoing,
            Record::UndoDone => {
                self.restore = None;
                self.restore_logs.clear();
            }
        }
        Some(())
    }

    /// The fewest records that add up to this state.
    fn records(&self) -> Vec<Record> {
        let mut records = vec![Record::Created {
            version: VERSION,
            agent: self.agent.clone(),
            stream: self.stream.clone(),
            targets: self.targets.clone(),
            oldest: self.oldest,
            open: self.points.keys().next().copied().unwrap_or(self.open),
            position: self.opened_at,
        }];
        // Only the last seal's position matters; `Sealed` of the others repeats it harmlessly.
        let position = self.opened_at;
        records.extend(self.points.values().map(|point| Record::Sealed { point: point.clone(), position }));
        if let Some(restore) = self.restore {
            for layer in restore.first..=restore.layer {
                records.push(Record::RestoreBegun { to: restore.to, layer });
                let done = self.restore_logs.get(&layer);
                records.extend(done.map(|&log_bytes| Record::RestoreDone { layer, log_bytes }));
            }
            if restore.phase == Phase::Undoing {
                records.push(Record::UndoBegun);
            }
        }
        records
    }
}

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
        let (agent, stream) = (agent.to_owned(), stream.clone());
        let (open, position) = (Epoch::FIRST.0, Position::START);
        let record = Record::Created { version: VERSION, agent, stream, targets, oldest: 0, open, position };
        write_file_atomically(storage.as_ref(), &dir.join(NAME), &lines(0, &record))
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

    /// Adds a record durably, then lets it count.
    pub(crate) fn append(&mut self, record: Record) -> Result<(), JournalError> {
        let path = self.dir.join(NAME);
        let mut next = self.state.clone();
        if next.apply(record.clone()).is_none() {
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
        self.state = next;
        if self.len > 2 * self.written + GROWTH {
            self.rewrite()?;
        }
        Ok(())
    }

    fn rewrite(&mut self) -> Result<(), JournalError> {
        let path = self.dir.join(NAME);
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

/// A record as its two equal lines: CRC-32 of the rest in hexadecimal, its number, the JSON.
fn lines(number: u64, record: &Record) -> Vec<u8> {
    // Plain data with string keys: serialising it cannot fail.
    #[allow(clippy::expect_used)]
    let json = serde_json::to_string(record).expect("records serialise");
    let numbered = format!("{number} {json}");
    format!("{:08x} {numbered}\n", crc32fast::hash(numbered.as_bytes())).repeat(2).into_bytes()
}

/// What a catalogue's bytes hold.
pub(super) struct Parsed {
    state: State,
    records: u64,
    /// Length of the good part.
    end: u64,
    /// Offset of a copy that had to be replaced by the other.
    rotten: Option<u64>,
}

fn read(storage: &dyn Storage, dir: &Path) -> Result<(Box<dyn StorageFile>, Parsed), JournalError> {
    let path = dir.join(NAME);
    let file = storage.open(&path).map_err(JournalError::io("open", &path))?;
    let len = file.len().map_err(JournalError::io("measure", &path))?;
    let mut bytes = vec![0; len as usize];
    file.read_exact_at(&mut bytes, 0).map_err(JournalError::io("read", &path))?;
    Ok((file, parse(&bytes, &path)?))
}

/// Reads the records in `bytes` in order.
pub(super) fn parse(bytes: &[u8], path: &Path) -> Result<Parsed, JournalError> {
    let damaged = |at, what| JournalError::unusable(path, at, what);
    let (mut state, mut records, mut end) = (None::<State>, 0, 0);
    let (mut at, mut bad, mut copies, mut rotten) = (0, None, 2, None);
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        match line.strip_suffix(b"\n").and_then(record) {
            Some((number, _)) if number.checked_add(1) == Some(records) => copies += 1,
            Some((number, record)) if number == records => {
                let record = record.map_err(|what| damaged(at, what))?;
                if copies < 2 {
                    rotten = bad;
                }
                let follows = match &mut state {
                    None => State::start(record).map(|first| state = Some(first)),
                    Some(state) => state.apply(record),
                };
                follows.ok_or_else(|| damaged(at, Malformed::Nonsense("catalogue record out of order")))?;
                (records, copies) = (records + 1, 1);
            }
            Some(_) => return Err(damaged(bad.unwrap_or(at), Malformed::Checksum("catalogue record"))),
            None => {
                bad.get_or_insert(at);
                at += line.len() as u64;
                continue;
            }
        }
        at += line.len() as u64;
        end = at;
    }
    // Both copies are written at once: where one is whole, either the other was torn or one has rotted.
    if copies < 2 {
        rotten = bad.or(Some(end));
    }
    let state = state.ok_or_else(|| damaged(0, Malformed::Nonsense("catalogue without a first record")))?;
    Ok(Parsed { state, records, end, rotten })
}

/// The number and the record of a line whose checksum holds. The inner error says why it is not understood.
fn record(line: &[u8]) -> Option<(u64, Result<Record, Malformed>)> {
    let (crc, numbered) = std::str::from_utf8(line).ok()?.split_once(' ')?;
    if crc.len() != 8 || u32::from_str_radix(crc, 16).ok()? != crc32fast::hash(numbered.as_bytes()) {
        return None;
    }
    let (number, json) = numbered.split_once(' ')?;
    Some((number.parse().ok()?, understand(json)))
}

fn understand(json: &str) -> Result<Record, Malformed> {
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
    }
    match serde_json::from_str(json) {
        Ok(Versioned { version }) if version != VERSION => Err(Malformed::Version(version)),
        _ => serde_json::from_str(json)
            .map_err(|_| Malformed::Nonsense("a catalogue record that this version does not know")),
    }
}
