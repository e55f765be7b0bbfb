//! A modelled workload: one writer that overwrites 4 KiB slots in an order that its seed gives.
//!
//! Each write is on stable storage before the next is issued, and says which one it is. So whatever was on the disk
//! at one instant is the result of the first *k* writes for some *k*, in every byte. [`History::check`] finds *k*
//! in an image and checks all slots against it: a lost, torn, late or reordered write cannot hide. The times of the
//! writes bound *k* on both sides, so an image of another instant does not pass either.

use std::{
    fs::File,
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use engine::{io::AlignedBuf, units::BLOCK_BYTES};
use jiff::{SignedDuration, Timestamp};
use rustix::fs::OFlags;

use super::error::LabError;

/// Bytes of a slot.
pub const SLOT: usize = BLOCK_BYTES as usize;

/// How far the clock that a point's time was read from may be from the instant it names.
const SLACK: SignedDuration = SignedDuration::from_millis(50);

/// Where the slots are.
#[derive(Clone, Debug)]
pub struct Slots {
    /// A file, or a disk.
    pub path: std::path::PathBuf,
    /// Their byte offsets in it.
    pub offsets: Vec<u64>,
}

impl Slots {
    /// Slots that fill the file at `path` from its start.
    #[must_use]
    pub fn in_file(path: &Path, count: usize) -> Self {
        let offsets = (0..count as u64).map(|slot| slot * SLOT as u64);
        Self { path: path.into(), offsets: offsets.collect() }
    }
}

/// What was written when.
#[derive(Clone, Debug)]
pub struct History {
    seed: u64,
    slots: usize,
    /// By write: when it was issued, and when it was on stable storage.
    writes: Vec<(Timestamp, Option<Timestamp>)>,
}

impl History {
    /// Writes on stable storage.
    #[must_use]
    pub fn acknowledged(&self) -> usize {
        self.writes.len() - usize::from(self.writes.last().is_some_and(|(_, done)| done.is_none()))
    }

    /// Checks that `image`, the slots one after the other, is what they held at the instant `at`. Returns how many
    /// writes it holds.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self, image: &[u8], at: Timestamp) -> Result<usize, String> {
        let whole = self.slots * SLOT;
        if image.len() != whole {
            return Err(format!("{} bytes of records instead of {whole}", image.len()));
        }
        let found = image.chunks(SLOT).enumerate().map(|(slot, content)| self.number_in(slot, content));
        let found: Vec<usize> = found.collect::<Result<_, _>>()?;
        let count = found.iter().copied().max().unwrap_or(0);
        let mut last = vec![0; self.slots];
        (1..=count).for_each(|number| last[slot_of(self.seed, number, self.slots)] = number);
        if let Some(slot) = (0..self.slots).find(|&slot| found[slot] != last[slot]) {
            let (has, should) = (found[slot], last[slot]);
            return Err(format!(
                "slot {slot} holds write {has}, but write {should} came before write {count}"
            ));
        }
        let before = |time: Option<Timestamp>| time.is_some_and(|time| time + SLACK < at);
        let least = self.writes.partition_point(|(_, done)| before(*done));
        let most = self.writes.partition_point(|(issued, _)| *issued <= at + SLACK);
        if count < least || count > most {
            return Err(format!("{count} writes are there, but at {at} it were {least} to {most}"));
        }
        Ok(count)
    }

    /// Which write a slot holds; 0 for none. Checks every byte.
    fn number_in(&self, slot: usize, content: &[u8]) -> Result<usize, String> {
        if content.iter().all(|&byte| byte == 0) {
            return Ok(0);
        }
        let mut number = [0; 8];
        number.copy_from_slice(&content[..8]);
        let number = u64::from_le_bytes(number);
        let known = usize::try_from(number).ok().filter(|number| (1..=self.writes.len()).contains(number));
        let Some(number) = known else {
            return Err(format!("slot {slot} holds write {number}, which never was"));
        };
        let mut expected = [0; SLOT];
        fill(&mut expected, self.seed, number);
        if content != expected {
            let at = content.iter().zip(&expected).position(|(a, b)| a != b).unwrap_or(0);
            return Err(format!("slot {slot} holds write {number}, but byte {at} of it is wrong"));
        }
        if slot_of(self.seed, number, self.slots) != slot {
            return Err(format!("slot {slot} holds write {number}, which went elsewhere"));
        }
        Ok(number)
    }
}

/// The content of write `number`, from 1.
fn fill(buf: &mut [u8], seed: u64, number: usize) {
    let number = (number as u64).to_le_bytes();
    blake3::Hasher::new().update(&seed.to_le_bytes()).update(&number).finalize_xof().fill(buf);
    buf[..8].copy_from_slice(&number);
}

/// Where write `number` goes: half of the writes to an eighth of the slots.
fn slot_of(seed: u64, number: usize, slots: usize) -> usize {
    let draw = blake3::hash(&[seed.to_le_bytes(), (number as u64).to_le_bytes()].concat());
    let mut word = [0; 8];
    word.copy_from_slice(&draw.as_bytes()[..8]);
    let draw = u64::from_le_bytes(word) as usize;
    if draw.is_multiple_of(2) { draw / 2 % (slots / 8).max(1) } else { draw / 2 % slots }
}

/// The writer: a thread. Dropping it stops it.
pub struct RecordWriter {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

struct Shared {
    history: Mutex<History>,
    wish: Mutex<Wish>,
    /// Its wish changed, or it became idle.
    changed: Condvar,
}

#[derive(Default)]
struct Wish {
    paused: bool,
    ended: bool,
    /// Whether no write is under way, nor will be.
    idle: bool,
}

impl RecordWriter {
    /// Zeroes the slots, then writes `per_second` of them, from now on.
    ///
    /// # Errors
    /// If they cannot be opened or zeroed.
    pub fn start(slots: &Slots, seed: u64, per_second: u32) -> Result<Self, LabError> {
        let failed = |source| LabError::Io { doing: "write", path: slots.path.clone(), source };
        let zero = || -> io::Result<()> {
            let file = File::options().write(true).create(true).truncate(false).open(&slots.path)?;
            slots.offsets.iter().try_for_each(|&offset| file.write_all_at(&[0; SLOT], offset))?;
            file.sync_all()
        };
        zero().map_err(failed)?;
        let open =
            |flags: OFlags| File::options().write(true).custom_flags(flags.bits() as i32).open(&slots.path);
        // Not every file system can do direct I/O.
        let file = open(OFlags::DIRECT | OFlags::DSYNC).or_else(|_| open(OFlags::DSYNC)).map_err(failed)?;

        let history = History { seed, slots: slots.offsets.len(), writes: Vec::new() };
        let shared = Arc::new(Shared {
            history: Mutex::new(history),
            wish: Mutex::default(),
            changed: Condvar::new(),
        });
        let (theirs, offsets) = (Arc::clone(&shared), slots.offsets.clone());
        let interval = Duration::from_secs(1) / per_second.max(1);
        let body = move || theirs.run(&file, &offsets, interval);
        let thread = thread::Builder::new().name("records".into()).spawn(body);
        Ok(Self { shared, thread: Some(thread.map_err(LabError::io("start", "a thread"))?) })
    }

    /// Returns when no write is under way; none comes until [`Self::resume`].
    pub fn pause(&self) {
        let mut wish = lock(&self.shared.wish);
        wish.paused = true;
        while !wish.idle {
            wish = self.shared.changed.wait(wish).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Goes on.
    pub fn resume(&self) {
        lock(&self.shared.wish).paused = false;
        self.shared.changed.notify_all();
    }

    /// What was written up to now.
    #[must_use]
    pub fn history(&self) -> History {
        lock(&self.shared.history).clone()
    }

    /// Ends it.
    ///
    /// # Errors
    /// If a write failed.
    pub fn finish(mut self) -> io::Result<History> {
        self.end()?;
        Ok(self.history())
    }

    fn end(&mut self) -> io::Result<()> {
        lock(&self.shared.wish).ended = true;
        self.shared.changed.notify_all();
        let Some(thread) = self.thread.take() else { return Ok(()) };
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the writer panicked")))
    }
}

impl Drop for RecordWriter {
    fn drop(&mut self) {
        // Whoever wants to know how it went calls `finish`.
        let _ = self.end();
    }
}

impl Shared {
    fn run(&self, file: &File, offsets: &[u64], interval: Duration) -> io::Result<()> {
        let written = self.write(file, offsets, interval);
        lock(&self.wish).idle = true;
        self.changed.notify_all();
        written
    }

    fn write(&self, file: &File, offsets: &[u64], interval: Duration) -> io::Result<()> {
        let seed = lock(&self.history).seed;
        let mut buf = AlignedBuf::zeroed(SLOT);
        let mut due = Instant::now();
        for number in 1.. {
            if !self.may_write(due) {
                break;
            }
            // After a stop it goes on from now, without catching up.
            due = due.max(Instant::now() - interval) + interval;
            fill(&mut buf, seed, number);
            lock(&self.history).writes.push((Timestamp::now(), None));
            file.write_all_at(&buf, offsets[slot_of(seed, number, offsets.len())])?;
            let now = Timestamp::now();
            if let Some(last) = lock(&self.history).writes.last_mut() {
                last.1 = Some(now);
            }
        }
        Ok(())
    }

    /// Waits until the next write is due and wanted; false at the end.
    fn may_write(&self, due: Instant) -> bool {
        let mut wish = lock(&self.wish);
        loop {
            let wait = due.saturating_duration_since(Instant::now());
            if wish.ended {
                return false;
            }
            if !wish.paused && wait.is_zero() {
                wish.idle = false;
                return true;
            }
            wish.idle = true;
            self.changed.notify_all();
            let wait = if wish.paused { Duration::from_secs(60) } else { wait };
            wish = self.changed.wait_timeout(wish, wait).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::wait::soon;

    fn written(writes: usize) -> (Vec<u8>, History, Timestamp) {
        let dir = tempfile::tempdir().unwrap();
        let slots = Slots::in_file(&dir.path().join("slots"), 16);
        let writer = RecordWriter::start(&slots, 7, 1_000_000).unwrap();
        soon("writes", || writer.history().acknowledged() >= writes);
        writer.pause();
        let at = Timestamp::now();
        let image = std::fs::read(&slots.path).unwrap();
        (image, writer.finish().unwrap(), at)
    }

    #[test]
    fn the_image_of_an_instant_passes() {
        let (image, history, at) = written(50);
        assert_eq!(history.check(&image, at), Ok(history.acknowledged()));
        assert!(history.acknowledged() >= 50);
    }

    #[test]
    fn nothing_is_written_during_a_pause() {
        let dir = tempfile::tempdir().unwrap();
        let slots = Slots::in_file(&dir.path().join("slots"), 16);
        let writer = RecordWriter::start(&slots, 7, 1_000_000).unwrap();
        for round in 1..20 {
            writer.pause();
            let before = (std::fs::read(&slots.path).unwrap(), writer.history().acknowledged());
            assert_eq!(writer.history().writes.len(), before.1);
            assert_eq!(std::fs::read(&slots.path).unwrap(), before.0);
            writer.resume();
            soon("it goes on", || writer.history().acknowledged() > before.1 + round);
        }
    }

    #[test]
    fn every_kind_of_damage_is_found() {
        let (image, history, at) = written(50);
        let slot = slot_of(7, history.acknowledged(), 16);
        let damaged = |damage: &dyn Fn(&mut Vec<u8>)| {
            let mut image = image.clone();
            damage(&mut image);
            history.check(&image, at).unwrap_err()
        };
        let torn = damaged(&|image| image[slot * SLOT + 2048..(slot + 1) * SLOT].fill(0));
        assert!(torn.contains("byte 2048"), "{torn}");
        let misplaced = damaged(&|image| {
            let other = (slot + 1) % 16;
            image.copy_within(slot * SLOT..(slot + 1) * SLOT, other * SLOT);
        });
        assert!(misplaced.contains("elsewhere"), "{misplaced}");
        // The write before the last one, elsewhere, is lost.
        let earlier =
            (1..history.acknowledged()).rev().find(|&number| slot_of(7, number, 16) != slot).unwrap();
        let lost = damaged(&|image| image[slot_of(7, earlier, 16) * SLOT..][..SLOT].fill(0));
        assert!(lost.contains("came before"), "{lost}");
        assert!(damaged(&|image| image.truncate(SLOT)).contains("instead of"));
    }

    #[test]
    fn an_image_of_another_time_is_found() {
        let (image, mut history, at) = written(50);
        let late = history.check(&image, at - SignedDuration::from_secs(60)).unwrap_err();
        assert!(late.contains("it were 0 to 0"), "{late}");
        // As if it had gone on for a while before the instant.
        history.writes.push((at, Some(at)));
        let early = history.check(&image, at + SignedDuration::from_secs(60)).unwrap_err();
        assert!(early.contains("writes are there"), "{early}");
    }
}
