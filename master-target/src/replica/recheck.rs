//! Closed layers read again, a little at a time, to find out whether their logs are still what was written.

use std::sync::Arc;

use super::Replica;
use crate::journal::{Image, JournalError, LogFile, read_log};

/// A log whose images are being read.
pub(crate) struct LayerCheck {
    log: Arc<LogFile>,
    images: Vec<Image>,
    next: usize,
}

impl Replica {
    /// The first closed layer behind `layer` whose log is needed.
    pub(crate) fn next_closed_layer(&self, layer: u64) -> Option<u64> {
        let state = self.state();
        state.points.range(layer.max(state.oldest) + 1..).next().map(|(layer, _)| *layer)
    }

    /// Begins with the log of a layer: reads its header and those of its entries.
    pub(crate) fn check_layer(&self, layer: u64) -> Result<LayerCheck, JournalError> {
        let (log, scan) = read_log(&self.storage, &self.dir, self.state(), layer)?
            .ok_or_else(|| JournalError::Missing { path: crate::journal::log_path(&self.dir, layer) })?;
        Ok(LayerCheck { log: Arc::clone(log.file()), images: scan.images, next: 0 })
    }
}

impl LayerCheck {
    /// Reads images of about `most` bytes; how many bytes there were, and `None` when all were read.
    pub(crate) fn step(&mut self, most: u64, damage: &mut Vec<JournalError>) -> Option<u64> {
        let mut bytes = 0;
        while bytes < most {
            let Some(image) = self.images.get(self.next) else {
                return (bytes > 0).then_some(bytes);
            };
            self.next += 1;
            bytes += image.extent.bytes();
            damage.extend(self.log.read_image(image).err());
        }
        Some(bytes)
    }
}
