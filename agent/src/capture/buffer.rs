//! Captured blocks in memory, until they are in frames.
//!
//! Kept by granule, so that a block marked again is dropped alone. Zeros take no room.

use std::collections::BTreeMap;

use engine::{
    extent_set::ExtentSet,
    limits,
    units::{Block, DiskIndex, is_zero},
};

use super::contents::{Contents, FrameContent};

/// Granules of all disks, as read.
#[derive(Debug, Default)]
pub struct Buffer {
    /// By disk and first block. A granule of zeros is kept as its length alone.
    granules: BTreeMap<(DiskIndex, Block), Granule>,
    bytes: usize,
}

#[derive(Debug)]
enum Granule {
    Data(Box<[u8]>),
    Zero(usize),
}

impl Granule {
    fn held(&self) -> usize {
        match self {
            Granule::Data(bytes) => bytes.len(),
            Granule::Zero(_) => 0,
        }
    }

    fn append_to(&self, run: &mut Vec<u8>) {
        match self {
            Granule::Data(bytes) => run.extend_from_slice(bytes),
            Granule::Zero(len) => run.resize(run.len() + len, 0),
        }
    }
}

impl Buffer {
    /// Bytes held, without the zeros.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether it holds nothing at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.granules.is_empty()
    }

    /// Whether it holds the granule that begins at `first`.
    #[must_use]
    pub fn contains(&self, disk: DiskIndex, first: Block) -> bool {
        self.granules.contains_key(&(disk, first))
    }

    /// Appends the granule that begins at `first` to `bytes`; false if it is not there.
    pub fn append_to(&self, disk: DiskIndex, first: Block, bytes: &mut Vec<u8>) -> bool {
        self.granules.get(&(disk, first)).map(|granule| granule.append_to(bytes)).is_some()
    }

    /// Keeps a granule, in place of what was kept of it.
    pub fn insert(&mut self, disk: DiskIndex, first: Block, bytes: &[u8]) {
        let zero = is_zero(bytes);
        let granule = if zero { Granule::Zero(bytes.len()) } else { Granule::Data(bytes.into()) };
        self.bytes += granule.held();
        let before = self.granules.insert((disk, first), granule);
        self.forget(before);
    }

    /// Drops every granule of `marked`, a set of whole granules.
    pub fn remove(&mut self, disk: DiskIndex, marked: &ExtentSet) {
        for extent in marked.extents() {
            while let Some((&key, _)) = self.granules.range((disk, extent.start)..(disk, extent.end())).next()
            {
                let granule = self.granules.remove(&key);
                self.forget(granule);
            }
        }
    }

    /// Drops everything.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// Moves about one frame's worth out, in the order of disks and blocks; `granule` tells a disk's blocks per
    /// granule. Empty when nothing is left.
    pub fn take_contents(&mut self, granule: impl Fn(DiskIndex) -> usize) -> Vec<FrameContent> {
        let mut made = Vec::new();
        let Some((&(disk, _), _)) = self.granules.first_key_value() else { return made };
        let mut contents = Contents::new(disk, granule(disk));
        let mut taken = 0;
        while taken < limits::FRAME_DATA_TARGET
            && let Some((first, run)) = self.take_run(disk)
        {
            taken += run.len();
            contents.add(first, &run, &mut made);
        }
        contents.finish(&mut made);
        made
    }

    /// Moves the first run of neighbours out, at most about [`limits::IO_BYTES`].
    fn take_run(&mut self, disk: DiskIndex) -> Option<(Block, Vec<u8>)> {
        let first = self.granules.first_key_value().filter(|((of, _), _)| *of == disk)?.0.1;
        let mut run = Vec::new();
        while run.len() < limits::IO_BYTES {
            let next = Block::containing(first.offset() + run.len() as u64);
            let Some(granule) = self.granules.remove(&(disk, next)) else { break };
            granule.append_to(&mut run);
            self.forget(Some(granule));
        }
        Some((first, run))
    }

    fn forget(&mut self, granule: Option<Granule>) {
        self.bytes -= granule.map_or(0, |granule| granule.held());
    }
}

#[cfg(test)]
mod tests {
    use engine::{extent::Extent, frame::Content};

    use super::*;

    #[test]
    fn gives_back_the_newest_of_each_granule_in_order() {
        let mut buffer = Buffer::default();
        let (a, b) = (DiskIndex(0), DiskIndex(1));
        buffer.insert(b, Block(2), &[5; 4096]);
        buffer.insert(a, Block(8), &[1; 8192]);
        buffer.insert(a, Block(10), &[0; 8192]);
        buffer.insert(a, Block(4), &[3; 8192]);
        buffer.insert(a, Block(8), &[2; 8192]);
        assert_eq!(buffer.bytes(), 2 * 8192 + 4096);
        buffer.remove(a, &[Extent::new(4, 2)].into_iter().collect());
        assert_eq!(buffer.bytes(), 8192 + 4096);

        let of = |disk| if disk == a { 2 } else { 1 };
        let made = buffer.take_contents(of).remove(0);
        assert_eq!((made.disk, made.covers.extents().next()), (a, Some(Extent::new(8, 4))));
        let content = Content::parse(made.bytes, made.extents).unwrap();
        assert_eq!(content.extents().count(), 2, "data and zeros");
        assert_eq!(buffer.take_contents(of).remove(0).disk, b);
        assert!(buffer.is_empty() && buffer.bytes() == 0);
        assert!(buffer.take_contents(of).is_empty());
    }
}
