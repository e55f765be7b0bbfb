//! What a disk may hold after a power cut: everything synced, and any part of the rest.
//!
//! Of a file's writes since its last good sync each is there or not, sector by sector. Of the changes to names
//! since the last sync of their folder each is there or not, but those to one name happen in order, and a rename
//! happens as a whole. What was pending when a sync failed stays uncertain, even if a later sync succeeds.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::{
    content::PAGE,
    disk::{Change, Disk, Ino, Name},
};

/// Bytes that the disk writes as a whole.
const SECTOR: u64 = 512;

/// One entry of the log of a simulated storage.
#[derive(Clone, Debug)]
pub(super) enum Entry {
    Change(Change),
    /// Of a file or a folder.
    Sync {
        node: Ino,
        good: bool,
    },
}

/// The log replayed up to a position: what is durable there, and what is not.
#[derive(Clone, Debug)]
pub(super) struct Replay {
    /// Entries replayed.
    pub(super) at: usize,
    durable: Disk,
    /// What is not in `durable` yet, in order: by file, and of names.
    writes: BTreeMap<Ino, Vec<Pending>>,
    names: Vec<Pending>,
}

#[derive(Clone, Debug)]
struct Pending {
    change: Change,
    fate: Fate,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// Durable by the next good sync.
    Open,
    /// A sync failed while it was open: nobody will ever know.
    Doubtful,
    /// Durable, but after one that is not.
    Durable,
}

impl Replay {
    pub(super) fn from(base: Disk) -> Self {
        Self { at: 0, durable: base, writes: BTreeMap::new(), names: Vec::new() }
    }

    /// Replays `log` from where it stands up to `at`.
    pub(super) fn advance(&mut self, log: &[Entry], at: usize) {
        for entry in &log[self.at..at] {
            match entry {
                Entry::Change(change) => self.change(change),
                Entry::Sync { node, good } => self.sync(*node, *good),
            }
        }
        self.at = at;
    }

    fn change(&mut self, change: &Change) {
        self.durable.make_node(change);
        // The disk itself flips bits; no sync is needed for that.
        let fate = if matches!(change, Change::Flip { .. }) { Fate::Durable } else { Fate::Open };
        let pending = match change.file() {
            Some(file) => self.writes.entry(file).or_default(),
            None => &mut self.names,
        };
        pending.push(Pending { change: change.clone(), fate });
        settle(pending, &mut self.durable);
    }

    fn sync(&mut self, node: Ino, good: bool) {
        let fate = if good { Fate::Durable } else { Fate::Doubtful };
        let synced = |pending: &&mut Pending| {
            // A rename is whole, so it is durable with either of its folders.
            pending.change.file() == Some(node) || pending.change.names().any(|name| name.0 == node)
        };
        for pending in [self.writes.get_mut(&node), Some(&mut self.names)].into_iter().flatten() {
            for pending in pending.iter_mut().filter(synced).filter(|pending| pending.fate == Fate::Open) {
                pending.fate = fate;
            }
            settle(pending, &mut self.durable);
        }
    }

    /// The disk after a power cut here, with what `luck` keeps of what is not durable.
    pub(super) fn cut(&self, luck: &mut Luck) -> Disk {
        let mut disk = self.durable.clone();
        let mut lost: HashSet<&Name> = HashSet::new();
        for Pending { change, fate } in &self.names {
            let possible = !change.names().any(|name| lost.contains(name));
            if *fate == Fate::Durable || possible && luck.keeps_name() {
                disk.apply(change);
            } else {
                lost.extend(change.names());
            }
        }
        for Pending { change, fate } in self.writes.values().flatten() {
            if *fate == Fate::Durable {
                disk.apply(change);
            } else {
                luck.kept_of(change).iter().for_each(|part| disk.apply(part));
            }
        }
        disk
    }
}

/// Moves to `durable` what is durable and comes after nothing uncertain.
fn settle(pending: &mut Vec<Pending>, durable: &mut Disk) {
    let settled = pending.iter().take_while(|pending| pending.fate == Fate::Durable).count();
    pending.drain(..settled).for_each(|pending| durable.apply(&pending.change));
}

/// What is kept of what was not synced.
pub(super) enum Luck {
    All,
    None,
    /// Each with its own chances, which differ from cut to cut.
    Random {
        rng: Box<StdRng>,
        /// Chances that a name, a write, and a sector of a torn write is kept.
        chances: [f64; 3],
        /// Chance that a write is torn.
        torn: f64,
    },
}

impl Luck {
    pub(super) fn of_seed(seed: u64) -> Self {
        let mut rng = Box::new(StdRng::seed_from_u64(seed));
        // Also the extremes: a bug may need everything of one kind and nothing of another.
        let chances = [(); 3].map(|()| [0.0, 0.1, 0.5, 0.9, 1.0][rng.random_range(0..5)]);
        let torn = [0.0, 0.3, 1.0][rng.random_range(0..3)];
        Self::Random { rng, chances, torn }
    }

    fn keeps_name(&mut self) -> bool {
        match self {
            Self::All => true,
            Self::None => false,
            Self::Random { rng, chances, .. } => rng.random_bool(chances[0]),
        }
    }

    /// The parts of a change to a file that are kept.
    fn kept_of(&mut self, change: &Change) -> Vec<Change> {
        match self {
            Self::All => vec![change.clone()],
            Self::None => Vec::new(),
            Self::Random { rng, chances, torn } => match change {
                Change::Write { file, offset, bytes } if rng.random_bool(*torn) => {
                    pieces(SECTOR, *offset, bytes.len() as u64)
                        .filter(|_| rng.random_bool(chances[2]))
                        .map(|(start, end)| Change::Write {
                            file: *file,
                            offset: start,
                            bytes: Arc::from(&bytes[(start - offset) as usize..(end - offset) as usize]),
                        })
                        .collect()
                }
                Change::Zero { file, offset, len } if rng.random_bool(*torn) => pieces(PAGE, *offset, *len)
                    .filter(|_| rng.random_bool(chances[2]))
                    .map(|(start, end)| Change::Zero { file: *file, offset: start, len: end - start })
                    .collect(),
                change if rng.random_bool(chances[1]) => vec![change.clone()],
                _ => Vec::new(),
            },
        }
    }
}

/// Cuts a range at multiples of `unit` bytes: start and end of each piece.
fn pieces(unit: u64, offset: u64, len: u64) -> impl Iterator<Item = (u64, u64)> {
    let end = offset + len;
    (offset / unit..end.div_ceil(unit)).map(move |n| (offset.max(n * unit), end.min((n + 1) * unit)))
}
