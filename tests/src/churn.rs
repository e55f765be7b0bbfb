//! A file churn that can be checked at any point: files are created, appended to, renamed and deleted, each step
//! made durable before the next, and each file says what belongs in it.
//!
//! A *slot* has one file at a time, named `SLOT@GENERATION`, of whole records. What a slot holds after each step is
//! its [`State`]; with the times at which steps began and were durable, the states that it may be in at a point
//! are known. A file that is being created has another name until it is whole.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    ops::RangeInclusive,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::Instant,
};

use engine::units::Digest;
use rand::{RngExt, SeedableRng, rngs::StdRng};

/// Slots of each writer.
const SLOTS: usize = 12;

/// Bytes of one record: not of whole blocks.
const RECORD: usize = 10_000;

/// Records of a file at most.
const RECORDS: u64 = 12;

/// What a slot holds: nothing, or a file of this generation with so many records.
type State = Option<(u64, u64)>;

#[derive(Debug)]
struct Step {
    began: Instant,
    durable: Option<Instant>,
    then: State,
}

/// What one slot went through.
type Slot = Mutex<Vec<Step>>;

/// Writers at work in a folder, until they are stopped or dropped.
pub struct Churn {
    stop: Arc<AtomicBool>,
    slots: Arc<BTreeMap<String, Slot>>,
    writers: Vec<JoinHandle<()>>,
}

impl Churn {
    /// Starts `writers` writers in the folder `dir`.
    ///
    /// # Errors
    /// If their folders cannot be made.
    pub fn start(dir: &Path, writers: usize, rng: &mut StdRng) -> io::Result<Self> {
        let name = |writer, slot| format!("w{writer}-s{slot}");
        let all = (0..writers).flat_map(|writer| (0..SLOTS).map(move |slot| name(writer, slot)));
        let slots: Arc<BTreeMap<_, _>> = Arc::new(all.map(|name| (name, Slot::default())).collect());
        let stop = Arc::new(AtomicBool::new(false));
        fs::create_dir_all(dir)?;
        sync_dir(dir.parent().unwrap_or(dir))?;
        let start = |writer| {
            let (stop, slots, dir) = (Arc::clone(&stop), Arc::clone(&slots), dir.to_owned());
            let mut rng = StdRng::from_rng(rng);
            thread::spawn(move || {
                while !stop.load(Relaxed) {
                    let name = name(writer, rng.random_range(0..SLOTS));
                    step(&dir, &name, &slots[&name], &mut rng).expect("the file system can be written");
                }
            })
        };
        let writers = (0..writers).map(start).collect();
        Ok(Self { stop, slots, writers })
    }

    /// Ends the writers; what they did stays known.
    ///
    /// # Panics
    /// If a writer has.
    pub fn stop(&mut self) {
        self.stop.store(true, Relaxed);
        self.writers.drain(..).for_each(|writer| writer.join().expect("a writer panicked"));
    }

    /// Steps so far.
    #[must_use]
    pub fn steps(&self) -> usize {
        self.slots.values().map(|slot| slot.lock().unwrap().len()).sum()
    }

    /// Checks that the folder `dir`, from a copy of the disk, holds what it may have held at an instant within `when`:
    /// every step that was durable before is there and whole, and of a later one at most the first.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn check(&self, dir: &Path, when: RangeInclusive<Instant>) -> Result<(), String> {
        let mut found = BTreeMap::<String, Vec<u64>>::new();
        for entry in fs::read_dir(dir).map_err(|error| error.to_string())? {
            let name = entry.map_err(|error| error.to_string())?.file_name();
            let name = name.to_str().ok_or("a name is no text")?;
            if name.ends_with(".new") {
                continue;
            }
            let (slot, generation) = name.split_once('@').ok_or_else(|| format!("{name} is not ours"))?;
            let generation = generation.parse().map_err(|_| format!("{name} is not ours"))?;
            found.entry(slot.into()).or_default().push(generation);
        }
        for (name, slot) in &*self.slots {
            check_slot(dir, name, &slot.lock().unwrap(), found.remove(name).unwrap_or_default(), &when)?;
        }
        if found.is_empty() { Ok(()) } else { Err(format!("not ours: {found:?}")) }
    }
}

impl Drop for Churn {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        // Their file system may be about to go.
        self.writers.drain(..).for_each(|writer| drop(writer.join()));
    }
}

/// One step of one slot.
fn step(dir: &Path, name: &str, slot: &Slot, rng: &mut StdRng) -> io::Result<()> {
    let (state, number) = {
        let steps = slot.lock().unwrap();
        (steps.last().and_then(|step| step.then), steps.len())
    };
    let next_generation = number as u64 + 1;
    let choice = rng.random_range(0..10);
    let then = match state {
        None => Some((next_generation, rng.random_range(1..=3))),
        Some((generation, records)) if choice < 5 && records < RECORDS => Some((generation, records + 1)),
        Some((_, records)) if choice < 8 => Some((next_generation, records)),
        Some(_) => None,
    };
    slot.lock().unwrap().push(Step { began: Instant::now(), durable: None, then });
    make(dir, name, state, then)?;
    slot.lock().unwrap()[number].durable = Some(Instant::now());
    Ok(())
}

/// Makes a slot go from one state to the next, durably.
fn make(dir: &Path, name: &str, from: State, to: State) -> io::Result<()> {
    let path = |generation| file_of(dir, name, generation);
    match (from, to) {
        (None, Some((generation, records))) => {
            let new = path(generation).with_extension("new");
            let mut file = File::create(&new)?;
            for record in 0..records {
                file.write_all(&content(name, record))?;
            }
            file.sync_all()?;
            fs::rename(&new, path(generation))?;
        }
        (Some((generation, records)), Some((same, _))) if same == generation => {
            let mut file = OpenOptions::new().append(true).open(path(generation))?;
            file.write_all(&content(name, records))?;
            return file.sync_all();
        }
        (Some((generation, _)), Some((next, _))) => fs::rename(path(generation), path(next))?,
        (Some((generation, _)), None) => fs::remove_file(path(generation))?,
        (None, None) => (),
    }
    sync_dir(dir)
}

fn check_slot(
    dir: &Path,
    name: &str,
    steps: &[Step],
    generations: Vec<u64>,
    when: &RangeInclusive<Instant>,
) -> Result<(), String> {
    let is_durable = |step: &&Step| step.durable.is_some_and(|durable| durable < *when.start());
    let done = steps.iter().take_while(is_durable).count();
    let begun = steps.iter().take_while(|step| step.began <= *when.end()).count();
    let after = |steps_done: usize| steps_done.checked_sub(1).and_then(|last| steps[last].then);
    let state = match generations[..] {
        [] => None,
        [generation] => {
            let path = file_of(dir, name, generation);
            let bytes = fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
            let whole = bytes.chunks(RECORD).enumerate();
            let whole = whole.take_while(|(record, bytes)| content(name, *record as u64) == *bytes).count();
            Some((generation, whole as u64, bytes.len() > whole * RECORD))
        }
        _ => return Err(format!("{name} is there as generations {generations:?}")),
    };
    let fits = |done: usize| match (state, after(done)) {
        (None, None) => true,
        (Some((generation, whole, torn)), Some((meant, records))) => {
            // Of an append under way, any part may be there.
            let appending = done < begun && after(done + 1) == Some((meant, records + 1));
            generation == meant && whole == records && (!torn || appending)
        }
        _ => false,
    };
    if (done..=begun).any(fits) {
        return Ok(());
    }
    let may: Vec<State> = (done..=begun).map(after).collect();
    Err(format!("{name} is {state:?} (generation, whole records, torn), not one of {may:?}"))
}

fn file_of(dir: &Path, name: &str, generation: u64) -> PathBuf {
    dir.join(format!("{name}@{generation}"))
}

/// A record's bytes: a checksum, and what it is of.
fn content(slot: &str, record: u64) -> Vec<u8> {
    let mut bytes = format!("{slot} {record}\n").into_bytes();
    let seed = Digest::of(&bytes).0;
    while bytes.len() < RECORD {
        let fresh = Digest::of(&[&seed[..], &bytes.len().to_le_bytes()].concat()).0;
        bytes.extend_from_slice(&fresh);
    }
    bytes.truncate(RECORD);
    bytes
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notices_what_is_lost_stale_or_torn() {
        let dir = tempfile::tempdir().unwrap();
        let now = Instant::now;
        let slot = Slot::default();
        let mut at = vec![now()];
        for (from, to) in [(None, Some((1, 2))), (Some((1, 2)), Some((1, 3))), (Some((1, 3)), Some((2, 3)))] {
            let began = now();
            make(dir.path(), "s", from, to).unwrap();
            slot.lock().unwrap().push(Step { began, durable: Some(now()), then: to });
            at.push(now());
        }
        let check = |generations: &[u64], from: usize, to: usize| {
            check_slot(dir.path(), "s", &slot.lock().unwrap(), generations.to_vec(), &(at[from]..=at[to]))
        };
        check(&[2], 3, 3).unwrap();
        check(&[2], 0, 3).unwrap();
        check(&[2], 2, 2).unwrap_err();
        check(&[], 3, 3).unwrap_err();
        check(&[1, 2], 0, 3).unwrap_err();
        let path = file_of(dir.path(), "s", 2);
        fs::write(&path, &fs::read(&path).unwrap()[..RECORD * 2 + 5]).unwrap();
        check(&[2], 3, 3).unwrap_err();
        // The same bytes are right for an append that was under way.
        fs::rename(&path, file_of(dir.path(), "s", 1)).unwrap();
        check(&[1], 1, 2).unwrap();
        check(&[1], 1, 1).unwrap_err();
        check(&[1], 2, 2).unwrap_err();
    }
}
