//! The spool of one stream: frames that are safe here until the master target has them.
//!
//! What is in memory says what is good; the folder is made to agree with it, by one procedure
//! ([`Spool::settle`]), after a start, after an error, and whenever segments come or go. So a crash in the middle
//! of anything leaves what the next start reads as a shorter spool, never as a wrong one.
//!
//! Invariants: segments join without a gap, the last is the one written to;
//! `base ≤ durable ≤ position` ([`Spool::check`]); a frame is reported by [`Spool::position`] only after its sync.
//!
//! It checks frames by their checksums and places; chains are for the master target. It knows no connections and
//! blocks in the storage's calls.

mod append;
mod description;
mod error;
pub mod layout;
mod read;
mod retire;
mod room;
pub mod scan;
mod segment;

#[cfg(test)]
mod tests;

use std::{
    collections::VecDeque,
    path::{Path, PathBuf},
    sync::Arc,
};

use engine::{
    frame::Position,
    io::{Storage, StorageFile, write_file_atomically},
    units::StreamId,
};

pub use self::{
    description::Description,
    error::SpoolError,
    room::{Bounds, Full, Room},
    segment::{Flaw, Loss, Segment},
};
use self::{layout::MARK, read::Reader, room::Share};

/// What was found in a stream's folder.
#[derive(Debug)]
pub struct Opened {
    /// The spool, if the stream is known here.
    pub spool: Option<Spool>,
    /// What was given up, if anything.
    pub loss: Option<Loss>,
}

/// The last segment's file.
enum Tail {
    /// Open, and holds what memory says; while frames are appended, also what is not yet synced.
    Settled(Box<dyn StorageFile>),
    /// There, with anything after the good part.
    Unsure,
    /// To be created; what has its name is to be removed.
    Unborn,
}

/// The spool of one stream.
pub struct Spool {
    storage: Arc<dyn Storage>,
    dir: PathBuf,
    description: Description,
    /// Never empty. Everything it tells of is durable here.
    segments: VecDeque<Segment>,
    tail: Tail,
    /// The end and length of the last segment; ahead of it only while frames are appended.
    written: (Position, u64),
    /// Whether the folder may hold segments that are not in `segments`.
    strangers: bool,
    durable: Position,
    /// Whether the mark may be ahead of `durable`.
    stale_mark: bool,
    mark: Option<Box<dyn StorageFile>>,
    reader: Option<Reader>,
    share: Share,
}

impl std::fmt::Debug for Spool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Spool")
            .field("dir", &self.dir)
            .field("segments", &self.segments)
            .finish_non_exhaustive()
    }
}

impl Spool {
    /// Opens the spool of `stream` as a crash or a stop left it. It is unknown, without error, if it was never
    /// created or nothing of it can be used.
    ///
    /// # Errors
    /// If the storage fails.
    pub fn open(storage: Arc<dyn Storage>, stream: StreamId, room: Arc<Room>) -> Result<Opened, SpoolError> {
        let dir = layout::folder(stream);
        let known = storage.exists(&dir.join(layout::DESCRIPTION));
        if !known.map_err(SpoolError::io("look for", &dir))? {
            return Ok(Opened { spool: None, loss: None });
        }
        let description = match description::read_description(&*storage, &dir, stream)? {
            Ok(description) => description,
            Err(loss) => return Ok(Opened { spool: None, loss: Some(loss) }),
        };
        let mark = retire::read_mark(&*storage, &dir, stream);
        let scan::Scan { segments, loss } = scan::scan(&*storage, &dir, stream, mark.map(|mark| mark.seq))
            .map_err(|(path, source)| SpoolError::io("read", path)(source))?;
        if segments.is_empty() {
            return Ok(Opened { spool: None, loss });
        }
        let mut spool = Self::new(storage, description, segments, Tail::Unsure, room);
        spool.settle()?;
        if let Some(mark) = mark {
            spool.recall_durable(&mark)?;
        }
        Ok(Opened { spool: Some(spool), loss })
    }

    /// Creates the spool of a stream whose master target stands at `base`, in place of whatever is there.
    ///
    /// # Errors
    /// If the storage fails.
    pub fn create(
        storage: Arc<dyn Storage>,
        description: Description,
        base: Position,
        room: Arc<Room>,
    ) -> Result<Self, SpoolError> {
        let dir = layout::folder(description.stream.id);
        storage.create_dir_all(&dir).map_err(SpoolError::io("create", &dir))?;
        let path = dir.join(layout::DESCRIPTION);
        let frame = description.to_frame();
        write_file_atomically(&*storage, &path, frame.bytes()).map_err(SpoolError::io("write", path))?;
        // The folder's own name.
        storage.sync_dir(Path::new("")).map_err(SpoolError::io("sync the folder of", &dir))?;
        let mut spool = Self::new(storage, description, [unborn(base)].into(), Tail::Unborn, room);
        spool.settle()?;
        Ok(spool)
    }

    fn new(
        storage: Arc<dyn Storage>,
        description: Description,
        segments: VecDeque<Segment>,
        tail: Tail,
        room: Arc<Room>,
    ) -> Self {
        let base = segments[0].start;
        let mut spool = Self {
            storage,
            dir: layout::folder(description.stream.id),
            description,
            stale_mark: matches!(tail, Tail::Unborn),
            strangers: true,
            segments,
            tail,
            written: (base, 0),
            durable: base,
            mark: None,
            reader: None,
            share: Share::new(room),
        };
        spool.forget_unsynced();
        spool
    }

    /// Believes `mark` only if the stream has been there.
    fn recall_durable(&mut self, mark: &Position) -> Result<(), SpoolError> {
        if mark.seq > self.durable.seq && matches!(self.join(mark), Ok(true)) {
            self.durable = *mark;
            self.drop_retired()?;
        }
        self.reader = None;
        Ok(())
    }

    /// Whose it is.
    #[must_use]
    pub fn description(&self) -> &Description {
        &self.description
    }

    /// The last frame that is durable here.
    #[must_use]
    pub fn position(&self) -> Position {
        self.last().end
    }

    /// The position before the first frame held.
    #[must_use]
    pub fn base(&self) -> Position {
        self.segments[0].start
    }

    /// The last frame known to be durable at the master target.
    #[must_use]
    pub fn durable(&self) -> Position {
        self.durable
    }

    /// Whether the master target has everything.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.durable == self.position()
    }

    /// Bytes it takes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.share.bytes()
    }

    /// Uses `storage`, the same folder opened anew, after the one before has died of an error.
    pub fn revive(&mut self, storage: Arc<dyn Storage>) {
        self.storage = storage;
        self.mark = None;
        self.forget_unsynced();
        self.strangers = true;
        if let Some(reader) = &mut self.reader {
            reader.file = None;
        }
    }

    /// Panics if an invariant is broken.
    pub fn check(&self) {
        let joined = self.segments.iter().zip(self.segments.iter().skip(1)).all(|(a, b)| a.end == b.start);
        assert!(joined, "{:?}", self.segments);
        assert!(self.base().seq <= self.durable.seq && self.durable.seq <= self.position().seq);
        assert_eq!(self.written, (self.position(), self.last().len));
    }

    fn forget_unsynced(&mut self) {
        if matches!(self.tail, Tail::Settled(_)) {
            self.tail = Tail::Unsure;
        }
        self.written = (self.last().end, self.last().len);
        self.count();
    }

    fn count(&mut self) {
        self.share.set(self.segments.iter().map(|segment| segment.len).sum());
    }

    fn last(&self) -> &Segment {
        &self.segments[self.segments.len() - 1]
    }

    fn last_mut(&mut self) -> &mut Segment {
        let last = self.segments.len() - 1;
        &mut self.segments[last]
    }
}

fn unborn(start: Position) -> Segment {
    Segment { start, end: start, len: MARK as u64 }
}
