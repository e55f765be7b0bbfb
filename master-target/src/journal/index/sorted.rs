//! Pieces in order: few in memory, many in a file, read a page at a time.

use std::{
    path::PathBuf,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use engine::{
    io::{Storage, StorageFile},
    units::{Block, DiskIndex},
};

use super::{
    layout::{HEADER, PAGE, PAGE_HEAD, PAGE_RECORDS, RECORD},
    record::{Key, Piece, decode_page, encode_page},
};
use crate::journal::JournalError;

/// Where pieces go that are too many for memory: files without a name, which end with their last user.
pub(crate) struct Scratch {
    storage: Arc<dyn Storage>,
    dir: PathBuf,
    next: AtomicU64,
    /// Pieces that may be in memory.
    pub(super) in_memory: usize,
}

impl Scratch {
    /// In `dir` of `storage`.
    pub(crate) fn new(storage: Arc<dyn Storage>, dir: PathBuf, in_memory: usize) -> Self {
        Self { storage, dir, next: AtomicU64::new(0), in_memory }
    }

    fn file(&self) -> Result<(Box<dyn StorageFile>, PathBuf), JournalError> {
        let path = self.dir.join(format!("scratch-{}.tmp", self.next.fetch_add(1, Ordering::Relaxed)));
        let failed = JournalError::io("create", &path);
        // A leftover of an earlier process.
        if self.storage.exists(&path).map_err(&failed)? {
            self.storage.remove(&path).map_err(&failed)?;
        }
        let file = self.storage.create(&path).map_err(&failed)?;
        self.storage.remove(&path).map_err(&failed)?;
        Ok((file, path))
    }
}

impl Scratch {
    /// How long it takes to write so many bytes and sync them.
    pub(crate) fn time_to_write(&self, bytes: u64) -> Result<Duration, JournalError> {
        const STEP: usize = 1 << 20;
        let (file, path) = self.file()?;
        let failed = JournalError::io("write", &path);
        // Not zeros: a file system might not write those.
        let noise: Vec<u8> =
            (0..STEP as u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        let began = Instant::now();
        for at in (0..bytes).step_by(STEP) {
            file.write_all_at(&noise[..(bytes - at).min(STEP as u64) as usize], at).map_err(&failed)?;
        }
        file.sync().map_err(&failed)?;
        Ok(began.elapsed())
    }
}

/// Pieces in order that do not overlap. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Sorted {
    pub(super) pages: Pages,
    pub(super) records: u64,
    pub(super) bytes: u64,
}

#[derive(Clone)]
pub(super) enum Pages {
    Memory(Arc<Vec<Piece>>),
    File(Arc<PageFile>),
}

pub(super) struct PageFile {
    file: Box<dyn StorageFile>,
    path: PathBuf,
    records: u64,
    /// The first piece's place in every page, read when somebody looks something up.
    directory: OnceLock<Vec<Key>>,
}

impl PageFile {
    pub(super) fn new(file: Box<dyn StorageFile>, path: PathBuf, records: u64) -> Self {
        Self { file, path, records, directory: OnceLock::new() }
    }

    fn page(&self, number: u64) -> Result<Vec<Piece>, JournalError> {
        let first = number * PAGE_RECORDS as u64;
        let records = (self.records - first).min(PAGE_RECORDS as u64) as usize;
        let mut raw = vec![0; PAGE_HEAD + records * RECORD];
        let offset = HEADER as u64 + number * PAGE as u64;
        self.file.read_exact_at(&mut raw, offset).map_err(JournalError::io("read", &self.path))?;
        decode_page(number, &raw).map_err(|what| JournalError::unusable(&self.path, offset, what))
    }

    fn directory(&self) -> Result<&[Key], JournalError> {
        if let Some(directory) = self.directory.get() {
            return Ok(directory);
        }
        let pages = self.records.div_ceil(PAGE_RECORDS as u64);
        let keys = (0..pages).map(|number| Ok(self.page(number)?.first().map_or((0, 0), Piece::key)));
        let keys = keys.collect::<Result<Vec<_>, JournalError>>()?;
        Ok(self.directory.get_or_init(|| keys))
    }
}

impl Sorted {
    /// Bytes of all their blocks.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Number of pieces.
    pub(crate) fn records(&self) -> u64 {
        self.records
    }

    /// What there is of blocks `start..end`, cut to them, in order.
    pub(crate) fn find(&self, disk: DiskIndex, start: Block, end: Block) -> Result<Vec<Piece>, JournalError> {
        let mut cursor = self.from((disk.0, start.0))?;
        let mut found = Vec::new();
        while let Some(piece) = cursor.next()?.filter(|piece| piece.key() < (disk.0, end.0)) {
            found.extend(piece.within(start, end));
        }
        Ok(found)
    }

    /// All of them in order.
    pub(crate) fn cursor(&self) -> Cursor {
        Cursor { sorted: self.clone(), page: Vec::new(), at: 0, next_page: 0 }
    }

    /// Those that end behind `key`, in order.
    pub(crate) fn from(&self, key: Key) -> Result<Cursor, JournalError> {
        let mut cursor = self.cursor();
        match &self.pages {
            Pages::Memory(pieces) => cursor.at = pieces.partition_point(|piece| piece.end() <= key),
            Pages::File(file) => {
                let page = file.directory()?.partition_point(|first| *first <= key);
                cursor.next_page = (page as u64).saturating_sub(1);
                while let Some(piece) = cursor.next()? {
                    if piece.end() > key {
                        cursor.at -= 1;
                        break;
                    }
                }
            }
        }
        Ok(cursor)
    }
}

/// Goes through pieces in order, with one page in memory.
pub(crate) struct Cursor {
    sorted: Sorted,
    page: Vec<Piece>,
    at: usize,
    next_page: u64,
}

impl Cursor {
    /// The next piece.
    pub(crate) fn next(&mut self) -> Result<Option<Piece>, JournalError> {
        let file = match &self.sorted.pages {
            Pages::Memory(pieces) => {
                self.at += 1;
                return Ok(pieces.get(self.at - 1).copied());
            }
            Pages::File(file) => file,
        };
        if self.at == self.page.len() {
            if self.next_page * PAGE_RECORDS as u64 >= file.records {
                return Ok(None);
            }
            self.page = file.page(self.next_page)?;
            (self.at, self.next_page) = (0, self.next_page + 1);
        }
        self.at += 1;
        Ok(self.page.get(self.at - 1).copied())
    }
}

/// Takes pieces in order.
pub(crate) struct Writer<'a> {
    scratch: &'a Scratch,
    /// In memory; in a file's case those of the next page.
    pieces: Vec<Piece>,
    file: Option<(Box<dyn StorageFile>, PathBuf)>,
    pages: u64,
    records: u64,
    bytes: u64,
}

impl<'a> Writer<'a> {
    pub(crate) fn new(scratch: &'a Scratch) -> Self {
        Self { scratch, pieces: Vec::new(), file: None, pages: 0, records: 0, bytes: 0 }
    }

    /// Adds a piece that begins at or behind the end of the one before.
    pub(crate) fn push(&mut self, piece: Piece) -> Result<(), JournalError> {
        (self.records, self.bytes) = (self.records + 1, self.bytes + piece.extent.bytes());
        self.pieces.push(piece);
        if self.file.is_none() && self.pieces.len() > self.scratch.in_memory {
            self.file = Some(self.scratch.file()?);
        }
        if self.file.is_some() && self.pieces.len() >= PAGE_RECORDS {
            self.write_pages()?;
        }
        Ok(())
    }

    /// Writes all full pages that are in memory.
    fn write_pages(&mut self) -> Result<(), JournalError> {
        let Some((file, path)) = &self.file else { return Ok(()) };
        let mut bytes = Vec::new();
        let offset = HEADER as u64 + self.pages * PAGE as u64;
        let full = self.pieces.len() / PAGE_RECORDS * PAGE_RECORDS;
        for page in self.pieces[..full].chunks(PAGE_RECORDS) {
            bytes.extend_from_slice(&encode_page(self.pages, page));
            self.pages += 1;
        }
        self.pieces.drain(..full);
        file.write_all_at(&bytes, offset).map_err(JournalError::io("write", path))
    }

    /// All of them.
    pub(crate) fn finish(mut self) -> Result<Sorted, JournalError> {
        self.write_pages()?;
        let (records, bytes) = (self.records, self.bytes);
        let Some((file, path)) = self.file else {
            return Ok(Sorted { pages: Pages::Memory(Arc::new(self.pieces)), records, bytes });
        };
        if !self.pieces.is_empty() {
            let offset = HEADER as u64 + self.pages * PAGE as u64;
            let page = encode_page(self.pages, &self.pieces);
            file.write_all_at(&page, offset).map_err(JournalError::io("write", &path))?;
        }
        let file = PageFile::new(file, path, records);
        Ok(Sorted { pages: Pages::File(Arc::new(file)), records, bytes })
    }
}
