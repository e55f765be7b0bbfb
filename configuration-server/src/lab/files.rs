//! Another modelled workload: files that appear whole and disappear again, in a mounted file system.
//!
//! A file is written under another name, synced, renamed and its folder synced; its name and number give its
//! content. So at any instant a file is there whole or not at all, and which of them must and must not be there
//! follows from the times. It works the file system's metadata, which [`super::records`] leaves alone.

use std::{
    collections::VecDeque,
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use jiff::{SignedDuration, Timestamp};

use super::error::LabError;

/// Files that are there at a time.
const KEPT: usize = 24;

/// Bytes of the largest.
const LARGEST: u64 = 128 << 10;

/// How far the clock that a point's time was read from may be from the instant it names.
const SLACK: SignedDuration = SignedDuration::from_millis(50);

/// From the moment something is asked for until it is on stable storage.
#[derive(Clone, Copy, Debug)]
struct Change {
    begun: Timestamp,
    done: Option<Timestamp>,
}

impl Change {
    fn surely_before(&self, at: Timestamp) -> bool {
        self.done.is_some_and(|done| done + SLACK < at)
    }

    fn surely_after(&self, at: Timestamp) -> bool {
        self.begun > at + SLACK
    }
}

/// What became of each file.
#[derive(Clone, Debug)]
pub struct History {
    seed: u64,
    /// By file: its creation, and its removal.
    files: Vec<(Change, Option<Change>)>,
}

impl History {
    /// Files created.
    #[must_use]
    pub fn created(&self) -> usize {
        self.files.len()
    }

    /// Checks that the folder `dir` is as it was at the instant `at`. Returns the number of files in it.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self, dir: &Path, at: Timestamp) -> Result<usize, String> {
        let mut there = 0;
        for (number, (created, removed)) in self.files.iter().enumerate() {
            let name = name_of(number);
            let must = created.surely_before(at) && removed.is_none_or(|removed| removed.surely_after(at));
            let must_not =
                created.surely_after(at) || removed.is_some_and(|removed| removed.surely_before(at));
            match fs::read(dir.join(&name)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    if must {
                        return Err(format!("{name} is missing"));
                    }
                }
                Err(error) => return Err(format!("{name} cannot be read: {error}")),
                Ok(_) if must_not => return Err(format!("{name} is there, at a time when it was not")),
                Ok(content) if content != content_of(self.seed, number) => {
                    return Err(format!("{name} has not the content that was synced before it got its name"));
                }
                Ok(_) => there += 1,
            }
        }
        Ok(there)
    }
}

fn name_of(number: usize) -> String {
    format!("file-{number:06}")
}

fn content_of(seed: u64, number: usize) -> Vec<u8> {
    let mut stream = blake3::Hasher::new()
        .update(&seed.to_le_bytes())
        .update(&(number as u64).to_be_bytes())
        .finalize_xof();
    let mut size = [0; 8];
    stream.fill(&mut size);
    let mut content = vec![0; (u64::from_le_bytes(size) % LARGEST) as usize];
    stream.fill(&mut content);
    content
}

/// The writer: a thread. Dropping it stops it.
pub struct FileWriter {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

struct Shared {
    dir: PathBuf,
    history: Mutex<History>,
    /// Held while a file is made or removed.
    busy: Mutex<()>,
    paused: AtomicBool,
    ended: AtomicBool,
}

impl FileWriter {
    /// Makes and removes about `per_second` files in the folder `dir`, which it creates, from now on.
    ///
    /// # Errors
    /// If the folder cannot be made.
    pub fn start(dir: &Path, seed: u64, per_second: u32) -> Result<Self, LabError> {
        fs::create_dir_all(dir).map_err(LabError::io("create", dir))?;
        let shared = Arc::new(Shared {
            dir: dir.into(),
            history: Mutex::new(History { seed, files: Vec::new() }),
            busy: Mutex::new(()),
            paused: AtomicBool::new(false),
            ended: AtomicBool::new(false),
        });
        let theirs = Arc::clone(&shared);
        let interval = Duration::from_secs(1) / per_second.max(1);
        let thread = thread::Builder::new().name("files".into()).spawn(move || theirs.run(interval));
        Ok(Self { shared, thread: Some(thread.map_err(LabError::io("start", "a thread"))?) })
    }

    /// Returns when nothing is under way; nothing comes until [`Self::resume`].
    pub fn pause(&self) {
        self.shared.paused.store(true, Ordering::SeqCst);
        drop(lock(&self.shared.busy));
    }

    /// Goes on.
    pub fn resume(&self) {
        self.shared.paused.store(false, Ordering::SeqCst);
    }

    /// What was done up to now.
    #[must_use]
    pub fn history(&self) -> History {
        lock(&self.shared.history).clone()
    }

    /// Ends it.
    ///
    /// # Errors
    /// If something failed.
    pub fn finish(mut self) -> io::Result<History> {
        self.end()?;
        Ok(self.history())
    }

    fn end(&mut self) -> io::Result<()> {
        self.shared.ended.store(true, Ordering::SeqCst);
        let Some(thread) = self.thread.take() else { return Ok(()) };
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the writer panicked")))
    }
}

impl Drop for FileWriter {
    fn drop(&mut self) {
        // Whoever wants to know how it went calls `finish`.
        let _ = self.end();
    }
}

impl Shared {
    fn run(&self, interval: Duration) -> io::Result<()> {
        let mut due = Instant::now();
        let mut there = VecDeque::new();
        while !self.ended.load(Ordering::SeqCst) {
            if Instant::now() < due {
                thread::sleep(Duration::from_millis(2));
                continue;
            }
            due = due.max(Instant::now() - interval) + interval;
            let _busy = lock(&self.busy);
            // Looked at with `busy` held: who pauses waits for that.
            if self.paused.load(Ordering::SeqCst) {
                continue;
            }
            there.push_back(self.create()?);
            if there.len() > KEPT
                && let Some(oldest) = there.pop_front()
            {
                self.remove(oldest)?;
            }
        }
        Ok(())
    }

    fn create(&self) -> io::Result<usize> {
        let (number, seed) = {
            let mut history = lock(&self.history);
            history.files.push((Change { begun: Timestamp::now(), done: None }, None));
            (history.files.len() - 1, history.seed)
        };
        let (draft, path) = (self.dir.join("draft"), self.dir.join(name_of(number)));
        let mut file = File::create(&draft)?;
        file.write_all(&content_of(seed, number))?;
        file.sync_all()?;
        fs::rename(&draft, path)?;
        File::open(&self.dir)?.sync_all()?;
        lock(&self.history).files[number].0.done = Some(Timestamp::now());
        Ok(number)
    }

    fn remove(&self, number: usize) -> io::Result<()> {
        lock(&self.history).files[number].1 = Some(Change { begun: Timestamp::now(), done: None });
        fs::remove_file(self.dir.join(name_of(number)))?;
        File::open(&self.dir)?.sync_all()?;
        if let Some(removed) = &mut lock(&self.history).files[number].1 {
            removed.done = Some(Timestamp::now());
        }
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::wait::soon;

    #[test]
    fn the_folder_of_an_instant_passes_and_others_do_not() {
        let dir = tempfile::tempdir().unwrap();
        let writer = FileWriter::start(&dir.path().join("files"), 3, 1_000_000).unwrap();
        soon("files", || writer.history().created() > KEPT + 10);
        writer.pause();
        let (at, created) = (Timestamp::now(), writer.history().created());
        let files = dir.path().join("files");
        assert_eq!(writer.history().check(&files, at), Ok(KEPT));
        assert_eq!(writer.history().created(), created);

        let history = writer.finish().unwrap();
        let late = at + SignedDuration::from_secs(60);
        assert_eq!(history.check(&files, late), Ok(KEPT));
        let early = history.check(&files, at - SignedDuration::from_secs(60)).unwrap_err();
        assert!(early.contains("when it was not"), "{early}");
        let newest = files.join(name_of(created - 1));
        fs::write(&newest, "x").unwrap();
        assert!(history.check(&files, late).unwrap_err().contains("content"));
        fs::remove_file(&newest).unwrap();
        assert!(history.check(&files, late).unwrap_err().contains("missing"));
        fs::write(files.join(name_of(0)), content_of(3, 0)).unwrap();
        assert!(history.check(&files, late).is_err());
    }
}
