//! One undo log: appended to while its layer is open, read when a point is wanted.
//!
//! An append is nothing until [`Log::sync`] returned. After a failed append the log is cut back to where it was,
//! so that the batch can be tried again when there is room. What a start makes of one is in `scan`.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use engine::{
    extent::Extent,
    frame::Position,
    io::{Storage, StorageFile},
    units::{DiskIndex, StreamId, is_zero},
};

use super::{
    JournalError,
    entry::{self, Entry, LogHeader, Malformed, What},
    layer::LogId,
    layout::{ENTRY, HEADER},
};

/// What a log holds at one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

/// The file of a log, for whoever reads from it. It may be removed meanwhile: what is open stays readable.
pub struct LogFile {
    pub(super) file: Box<dyn StorageFile>,
    pub(super) path: PathBuf,
    pub(super) id: LogId,
}

impl LogFile {
    /// Opens a log and checks its header.
    pub(super) fn open(
        storage: &dyn Storage,
        dir: &Path,
        stream: StreamId,
        id: LogId,
    ) -> Result<Self, JournalError> {
        let path = id.path(dir);
        let file = storage.open(&path).map_err(JournalError::io("open", &path))?;
        let log = Self { file, path, id };
        let mut raw = [0; HEADER];
        if log.len()? < HEADER as u64 {
            return Err(JournalError::unusable(&log.path, 0, Malformed::Foreign));
        }
        log.read(&mut raw, 0)?;
        let header = LogHeader { stream, layer: id.layer };
        match LogHeader::decode(&raw) {
            Ok(found) if found == header => Ok(log),
            Ok(_) => {
                let what = Malformed::Nonsense("log of another stream or layer");
                Err(JournalError::unusable(&log.path, 0, what))
            }
            Err(what) => Err(JournalError::unusable(&log.path, 0, what)),
        }
    }

    /// Which log it is.
    #[must_use]
    pub fn id(&self) -> LogId {
        self.id
    }

    /// Reads an image's bytes and checks them. The error names the place.
    pub fn read_image(&self, image: &Image) -> Result<Vec<u8>, JournalError> {
        let mut bytes = vec![0; image.extent.bytes() as usize];
        if !image.zeros {
            self.read_image_into(image, &mut bytes)?;
        }
        Ok(bytes)
    }

    /// The same of one that is not zeros, into `bytes`, which are as many.
    pub(super) fn read_image_into(&self, image: &Image, bytes: &mut [u8]) -> Result<(), JournalError> {
        self.read(bytes, image.at)?;
        if crc32fast::hash(bytes) != image.crc {
            let what = Malformed::Checksum("before-image");
            return Err(JournalError::unusable(&self.path, image.at, what));
        }
        Ok(())
    }

    /// Of a log that is closed: it must be as long as it was then.
    pub(crate) fn check_len(&self, bytes: u64) -> Result<(), JournalError> {
        if self.len()? == bytes {
            return Ok(());
        }
        let what = Malformed::Nonsense("the log is not as long as it was when it was closed");
        Err(JournalError::unusable(&self.path, bytes, what))
    }

    pub(super) fn len(&self) -> Result<u64, JournalError> {
        self.file.len().map_err(JournalError::io("measure", &self.path))
    }

    pub(super) fn read(&self, buf: &mut [u8], at: u64) -> Result<(), JournalError> {
        self.file.read_exact_at(buf, at).map_err(JournalError::io("read", &self.path))
    }
}

/// A log that is appended to.
pub struct Log {
    pub(super) file: Arc<LogFile>,
    pub(super) len: u64,
    pub(super) entries: u32,
    buffer: Vec<u8>,
}

impl Log {
    /// Creates a log. Its name is durable before anything relies on it.
    pub fn create(
        storage: &Arc<dyn Storage>,
        dir: &Path,
        stream: StreamId,
        id: LogId,
    ) -> Result<Self, JournalError> {
        let path = id.path(dir);
        let failed = JournalError::io("create", &path);
        // A leftover of a crash during creation; nothing can have relied on it.
        if storage.exists(&path).map_err(&failed)? {
            storage.remove(&path).map_err(&failed)?;
        }
        let file = storage.create(&path).map_err(&failed)?;
        let created = file
            .write_all_at(&LogHeader { stream, layer: id.layer }.encode(), 0)
            .and_then(|()| file.sync())
            .and_then(|()| storage.sync_dir(dir));
        if let Err(error) = created {
            // Best effort: it would be removed at the next try as well.
            let _ = storage.remove(&path);
            return Err(failed(error));
        }
        Ok(Self::at_end(LogFile { file, path, id }, HEADER as u64, 0))
    }

    /// A log of `len` bytes with `entries` entries.
    pub(super) fn at_end(file: LogFile, len: u64, entries: u32) -> Self {
        Self { file: Arc::new(file), len, entries, buffer: Vec::new() }
    }

    /// The file, for reading images.
    #[must_use]
    pub fn file(&self) -> &Arc<LogFile> {
        &self.file
    }

    /// Bytes written.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.len
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

    /// Queues a before-image of zeros.
    pub(super) fn push_zeros(&mut self, disk: DiskIndex, extent: Extent) {
        self.push(What::Zeros(disk, extent), &[]);
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

    /// Bytes and entries so far: for [`Self::give_back`].
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

    /// What was made durable will not be read soon. New memory for a cache is dearer than what was just used.
    pub(crate) fn wont_read(&self) {
        self.file.file.wont_read();
    }

    /// Forgets what was added since `mark`, after a failure.
    pub fn give_back(&mut self, mark: (u64, u32)) -> Result<(), JournalError> {
        self.buffer.clear();
        (self.len, self.entries) = mark;
        self.file.file.set_len(self.len).map_err(JournalError::io("cut", &self.file.path))
    }
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
