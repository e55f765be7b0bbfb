//! What a stream's segments hold, as found at start-up. It reads every byte once and changes nothing; the spool
//! then makes the folder say the same ([`super::Spool`]).
//!
//! Recovery is a table. Segments are taken in the order of their names; the first that is not kept whole ends it,
//! and what follows is given up, because a stream has no gaps.
//!
//! | row | segment | found | meaning | kept |
//! |---|---|---|---|---|
//! | A | last | header bad, no longer than a header | it was being created | nothing, and nothing is lost |
//! | B | any | another begins at or before the frame after the mark | retired | nothing, and nothing is lost |
//! | C | any | its name is of a frame that an earlier one holds | left over | nothing, and nothing is lost |
//! | D | any | header bad otherwise | damage | nothing |
//! | E | any | header good, joins nothing | a segment before it is gone | nothing |
//! | F | any | header good, joins, all frames good | as written | whole |
//! | G | last | a frame bad, nothing good after it | frames were being written | up to there |
//! | H | last | a frame bad, good ones after it | damage | up to there |
//! | I | not last | a frame bad | damage | up to there |
//!
//! A power cut that kept a later page of the frames being written and lost an earlier one looks like H. That is
//! reported as damage, wrongly, and costs nothing: those frames were not acknowledged.

use std::{
    collections::VecDeque,
    io,
    path::{Path, PathBuf},
};

use engine::{
    frame::{
        Header, Kind, Position,
        layout::{HEADER, MAGIC},
    },
    io::{Storage, StorageFile},
    units::{Seq, StreamId},
};

use super::{
    layout::{self, MARK},
    segment::{self, Flaw, Loss, ReadError, Segment},
};

/// Bytes read at once while looking for good frames behind bad ones.
const SEARCH: usize = 1 << 20;

/// What can be used of a stream's segments, and what cannot.
#[derive(Debug, Default)]
pub struct Scan {
    /// Good segments, each joining the one before.
    pub segments: VecDeque<Segment>,
    /// Why that is not all.
    pub loss: Option<Loss>,
}

/// Scans the segments of `stream` in `dir`. Frames up to `durable`, if known, are at the master target.
///
/// # Errors
/// With the file's path, if the storage fails. Bad bytes are no error.
pub fn scan(
    storage: &dyn Storage,
    dir: &Path,
    stream: StreamId,
    durable: Option<Seq>,
) -> Result<Scan, (PathBuf, io::Error)> {
    let mut names = storage.list(dir).map_err(|error| (dir.into(), error))?;
    names.retain(|name| layout::first_of(name).is_some());
    // Row A.
    if let Some(name) = names.last()
        && is_unborn(storage, &dir.join(name), stream).map_err(|error| (dir.join(name), error))?
    {
        names.pop();
    }
    // Row B.
    let due = |name: &String| layout::first_of(name) <= durable.map(|seq| seq.next());
    let names = &names[names.iter().rposition(due).unwrap_or(0)..];
    let mut result = Scan::default();
    for (index, name) in names.iter().enumerate() {
        // Row C.
        if layout::first_of(name) <= result.segments.back().map(|before| before.end.seq) {
            continue;
        }
        let path = dir.join(name);
        let at_path = |error| (path.clone(), error);
        let file = storage.open(&path).map_err(at_path)?;
        let found = read_segment(&*file, stream).map_err(at_path)?;
        let before = result.segments.back().map(|segment| segment.end);
        let joins = |segment: &Segment| {
            layout::segment_name(&segment.start) == *name && before.is_none_or(|end| end == segment.start)
        };
        let last = index + 1 == names.len();
        let verdict = judge(last, joins, &found);
        if let Some(segment) = verdict.keep {
            result.segments.push_back(segment);
        }
        if let Some((offset, flaw)) = verdict.bad {
            let mut bytes = found.len - offset;
            for later in &names[index + 1..] {
                let path = dir.join(later);
                let len = storage.open(&path).and_then(|file| file.len());
                bytes += len.map_err(|error| (path, error))?;
            }
            let in_the_middle = verdict.in_the_middle;
            result.loss = Some(Loss { path, offset, bytes, in_the_middle, flaw });
        }
        if verdict.ends {
            break;
        }
    }
    Ok(result)
}

/// Whether the file at `path` is a segment whose creation was cut off. Frames are written only after it.
fn is_unborn(storage: &dyn Storage, path: &Path, stream: StreamId) -> io::Result<bool> {
    let file = storage.open(path)?;
    let len = file.len()?;
    match segment::read_start(&*file, len, stream) {
        Err(ReadError::Io(error)) => Err(error),
        Err(ReadError::Flaw(_)) => Ok(len <= MARK as u64),
        Ok(_) => Ok(false),
    }
}

/// What one segment file holds.
#[derive(Debug)]
pub struct Found {
    /// Bytes in the file.
    pub len: u64,
    /// Its good part, or what is wrong with its header.
    pub good: Result<Segment, Flaw>,
    /// What is wrong with the frame after the good part, if the file goes on.
    pub flaw: Option<Flaw>,
    /// Whether there are good frames behind that.
    pub good_after: bool,
}

/// Reads a segment of `stream` to its end or its first flaw.
///
/// # Errors
/// Only the storage's. Bad bytes are no error.
pub fn read_segment(file: &dyn StorageFile, stream: StreamId) -> io::Result<Found> {
    let len = file.len()?;
    let start = match segment::read_start(file, len, stream) {
        Ok(start) => start,
        Err(ReadError::Io(error)) => return Err(error),
        Err(ReadError::Flaw(flaw)) => {
            return Ok(Found { len, good: Err(flaw), flaw: None, good_after: false });
        }
    };
    let mut good = Segment { start, end: start, len: MARK as u64 };
    while good.len < len {
        match segment::read_frame(file, good.len, len, stream, &good.end) {
            Ok(frame) => {
                good.end = Position::after(frame.header());
                good.len += frame.bytes().len() as u64;
            }
            Err(ReadError::Io(error)) => return Err(error),
            Err(ReadError::Flaw(flaw)) => {
                let good_after = any_frame_after(file, good.len, len, stream, &good.end)?;
                return Ok(Found { len, good: Ok(good), flaw: Some(flaw), good_after });
            }
        }
    }
    Ok(Found { len, good: Ok(good), flaw: None, good_after: false })
}

/// Whether a good header of a frame later than the one that should be at `offset` stands behind it.
fn any_frame_after(
    file: &dyn StorageFile,
    offset: u64,
    len: u64,
    stream: StreamId,
    before: &Position,
) -> io::Result<bool> {
    let is_later = |raw: &[u8; HEADER]| {
        Header::decode(raw).is_ok_and(|header| {
            header.stream == stream && header.kind != Kind::Control && header.seq > before.seq.next()
        })
    };
    let mut at = offset + 1;
    let mut buf = vec![0; SEARCH];
    while at + HEADER as u64 <= len {
        let take = SEARCH.min((len - at) as usize);
        file.read_exact_at(&mut buf[..take], at)?;
        let mut windows = buf[..take].windows(HEADER);
        if windows.any(|raw| raw.starts_with(&MAGIC) && raw.first_chunk().is_some_and(is_later)) {
            return Ok(true);
        }
        // What may be cut off at the end of this piece is whole in the next.
        at += (take - HEADER + 1) as u64;
    }
    Ok(false)
}

struct Verdict {
    keep: Option<Segment>,
    /// Where the bad bytes begin, and what they are; none if nothing is lost.
    bad: Option<(u64, Flaw)>,
    in_the_middle: bool,
    ends: bool,
}

/// The table, from row D on.
fn judge(last: bool, joins: impl Fn(&Segment) -> bool, found: &Found) -> Verdict {
    let verdict = |keep: Option<&Segment>, bad, in_the_middle| Verdict {
        keep: keep.cloned(),
        bad,
        in_the_middle,
        ends: true,
    };
    match (&found.good, &found.flaw) {
        // D
        (Err(flaw), _) => verdict(None, Some((0, flaw.clone())), true),
        // E
        (Ok(good), _) if !joins(good) => {
            verdict(None, Some((0, Flaw::Start { found: good.start.seq })), true)
        }
        // F
        (Ok(good), None) => Verdict { ends: false, ..verdict(Some(good), None, false) },
        // G, H and I
        (Ok(good), Some(flaw)) => {
            verdict(Some(good), Some((good.len, flaw.clone())), !last || found.good_after)
        }
    }
}
