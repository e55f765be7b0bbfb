//! The journal read again, a little at a time, to find out whether its files are still what was written.
//!
//! What can be made again is: indexes from their logs, the catalogue from memory. A log cannot.

use std::path::PathBuf;

use super::Replica;
use crate::journal::{
    Cursor, JournalError, LogFile, LogId, Place,
    index::layout::{PAGE, RECORD},
};

/// A place of the journal that is not what was written.
pub(crate) struct Rot {
    /// The file.
    pub(crate) path: PathBuf,
    /// The first byte that may be wrong.
    pub(crate) at: u64,
    /// How many may be.
    pub(crate) bytes: u64,
    /// What is wrong, and what was done.
    pub(crate) what: String,
}

/// A layer that is being read.
pub(crate) struct LayerCheck {
    log: LogFile,
    at: Place,
    bytes: u64,
    index: Option<Cursor>,
}

impl Replica {
    /// The first layer behind `layer` that has a log, the open one included.
    pub(crate) fn next_layer(&self, layer: u64) -> Option<u64> {
        let open = self.open.log.as_ref().map(|_| self.state().open).filter(|open| *open > layer);
        self.state().layers.range(layer + 1..).map(|(layer, _)| *layer).next().or(open)
    }

    /// Begins with a layer: reads the headers of log and index. One that was merged meanwhile has nothing to check.
    pub(crate) fn check_layer(&mut self, layer: u64, found: &mut Vec<Rot>) -> Option<LayerCheck> {
        let closed = self.state().layers.get(&layer).copied();
        let (id, bytes) = match (closed, &self.open.log) {
            (Some(closed), _) => (closed.log(), closed.log_bytes),
            (None, Some(log)) if layer == self.state().open => (log.file().id(), log.bytes()),
            _ => return None,
        };
        let index = closed.and_then(|closed| {
            self.logs.index_unread(&closed).unwrap_or_else(|error| {
                self.index_is_damaged(closed.log(), error, found);
                None
            })
        });
        let log = self.logs.open_anew(id).and_then(|log| {
            closed.map_or(Ok(()), |_| log.check_len(bytes))?;
            Ok(log)
        });
        match log {
            Ok(log) => {
                Some(LayerCheck { log, at: Place::START, bytes, index: index.map(|index| index.cursor()) })
            }
            Err(error) => {
                found.push(Rot::of(error, bytes));
                None
            }
        }
    }

    /// Goes on reading a layer; returns how much was read, and `None` at its end.
    pub(crate) fn go_on_with(
        &mut self,
        check: &mut LayerCheck,
        most: u64,
        found: &mut Vec<Rot>,
    ) -> Option<u64> {
        let mut read = check.read_log(most, found);
        while read < most
            && let Some(index) = &mut check.index
        {
            match index.next() {
                Ok(Some(_)) => read += RECORD as u64,
                Ok(None) => check.index = None,
                Err(error) => {
                    check.index = None;
                    self.index_is_damaged(check.log.id(), error, found);
                }
            }
        }
        (read > 0).then_some(read)
    }

    fn index_is_damaged(&mut self, log: LogId, error: JournalError, found: &mut Vec<Rot>) {
        self.indexed.remove(&log);
        if let Err(error) = self.logs.remove_index(log) {
            tracing::warn!(%error, "a damaged index cannot be removed, and is not used");
        }
        let what = "the index has rotted; it is made again from its log".into();
        found.push(Rot { what, ..Rot::of(error, PAGE as u64) });
    }

    /// Reads the catalogue.
    pub(crate) fn check_catalogue(&mut self, found: &mut Vec<Rot>) {
        match self.catalogue.recheck() {
            Ok(None) => {}
            Ok(Some(place)) => found.push(Rot {
                path: self.catalogue.path(),
                at: place.start,
                bytes: place.end - place.start,
                what: "the catalogue had rotted there; it was written anew from memory".into(),
            }),
            Err(error) => found.push(Rot::of(error, 0)),
        }
    }
}

impl LayerCheck {
    /// Reads images of about `most` bytes.
    fn read_log(&mut self, most: u64, found: &mut Vec<Rot>) -> u64 {
        let mut read = 0;
        while read < most && self.at.offset() < self.bytes {
            let at = self.at.offset();
            match self.log.entry(&mut self.at, self.bytes) {
                Ok(None) => {}
                Ok(Some(image)) => {
                    let bytes = image.extent.bytes();
                    found.extend(self.log.read_image(&image).err().map(|error| Rot::of(error, bytes)));
                }
                // What follows cannot be told from it.
                Err(error) => {
                    found.push(Rot::of(error, self.bytes - at));
                    self.bytes = 0;
                }
            }
            read += self.at.offset().saturating_sub(at);
        }
        read
    }
}

impl Rot {
    fn of(error: JournalError, bytes: u64) -> Self {
        let what = error.to_string();
        let (path, at) = match error {
            JournalError::Damaged { path, at, .. } => (path, at),
            JournalError::Missing { path }
            | JournalError::Io { path, .. }
            | JournalError::NoSpace { path }
            | JournalError::Version { path, .. } => (path, 0),
            JournalError::Refused(_) => (PathBuf::new(), 0),
        };
        Self { path, at, bytes, what }
    }
}
