//! The before-images that were saved since somebody began to look at a point, for the one who looks.
//!
//! Replication goes on under an open image. Whatever it is about to overwrite it saves first, and tells every open
//! image where: between that and the write, and for ever after, the block is found here. The first image of a block
//! is the one that counts.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use engine::{
    extent::Extent,
    units::{BLOCK_BYTES, Block, DiskIndex},
};

use super::{Image, JournalError, log::LogFile};

/// Blocks and where their bytes are.
#[derive(Clone)]
pub(crate) struct Found {
    /// Which blocks.
    pub(crate) extent: Extent,
    image: Image,
    log: Arc<LogFile>,
}

impl Found {
    /// Blocks of an image, or some of them.
    pub(crate) fn new(extent: Extent, image: Image, log: Arc<LogFile>) -> Self {
        Self { extent, image, log }
    }

    /// Whether they are zeros.
    pub(crate) fn is_zeros(&self) -> bool {
        self.image.zeros
    }

    /// Their bytes, checked.
    pub(crate) fn read(&self) -> Result<Vec<u8>, JournalError> {
        let bytes = self.log.read_image(&self.image)?;
        let skip = (self.extent.start.0 - self.image.extent.start.0) * BLOCK_BYTES;
        Ok(bytes[skip as usize..][..self.extent.bytes() as usize].to_vec())
    }
}

/// What was saved since an image was opened.
pub(crate) struct Overlay {
    inner: Mutex<Inner>,
}

struct Inner {
    /// By disk: first block → what was found there first.
    disks: Vec<BTreeMap<u64, Found>>,
    /// Nobody tells it of new images any more.
    ended: bool,
}

impl Overlay {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Every change leaves it whole: a panic elsewhere does no harm.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was saved of blocks `start..end`, in order; an error if there may be more that it was not told of.
    pub(crate) fn find(&self, disk: DiskIndex, start: Block, end: Block) -> Result<Vec<Found>, JournalError> {
        let inner = self.lock();
        if inner.ended {
            let what = "the VM's stream was stopped since the point was opened: open it again";
            return Err(JournalError::Refused(what.into()));
        }
        let Some(map) = inner.disks.get(usize::from(disk.0)) else { return Ok(Vec::new()) };
        let before = map.range(..start.0).next_back().map(|(_, found)| found);
        let found = before.into_iter().chain(map.range(start.0..end.0).map(|(_, found)| found));
        let cut = found.filter_map(|found| {
            let from = found.extent.start.max(start);
            let to = found.extent.end().min(end);
            (from < to).then(|| Found {
                extent: Extent { start: from, blocks: (to.0 - from.0) as u32 },
                ..found.clone()
            })
        });
        Ok(cut.collect())
    }

    fn add(&self, image: &Image, log: &Arc<LogFile>) {
        let (start, end) = (image.extent.start, image.extent.end());
        let mut inner = self.lock();
        let Some(map) = inner.disks.get_mut(usize::from(image.disk.0)) else { return };
        let mut at =
            map.range(..=start.0).next_back().map_or(start, |(_, found)| found.extent.end().max(start));
        while at < end {
            let next = map.range(at.0..end.0).next().map(|(_, found)| found.extent);
            let to = next.map_or(end, |next| next.start);
            if at < to {
                let extent = Extent { start: at, blocks: (to.0 - at.0) as u32 };
                map.insert(at.0, Found::new(extent, *image, Arc::clone(log)));
            }
            at = next.map_or(end, Extent::end);
        }
    }
}

/// The open images of a stream.
#[derive(Default)]
pub(crate) struct Watchers {
    overlays: Vec<Weak<Overlay>>,
}

impl Watchers {
    /// One that is told of all images from now on.
    pub(crate) fn watch(&mut self, disks: usize) -> Arc<Overlay> {
        let inner = Inner { disks: vec![BTreeMap::new(); disks], ended: false };
        let overlay = Arc::new(Overlay { inner: Mutex::new(inner) });
        self.overlays.retain(|overlay| overlay.strong_count() > 0);
        self.overlays.push(Arc::downgrade(&overlay));
        overlay
    }

    /// Tells them of images that are synced, before what they show is overwritten.
    pub(crate) fn saved(&self, images: &[Image], log: &Arc<LogFile>) {
        for overlay in self.overlays.iter().filter_map(Weak::upgrade) {
            images.iter().for_each(|image| overlay.add(image, log));
        }
    }
}

impl Drop for Watchers {
    fn drop(&mut self) {
        for overlay in self.overlays.iter().filter_map(Weak::upgrade) {
            overlay.lock().ended = true;
        }
    }
}
