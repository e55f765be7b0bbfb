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
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use engine::{
    frame::{Control, Frame, PROTOCOL, Position, StreamInfo},
    io::{Storage, StorageFile, write_file_atomically},
    units::StreamId,
};

pub use self::{
    error::SpoolError,
    room::{Bounds, Full, Room},
    segment::{Flaw, Loss, Segment},
};
use self::{
    layout::{MARK, magic},
    read::Reader,
    room::Share,
};

/// Whose stream it is, and what it replicates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// Name of the agent that owns it.
    pub agent: String,
    /// The VM and its disks.
    pub stream: StreamInfo,
}

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
        let description = match read_description(&*storage, &dir, stream)? {
            Ok(description) => description,
            Err(loss) => return Ok(Opened { spool: None, loss: Some(loss) }),
        };
        let mark = read_mark(&*storage, &dir, stream);
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

    /// Makes `frames`, which must be the next ones, safe: writes them all and syncs once.
    ///
    /// # Errors
    /// [`SpoolError::Full`], [`SpoolError::Io`]. [`Self::position`] says how many are safe all the same; the
    /// others are forgotten.
    pub fn append(&mut self, frames: &[Frame]) -> Result<(), SpoolError> {
        self.settle()?;
        let (count, room) = self.make_room(frames)?;
        let limit = self.share.bounds().segment;
        for frame in &frames[..count] {
            debug_assert_eq!(frame.header().seq, self.written.0.seq.next());
            let bytes = frame.bytes();
            if self.written.1 > MARK as u64 && self.written.1 + bytes.len() as u64 > limit {
                self.sync()?;
                self.roll()?;
            }
            if let Err(error) = self.tail_file().write_all_at(bytes, self.written.1) {
                return Err(self.fail("write to", error));
            }
            self.written = (Position::after(frame.header()), self.written.1 + bytes.len() as u64);
        }
        self.sync()?;
        room.map_err(SpoolError::Full)
    }

    /// Makes what was written safe.
    fn sync(&mut self) -> Result<(), SpoolError> {
        if self.written.1 == self.last().len {
            self.count();
            return Ok(());
        }
        if let Err(error) = self.tail_file().sync() {
            return Err(self.fail("sync", error));
        }
        let written = self.written;
        let last = self.last_mut();
        (last.end, last.len) = written;
        self.count();
        Ok(())
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

    /// Takes room for the first of `frames`; says for how many, and why not for all. When a segment that holds
    /// nothing new stands in the way it goes.
    fn make_room(&mut self, frames: &[Frame]) -> Result<(usize, Result<(), Full>), SpoolError> {
        let first_try = self.take_room(frames)?;
        if first_try.0 == 0 && !frames.is_empty() && self.compact()? {
            return self.take_room(frames);
        }
        Ok(first_try)
    }

    fn take_room(&mut self, frames: &[Frame]) -> Result<(usize, Result<(), Full>), SpoolError> {
        let mut free = self.free_space()?;
        for (count, frame) in frames.iter().enumerate() {
            // Each may begin a segment.
            let bytes = (frame.bytes().len() + MARK) as u64;
            if let Err(full) = self.share.take(bytes, free) {
                return Ok((count, Err(full)));
            }
            free = free.saturating_sub(bytes);
        }
        Ok((frames.len(), Ok(())))
    }

    fn free_space(&self) -> Result<u64, SpoolError> {
        self.storage.free_space().map_err(SpoolError::io("find the free space of", &self.dir))
    }

    /// The file that is written to, once [`Self::settle`] has succeeded.
    fn tail_file(&self) -> &dyn StorageFile {
        let Tail::Settled(file) = &self.tail else { unreachable!("every writer settles first") };
        &**file
    }

    /// The written file failed: nothing is known of what was written since the last sync.
    fn fail(&mut self, doing: &'static str, error: io::Error) -> SpoolError {
        let path = self.last().path(&self.dir);
        self.forget_unsynced();
        SpoolError::io(doing, path)(error)
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

impl Description {
    /// As it is kept: the agent's Hello, whose two checksums guard it.
    fn to_frame(&self) -> Frame {
        let Description { agent, stream } = self.clone();
        let id = stream.id;
        Control::Hello { protocol: PROTOCOL, agent, stream }.to_frame(id)
    }

    fn from_bytes(bytes: Bytes, stream: StreamId) -> Result<Self, Flaw> {
        let frame = Frame::parse(bytes)?;
        match Control::from_frame(&frame)? {
            Control::Hello { agent, stream: info, .. } if info.id == stream => {
                Ok(Self { agent, stream: info })
            }
            _ => Err(Flaw::Frame(engine::frame::FrameError::Malformed("not this stream's Hello"))),
        }
    }
}

/// The last position known to be durable at the master target. None, if it cannot be read or is damaged: then
/// the agent sends again what it need not, and segments that could have gone stay a while.
fn read_mark(storage: &dyn Storage, dir: &Path, stream: StreamId) -> Option<Position> {
    let mut raw = [0; MARK];
    let file = storage.open(&dir.join(layout::DURABLE)).ok()?;
    file.read_exact_at(&mut raw, 0).ok()?;
    layout::decode(magic::DURABLE, stream, &raw).ok()
}

fn read_description(
    storage: &dyn Storage,
    dir: &Path,
    stream: StreamId,
) -> Result<Result<Description, Loss>, SpoolError> {
    let path = dir.join(layout::DESCRIPTION);
    let file = storage.open(&path).map_err(SpoolError::io("open", &path))?;
    let len = file.len().map_err(SpoolError::io("read", &path))?;
    let most = (engine::frame::layout::HEADER + engine::limits::CONTROL_BODY) as u64;
    let mut bytes = vec![0; len.min(most) as usize];
    file.read_exact_at(&mut bytes, 0).map_err(SpoolError::io("read", &path))?;
    Ok(Description::from_bytes(Bytes::from(bytes), stream).map_err(|flaw| Loss {
        path,
        offset: 0,
        bytes: len,
        in_the_middle: true,
        flaw,
    }))
}
