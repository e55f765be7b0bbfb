//! How segments come and go, and how the folder is made to agree with memory.
//!
//! The mark of what is durable at the master target is itself durable before a segment is removed for being
//! retired, and before frames are discarded. So a start can leave out what is older than the mark, whichever of
//! the removals lasted.

use std::path::Path;

use engine::{
    frame::Position,
    io::{Storage, remove_file_durably},
    units::StreamId,
};

use super::{
    Spool, SpoolError, Tail,
    layout::{self, MARK, magic},
    segment::{self, Segment},
    unborn,
};

impl Spool {
    /// The master target holds everything up to `position`, where the stream has been: old segments go.
    ///
    /// # Errors
    /// [`SpoolError::Io`], then some are removed later.
    pub fn retire(&mut self, position: Position) -> Result<(), SpoolError> {
        debug_assert!(position.seq <= self.position().seq);
        if position.seq > self.durable.seq {
            self.durable = position;
            // Not synced, and failure does no harm: an old mark only makes the agent send again what it need not.
            // kill -9 keeps what was written, so it is exact after everything but a power cut.
            let _ = self.write_mark(false);
        }
        self.drop_retired()
    }

    /// Forgets all frames; the stream goes on after `base`, where the master target stands.
    ///
    /// # Errors
    /// [`SpoolError::Io`], [`SpoolError::Full`]; the frames are forgotten all the same.
    pub fn discard_and_adopt(&mut self, base: Position) -> Result<(), SpoolError> {
        self.segments.clear();
        self.segments.push_back(unborn(base));
        self.tail = Tail::Unborn;
        self.strangers = true;
        self.reader = None;
        self.durable = base;
        self.stale_mark = true;
        self.forget_unsynced();
        self.settle()
    }

    /// Puts an empty segment in place of the last one if the master target has all of it. Says whether it did.
    ///
    /// # Errors
    /// [`SpoolError::Io`], [`SpoolError::Full`].
    pub fn compact(&mut self) -> Result<bool, SpoolError> {
        self.settle()?;
        let worthwhile =
            self.is_drained() && self.written.0 == self.position() && self.written.1 > MARK as u64;
        if worthwhile {
            self.roll()?;
            self.drop_retired()?;
        }
        Ok(worthwhile)
    }

    /// Begins the next segment, after a sync.
    pub(super) fn roll(&mut self) -> Result<(), SpoolError> {
        debug_assert_eq!(self.written.1, self.last().len);
        self.segments.push_back(unborn(self.position()));
        self.tail = Tail::Unborn;
        self.forget_unsynced();
        self.settle()
    }

    /// Makes the folder agree with memory, if it may not.
    pub(super) fn settle(&mut self) -> Result<(), SpoolError> {
        if self.stale_mark {
            // Before the frames go: a mark ahead of the master target must not outlive them.
            self.write_mark(true)?;
            self.stale_mark = false;
        }
        if self.strangers {
            self.remove_strangers()?;
        }
        let path = self.last().path(&self.dir);
        let file = match self.tail {
            Tail::Settled(_) => return Ok(()),
            Tail::Unsure => {
                let cut = || {
                    let file = self.storage.open(&path)?;
                    if file.len()? != self.last().len {
                        file.set_len(self.last().len)?;
                    }
                    // Also when nothing is cut: what a killed process wrote may never have been synced.
                    file.sync()?;
                    self.storage.sync_dir(&self.dir)?;
                    self.storage.sync_dir(Path::new(""))?;
                    Ok(file)
                };
                cut().map_err(SpoolError::io("make sure of", &path))?
            }
            Tail::Unborn => {
                let create = || {
                    if self.storage.exists(&path)? {
                        remove_file_durably(&*self.storage, &path)?;
                    }
                    segment::create(&*self.storage, &self.dir, self.description.stream.id, self.last().start)
                };
                let (segment, file) = create().map_err(SpoolError::io("create", &path))?;
                debug_assert_eq!(segment, *self.last());
                file
            }
        };
        self.tail = Tail::Settled(file);
        self.count();
        Ok(())
    }

    fn write_mark(&mut self, safely: bool) -> Result<(), SpoolError> {
        let path = self.dir.join(layout::DURABLE);
        let raw = layout::encode(magic::DURABLE, self.description.stream.id, &self.durable);
        let opened = self.mark.take();
        let write = || {
            let file = match opened {
                Some(file) => file,
                None if self.storage.exists(&path)? => self.storage.open(&path)?,
                None => self.storage.create(&path)?,
            };
            file.write_all_at(&raw, 0)?;
            if safely {
                file.sync()?;
                self.storage.sync_dir(&self.dir)?;
            }
            Ok(file)
        };
        self.mark = Some(write().map_err(SpoolError::io("write", &path))?);
        Ok(())
    }

    /// Removes segments of which the master target has everything, except the last.
    pub(super) fn drop_retired(&mut self) -> Result<(), SpoolError> {
        let retired = |segment: &Segment| segment.end.seq <= self.durable.seq;
        let last = self.segments.len() - 1;
        let count = self.segments.iter().take(last).take_while(|segment| retired(segment)).count();
        if count > 0 {
            // Before they go: should only some removals last, the next start must know where to begin.
            self.write_mark(true)?;
            self.segments.drain(..count);
            self.strangers = true;
            self.count();
        }
        if let Some(reader) = &mut self.reader {
            reader.leave_retired(&self.segments[0]);
        }
        if self.strangers {
            self.remove_strangers()?;
        }
        Ok(())
    }

    /// Removes segment files that are not in `segments`.
    fn remove_strangers(&mut self) -> Result<(), SpoolError> {
        let names = self.storage.list(&self.dir).map_err(SpoolError::io("list", &self.dir))?;
        for name in names.iter().filter(|name| layout::first_of(name).is_some()) {
            if self.segments.iter().all(|segment| layout::segment_name(&segment.start) != *name) {
                let path = self.dir.join(name);
                remove_file_durably(&*self.storage, &path).map_err(SpoolError::io("remove", &path))?;
            }
        }
        self.strangers = false;
        Ok(())
    }
}

/// The last position known to be durable at the master target. None, if it cannot be read or is damaged: then
/// the agent sends again what it need not, and segments that could have gone stay a while.
pub(super) fn read_mark(storage: &dyn Storage, dir: &Path, stream: StreamId) -> Option<Position> {
    let mut raw = [0; MARK];
    let file = storage.open(&dir.join(layout::DURABLE)).ok()?;
    file.read_exact_at(&mut raw, 0).ok()?;
    layout::decode(magic::DURABLE, stream, &raw).ok()
}
