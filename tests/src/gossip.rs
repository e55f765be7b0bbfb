//! Machines that tell each other of what they have written: a workload in which an effect on one disk is caused by a
//! write on another.
//!
//! Each member counts, and writes every count durably to a file of its own before it tells anybody of it. With a count
//! it writes what it has heard of the counts of others. So on any disks of one instant no member knows of a count that
//! its owner has not written: [`check`].

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
    thread::JoinHandle,
    time::Duration,
};

use engine::{
    io::AlignedBuf,
    units::{BLOCK_BYTES, Digest},
};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use rustix::fs::OFlags;

const BLOCK: usize = BLOCK_BYTES as usize;
const MAGIC: &[u8; 16] = b"homeward gossip\n";

/// Records that a file holds: count N stands in block N modulo this.
const BLOCKS: u64 = 64;

/// Most members.
const MEMBERS: usize = 16;

/// How long a member thinks between two counts at most. It leaves the machine to others.
const PAUSE: Duration = Duration::from_micros(500);

/// Counts between two entries in a file that grows, so that the file system's journal has something to do.
const LOG_EVERY: u64 = 64;

/// What a member wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    member: u64,
    count: u64,
    /// By member, the highest count heard of; of itself, `count`.
    heard: [u64; MEMBERS],
}

impl Record {
    fn to_block(self) -> AlignedBuf {
        let mut block = AlignedBuf::zeroed(BLOCK);
        block[..16].copy_from_slice(MAGIC);
        let numbers = [self.member, self.count].into_iter().chain(self.heard);
        block[16..].chunks_exact_mut(8).zip(numbers).for_each(|(at, n)| at.copy_from_slice(&n.to_le_bytes()));
        let (content, digest) = block.split_at_mut(BLOCK - 32);
        digest.copy_from_slice(&Digest::of(content).0);
        block
    }

    /// `None` if the block is none of ours.
    fn of_block(block: &[u8]) -> Option<Result<Self, String>> {
        if block.len() != BLOCK || !block.starts_with(MAGIC) {
            return None;
        }
        let number = |index: usize| u64::from_le_bytes(*block[16 + index * 8..].first_chunk().unwrap());
        let record =
            Self { member: number(0), count: number(1), heard: std::array::from_fn(|n| number(n + 2)) };
        let (content, digest) = block.split_at(BLOCK - 32);
        let whole = Digest::of(content).0 == *digest;
        Some(if whole { Ok(record) } else { Err(format!("torn: it says {record:?}")) })
    }
}

/// The newest record on a member's disk, after a look at all of them.
///
/// # Errors
/// If one is torn, or an older count than the newest is missing.
pub fn newest_on(disk: &[u8], member: usize) -> Result<Record, String> {
    let found = disk.chunks(BLOCK).filter_map(Record::of_block);
    let records: Vec<Record> = found.collect::<Result<_, _>>()?;
    if let Some(other) = records.iter().find(|record| record.member != member as u64) {
        return Err(format!("a record of member {}", other.member));
    }
    let newest = *records.iter().max_by_key(|record| record.count).ok_or("no record")?;
    for count in newest.count.saturating_sub(BLOCKS - 1)..=newest.count {
        if !records.iter().any(|record| record.count == count) {
            return Err(format!("count {count} is missing, and {} is there", newest.count));
        }
    }
    Ok(newest)
}

/// Checks that nobody has heard of what is not there. Members without a record are not looked at.
///
/// # Errors
/// Who has heard of what.
pub fn check(newest: &[Option<Record>]) -> Result<(), String> {
    for record in newest.iter().flatten() {
        for (other, known) in newest.iter().enumerate() {
            if let Some(known) = known
                && record.heard[other] > known.count
            {
                return Err(format!(
                    "effect without its cause: member {} has heard of count {} of member {other}, which has written {}",
                    record.member, record.heard[other], known.count
                ));
            }
        }
    }
    Ok(())
}

/// The running members. Dropping it stops them.
pub struct Gossip {
    stop: Arc<AtomicBool>,
    counts: Arc<Vec<AtomicU64>>,
    threads: Vec<JoinHandle<io::Result<()>>>,
}

impl Gossip {
    /// Makes a file in each of `folders`, and starts a member on each.
    ///
    /// # Errors
    /// If a file cannot be made.
    pub fn start(folders: &[&Path], rng: &mut StdRng) -> io::Result<Self> {
        assert!(folders.len() <= MEMBERS);
        let stop = Arc::new(AtomicBool::new(false));
        let counts = Arc::new(folders.iter().map(|_| AtomicU64::new(0)).collect::<Vec<_>>());
        let (senders, receivers): (Vec<_>, Vec<_>) = folders.iter().map(|_| channel()).unzip();
        let mut members = Vec::new();
        for (index, (folder, heard_from)) in folders.iter().zip(receivers).enumerate() {
            members.push(Member::create(index, folder, heard_from, senders.clone(), rng.random())?);
        }
        let start = |member: Member| {
            let (stop, counts) = (Arc::clone(&stop), Arc::clone(&counts));
            std::thread::spawn(move || member.run(&stop, &counts))
        };
        let threads = members.into_iter().map(start).collect();
        Ok(Self { stop, counts, threads })
    }

    /// What each has counted so far.
    #[must_use]
    pub fn counts(&self) -> Vec<u64> {
        self.counts.iter().map(|count| count.load(Ordering::Relaxed)).collect()
    }

    /// Ends them.
    ///
    /// # Errors
    /// If one of them failed.
    pub fn stop(mut self) -> io::Result<()> {
        self.end()
    }

    fn end(&mut self) -> io::Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.drain(..).try_for_each(|thread| thread.join().expect("a member panicked"))
    }
}

impl Drop for Gossip {
    fn drop(&mut self) {
        // Whoever wants to know how it went calls `stop`.
        let _ = self.end();
    }
}

struct Member {
    record: Record,
    file: File,
    log: File,
    heard_from: Receiver<(usize, u64)>,
    tell: Vec<Sender<(usize, u64)>>,
    rng: StdRng,
}

impl Member {
    fn create(
        index: usize,
        folder: &Path,
        heard_from: Receiver<(usize, u64)>,
        tell: Vec<Sender<(usize, u64)>>,
        seed: u64,
    ) -> io::Result<Self> {
        let path = folder.join("counts");
        // Written once, so that later writes change nothing but the blocks.
        File::create_new(&path)?.write_all(&vec![0; BLOCKS as usize * BLOCK])?;
        let flags = (OFlags::DIRECT | OFlags::DSYNC).bits() as i32;
        let file = OpenOptions::new().write(true).custom_flags(flags).open(&path)?;
        file.sync_all()?;
        let log = File::create_new(folder.join("log"))?;
        let record = Record { member: index as u64, count: 0, heard: [0; MEMBERS] };
        let member = Self { record, file, log, heard_from, tell, rng: StdRng::seed_from_u64(seed) };
        member.write()?;
        Ok(member)
    }

    /// On stable storage when it returns.
    fn write(&self) -> io::Result<()> {
        let at = self.record.count % BLOCKS * BLOCK_BYTES;
        self.file.write_all_at(&self.record.to_block(), at)
    }

    fn run(mut self, stop: &AtomicBool, counts: &[AtomicU64]) -> io::Result<()> {
        let me = self.record.member as usize;
        while !stop.load(Ordering::Relaxed) {
            for (other, count) in self.heard_from.try_iter() {
                let heard = &mut self.record.heard[other];
                *heard = count.max(*heard);
            }
            self.record.count += 1;
            self.record.heard[me] = self.record.count;
            self.write()?;
            if self.record.count.is_multiple_of(LOG_EVERY) {
                writeln!(self.log, "{:?}", self.record)?;
                self.log.sync_all()?;
            }
            counts[me].store(self.record.count, Ordering::Relaxed);
            let other = self.rng.random_range(0..self.tell.len());
            // One that has ended listens no more.
            let _ = self.tell[other].send((me, self.record.count));
            std::thread::sleep(PAUSE.mul_f64(self.rng.random()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(member: u64, count: u64, heard: &[u64]) -> Record {
        let mut record = Record { member, count, heard: [0; MEMBERS] };
        record.heard[..heard.len()].copy_from_slice(heard);
        record
    }

    #[test]
    fn effects_without_causes_are_found() {
        let (a, b) = (record(0, 7, &[7, 3]), record(1, 3, &[6, 3]));
        assert_eq!(check(&[Some(a), Some(b)]), Ok(()));
        let early = record(0, 5, &[5, 3]);
        assert!(check(&[Some(early), Some(b)]).unwrap_err().contains("count 6 of member 0"));
        assert_eq!(check(&[None, Some(b)]), Ok(()));
    }

    #[test]
    fn torn_and_missing_records_are_found() {
        let mut disk: Vec<u8> = (0..4).flat_map(|count| record(2, count, &[]).to_block().to_vec()).collect();
        assert_eq!(newest_on(&disk, 2).unwrap().count, 3);
        assert!(newest_on(&disk, 1).unwrap_err().contains("of member 2"));
        let mut torn = disk.clone();
        torn[2 * BLOCK + 100] ^= 1;
        assert!(newest_on(&torn, 2).unwrap_err().contains("torn"));
        disk.drain(BLOCK..2 * BLOCK);
        assert!(newest_on(&disk, 2).unwrap_err().contains("count 1 is missing"));
    }
}
