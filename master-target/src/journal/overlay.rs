//! The before-images that were saved since somebody began to look at a point, for the one who looks.
//!
//! Replication goes on under an open image. Whatever it is about to overwrite it saves first, and tells every open
//! image where: between that and the write, and for ever after, the block is found here. The first image of a block
//! is the one that counts. Few are kept in memory, the rest in a file without a name.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use engine::units::{Block, DiskIndex};

use super::{Gatherer, Image, JournalError, LogId, Logs, Piece, Sorted, Table};

/// What was saved since an image was opened.
pub(crate) struct Overlay {
    logs: Arc<Logs>,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// Older than the table.
    old: Option<Sorted>,
    table: Table,
    /// Why nobody tells it of new images any more.
    ended: Option<String>,
}

impl Overlay {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Every change leaves it whole: a panic elsewhere does no harm.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was saved of blocks `start..end`, the oldest first where it overlaps; an error if there may be more that it
    /// was not told of.
    pub(crate) fn find(&self, disk: DiskIndex, start: Block, end: Block) -> Result<Vec<Piece>, JournalError> {
        let inner = self.lock();
        if let Some(why) = &inner.ended {
            return Err(JournalError::Refused(format!("{why}: open the point again")));
        }
        let mut found = match &inner.old {
            Some(old) => old.find(disk, start, end)?,
            None => Vec::new(),
        };
        found.extend(inner.table.find(disk, start, end));
        Ok(found)
    }

    fn add(&self, images: &[Image], log: LogId) {
        let mut inner = self.lock();
        images.iter().for_each(|image| inner.table.add(&Piece::whole(*image, log)));
        if inner.table.len() > self.logs.bounds.pieces
            && let Err(error) = inner.spill(&self.logs)
        {
            // Replication must not stop for somebody who only looks.
            *inner = Inner { ended: Some(error.to_string()), ..Inner::default() };
        }
    }
}

impl Inner {
    fn spill(&mut self, logs: &Logs) -> Result<(), JournalError> {
        let mut gatherer = Gatherer::new(&logs.scratch, &logs.bounds);
        if let Some(old) = self.old.take() {
            gatherer.push_all(old)?;
        }
        self.table.take().try_for_each(|piece| gatherer.push(&piece))?;
        self.old = Some(gatherer.finish()?);
        Ok(())
    }
}

/// The open images of a stream.
#[derive(Default)]
pub(crate) struct Watchers {
    overlays: Vec<Weak<Overlay>>,
}

impl Watchers {
    /// One that is told of all images from now on.
    pub(crate) fn watch(&mut self, logs: &Arc<Logs>) -> Arc<Overlay> {
        let overlay = Arc::new(Overlay { logs: Arc::clone(logs), inner: Mutex::default() });
        self.overlays.retain(|overlay| overlay.strong_count() > 0);
        self.overlays.push(Arc::downgrade(&overlay));
        overlay
    }

    /// Tells them of images that are synced, before what they show is overwritten.
    pub(crate) fn saved(&self, images: &[Image], log: LogId) {
        self.overlays.iter().filter_map(Weak::upgrade).for_each(|overlay| overlay.add(images, log));
    }
}

impl Drop for Watchers {
    fn drop(&mut self) {
        for overlay in self.overlays.iter().filter_map(Weak::upgrade) {
            let why = "the VM's stream was stopped since the point was opened";
            *overlay.lock() = Inner { ended: Some(why.into()), ..Inner::default() };
        }
    }
}
