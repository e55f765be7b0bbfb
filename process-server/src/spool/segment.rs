//! One segment file: how it is begun, and how a frame is read from it.
//!
//! Every frame is checked as it is read, whenever that is: its two checksums and its place after the one before.

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use engine::{
    frame::{Frame, FrameError, Header, Kind, Position, layout::HEADER},
    io::{Storage, StorageFile},
    units::{Epoch, Seq, StreamId},
};

use super::layout::{self, MARK, MarkError, magic};

/// What the spool knows of a segment. `len` covers the header and whole frames, those after `start` up to `end`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The position before its first frame.
    pub start: Position,
    /// The position after its last frame.
    pub end: Position,
    /// Bytes of it that are good.
    pub len: u64,
}

impl Segment {
    pub(super) fn path(&self, dir: &Path) -> PathBuf {
        dir.join(layout::segment_name(&self.start))
    }
}

/// Why stored bytes cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Flaw {
    /// The mark at the head of the segment.
    #[error("bad segment header: {0}")]
    Mark(#[from] MarkError),
    /// A frame's bytes.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The file ends within a header or a frame.
    #[error("the file ends in the middle of it")]
    Short,
    /// A good frame in the wrong place.
    #[error("{found} of {epoch} of stream {stream} stands where {expected} is due")]
    Place {
        /// What should be here.
        expected: Seq,
        /// What is.
        found: Seq,
        /// Its epoch.
        epoch: Epoch,
        /// Its stream.
        stream: StreamId,
    },
    /// A segment that does not begin where the one before ended, or as its name says.
    #[error("it begins after {found}, where neither its name nor the segment before it has its place")]
    Start {
        /// Last frame before it, as it says.
        found: Seq,
    },
}

/// Why a frame was not read.
#[derive(Debug)]
pub enum ReadError {
    /// The storage failed; nothing is known about the bytes.
    Io(io::Error),
    /// The bytes were read and are bad.
    Flaw(Flaw),
}

impl<E: Into<Flaw>> From<E> for ReadError {
    fn from(flaw: E) -> Self {
        ReadError::Flaw(flaw.into())
    }
}

/// Creates the segment that begins after `start`; once this returns it is there for good, header and name.
pub(super) fn create(
    storage: &dyn Storage,
    dir: &Path,
    stream: StreamId,
    start: Position,
) -> io::Result<(Segment, Box<dyn StorageFile>)> {
    let segment = Segment { start, end: start, len: MARK as u64 };
    let file = storage.create(&segment.path(dir))?;
    file.write_all_at(&layout::encode(magic::SEGMENT, stream, &start), 0)?;
    file.sync()?;
    storage.sync_dir(dir)?;
    Ok((segment, file))
}

/// Reads a segment's header. One of another version is an error of reading and not a flaw: what it heads is left
/// alone.
pub(super) fn read_start(file: &dyn StorageFile, len: u64, stream: StreamId) -> Result<Position, ReadError> {
    let mut raw = [0; MARK];
    read(file, &mut raw, 0, len)?;
    layout::decode(magic::SEGMENT, stream, &raw).map_err(|error| match error {
        MarkError::Version(_) => ReadError::Io(io::Error::new(io::ErrorKind::Unsupported, error)),
        other => other.into(),
    })
}

/// Reads the header of the frame at `offset`, which must be the one after `before`. `len` bounds the file.
pub(super) fn read_header(
    file: &dyn StorageFile,
    offset: u64,
    len: u64,
    stream: StreamId,
    before: &Position,
) -> Result<Header, ReadError> {
    let mut raw = [0; HEADER];
    read(file, &mut raw, offset, len)?;
    let header = Header::decode(&raw)?;
    check_place(&header, stream, before)?;
    Ok(header)
}

/// Reads the frame at `offset`, which must be the one after `before`. `len` bounds the file.
pub(super) fn read_frame(
    file: &dyn StorageFile,
    offset: u64,
    len: u64,
    stream: StreamId,
    before: &Position,
) -> Result<Frame, ReadError> {
    let header = read_header(file, offset, len, stream, before)?;
    let mut bytes = vec![0; HEADER + header.body_len as usize];
    read(file, &mut bytes, offset, len)?;
    let frame = Frame::parse(Bytes::from(bytes))?;
    check_place(frame.header(), stream, before)?;
    Ok(frame)
}

/// The spool knows no chains, so this is all it can say about order.
fn check_place(header: &Header, stream: StreamId, before: &Position) -> Result<(), Flaw> {
    let expected = before.seq.next();
    let in_place = header.kind != Kind::Control
        && header.stream == stream
        && header.seq == expected
        && header.epoch == before.epoch;
    let Header { seq: found, epoch, stream, .. } = *header;
    if in_place { Ok(()) } else { Err(Flaw::Place { expected, found, epoch, stream }) }
}

fn read(file: &dyn StorageFile, buf: &mut [u8], offset: u64, len: u64) -> Result<(), ReadError> {
    if offset + buf.len() as u64 > len {
        return Err(Flaw::Short.into());
    }
    match file.read_exact_at(buf, offset) {
        // The file is shorter than it was: somebody cut it.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(Flaw::Short.into()),
        Err(error) => Err(ReadError::Io(error)),
        Ok(()) => Ok(()),
    }
}

/// Bytes of a file that are no longer counted on, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loss {
    /// The file.
    pub path: PathBuf,
    /// First bad byte.
    pub offset: u64,
    /// Bytes given up, those of later segments included.
    pub bytes: u64,
    /// Whether good frames follow the bad bytes. Otherwise it is what a power cut leaves of the frames that were
    /// being written, or damage at the very end, which looks the same.
    pub in_the_middle: bool,
    /// What is wrong there.
    pub flaw: Flaw,
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Loss { path, offset, bytes, in_the_middle, flaw } = self;
        let what = if *in_the_middle { "damage in" } else { "unreadable end of" };
        write!(
            f,
            "{what} {} at byte {offset}: {flaw}; {bytes} bytes from there on are given up, the agent sends their content again",
            path.display()
        )
    }
}
