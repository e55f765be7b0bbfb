//! Digests of the disks at home as they were last known to be right: what a scrub compares them with.
//!
//! A file for each disk beside the journal ([`DigestFile`]). They come from proofs, where source and target agreed, and
//! from the scrub's first look at a leaf; they go stale by writes. They are only a help: what goes wrong with them
//! stops nothing, it is reported and they are computed anew.

mod digest_file;
pub mod layout;
mod leaves;
pub mod page;

#[cfg(test)]
mod tests;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use engine::{
    extent_set::ExtentSet,
    io::Storage,
    units::{Digest, DiskIndex},
};

use crate::journal::JournalError;

pub(crate) use self::leaves::digests_of;
pub use self::{
    digest_file::{Damaged, DigestFile, DigestFileError},
    page::Header,
};

/// The digests of a stream's disks.
pub struct Digests {
    storage: Arc<dyn Storage>,
    dir: PathBuf,
    /// What each disk's file is about.
    about: Vec<Header>,
    /// `None` after a failure, until the stream is opened again.
    files: Option<Vec<DigestFile>>,
    /// Damage that was found and not asked for yet. Bounded by asking after every step.
    damage: Vec<Damaged>,
}

impl Digests {
    /// What is stored in `dir` about disks that are described by `about`, where `layer` is that of digests that are new.
    #[must_use]
    pub fn open(storage: &Arc<dyn Storage>, dir: &Path, about: Vec<Header>) -> Self {
        let mut digests = Self {
            storage: Arc::clone(storage),
            dir: dir.to_owned(),
            about,
            files: None,
            damage: Vec::new(),
        };
        digests.files = digests.open_files().map_err(|error| warn(&error)).ok();
        digests
    }

    fn open_files(&mut self) -> Result<Vec<DigestFile>, JournalError> {
        let mut files = Vec::new();
        for header in &self.about {
            let path = path(&self.dir, header.disk);
            let found = match DigestFile::open(self.storage.as_ref(), &path, *header) {
                Ok(found) => found,
                Err(DigestFileError::Damaged(damaged)) => {
                    self.damage.push(damaged);
                    None
                }
                Err(DigestFileError::Journal(error)) => return Err(error),
            };
            files.push(match found {
                Some(file) => file,
                None => DigestFile::create(&self.storage, &path, *header)?,
            });
        }
        Ok(files)
    }

    /// The oldest layer at whose end something stored held.
    #[must_use]
    pub fn oldest_layer(&self) -> Option<u64> {
        self.files.as_ref()?.iter().map(DigestFile::layer).min()
    }

    /// These blocks are being overwritten, by disk.
    pub fn overwritten(&mut self, written: &[ExtentSet]) {
        for (file, written) in self.files.iter_mut().flatten().zip(written) {
            written.extents().for_each(|extent| file.overwritten(extent));
        }
    }

    /// A leaf was overwritten.
    pub fn void(&mut self, disk: DiskIndex, leaf: u64) {
        if let Some(file) = self.files.as_mut().and_then(|files| files.get_mut(usize::from(disk.0))) {
            file.void(leaf);
        }
    }

    /// The digest of a leaf, if it is known.
    pub fn get(&mut self, disk: DiskIndex, leaf: u64) -> Option<Digest> {
        self.with(disk, |file| file.get(leaf)).flatten()
    }

    /// Knows the digest of a leaf as the disk now holds it.
    pub fn set(&mut self, disk: DiskIndex, leaf: u64, digest: Digest) {
        self.with(disk, |file| file.set(leaf, digest));
    }

    /// Looks again at the part of the file that holds the digest of a leaf.
    pub fn recheck(&mut self, disk: DiskIndex, leaf: u64) {
        self.with(disk, |file| file.recheck(leaf));
    }

    /// Makes all of them durable; `layer` is the newest that is closed.
    pub fn flush(&mut self, layer: u64) {
        for disk in self.about.clone() {
            self.with(disk.disk, |file| file.flush(layer));
        }
    }

    /// Forgets all of them durably: the disks are about to become others. What cannot be removed would be wrong later.
    ///
    /// # Errors
    /// If a file cannot be removed.
    pub fn forget(&mut self) -> Result<(), JournalError> {
        self.files = None;
        for header in &self.about {
            digest_file::remove(self.storage.as_ref(), &path(&self.dir, header.disk))?;
        }
        Ok(())
    }

    /// Begins anew, after [`Self::forget`], with disks as they are in layer `layer`.
    pub fn begin_again(&mut self, layer: u64) {
        self.about.iter_mut().for_each(|header| header.layer = layer);
        self.files = self.open_files().map_err(|error| warn(&error)).ok();
    }

    /// Damage that was found since the last time.
    pub fn take_damage(&mut self) -> Vec<Damaged> {
        std::mem::take(&mut self.damage)
    }

    fn with<T>(
        &mut self,
        disk: DiskIndex,
        f: impl FnOnce(&mut DigestFile) -> Result<T, DigestFileError>,
    ) -> Option<T> {
        let file = self.files.as_mut()?.get_mut(usize::from(disk.0))?;
        match f(file) {
            Ok(value) => Some(value),
            Err(DigestFileError::Damaged(damaged)) => {
                self.damage.push(damaged);
                None
            }
            Err(DigestFileError::Journal(error)) => {
                warn(&error);
                self.files = None;
                None
            }
        }
    }
}

fn warn(error: &JournalError) {
    tracing::warn!(%error, "digests of the disks cannot be kept until the stream is opened again");
}

fn path(dir: &Path, disk: DiskIndex) -> PathBuf {
    dir.join(format!("digests-{:02}", disk.0))
}
