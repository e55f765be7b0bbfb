//! The writing side of a spool: room is taken, frames are written, one sync makes them safe.

use std::io;

use engine::{
    frame::{Frame, Position},
    io::StorageFile,
};

use super::{Full, Spool, SpoolError, Tail, layout::MARK};

impl Spool {
    /// Makes `frames`, which must be the next ones, safe: writes them all and syncs once.
    ///
    /// # Errors
    /// [`SpoolError::Full`], [`SpoolError::Io`]. [`Self::position`] says how many are safe all the same; the
    /// others are forgotten.
    pub fn append(&mut self, frames: &[Frame]) -> Result<(), SpoolError> {
        self.settle()?;
        let (count, room) = self.make_room(frames)?;
        let limit = self.share.bounds().segment;
        for frame in &frames[..count] {
            debug_assert_eq!(frame.header().seq, self.written.0.seq.next());
            let bytes = frame.bytes();
            if self.written.1 > MARK as u64 && self.written.1 + bytes.len() as u64 > limit {
                self.sync()?;
                self.roll()?;
            }
            if let Err(error) = self.tail_file().write_all_at(bytes, self.written.1) {
                return Err(self.fail("write to", error));
            }
            self.written = (Position::after(frame.header()), self.written.1 + bytes.len() as u64);
        }
        self.sync()?;
        room.map_err(SpoolError::Full)
    }

    /// Makes what was written safe.
    fn sync(&mut self) -> Result<(), SpoolError> {
        if self.written.1 == self.last().len {
            self.count();
            return Ok(());
        }
        if let Err(error) = self.tail_file().sync() {
            return Err(self.fail("sync", error));
        }
        let written = self.written;
        let last = self.last_mut();
        (last.end, last.len) = written;
        self.count();
        Ok(())
    }

    /// Takes room for the first of `frames`; says for how many, and why not for all. When a segment that holds
    /// nothing new stands in the way it goes.
    fn make_room(&mut self, frames: &[Frame]) -> Result<(usize, Result<(), Full>), SpoolError> {
        let first_try = self.take_room(frames)?;
        if first_try.0 == 0 && !frames.is_empty() && self.compact()? {
            return self.take_room(frames);
        }
        Ok(first_try)
    }

    fn take_room(&mut self, frames: &[Frame]) -> Result<(usize, Result<(), Full>), SpoolError> {
        let mut free = self.free_space()?;
        for (count, frame) in frames.iter().enumerate() {
            // Each may begin a segment.
            let bytes = (frame.bytes().len() + MARK) as u64;
            if let Err(full) = self.share.take(bytes, free) {
                return Ok((count, Err(full)));
            }
            free = free.saturating_sub(bytes);
        }
        Ok((frames.len(), Ok(())))
    }

    fn free_space(&self) -> Result<u64, SpoolError> {
        self.storage.free_space().map_err(SpoolError::io("find the free space of", &self.dir))
    }

    /// The file that is written to, once [`Self::settle`] has succeeded.
    fn tail_file(&self) -> &dyn StorageFile {
        let Tail::Settled(file) = &self.tail else { unreachable!("every writer settles first") };
        &**file
    }

    /// The written file failed: nothing is known of what was written since the last sync.
    fn fail(&mut self, doing: &'static str, error: io::Error) -> SpoolError {
        let path = self.last().path(&self.dir);
        self.forget_unsynced();
        SpoolError::io(doing, path)(error)
    }
}
