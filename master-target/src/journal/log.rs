//! One undo log: appended to while its layer is open, read when a point is wanted.
//!
//! An append is nothing until [`Log::sync`] returned. After a failed append the log is cut back to where it was,
//! so that the batch can be tried again when there is room.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use engine::{
    extent::Extent,
    frame::Position,
    io::{Storage, StorageFile},
    units::{BLOCK_BYTES, DiskIndex, StreamId},
};

use super::{
    JournalError,
    entry::{self, Entry, LogHeader, Malformed, What},
    layout::{COMMIT, ENTRY, HEADER, entry_at, kind},
};

/// The file of a log, for whoever reads images from it. It may be removed meanwhile: what is open stays readable.
pub struct LogFile {
    file: Box<dyn StorageFile>,
    path: PathBuf,
}

impl LogFile {
    /// Reads an image's bytes and checks them. The error names the place.
    pub fn read_image(&self, image: &Image) -> Result<Vec<u8>, JournalError> {
        let mut bytes = vec![0; image.extent.bytes() as usize];
        if !image.zeros {
            self.read(&mut bytes, image.at)?;
            if crc32fast::hash(&bytes) != image.crc {
                let what = Malformed::Checksum("before-image");
                return Err(JournalError::unusable(&self.path, image.at, what));
            }
        }
        Ok(bytes)
    }

    fn read(&self, buf: &mut [u8], at: u64) -> Result<(), JournalError> {
        self.file.read_exact_at(buf, at).map_err(JournalError::io("read", &self.path))
    }
}

/// An open log.
pub struct Log {
    file: Arc<LogFile>,
    len: u64,
    entries: u32,
    buffer: Vec<u8>,
}

/// What a log holds at one place.
#[derive(Clone, Copy, Debug)]
pub struct Image {
    /// Which disk.
    pub disk: DiskIndex,
    /// Which blocks.
    pub extent: Extent,
    /// Offset of the bytes in the log.
    pub at: u64,
    /// Whether they are all zero, and not in the log.
    pub zeros: bool,
    /// CRC-32 of the bytes.
    pub crc: u32,
}

impl Image {
    /// Offset of its entry in the log.
    fn entry_at(&self) -> u64 {
        self.at - ENTRY as u64
    }
}

/// What reading a log from start to end found.
#[derive(Debug, Default)]
pub struct Scan {
    /// Every before-image, in order.
    pub images: Vec<Image>,
    /// The last commit.
    pub committed: Option<Position>,
    /// How many of the images stand before it.
    pub images_committed: usize,
    /// How many entries stand before and with it.
    pub entries_committed: u32,
    /// Offset behind the last whole entry.
    pub end: u64,
    /// What stands there, if the log goes on: a torn tail, or damage.
    pub damage: Option<Malformed>,
}

impl Log {
    /// Creates the log of `layer`. Its name is durable before anything relies on it.
    pub fn create(
        storage: &Arc<dyn Storage>,
        path: &Path,
        stream: StreamId,
        layer: u64,
    ) -> Result<Self, JournalError> {
        let failed = JournalError::io("create", path);
        // A leftover of a crash during creation; nothing can have relied on it.
        if storage.exists(path).map_err(&failed)? {
            storage.remove(path).map_err(&failed)?;
        }
        let file = storage.create(path).map_err(&failed)?;
        let created = file
            .write_all_at(&LogHeader { stream, layer }.encode(), 0)
            .and_then(|()| file.sync())
            .and_then(|()| storage.sync_dir(path.parent().unwrap_or(Path::new(""))));
        if let Err(error) = created {
            // Best effort: it would be removed at the next try as well.
            let _ = storage.remove(path);
            return Err(failed(error));
        }
        let file = Arc::new(LogFile { file, path: path.to_owned() });
        Ok(Self { file, len: HEADER as u64, entries: 0, buffer: Vec::new() })
    }

    /// Opens a log and reads it through. Data of images is not read.
    pub fn open(
        storage: &Arc<dyn Storage>,
        path: &Path,
        stream: StreamId,
        layer: u64,
    ) -> Result<(Self, Scan), JournalError> {
        let file = storage.open(path).map_err(JournalError::io("open", path))?;
        let file = Arc::new(LogFile { file, path: path.to_owned() });
        let mut log = Self { file, len: 0, entries: 0, buffer: Vec::new() };
        let len = log.file.file.len().map_err(JournalError::io("measure", path))?;
        if len < HEADER as u64 {
            return Ok((log, Scan { damage: Some(Malformed::Foreign), ..Scan::default() }));
        }
        let mut raw = [0; HEADER];
        log.file.read(&mut raw, 0)?;
        match LogHeader::decode(&raw) {
            Ok(header) if header == (LogHeader { stream, layer }) => {}
            Ok(_) => {
                let damage = Some(Malformed::Nonsense("log of another stream or layer"));
                return Ok((log, Scan { damage, ..Scan::default() }));
            }
            Err(damage) => return Ok((log, Scan { damage: Some(damage), ..Scan::default() })),
        }
        let mut scan = Scan { end: HEADER as u64, ..Scan::default() };
        while scan.end < len {
            match log.read_entry(scan.end, len)? {
                Ok((entry, position)) => {
                    let at = scan.end + ENTRY as u64;
                    match entry.what {
                        What::Image(disk, extent) => {
                            scan.images.push(Image { disk, extent, at, zeros: false, crc: entry.data_crc });
                        }
                        What::Zeros(disk, extent) => {
                            scan.images.push(Image { disk, extent, at, zeros: true, crc: 0 });
                        }
                        What::Commit => {
                            scan.committed = position;
                            scan.images_committed = scan.images.len();
                            scan.entries_committed = log.entries + 1;
                        }
                    }
                    scan.end = at + entry.data_len() as u64;
                    log.entries += 1;
                }
                Err(damage) => {
                    scan.damage = Some(damage);
                    break;
                }
            }
        }
        log.len = scan.end;
        Ok((log, scan))
    }

    /// The entry at `at` in a log of `len` bytes; the inner error says why there is none.
    #[allow(clippy::type_complexity)]
    fn read_entry(
        &self,
        at: u64,
        len: u64,
    ) -> Result<Result<(Entry, Option<Position>), Malformed>, JournalError> {
        let torn = Malformed::Nonsense("log ends within an entry");
        if len - at < ENTRY as u64 {
            return Ok(Err(torn));
        }
        let mut raw = [0; ENTRY];
        self.file.read(&mut raw, at)?;
        let entry = match Entry::decode(&raw, self.entries) {
            Ok(entry) => entry,
            Err(damage) => return Ok(Err(damage)),
        };
        if len - at - (ENTRY as u64) < entry.data_len() as u64 {
            return Ok(Err(torn));
        }
        let mut position = None;
        if entry.what == What::Commit {
            let mut data = [0; COMMIT];
            self.file.read(&mut data, at + ENTRY as u64)?;
            if crc32fast::hash(&data) != entry.data_crc {
                return Ok(Err(Malformed::Checksum("commit")));
            }
            position = Some(entry::decode_position(&data));
        }
        Ok(Ok((entry, position)))
    }

    /// Makes the log of the open layer fit for appending, after [`Self::open`] found `scan`.
    ///
    /// Behind the last commit stands at most one batch, whose images may be torn: they were being written when
    /// the power went, and nothing on the disks was overwritten before all of them were synced. So the log is
    /// cut at the first image that is not whole. A commit *behind* damage proves that synced bytes have rotted:
    /// that is an error, because images are missing that may be needed.
    pub fn recover(&mut self, scan: &mut Scan) -> Result<(), JournalError> {
        if let Some(what) = &scan.damage
            && (matches!(what, Malformed::Version(_)) || self.commit_behind(scan.end)?)
        {
            return Err(JournalError::unusable(&self.file.path, scan.end, what.clone()));
        }
        let torn = scan
            .images
            .iter()
            .skip(scan.images_committed)
            .position(|image| self.file.read_image(image).is_err());
        if let Some(index) = torn.map(|index| index + scan.images_committed) {
            self.len = scan.images[index].entry_at();
            self.entries = scan.entries_committed + (index - scan.images_committed) as u32;
            scan.images.truncate(index);
        }
        self.file
            .file
            .set_len(self.len)
            .and_then(|()| self.file.file.sync())
            .map_err(JournalError::io("cut", &self.file.path))
    }

    /// Whether a whole commit stands anywhere behind `from`.
    fn commit_behind(&self, from: u64) -> Result<bool, JournalError> {
        const STEP: u64 = 8;
        const CHUNK: usize = 1 << 20;
        let len = self.file.file.len().map_err(JournalError::io("measure", &self.file.path))?;
        let mut at = from;
        while at + (ENTRY + COMMIT) as u64 <= len {
            let mut chunk = vec![0; CHUNK.min((len - at) as usize)];
            self.file.read(&mut chunk, at)?;
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

    /// Bytes written or queued.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.len
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.file.path
    }

    /// Queues a before-image of `extent`, at most an entry's worth of whole blocks; returns where it will be.
    pub fn push_image(&mut self, disk: DiskIndex, extent: Extent, bytes: &[u8]) -> Image {
        debug_assert_eq!(bytes.len() as u64, extent.bytes());
        let zeros = is_zero(bytes);
        let at = self.len + (self.buffer.len() + ENTRY) as u64;
        let crc = if zeros {
            self.push(What::Zeros(disk, extent), &[])
        } else {
            self.push(What::Image(disk, extent), bytes)
        };
        Image { disk, extent, at, zeros, crc }
    }

    /// Queues a commit.
    pub fn push_commit(&mut self, position: &Position) {
        self.push(What::Commit, &entry::encode_position(position));
    }

    /// Returns the data's CRC-32.
    fn push(&mut self, what: What, data: &[u8]) -> u32 {
        let data_crc = crc32fast::hash(data);
        let entry = Entry { what, number: self.entries, data_crc };
        self.entries += 1;
        self.buffer.extend_from_slice(&entry.encode());
        self.buffer.extend_from_slice(data);
        data_crc
    }

    /// Entries so far, queued ones included: for [`Self::give_back`].
    #[must_use]
    pub fn mark(&self) -> (u64, u32) {
        (self.len, self.entries)
    }

    /// Writes what is queued, without making it durable. Bounds memory during large batches.
    pub fn flush(&mut self) -> Result<(), JournalError> {
        let written = self.file.file.write_all_at(&self.buffer, self.len);
        self.len += self.buffer.len() as u64;
        self.buffer.clear();
        written.map_err(JournalError::io("append to", &self.file.path))
    }

    /// Makes everything queued durable.
    pub fn sync(&mut self) -> Result<(), JournalError> {
        self.flush()?;
        self.file.file.sync().map_err(JournalError::io("sync", &self.file.path))
    }

    /// Forgets what was added since `mark`, after a failure.
    pub fn give_back(&mut self, mark: (u64, u32)) -> Result<(), JournalError> {
        self.buffer.clear();
        (self.len, self.entries) = mark;
        self.file.file.set_len(self.len).map_err(JournalError::io("cut", &self.file.path))
    }

    /// The file, for reading images.
    #[must_use]
    pub fn file(&self) -> &Arc<LogFile> {
        &self.file
    }
}

/// Whether all bytes are zero.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    // Whole blocks compare at memory speed.
    const ZEROS: [u8; BLOCK_BYTES as usize] = [0; BLOCK_BYTES as usize];
    bytes.chunks(ZEROS.len()).all(|chunk| chunk == &ZEROS[..chunk.len()])
}

impl JournalError {
    /// Turns an I/O error into one that names what was done to which file.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl Fn(io::Error) -> JournalError + use<> {
        let path = path.to_owned();
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                JournalError::NoSpace { path: path.clone() }
            }
            _ => JournalError::Io { action, path: path.clone(), source },
        }
    }
}
