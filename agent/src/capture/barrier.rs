//! The converging barrier: one instant T of all disks in memory and in frames, while they are written.
//!
//! A *round* flips the generation (that is T), takes what the ended one had marked, waits until no write issued
//! before T is in flight, and reads every block that the target lacks. Right after each read it asks whether a
//! write to the block was issued since T: if not, the block is *settled*. When all are settled the point exists.
//! A conflict spoils T but not the work: after the next flip only what was marked meanwhile is read again, so
//! windows shrink and a few rounds converge. If they do not, the last resort is a round while writers are frozen.
//!
//! Three rules make it exact; the argument stands in docs/barrier.md:
//! 1. No flip before every write issued before the last flip has completed.
//! 2. No read for a point before every write issued before T has completed.
//! 3. Marks taken after a block was read and before it left the dirty map put it back among those to be read.

use std::time::{Duration, Instant};

use engine::{
    extent::Extent,
    extent_set::ExtentSet,
    limits,
    point::Method,
    units::{BLOCK_BYTES, Block, DiskIndex},
};
use jiff::Timestamp;

use super::{
    CaptureError, Freezer, Source,
    buffer::Buffer,
    heat::{HOT, Heat},
    learned::Learned,
    precopy::{READ_BLOCKS, granule_blocks, read_error, read_op},
    witness::{Division, Leaf, Witnesses},
};
use crate::tracker::Kind;

/// Reading a residual should not take longer than this: a larger one is sent ahead as pre-copy. Rounds read faster
/// than pre-copy, which also packs and sends, so on a disk that is written about as fast as it can be read they
/// get on where pre-copy does not.
const WINDOW: Duration = Duration::from_millis(125);

/// Bytes of the first residual, however fast the disks are. What later rounds add should find room, too.
const RESIDUAL_BYTES: u64 = limits::CAPTURE_BYTES as u64 / 3;

/// How long a round waits for writes in flight, before the flip and after it.
const DRAIN: Duration = Duration::from_millis(100);

/// How long a round looks for a moment without a write in flight. Flipping then spares the wait after the flip, in
/// which hot blocks are written again. A disk that always has some in flight has no such moment.
const QUIET: Duration = Duration::from_millis(2);

/// Rounds that may be spent on witnesses alone, when the point itself has settled.
const WITNESS_TRIES: u32 = 16;

/// How often and how long to try before writers are frozen or the point is given up.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    tries: u32,
    /// Tries among these that found too much, each of which costs a pass of pre-copy.
    passes: u32,
    /// Time spent in rounds; the pre-copy between them does not count.
    budget: Duration,
    method: Method,
    may_freeze: bool,
}

impl Rules {
    /// What suits a kind of tracker.
    #[must_use]
    pub fn of(kind: Kind) -> Self {
        match kind {
            // On a disk with a few very hot blocks a try takes a millisecond and succeeds one time in ten.
            Kind::Ebpf => Self {
                tries: 400,
                passes: 40,
                budget: Duration::from_secs(2),
                method: Method::Barrier,
                may_freeze: true,
            },
            // A flip takes a comparison of the whole disk; a busy disk will not be quiet the third time either.
            Kind::Scan => {
                Self { tries: 2, passes: 2, budget: Duration::MAX, method: Method::Quiet, may_freeze: false }
            }
        }
    }

    /// The same with fewer tries, so that a simulation gets to freezes, too.
    #[cfg(test)]
    pub(super) fn with_tries(self, tries: u32) -> Self {
        Self { tries, ..self }
    }
}

/// How a round ended.
#[derive(Debug)]
pub enum Round {
    /// The point exists.
    Settled(Captured),
    /// A block was written in the window, or writes were in flight for too long: try again.
    Conflict,
    /// More is dirty than fits a window: send it as pre-copy first. The buffer was dropped; its blocks are dirty.
    TooMuch,
}

/// All disks at one instant, as far as the target lacks them.
#[derive(Debug)]
pub struct Captured {
    /// T, for people.
    pub taken_at: Timestamp,
    /// T, for measuring.
    pub instant: Instant,
    /// From T until the last block had been read.
    pub window: Duration,
    /// Rounds it took.
    pub tries: u32,
    /// How the instant was held.
    pub method: Method,
    /// How long writers were frozen.
    pub frozen: Duration,
    /// Bytes that the target lacked at T.
    pub residual_bytes: u64,
    /// Their contents.
    pub buffer: Buffer,
    /// What was read for digests only.
    pub witnesses: Witnesses,
}

/// What one round may take.
struct Bounds {
    bytes: u64,
    drain: Duration,
}

/// The attempt to make one point.
#[derive(Debug)]
pub struct Barrier {
    rules: Rules,
    /// Per disk, the dirty blocks that are not in `buffer`; `None` until the dirty maps were looked at.
    /// Invariant after a round: dirty = `pending` ∪ `buffer`, without overlap.
    pending: Option<Vec<ExtentSet>>,
    buffer: Buffer,
    witnesses: Witnesses,
    /// Rounds that failed for their sake.
    witness_tries: u32,
    tries: u32,
    passes: u32,
    spent: Duration,
    frozen: Duration,
    /// Set from before a freeze until after the thaw.
    frozen_since: Option<Instant>,
}

impl Barrier {
    /// Begins with nothing; reads `witnesses` as of the point, too, if that costs it little.
    #[must_use]
    pub fn new(rules: Rules, witnesses: Vec<Leaf>) -> Self {
        Self {
            rules,
            pending: None,
            buffer: Buffer::default(),
            witnesses: Witnesses::new(witnesses),
            witness_tries: 0,
            tries: 0,
            passes: 0,
            spent: Duration::ZERO,
            frozen: Duration::ZERO,
            frozen_since: None,
        }
    }

    /// Rounds so far.
    #[must_use]
    pub fn tries(&self) -> u32 {
        self.tries
    }

    /// Since when they are frozen, if they are.
    #[must_use]
    pub fn frozen_since(&self) -> Option<Instant> {
        self.frozen_since
    }

    /// How long writers were frozen so far, in all.
    #[must_use]
    pub fn frozen(&self) -> Duration {
        self.frozen
    }

    /// Whether another round of [`Self::round`] is within the bounds.
    #[must_use]
    pub fn may_try(&self) -> bool {
        self.tries < self.rules.tries && self.passes < self.rules.passes && self.spent < self.rules.budget
    }

    /// Whether [`Self::frozen_round`] is allowed at all.
    #[must_use]
    pub fn may_freeze(&self) -> bool {
        self.rules.may_freeze
    }

    /// Drops what was captured; it is still dirty. The tries stay counted.
    pub fn start_over(&mut self) {
        self.pending = None;
        self.buffer.clear();
        self.witnesses.start_over();
    }

    /// One round. No content read earlier may be waiting for its frame (rule 3).
    ///
    /// # Errors
    /// If tracker or disks fail; then it has started over.
    pub fn round(&mut self, source: &mut Source, learned: &mut Learned) -> Result<Round, CaptureError> {
        let bytes = learned.bytes_within(WINDOW).min(RESIDUAL_BYTES);
        self.bounded_round(source, learned, &Bounds { bytes, drain: DRAIN })
    }

    /// The last resort: a round while the file systems are frozen. What the sync before it wrote, and whatever
    /// else can be, is captured by an ordinary round first, so that little is left for the freeze.
    ///
    /// # Errors
    /// As [`Self::round`], and if freezing is refused or did not hold.
    pub fn frozen_round(
        &mut self,
        source: &mut Source,
        learned: &mut Learned,
        freezer: &mut dyn Freezer,
    ) -> Result<Round, CaptureError> {
        freezer.sync()?;
        match self.round(source, learned)? {
            Round::Conflict => (),
            settled_or_too_much => return Ok(settled_or_too_much),
        }
        // What was written meanwhile would else be written out while everybody waits.
        freezer.sync()?;
        match self.hold(source, learned, freezer, limits::FREEZE)? {
            Round::Settled(captured) => self.release(source, freezer, captured).map(Round::Settled),
            other => Ok(other),
        }
    }

    /// An ordinary round that makes no point but keeps what it reads, so that little is left for [`Self::hold`].
    /// Returns false if there is too much, to be sent as pre-copy first.
    ///
    /// # Errors
    /// As [`Self::round`].
    pub fn shrink(&mut self, source: &mut Source, learned: &mut Learned) -> Result<bool, CaptureError> {
        match self.round(source, learned)? {
            Round::Settled(captured) => {
                self.pending = Some(vec![ExtentSet::new(); source.disks.len()]);
                self.buffer = captured.buffer;
                Ok(true)
            }
            Round::Conflict => Ok(true),
            Round::TooMuch => Ok(false),
        }
    }

    /// A round while the file systems are frozen, for at most `within`. If it settles they *stay frozen*, and what was
    /// captured is a point only once [`Self::release`] says so; else they are thawed. Until then: memory and reads of the disks, no log
    /// and no file.
    ///
    /// # Errors
    /// As [`Self::round`], and if freezing is refused; then nothing is frozen.
    pub fn hold(
        &mut self,
        source: &mut Source,
        learned: &mut Learned,
        freezer: &mut dyn Freezer,
        within: Duration,
    ) -> Result<Round, CaptureError> {
        let since = source.clock.now();
        self.frozen_since = Some(since);
        let frozen = freezer.freeze(within);
        if let Err(error) = frozen {
            self.note_thawed(source);
            return Err(error.into());
        }
        let left = within.saturating_sub(source.clock.now().duration_since(since)) / 2;
        let bounds = Bounds { bytes: learned.bytes_within(left), drain: left };
        let outcome = self.bounded_round(source, learned, &bounds);
        if let Ok(Round::Settled(_)) = outcome {
            return outcome;
        }
        // What the round found out stands whether they were frozen all along or not.
        let _ = freezer.thaw();
        self.note_thawed(source);
        outcome
    }

    /// Thaws, and says whether what [`Self::hold`] captured is a point.
    ///
    /// # Errors
    /// If they were not frozen all along: what was captured is still dirty.
    pub fn release(
        &mut self,
        source: &Source,
        freezer: &mut dyn Freezer,
        captured: Captured,
    ) -> Result<Captured, CaptureError> {
        let thawed = freezer.thaw();
        let frozen = self.note_thawed(source);
        if let Err(error) = thawed {
            self.start_over();
            return Err(error.into());
        }
        Ok(Captured { method: Method::Frozen, frozen, ..captured })
    }

    fn note_thawed(&mut self, source: &Source) -> Duration {
        let since = self.frozen_since.take();
        let frozen = since.map_or(Duration::ZERO, |since| source.clock.now().duration_since(since));
        self.frozen += frozen;
        frozen
    }

    fn bounded_round(
        &mut self,
        source: &mut Source,
        learned: &mut Learned,
        bounds: &Bounds,
    ) -> Result<Round, CaptureError> {
        let began = source.clock.now();
        let outcome = self.try_once(source, learned, bounds);
        self.spent += source.clock.now().duration_since(began);
        self.passes += u32::from(matches!(outcome, Ok(Round::TooMuch)));
        if matches!(outcome, Err(_) | Ok(Round::TooMuch)) {
            self.start_over();
        }
        outcome
    }

    fn try_once(
        &mut self,
        source: &mut Source,
        learned: &mut Learned,
        bounds: &Bounds,
    ) -> Result<Round, CaptureError> {
        let Some(mut pending) =
            self.pending.take().map_or_else(|| gather(source, bounds.bytes), |p| Ok(Some(p)))?
        else {
            return Ok(Round::TooMuch);
        };
        self.tries += 1;
        // Rule 1.
        if !source.drain(bounds.drain)? {
            self.pending = Some(pending);
            return Ok(Round::Conflict);
        }
        source.await_quiet(QUIET);
        let (taken_at, instant) = (source.clock.wall(), source.clock.now());
        source.tracker.flip()?;

        let mut marked = Vec::with_capacity(pending.len());
        for (disk, pending) in source.indices().zip(&mut pending) {
            let Some(of_disk) = source.tracker.take(disk, bounds.bytes / BLOCK_BYTES)? else {
                return Ok(Round::TooMuch);
            };
            // Rule 3.
            self.buffer.remove(disk, &of_disk);
            self.witnesses.remove(disk, &of_disk);
            pending.union(&of_disk);
            marked.push(of_disk);
        }
        let wanted: u64 = pending.iter().map(ExtentSet::bytes).sum();
        if wanted > bounds.bytes || wanted + self.buffer.bytes() as u64 > limits::CAPTURE_BYTES as u64 {
            return Ok(Round::TooMuch);
        }
        let disks = source.divisions();
        let mut witnesses = self.missing_witnesses(&disks, &pending, wanted, bounds);
        // Rule 2.
        if source.drain(bounds.drain)? {
            let extra: u64 = witnesses.iter().map(ExtentSet::bytes).sum();
            let reading = source.clock.now();
            (pending, witnesses) = self.read(source, learned.heat(), &pending, &witnesses)?;
            learned.note_read(wanted + extra, source.clock.now().duration_since(reading));
        }
        let window = source.clock.now().duration_since(instant);
        if !source.tracker.saw_all()? {
            return Ok(Round::TooMuch);
        }
        source.indices().zip(&marked).for_each(|(disk, marked)| learned.note_marked(disk, marked));

        if pending.iter().any(|pending| !pending.is_empty()) {
            self.pending = Some(pending);
            return Ok(Round::Conflict);
        }
        if witnesses.iter().any(|missing| !missing.is_empty()) {
            if self.witness_tries < WITNESS_TRIES && self.may_try() {
                self.witness_tries += 1;
                self.pending = Some(pending);
                return Ok(Round::Conflict);
            }
            self.witnesses.give_up(&disks, &witnesses);
        }
        let (buffer, witnesses) = (std::mem::take(&mut self.buffer), std::mem::take(&mut self.witnesses));
        Ok(Round::Settled(Captured {
            taken_at,
            instant,
            window,
            tries: self.tries,
            method: self.rules.method,
            frozen: Duration::ZERO,
            residual_bytes: wanted,
            buffer,
            witnesses,
        }))
    }

    /// What must be read for witnesses alone, if there is room for it beside the `wanted` bytes of the residual.
    fn missing_witnesses(
        &mut self,
        disks: &[Division],
        pending: &[ExtentSet],
        wanted: u64,
        bounds: &Bounds,
    ) -> Vec<ExtentSet> {
        let missing = self.witnesses.missing(disks, pending, &self.buffer);
        let extra: u64 = missing.iter().map(ExtentSet::bytes).sum();
        let held = (self.buffer.bytes() + self.witnesses.bytes()) as u64;
        if wanted + extra <= bounds.bytes && wanted + extra + held <= limits::CAPTURE_BYTES as u64 {
            return missing;
        }
        self.witnesses.give_up(disks, &missing);
        vec![ExtentSet::new(); disks.len()]
    }

    /// Reads `pending` into the buffer, and `witnesses` for their digests; returns what of each did not settle.
    fn read(
        &mut self,
        source: &mut Source,
        heat: &Heat,
        pending: &[ExtentSet],
        witnesses: &[ExtentSet],
    ) -> Result<(Vec<ExtentSet>, Vec<ExtentSet>), CaptureError> {
        let mut conflicts = vec![ExtentSet::new(); pending.len()];
        let mut unseen = conflicts.clone();
        let mut failed = None;
        let granules: Vec<usize> = source.indices().map(|disk| granule_blocks(source, disk)).collect();
        let mut all = pending.to_vec();
        all.iter_mut().zip(witnesses).for_each(|(all, witnesses)| all.union(witnesses));
        for (disk, pieces) in in_order(&all, heat, &granules) {
            let index = usize::from(disk.0);
            let (granule, device) = (granules[index], source.disks[index].clone());
            let tracker = &mut source.tracker;
            let mut ops = pieces.iter().map(|piece| read_op(*piece, device.size(), 0));
            device.run(&mut ops, &mut |op, outcome| {
                if let Err(error) = outcome {
                    failed.get_or_insert(read_error(device.name(), op.offset, error));
                    return;
                }
                let mut first = Block::containing(op.offset);
                for bytes in op.buf.chunks(granule * BLOCK_BYTES as usize) {
                    let end = Block(first.0 + granule as u64);
                    let is_sent = pending[index].contains(first);
                    // After the read, and only then, does "no" mean that the read saw the block as it was at T.
                    if tracker.written_since_flip(disk, first, granule as u32) {
                        let unsettled = if is_sent { &mut conflicts } else { &mut unseen };
                        unsettled[index].insert(first, end);
                    } else if !is_sent {
                        self.witnesses.insert(disk, first, bytes);
                    } else {
                        tracker.note_read(disk, first, bytes);
                        self.buffer.insert(disk, first, bytes);
                    }
                    first = end;
                }
            });
        }
        failed.map_or(Ok((conflicts, unseen)), Err)
    }
}

/// Everything dirty, if it is at most `bytes`.
fn gather(source: &mut Source, bytes: u64) -> Result<Option<Vec<ExtentSet>>, CaptureError> {
    let mut pending = Vec::with_capacity(source.disks.len());
    let mut left = bytes / BLOCK_BYTES;
    for disk in source.indices() {
        // A flip that failed may have left marks to take.
        source.tracker.take(disk, 0)?;
        let dirty = source.tracker.maps(disk).dirty.collect(Block(0), left + 1);
        let Some(rest) = left.checked_sub(dirty.blocks()) else { return Ok(None) };
        left = rest;
        pending.push(dirty);
    }
    Ok(Some(pending))
}

/// What to read, in order: the hot granules of each disk one by one, hottest first, since a block is safe from
/// conflict the sooner it is read; then the rest in runs.
fn in_order(pending: &[ExtentSet], heat: &Heat, granules: &[usize]) -> Vec<(DiskIndex, Vec<Extent>)> {
    let (mut hot, mut rest) = (Vec::new(), Vec::new());
    for ((disk, pending), granule) in (0..).map(DiskIndex).zip(pending).zip(granules) {
        let (mut of_disk, mut cool) = (Vec::new(), ExtentSet::new());
        for piece in pending.extents().flat_map(|run| run.pieces(*granule as u32)) {
            match heat.of(disk, piece.start) {
                marks if marks >= HOT => of_disk.push((marks, piece)),
                _ => cool.insert_extent(piece),
            }
        }
        of_disk.sort_by_key(|(marks, _)| std::cmp::Reverse(*marks));
        hot.push((disk, of_disk.into_iter().map(|(_, piece)| piece).collect()));
        rest.push((disk, cool.extents().flat_map(|run| run.pieces(READ_BLOCKS)).collect()));
    }
    hot.into_iter().chain(rest).filter(|(_, pieces): &(_, Vec<_>)| !pieces.is_empty()).collect()
}
