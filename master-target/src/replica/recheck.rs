//! Closed layers read again, a little at a time, to find out whether their logs are still what was written.

use super::Replica;
use crate::journal::{JournalError, LogFile, Place};

/// A log whose images are being read.
pub(crate) struct LayerCheck {
    log: LogFile,
    at: Place,
    bytes: u64,
}

impl Replica {
    /// The first closed layer behind `layer` whose log is needed, by its last epoch.
    pub(crate) fn next_closed_layer(&self, layer: u64) -> Option<u64> {
        self.state().layers.range(layer + 1..).next().map(|(layer, _)| *layer)
    }

    /// Begins with the log of a layer: reads its header. One that was merged meanwhile has nothing to check.
    pub(crate) fn check_layer(&self, layer: u64) -> Result<Option<LayerCheck>, JournalError> {
        let Some(layer) = self.state().layers.get(&layer) else { return Ok(None) };
        let log = self.logs.open_anew(layer)?;
        Ok(Some(LayerCheck { log, at: Place::START, bytes: layer.log_bytes }))
    }
}

impl LayerCheck {
    /// Reads images of about `most` bytes; how many bytes there were, and `None` when all were read.
    pub(crate) fn step(&mut self, most: u64, damage: &mut Vec<JournalError>) -> Option<u64> {
        let mut bytes = 0;
        while bytes < most && self.at.offset() < self.bytes {
            match self.log.entry(&mut self.at, self.bytes) {
                Ok(None) => {}
                Ok(Some(image)) => {
                    bytes += image.extent.bytes();
                    damage.extend(self.log.read_image(&image).err());
                }
                // What follows cannot be told from it.
                Err(error) => {
                    damage.push(error);
                    self.bytes = 0;
                    return Some(bytes);
                }
            }
        }
        (bytes > 0).then_some(bytes)
    }
}
