//! A layer: a run of epochs whose before-images are in one undo log, and the names of its files.

use std::path::{Path, PathBuf};

use engine::limits;
use serde::{Deserialize, Serialize};

/// Which log of a layer: merging makes a new one, under a new name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogId {
    /// The last epoch's number among the layers.
    pub layer: u64,
    /// 0 as replication wrote it, then one more with every merge.
    pub generation: u32,
}

impl LogId {
    /// The log that replication or a restore writes.
    #[must_use]
    pub fn first(layer: u64) -> Self {
        Self { layer, generation: 0 }
    }

    /// Its file in a stream's folder.
    #[must_use]
    pub fn path(self, dir: &Path) -> PathBuf {
        dir.join(format!("{}.undo", self.stem()))
    }

    /// The file of its index.
    #[must_use]
    pub fn index_path(self, dir: &Path) -> PathBuf {
        dir.join(format!("{}.index", self.stem()))
    }

    fn stem(self) -> String {
        match self.generation {
            0 => format!("layer-{:010}", self.layer),
            merged => format!("layer-{:010}-{merged:04}", self.layer),
        }
    }
}

/// A closed layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// Its first epoch's number.
    pub first: u64,
    /// Its last.
    pub last: u64,
    /// Of its log.
    pub generation: u32,
    /// Bytes of its log, whole.
    pub log_bytes: u64,
}

impl Layer {
    /// Its log.
    #[must_use]
    pub fn log(&self) -> LogId {
        LogId { layer: self.last, generation: self.generation }
    }

    pub(super) fn is_sensible(&self) -> bool {
        0 < self.first && self.first <= self.last && self.last < limits::STREAM_NUMBER
    }
}
