//! Disks of stamped blocks: every write says which it is, so that an image tells what it holds and what it lacks.
//!
//! A block's content follows from its [`Stamp`], and so a torn, stale or foreign block is told from a good one.
//! A stamp also names the write that was acknowledged before its own was issued, its *cause*, on any disk.
//! [`History`] knows when each write began and when it was acknowledged. An image is a possible picture of one
//! instant T if no write in it began after T, and none that it lacks was acknowledged before T: such a T exists
//! just if the latest beginning of what is there is not after the earliest acknowledgement of what is not.

use std::{
    collections::HashMap,
    fs::{File, OpenOptions},
    io,
    ops::RangeInclusive,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
    sync::{Mutex, MutexGuard},
    time::Instant,
};

use engine::{
    io::AlignedBuf,
    units::{BLOCK_BYTES, Digest},
};
use rustix::fs::OFlags;

const BLOCK: usize = BLOCK_BYTES as usize;

/// Bytes of a stamp in a block.
const STAMP: usize = 48;

/// Which write a block is of. Version 0 is what [`Disks::fill`] writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Write {
    /// Index of the disk.
    pub disk: usize,
    /// Number of the block.
    pub block: u64,
    /// How many writes to it there were, with this one.
    pub version: u64,
}

/// A write and the one acknowledged before it was issued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// This one.
    pub write: Write,
    /// The other; of version 0 if there was none.
    pub cause: Write,
}

impl Stamp {
    /// The block's whole content: incompressible, and unlike that of any other stamp.
    #[must_use]
    pub fn content(self) -> AlignedBuf {
        let mut block = AlignedBuf::zeroed(BLOCK);
        for (write, place) in [self.write, self.cause].into_iter().zip(block.chunks_exact_mut(STAMP / 2)) {
            let numbers = [write.disk as u64, write.block, write.version];
            numbers
                .iter()
                .zip(place.chunks_exact_mut(8))
                .for_each(|(n, at)| at.copy_from_slice(&n.to_le_bytes()));
        }
        // A xorshift generator is not to be predicted by zstd and much faster than a hash.
        let seed = Digest::of(&block[..STAMP]).0;
        let mut state = u64::from_le_bytes(*seed.first_chunk().unwrap()) | 1;
        for word in block[STAMP..].chunks_exact_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_le_bytes());
        }
        block
    }

    /// Reads a block that must be whole.
    ///
    /// # Errors
    /// If it is not.
    pub fn read(block: &[u8]) -> Result<Self, String> {
        let number = |at: usize| u64::from_le_bytes(*block[at * 8..].first_chunk().unwrap());
        let write = |at| Write { disk: number(at) as usize, block: number(at + 1), version: number(at + 2) };
        let stamp = Self { write: write(0), cause: write(3) };
        let content = stamp.content();
        match block.iter().zip(content.iter()).position(|(found, meant)| found != meant) {
            None => Ok(stamp),
            Some(at) => Err(format!("torn or damaged at byte {at}; it says {stamp:?}")),
        }
    }
}

/// When writes began and when they were acknowledged.
#[derive(Debug, Default)]
pub struct History(Mutex<HashMap<(usize, u64), Vec<Span>>>);

#[derive(Clone, Copy, Debug)]
struct Span {
    began: Instant,
    acknowledged: Option<Instant>,
}

impl History {
    fn begin(&self, disk: usize, block: u64) -> Write {
        let mut spans = self.lock();
        let spans = spans.entry((disk, block)).or_default();
        spans.push(Span { began: Instant::now(), acknowledged: None });
        Write { disk, block, version: spans.len() as u64 }
    }

    fn acknowledge(&self, write: Write) {
        let now = Instant::now();
        let mut spans = self.lock();
        spans.get_mut(&(write.disk, write.block)).unwrap()[write.version as usize - 1].acknowledged =
            Some(now);
    }

    fn acknowledge_newest(&self, disk: usize, block: u64) {
        let now = Instant::now();
        self.lock().get_mut(&(disk, block)).unwrap().last_mut().unwrap().acknowledged = Some(now);
    }

    /// Writes so far.
    #[must_use]
    pub fn writes(&self) -> usize {
        self.lock().values().map(Vec::len).sum()
    }

    /// Checks that `image`, the blocks from 0 on of each disk, is the disks at one instant within `when`, that no
    /// block is torn, and that no effect stands without its cause.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn check(&self, image: &[Vec<u8>], when: RangeInclusive<Instant>) -> Result<(), String> {
        let stamps = image.iter().enumerate().map(|(disk, bytes)| stamps(disk, bytes));
        let stamps: Vec<Vec<Stamp>> = stamps.collect::<Result<_, _>>()?;
        for stamp in stamps.iter().flatten() {
            let cause = stamp.cause;
            let found = stamps[cause.disk][cause.block as usize].write;
            if found.version < cause.version {
                return Err(format!(
                    "effect without its cause: {stamp:?} is there, of its cause only {found:?}"
                ));
            }
        }
        let spans = self.lock();
        let (mut from, mut until) = (*when.start(), *when.end());
        let (mut newest, mut oldest_missing) = (None, None);
        for write in stamps.iter().flatten().map(|stamp| stamp.write) {
            let Some(spans) = spans.get(&(write.disk, write.block)) else { continue };
            let there = write.version.checked_sub(1).map(|index| spans.get(index as usize));
            if let Some(span) = there {
                let span = span.ok_or_else(|| format!("{write:?} was never written"))?;
                if span.began > from {
                    (from, newest) = (span.began, Some(write));
                }
            }
            if let Some(lost) = spans.get(write.version as usize).and_then(|span| span.acknowledged)
                && lost < until
            {
                (until, oldest_missing) = (lost, Some(write));
            }
        }
        if from <= until {
            return Ok(());
        }
        let late = (from - until).as_micros();
        Err(format!(
            "no one instant: {newest:?} (`None`: the wish for the point) began {late} µs after the write that follows \
             {oldest_missing:?} (`None`: the point's seal) was acknowledged"
        ))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(usize, u64), Vec<Span>>> {
        self.0.lock().unwrap()
    }
}

fn stamps(disk: usize, bytes: &[u8]) -> Result<Vec<Stamp>, String> {
    let read = |(block, bytes)| {
        let stamp = Stamp::read(bytes).map_err(|error| format!("disk {disk}, block {block}: {error}"))?;
        let at = (stamp.write.disk, stamp.write.block);
        if at == (disk, block as u64) {
            Ok(stamp)
        } else {
            Err(format!("disk {disk}, block {block} is {stamp:?}"))
        }
    };
    bytes.chunks_exact(BLOCK).enumerate().map(read).collect()
}

/// The disks under test, written synchronously past the page cache.
#[derive(Debug)]
pub struct Disks {
    files: Vec<File>,
    /// Blocks of each disk.
    pub blocks: u64,
    /// What was written.
    pub history: History,
}

impl Disks {
    /// Opens disks of `blocks` blocks each.
    ///
    /// # Errors
    /// If they cannot be opened.
    pub fn open(paths: &[&Path], blocks: u64) -> io::Result<Self> {
        let flags = (OFlags::DIRECT | OFlags::SYNC).bits() as i32;
        let open = |path: &&Path| OpenOptions::new().read(true).write(true).custom_flags(flags).open(path);
        let files = paths.iter().map(open).collect::<Result<_, _>>()?;
        Ok(Self { files, blocks, history: History::default() })
    }

    /// Number of disks.
    #[must_use]
    pub fn count(&self) -> usize {
        self.files.len()
    }

    /// Writes version 0 everywhere.
    ///
    /// # Errors
    /// What the system says.
    pub fn fill(&self) -> io::Result<()> {
        self.write_all(|disk, block| Write { disk, block, version: 0 })
    }

    /// Writes every block once more, many at a time; nobody else may write meanwhile.
    ///
    /// # Errors
    /// What the system says.
    pub fn rewrite(&self) -> io::Result<()> {
        self.write_all(|disk, block| self.history.begin(disk, block))?;
        for (disk, block) in self.all() {
            self.history.acknowledge_newest(disk, block);
        }
        Ok(())
    }

    /// Writes a block once more, after its cause was acknowledged; returns when it is acknowledged itself. No two
    /// threads may write the same block.
    ///
    /// # Errors
    /// What the system says.
    pub fn write(&self, disk: usize, block: u64, cause: Option<Write>) -> io::Result<Write> {
        let write = self.history.begin(disk, block);
        let cause = cause.unwrap_or(Write { version: 0, ..write });
        self.files[disk].write_all_at(&Stamp { write, cause }.content(), block * BLOCK_BYTES)?;
        self.history.acknowledge(write);
        Ok(write)
    }

    fn write_all(&self, write: impl Fn(usize, u64) -> Write) -> io::Result<()> {
        const AT_ONCE: usize = 256;
        for (disk, file) in self.files.iter().enumerate() {
            for start in (0..self.blocks).step_by(AT_ONCE) {
                let run = start..self.blocks.min(start + AT_ONCE as u64);
                let mut bytes = AlignedBuf::zeroed((run.end - run.start) as usize * BLOCK);
                for (block, place) in run.zip(bytes.chunks_exact_mut(BLOCK)) {
                    let write = write(disk, block);
                    let cause = Write { version: 0, ..write };
                    place.copy_from_slice(&Stamp { write, cause }.content());
                }
                file.write_all_at(&bytes, start * BLOCK_BYTES)?;
            }
        }
        Ok(())
    }

    fn all(&self) -> impl Iterator<Item = (usize, u64)> {
        (0..self.count()).flat_map(|disk| (0..self.blocks).map(move |block| (disk, block)))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn image(versions: &[(u64, Write)]) -> Vec<Vec<u8>> {
        let block = |(block, (version, cause)): (usize, &(u64, Write))| {
            let write = Write { disk: 0, block: block as u64, version: *version };
            Stamp { write, cause: *cause }.content().to_vec()
        };
        vec![versions.iter().enumerate().flat_map(block).collect()]
    }

    #[test]
    fn tells_possible_images_from_impossible_ones() {
        let history = History::default();
        let none = Write { disk: 0, block: 0, version: 0 };
        let start = Instant::now();
        let first = history.begin(0, 0);
        history.acknowledge(first);
        let second = history.begin(0, 1);
        let check = |versions: &[(u64, Write)]| history.check(&image(versions), start..=Instant::now());
        check(&[(1, none), (0, none)]).unwrap();
        check(&[(1, none), (1, first)]).unwrap();
        // The second began when the first was acknowledged.
        assert!(check(&[(0, none), (1, none)]).unwrap_err().contains("no one instant"));
        assert!(check(&[(0, none), (1, first)]).unwrap_err().contains("without its cause"));
        assert!(check(&[(1, none), (2, none)]).unwrap_err().contains("never written"));
        // Neither, but the first was acknowledged before the point was wished for.
        let late = Instant::now();
        assert!(
            history.check(&image(&[(0, none), (0, none)]), late..=late + Duration::from_secs(1)).is_err()
        );
        history.check(&image(&[(0, none), (0, none)]), start..=late).unwrap();
        history.acknowledge(second);
    }

    #[test]
    fn a_damaged_block_is_no_block() {
        let write = Write { disk: 1, block: 7, version: 3 };
        let stamp = Stamp { write, cause: write };
        let mut block = stamp.content();
        assert_eq!(Stamp::read(&block), Ok(stamp));
        for at in [0, 47, 48, BLOCK - 1] {
            block[at] ^= 4;
            assert!(Stamp::read(&block).is_err(), "{at}");
            block[at] ^= 4;
        }
        assert!(stamps(0, &block).is_err() && stamps(1, &block).is_err());
    }
}
