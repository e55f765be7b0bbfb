//! The reading side of a spool: from the master target's position on, frame by frame, each checked again.
//!
//! Nothing is kept in memory for it but a place in a file.

use engine::{
    frame::{Frame, Header, Position, layout::HEADER},
    io::StorageFile,
    units::Seq,
};

use super::{
    Loss, Spool, SpoolError, Tail,
    layout::MARK,
    segment::{self, Flaw, ReadError, Segment},
};

/// Where the next frame is read.
pub(super) struct Reader {
    /// Which segment: its `start.seq`.
    segment: Seq,
    offset: u64,
    /// The position before that frame.
    position: Position,
    pub(super) file: Option<Box<dyn StorageFile>>,
}

impl Reader {
    fn at_start_of(segment: &Segment) -> Self {
        Self { segment: segment.start.seq, offset: MARK as u64, position: segment.start, file: None }
    }

    fn pass(&mut self, header: &Header) {
        self.position = Position::after(header);
        self.offset += HEADER as u64 + u64::from(header.body_len);
    }

    /// Its segment and those before `front` are gone.
    pub(super) fn leave_retired(&mut self, front: &Segment) {
        if self.segment < front.start.seq {
            *self = Self::at_start_of(front);
        }
    }
}

impl Spool {
    /// Whether the stream can go on after `position`: it is the base or the place after a frame held. If so,
    /// [`Self::read_next`] reads from there.
    ///
    /// # Errors
    /// [`SpoolError::Io`]; [`SpoolError::Damaged`], then call [`Self::cut`].
    pub fn join(&mut self, position: &Position) -> Result<bool, SpoolError> {
        self.reader = None;
        if position.seq > self.position().seq {
            return Ok(false);
        }
        let Some(segment) = self.segments.iter().rfind(|segment| segment.start.seq <= position.seq) else {
            return Ok(false);
        };
        let mut reader = Reader::at_start_of(segment);
        let segment = segment.clone();
        while reader.position.seq < position.seq {
            let header = self.at(&mut reader, |file, offset, before| {
                segment::read_header(file, offset, segment.len, self.description.stream.id, before)
            });
            match header {
                Ok(header) => reader.pass(&header),
                Err(error) => return Err(self.stop(reader, error)),
            }
        }
        let joined = reader.position == *position;
        self.reader = joined.then_some(reader);
        Ok(joined)
    }

    /// The next frame, after [`Self::join`]; none if all that is safe here has been read.
    ///
    /// # Errors
    /// [`SpoolError::Io`]; [`SpoolError::Damaged`], then call [`Self::cut`].
    pub fn read_next(&mut self) -> Result<Option<Frame>, SpoolError> {
        let end = self.position().seq;
        let Some(mut reader) = self.reader.take_if(|reader| reader.position.seq < end) else {
            return Ok(None);
        };
        let mut index = self.index_of(&reader);
        if reader.position.seq == self.segments[index].end.seq {
            index += 1;
            reader = Reader::at_start_of(&self.segments[index]);
        }
        let len = self.segments[index].len;
        let frame = self.at(&mut reader, |file, offset, before| {
            segment::read_frame(file, offset, len, self.description.stream.id, before)
        });
        match frame {
            Ok(frame) => {
                reader.pass(frame.header());
                self.reader = Some(reader);
                Ok(Some(frame))
            }
            Err(error) => Err(self.stop(reader, error)),
        }
    }

    /// Gives up everything from the damage on that the last [`SpoolError::Damaged`] told of. The agent must be
    /// told that the stream ends there now; it sends the content again, and [`Self::read_next`] goes on with it.
    ///
    /// # Errors
    /// [`SpoolError::Io`]; the frames are given up all the same.
    ///
    /// # Panics
    /// Unless the last call of [`Self::join`] or [`Self::read_next`] reported damage.
    pub fn cut(&mut self, flaw: Flaw) -> Result<Loss, SpoolError> {
        #[expect(clippy::expect_used, reason = "the contract, and nothing from outside decides it")]
        let reader = self.reader.as_ref().expect("damage was reported");
        let (position, offset) = (reader.position, reader.offset);
        let index = self.index_of(reader);
        let path = self.segments[index].path(&self.dir);
        let bytes: u64 = self.segments.iter().skip(index).map(|segment| segment.len).sum();
        let loss =
            Loss { path, offset: reader.offset, bytes: bytes - reader.offset, in_the_middle: true, flaw };
        self.segments.truncate(index + 1);
        let last = self.last_mut();
        (last.end, last.len) = (position, offset);
        self.tail = Tail::Unsure;
        self.strangers = true;
        self.forget_unsynced();
        if self.durable.seq > position.seq {
            self.durable = position;
        }
        self.settle()?;
        Ok(loss)
    }

    /// Reads something at `reader`, whose file is opened if need be.
    fn at<T>(
        &self,
        reader: &mut Reader,
        read: impl FnOnce(&dyn StorageFile, u64, &Position) -> Result<T, ReadError>,
    ) -> Result<T, ReadError> {
        let file = match &mut reader.file {
            Some(file) => file,
            None => {
                let path = self.segments[self.index_of(reader)].path(&self.dir);
                reader.file.insert(self.storage.open(&path).map_err(ReadError::Io)?)
            }
        };
        read(&**file, reader.offset, &reader.position)
    }

    /// Stays at the place of an error.
    fn stop(&mut self, reader: Reader, error: ReadError) -> SpoolError {
        let path = self.segments[self.index_of(&reader)].path(&self.dir);
        let offset = reader.offset;
        self.reader = Some(reader);
        match error {
            ReadError::Io(source) => SpoolError::io("read", path)(source),
            ReadError::Flaw(flaw) => SpoolError::Damaged { path, offset, flaw },
        }
    }

    /// Segments of readers are in `segments`: retiring and adopting move or drop the reader.
    fn index_of(&self, reader: &Reader) -> usize {
        self.segments.partition_point(|segment| segment.start.seq < reader.segment)
    }
}
