//! Reading a log from start to end: what is in it, and where what counts of it ends.
//!
//! Behind the last commit stands at most one batch, whose images may be torn: they were being written when the power
//! went, and nothing on the disks was overwritten before all of them were synced. So an open log counts up to the first
//! image that is not whole. A commit *behind* damage proves that synced bytes have rotted: that is an error, because
//! images are missing that may be needed.

use engine::frame::Position;

use super::{
    JournalError,
    entry::{self, Entry, Malformed, What},
    layout::{COMMIT, ENTRY, HEADER, entry_at, kind},
    log::{Image, Log, LogFile},
};

/// A log up to this length is read at once, a longer one header by header.
const AT_ONCE: u64 = 1 << 20;

/// An entry of a log.
pub(super) struct Found {
    /// Offset of its header.
    pub(super) at: u64,
    entry: Entry,
    /// What a commit says.
    position: Option<Position>,
}

impl Found {
    fn end(&self) -> u64 {
        self.at + (ENTRY + self.entry.data_len()) as u64
    }

    /// The place behind it.
    fn behind(&self, place: Place) -> Place {
        Place { at: self.end(), number: place.number.wrapping_add(1) }
    }

    /// The image, unless it is a commit.
    pub(super) fn image(&self) -> Option<Image> {
        let at = self.at + ENTRY as u64;
        match self.entry.what {
            What::Image(disk, extent) => {
                Some(Image { disk, extent, at, zeros: false, crc: self.entry.data_crc })
            }
            What::Zeros(disk, extent) => Some(Image { disk, extent, at, zeros: true, crc: 0 }),
            What::Commit => None,
        }
    }
}

/// A place in a log, between two entries.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    at: u64,
    number: u32,
}

impl Place {
    /// Before the first.
    pub(crate) const START: Self = Self { at: HEADER as u64, number: 0 };

    /// Offset in the log.
    pub(crate) fn offset(self) -> u64 {
        self.at
    }
}

/// The entries of a log in order, up to the end or to damage.
pub(super) struct Entries<'a> {
    log: &'a LogFile,
    place: Place,
    end: u64,
    /// A short log's bytes from the first entry on.
    bytes: Vec<u8>,
}

impl LogFile {
    /// The entries in the first `len` bytes. Data of images is not read.
    pub(super) fn entries(&self, len: u64) -> Result<Entries<'_>, JournalError> {
        let at = HEADER as u64;
        let mut bytes = vec![0; if len <= AT_ONCE { len.saturating_sub(at) as usize } else { 0 }];
        self.read(&mut bytes, at)?;
        Ok(Entries { log: self, place: Place::START, end: len, bytes })
    }

    /// The entry at a place in the first `len` bytes, and on to the next; its image, unless it is a commit.
    pub(crate) fn entry(&self, place: &mut Place, len: u64) -> Result<Option<Image>, JournalError> {
        let entries = Entries { log: self, place: *place, end: len, bytes: Vec::new() };
        let found = entries.read_entry()?;
        *place = found.behind(*place);
        Ok(found.image())
    }

    /// Where what counts of a log that may still be appended to ends, and the last commit.
    pub(super) fn end(&self) -> Result<End, JournalError> {
        let len = self.len()?;
        let mut end = End { bytes: HEADER as u64, entries: 0, committed: None };
        let mut tail = Vec::new();
        for found in self.entries(len)? {
            match found {
                Ok(found) => {
                    tail.extend(found.image().map(|image| (end.bytes, end.entries, image)));
                    (end.bytes, end.entries) = (found.end(), end.entries + 1);
                    if found.position.is_some() {
                        end.committed = found.position;
                        tail.clear();
                    }
                }
                Err(error @ JournalError::Damaged { .. }) => {
                    if self.commit_behind(end.bytes, len)? {
                        return Err(error);
                    }
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        if let Some((bytes, entries, _)) = tail.iter().find(|(.., image)| self.read_image(image).is_err()) {
            (end.bytes, end.entries) = (*bytes, *entries);
        }
        Ok(end)
    }

    /// Whether a whole commit stands anywhere in `from..len`.
    pub(super) fn commit_behind(&self, from: u64, len: u64) -> Result<bool, JournalError> {
        const STEP: u64 = 8;
        const CHUNK: usize = 1 << 20;
        let mut at = from;
        while at + (ENTRY + COMMIT) as u64 <= len {
            let mut chunk = vec![0; CHUNK.min((len - at) as usize)];
            self.read(&mut chunk, at)?;
            let found = chunk.windows(ENTRY + COMMIT).step_by(STEP as usize).any(|window| {
                let (header, data) = window.split_at(ENTRY);
                header[entry_at::KIND] == kind::COMMIT
                    && header[entry_at::DATA_CRC..][..4] == crc32fast::hash(data).to_le_bytes()
                    && header[entry_at::CRC..] == crc32fast::hash(&header[..entry_at::CRC]).to_le_bytes()
            });
            if found {
                return Ok(true);
            }
            // Overlap, so that a commit across two chunks is seen.
            at += ((chunk.len() - (ENTRY + COMMIT)) as u64 / STEP + 1) * STEP;
        }
        Ok(false)
    }
}

impl Iterator for Entries<'_> {
    type Item = Result<Found, JournalError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.place.at >= self.end {
            return None;
        }
        let found = self.read_entry();
        match &found {
            Ok(found) => self.place = found.behind(self.place),
            Err(_) => self.place.at = self.end,
        }
        Some(found)
    }
}

impl Entries<'_> {
    fn read_entry(&self) -> Result<Found, JournalError> {
        let unusable = |what| JournalError::unusable(&self.log.path, self.place.at, what);
        let torn = || unusable(Malformed::Nonsense("log ends within an entry"));
        if self.end - self.place.at < ENTRY as u64 {
            return Err(torn());
        }
        let entry = Entry::decode(&self.read(self.place.at)?, self.place.number).map_err(unusable)?;
        if self.end - self.place.at - (ENTRY as u64) < entry.data_len() as u64 {
            return Err(torn());
        }
        let mut position = None;
        if entry.what == What::Commit {
            let data: [u8; COMMIT] = self.read(self.place.at + ENTRY as u64)?;
            if crc32fast::hash(&data) != entry.data_crc {
                return Err(unusable(Malformed::Checksum("commit")));
            }
            position = Some(entry::decode_position(&data));
        }
        Ok(Found { at: self.place.at, entry, position })
    }

    fn read<const N: usize>(&self, at: u64) -> Result<[u8; N], JournalError> {
        if self.bytes.is_empty() {
            let mut raw = [0; N];
            self.log.read(&mut raw, at)?;
            return Ok(raw);
        }
        Ok(entry::array(&self.bytes, (at - HEADER as u64) as usize))
    }
}

/// Where a log ends.
pub(super) struct End {
    /// Bytes that count.
    pub(super) bytes: u64,
    /// Entries in them.
    entries: u32,
    /// The last commit.
    pub(super) committed: Option<Position>,
}

impl Log {
    /// Makes a log fit for appending: what follows behind its end is cut off.
    pub(crate) fn recover(file: LogFile) -> Result<(Self, Option<Position>), JournalError> {
        let end = file.end()?;
        file.file
            .set_len(end.bytes)
            .and_then(|()| file.file.sync())
            .map_err(JournalError::io("cut", &file.path))?;
        Ok((Self::at_end(file, end.bytes, end.entries), end.committed))
    }
}
