//! A file with a digest for each leaf of a disk, as far as they are known: 1/2016 of the disk's size.
//!
//! What is stored goes stale when its leaf is overwritten. Of that nothing is written down at the time: the header names a
//! layer, and whatever the journal has saved since the end of that layer was overwritten, also after a crash. So
//! this costs the way of data nothing. It knows nothing of where digests come from.
//!
//! A page that was being written when the power went is not known; one that rotted is reported, see [`Damaged`].

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use engine::{
    digest::{LeafMap, leaves_in},
    extent::Extent,
    io::{Storage, StorageFile},
    units::Digest,
};

use super::{
    layout::{DIGESTS, PAGE},
    page::{Header, Page},
};
use crate::journal::JournalError;

/// Pages held in memory: 2 MiB, the digests of 4 GiB of disk.
const PAGES: usize = 512;

/// Bytes of a digest file that are not what was written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{} is damaged at byte {at}: the digests of leaves {} to {} are not known any more", path.display(), leaves.0, leaves.1)]
pub struct Damaged {
    /// Which file.
    pub path: PathBuf,
    /// Where.
    pub at: u64,
    /// The first and the last leaf whose digests are gone.
    pub leaves: (u64, u64),
}

/// Why a digest could not be read or stored.
#[derive(Debug, thiserror::Error)]
pub enum DigestFileError {
    /// The file system said no.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The bytes are not what was written. The page counts as not known from now on.
    #[error(transparent)]
    Damaged(#[from] Damaged),
}

/// The digests of one disk.
pub struct DigestFile {
    file: Box<dyn StorageFile>,
    path: PathBuf,
    header: Header,
    /// Leaves whose stored digests are void.
    stale: LeafMap,
    pages: BTreeMap<u64, Held>,
    /// A start before this one left pages that may be torn.
    may_be_torn: bool,
}

struct Held {
    page: Page,
    is_written: bool,
}

impl DigestFile {
    /// A new file, in place of what is there.
    pub fn create(storage: &Arc<dyn Storage>, path: &Path, header: Header) -> Result<Self, JournalError> {
        let failed = JournalError::io("create", path);
        remove(storage.as_ref(), path)?;
        let file = storage.create(path).map_err(&failed)?;
        let header = Header { is_whole: true, ..header };
        let pages = leaves_in(header.bytes).div_ceil(DIGESTS as u64);
        file.set_len((1 + pages) * PAGE as u64)
            .and_then(|()| file.write_all_at(&header.encode(), 0))
            .and_then(|()| file.sync())
            .and_then(|()| storage.sync_dir(path.parent().unwrap_or(Path::new(""))))
            .map_err(failed)?;
        Ok(Self::over(file, path, header, false))
    }

    /// What is stored at `path` about the disk that `about` names, if anything is. Whatever was overwritten since the
    /// end of [`Self::layer`] must then be declared so.
    pub fn open(storage: &dyn Storage, path: &Path, about: Header) -> Result<Option<Self>, DigestFileError> {
        let failed = JournalError::io("open", path);
        if !storage.exists(path).map_err(&failed)? {
            return Ok(None);
        }
        let file = storage.open(path).map_err(&failed)?;
        let mut raw = [0; PAGE];
        let whole = match file.read_exact_at(&mut raw, 0) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => false,
            outcome => outcome.map(|()| true).map_err(failed)?,
        };
        let is_about = |found: &Header| {
            (found.stream, found.disk, found.bytes) == (about.stream, about.disk, about.bytes)
        };
        match Header::decode(&raw).filter(|found| whole && is_about(found)) {
            Some(header) => Ok(Some(Self::over(file, path, header, !header.is_whole))),
            None => {
                let leaves = (0, leaves_in(about.bytes).saturating_sub(1));
                Err(Damaged { path: path.to_owned(), at: 0, leaves }.into())
            }
        }
    }

    fn over(file: Box<dyn StorageFile>, path: &Path, header: Header, may_be_torn: bool) -> Self {
        let stale = LeafMap::empty(header.bytes);
        Self { file, path: path.to_owned(), header, stale, pages: BTreeMap::new(), may_be_torn }
    }

    /// The layer at whose end everything stored held.
    #[must_use]
    pub fn layer(&self) -> u64 {
        self.header.layer
    }

    /// Leaves of the disk.
    #[must_use]
    pub fn leaves(&self) -> u64 {
        self.stale.leaves()
    }

    /// These blocks are being overwritten: what is stored of their leaves is void.
    pub fn overwritten(&mut self, extent: Extent) {
        self.stale.insert_blocks(extent.start, extent.end());
    }

    /// What is stored of a leaf is void.
    pub fn void(&mut self, leaf: u64) {
        self.stale.insert(leaf);
    }

    /// The digest of a leaf, if it is known.
    pub fn get(&mut self, leaf: u64) -> Result<Option<Digest>, DigestFileError> {
        if self.stale.contains(leaf) {
            return Ok(None);
        }
        Ok(self.page(leaf / DIGESTS as u64)?.page.get((leaf % DIGESTS as u64) as usize))
    }

    /// Knows the digest of a leaf as it is now.
    pub fn set(&mut self, leaf: u64, digest: Digest) -> Result<(), DigestFileError> {
        self.put(leaf, Some(digest))?;
        self.stale.remove(leaf);
        Ok(())
    }

    /// Reads page after page from `leaf` on as long as it is in the file; for a scrub, which wants to know of damage
    /// whether the digests are needed or not. Forgets what is held of it.
    pub fn recheck(&mut self, leaf: u64) -> Result<(), DigestFileError> {
        let number = leaf / DIGESTS as u64;
        if self.pages.get(&number).is_some_and(|held| held.is_written) {
            self.pages.remove(&number);
        }
        if leaf == 0 {
            let mut raw = [0; PAGE];
            self.file.read_exact_at(&mut raw, 0).map_err(JournalError::io("read", &self.path))?;
            if raw != self.header.encode() {
                let header = self.header.encode();
                self.file.write_all_at(&header, 0).map_err(JournalError::io("write", &self.path))?;
                let leaves = (0, self.leaves().saturating_sub(1));
                return Err(Damaged { path: self.path.clone(), at: 0, leaves }.into());
            }
        }
        self.page(number).map(|_| ())
    }

    /// Makes what is known durable, as what holds at the end of `layer` but for what was overwritten since.
    pub fn flush(&mut self, layer: u64) -> Result<(), DigestFileError> {
        let stale: Vec<u64> = self.stale.iter_from(0).collect();
        for leaf in stale {
            self.put(leaf, None)?;
        }
        self.write_pages()?;
        self.stale.clear();
        let header = Header { layer, is_whole: true, ..self.header };
        self.write_header(header)?;
        self.may_be_torn = false;
        Ok(())
    }

    fn put(&mut self, leaf: u64, digest: Option<Digest>) -> Result<(), DigestFileError> {
        let index = (leaf % DIGESTS as u64) as usize;
        let held = self.page(leaf / DIGESTS as u64)?;
        if held.page.get(index) != digest {
            held.page.set(index, digest);
            held.is_written = false;
        }
        Ok(())
    }

    fn page(&mut self, number: u64) -> Result<&mut Held, DigestFileError> {
        if !self.pages.contains_key(&number) {
            if self.pages.len() >= PAGES {
                self.write_pages()?;
                self.pages.clear();
            }
            let (at, mut raw) = ((1 + number) * PAGE as u64, [0; PAGE]);
            self.file.read_exact_at(&mut raw, at).map_err(JournalError::io("read", &self.path))?;
            let page = Page::decode(&raw, number);
            let is_damaged = page.is_none();
            self.pages.insert(number, Held { page: page.unwrap_or_default(), is_written: !is_damaged });
            if is_damaged && !self.may_be_torn {
                let first = number * DIGESTS as u64;
                let leaves = (first, (first + DIGESTS as u64).min(self.leaves()) - 1);
                return Err(Damaged { path: self.path.clone(), at, leaves }.into());
            }
        }
        // It was just put there, if it was not there before.
        Ok(self.pages.entry(number).or_insert_with(|| Held { page: Page::default(), is_written: true }))
    }

    /// Writes the pages that have changed, and syncs.
    fn write_pages(&mut self) -> Result<(), JournalError> {
        if self.pages.values().all(|held| held.is_written) {
            return Ok(());
        }
        if self.header.is_whole {
            self.write_header(Header { is_whole: false, ..self.header })?;
        }
        let failed = JournalError::io("write", &self.path);
        for (number, held) in self.pages.iter_mut().filter(|(_, held)| !held.is_written) {
            self.file
                .write_all_at(&held.page.encode(*number), (1 + number) * PAGE as u64)
                .map_err(&failed)?;
            held.is_written = true;
        }
        self.file.sync().map_err(failed)
    }

    fn write_header(&mut self, header: Header) -> Result<(), JournalError> {
        if header != self.header {
            self.header = header;
            self.file
                .write_all_at(&header.encode(), 0)
                .and_then(|()| self.file.sync())
                .map_err(JournalError::io("write", &self.path))?;
        }
        Ok(())
    }
}

/// Removes a file if it is there, durably.
pub(super) fn remove(storage: &dyn Storage, path: &Path) -> Result<(), JournalError> {
    let failed = JournalError::io("remove", path);
    if storage.exists(path).map_err(&failed)? {
        storage
            .remove(path)
            .and_then(|()| storage.sync_dir(path.parent().unwrap_or(Path::new(""))))
            .map_err(failed)?;
    }
    Ok(())
}
