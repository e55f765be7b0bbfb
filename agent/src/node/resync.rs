//! Resync: what is dirty only because nobody knows better is compared with the target instead of sent.
//!
//! Where tracking lost continuity, the target diverged, or its disks were there before replication began, whole disks are
//! dirty although the target holds nearly all of them. So when a connection begins somewhere else, every leaf all of whose blocks are dirty becomes *suspect*: perhaps the target has it
//! already. A suspect leaf is read, its digest compared with the target's, and only if they differ does pre-copy send
//! it. The argument why a leaf that is equal may leave `dirty` is in docs/barrier.md, section 10.
//!
//! Nothing of this is kept: suspect leaves stay dirty until they are settled, so an agent that starts again finds them
//! by that. Comparing too much is no mistake, only work. It does not follow writes: those are marked as ever.
//!
//! Bounds: a bit a leaf (2 MiB for each TiB of disk), [`limits::QUESTIONS`] spans' digests (256 KiB), one span being read.

use std::time::{Duration, Instant};

use engine::{
    digest::{LEAF_BYTES, LeafMap, blocks_of, leaf_digest, leaves_in},
    extent::Extent,
    extent_set::ExtentSet,
    frame::{Compare, Compared, LeafRange, Span, digest_of_all},
    limits,
    units::{BLOCK_BYTES, Block, Digest, DiskIndex, Seq},
};

use super::{Node, READ_POLL, Step, Waiting, status::ResyncStatus};
use crate::capture::{
    CaptureError, Source,
    precopy::{READ_BLOCKS, granule_blocks, read_error, read_op},
};

/// Fewer suspect leaves than these (64 MiB) are sent: that is as quick as finding out.
pub const RESYNC_FROM: u64 = 1024;

/// A question without answer is asked again after this time: it, or the answer, was lost.
const ASK_AGAIN: Duration = Duration::from_secs(20);

/// How often it is looked whether the target has applied what was on its way.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Bytes found different after which they are sent, before more are compared.
const SEND_FROM: u64 = 16 << 20;

/// Leaves of which is not known whether the target has them.
#[derive(Debug)]
pub(super) struct Resync {
    /// By disk. Invariants: all of their blocks are dirty; they are whole granules; no frame after `from` holds any of them;
    /// each is behind the cursor, or in a question.
    suspect: Vec<LeafMap>,
    /// Frames up to this one may hold something of a suspect leaf.
    from: Seq,
    /// The next leaf to read.
    cursor: (usize, u64),
    questions: Vec<Question>,
    /// Bytes that may be dirty and not suspect, and that no pass of pre-copy has looked at.
    unsent: u64,
    progress: Progress,
}

#[derive(Debug)]
struct Question {
    compare: Compare,
    /// What was read, in order.
    digests: Vec<(u64, Digest)>,
    again_at: Instant,
}

#[derive(Debug)]
struct Progress {
    leaves: u64,
    equal: u64,
    began: Instant,
}

impl Resync {
    /// Of disks as they are marked, for a target that has frames up to `from`, or will have. `None` if fewer than
    /// `least` leaves are suspect. What is being sent, `without`, is not.
    fn begin<'a>(
        source: &Source,
        from: Seq,
        least: u64,
        without: impl Iterator<Item = &'a (DiskIndex, ExtentSet)>,
        now: Instant,
    ) -> Option<Self> {
        let suspect = source.indices().map(|disk| wholly_dirty(source, disk)).collect();
        let progress = Progress { leaves: 0, equal: 0, began: now };
        let mut resync =
            Self { suspect, from, cursor: (0, 0), questions: Vec::new(), unsent: u64::MAX, progress };
        for (disk, blocks) in without {
            for extent in blocks.extents() {
                let leaves = extent.offset() / LEAF_BYTES..leaves_in(extent.end().offset());
                resync.give_up(source, *disk, leaves);
            }
        }
        resync.progress.leaves = resync.left();
        (resync.left() >= least.max(1)).then_some(resync)
    }

    /// The connection is another one: what was asked may be lost. What was read still holds.
    pub(super) fn ask_again(&mut self, now: Instant) {
        self.questions.iter_mut().for_each(|question| question.again_at = now);
    }

    /// Leaves that pre-copy must leave out.
    pub(super) fn suspect(&self) -> &[LeafMap] {
        &self.suspect
    }

    /// Whether one of these blocks is in a suspect leaf.
    pub(super) fn holds(&self, disk: DiskIndex, blocks: &ExtentSet) -> bool {
        let suspect = &self.suspect[usize::from(disk.0)];
        let holds = |extent: Extent| {
            suspect
                .next(extent.offset() / LEAF_BYTES)
                .is_some_and(|leaf| leaf * LEAF_BYTES < extent.end().offset())
        };
        blocks.extents().any(holds)
    }

    /// Leaves to be settled.
    fn left(&self) -> u64 {
        self.suspect.iter().map(LeafMap::count).sum()
    }

    /// These leaves, and what shares a granule with them, are sent whatever the target holds.
    fn give_up(&mut self, source: &Source, disk: DiskIndex, leaves: std::ops::Range<u64>) {
        let granule = granule_leaves(source, disk);
        let end = leaves.end.next_multiple_of(granule);
        let Some(suspect) = self.suspect.get_mut(usize::from(disk.0)) else { return };
        let mut from = leaves.start / granule * granule;
        while let Some(leaf) = suspect.next(from).filter(|leaf| *leaf < end) {
            suspect.remove(leaf);
            from = leaf + 1;
        }
        self.unsent = u64::MAX;
    }

    /// Whether a pass of pre-copy comes before more is compared; it is then no longer due.
    pub(super) fn take_turn_of_precopy(&mut self) -> bool {
        let cannot_ask = self.questions.len() >= limits::QUESTIONS || self.next_span().is_none();
        let due = self.unsent >= SEND_FROM || (self.unsent > 0 && cannot_ask);
        if due {
            self.unsent = 0;
        }
        due
    }

    /// The suspect leaves of the next span.
    fn next_span(&self) -> Option<(DiskIndex, Vec<u64>)> {
        let (at, from) = self.cursor;
        let next = |(index, suspect): (usize, &LeafMap)| {
            suspect.next(if index == at { from } else { 0 }).map(|first| (index, first))
        };
        let (index, first) = self.suspect.iter().enumerate().skip(at).find_map(next)?;
        let end = (first + 1).next_multiple_of(limits::SPAN_LEAVES);
        let leaves = self.suspect[index].iter_from(first).take_while(|leaf| *leaf < end).collect();
        Some((DiskIndex(index as u16), leaves))
    }

    pub(super) fn status(&self, now: Instant) -> ResyncStatus {
        let Progress { leaves, equal, began } = self.progress;
        let left = self.left();
        let elapsed = now.duration_since(began).as_secs_f64();
        let rate = if elapsed > 0.0 { (leaves - left) as f64 / elapsed } else { 0.0 };
        ResyncStatus {
            total: leaves * LEAF_BYTES,
            left: left * LEAF_BYTES,
            equal: equal * LEAF_BYTES,
            eta_s: (rate > 0.0).then(|| left as f64 / rate),
        }
    }
}

impl Node {
    /// The target stands at `position`, from which this node goes on; `adopted` if its disks held content before that.
    pub(super) fn begin_resync(&mut self, position: Seq, adopted: bool, now: Instant) {
        self.resync = None;
        // One that has nothing would be asked in vain.
        if position == Seq(0) && !adopted {
            return;
        }
        self.resync = Resync::begin(&self.source, position, self.resync_from, self.packing.iter(), now);
        if let Some(resync) = &self.resync {
            let bytes = resync.left() * LEAF_BYTES;
            tracing::info!(bytes, "what the target may have already is compared with it before it is sent");
        }
    }

    /// Reads and asks for the next span, if that can be.
    pub(super) fn step_resync(&mut self, now: Instant) -> Step {
        let Some(resync) = &mut self.resync else { return Step::Worked };
        // What is on its way may hold something of a suspect leaf.
        if self.durable < resync.from {
            return Step::Waits(Waiting::Until(now + LOOK_EVERY));
        }
        if let Some(question) = resync.questions.iter_mut().find(|question| question.again_at <= now) {
            question.again_at = now + ASK_AGAIN;
            self.uplink.ask(&question.compare, now);
            return Step::Worked;
        }
        let next = resync.next_span().filter(|_| resync.questions.len() < limits::QUESTIONS);
        let Some((disk, leaves)) = next else {
            let again_at = resync.questions.iter().map(|question| question.again_at).min();
            return Step::Waits(Waiting::Until(again_at.unwrap_or(now)));
        };
        match self.source.tracker.may_read() {
            Ok(true) => (),
            Ok(false) => return Step::Waits(Waiting::Until(now + READ_POLL)),
            Err(error) => {
                self.fail(&error.into(), now);
                return Step::Worked;
            }
        }
        resync.cursor = (usize::from(disk.0), (leaves[0] + 1).next_multiple_of(limits::SPAN_LEAVES));
        let (mut digests, error) = read(&mut self.source, disk, &leaves);
        // What cannot be read is left to pre-copy, which says so.
        let unread = leaves.iter().filter(|leaf| digests.binary_search_by_key(leaf, |read| &read.0).is_err());
        unread.for_each(|leaf| resync.give_up(&self.source, disk, *leaf..leaf + 1));
        digests.retain(|(leaf, _)| resync.suspect[usize::from(disk.0)].contains(*leaf));
        if let Some(span) = Span::of(disk, digests.iter().map(|(leaf, _)| *leaf)) {
            let all: Vec<Digest> = digests.iter().map(|(_, digest)| *digest).collect();
            let compare = Compare { span, digest: digest_of_all(&all) };
            self.uplink.ask(&compare, now);
            resync.questions.push(Question { compare, digests, again_at: now + ASK_AGAIN });
        }
        match error {
            Some(error) => self.fail(&error, now),
            None => self.trouble = None,
        }
        self.end_resync();
        Step::Worked
    }

    /// The target said what it holds of a span.
    pub(super) fn handle_compared(&mut self, answer: &Compared) {
        let Some(resync) = &mut self.resync else { return };
        let is_of = |question: &Question| question.compare.span == answer.span;
        let Some(index) = resync.questions.iter().position(is_of) else { return };
        let all_equal = answer.digest == resync.questions[index].compare.digest;
        // One to a question of an earlier time, which says nothing of this one: it is asked again.
        if answer.position < resync.from || (!all_equal && answer.digests.is_empty()) {
            return;
        }
        let Question { digests, .. } = resync.questions.swap_remove(index);
        let disk = answer.span.disk;
        let (granule, size) = (granule_leaves(&self.source, disk), self.source.disk(disk).size());
        let is_equal = |at: usize, digest: &Digest| all_equal || answer.digests.get(at) == Some(digest);
        let leaves: Vec<(u64, bool)> =
            digests.iter().enumerate().map(|(at, (leaf, digest))| (*leaf, is_equal(at, digest))).collect();
        let suspect = &mut resync.suspect[usize::from(disk.0)];
        for of_granule in leaves.chunk_by(|(a, _), (b, _)| a / granule == b / granule) {
            // Some may have been asked for meanwhile, and go whatever they are.
            if !of_granule.iter().all(|(leaf, _)| suspect.contains(*leaf)) {
                continue;
            }
            for (leaf, _) in of_granule {
                suspect.remove(*leaf);
            }
            let first = of_granule[0].0;
            let whole = first.is_multiple_of(granule)
                && of_granule.len() as u64 == granule.min(suspect.leaves() - first);
            debug_assert!(whole, "suspect leaves are whole granules");
            let count = of_granule.len() as u64;
            if whole && of_granule.iter().all(|(_, equal)| *equal) {
                let end = blocks_of(first + count - 1, size).end;
                self.source.tracker.maps(disk).dirty.clear(blocks_of(first, size).start, end);
                resync.progress.equal += count;
                self.totals.equal_bytes += count * LEAF_BYTES;
                self.copying.iter_mut().for_each(|copying| copying.advance(count * LEAF_BYTES));
            } else {
                resync.unsent = resync.unsent.saturating_add(count * LEAF_BYTES);
            }
        }
        self.end_resync();
    }

    /// The target wants these leaves whatever they are.
    pub(super) fn give_up_comparing(&mut self, leaves: &[LeafRange]) {
        let Some(resync) = &mut self.resync else { return };
        for range in leaves {
            resync.give_up(&self.source, range.disk, range.first..range.first + range.count);
        }
        self.end_resync();
    }

    /// If nothing is suspect any more, that was it.
    fn end_resync(&mut self) {
        let Some(resync) = self.resync.take_if(|resync| resync.left() == 0) else { return };
        let Progress { leaves, equal, .. } = resync.progress;
        let (compared, equal) = (leaves * LEAF_BYTES, equal * LEAF_BYTES);
        tracing::info!(compared, equal, "compared with the target; what differs is sent");
    }
}

/// Leaves of one granule of a disk's dirty map.
fn granule_leaves(source: &Source, disk: DiskIndex) -> u64 {
    (granule_blocks(source, disk) as u64 * BLOCK_BYTES / LEAF_BYTES).max(1)
}

/// The leaves all of whose blocks are dirty; of large granules only all of their leaves.
fn wholly_dirty(source: &Source, disk: DiskIndex) -> LeafMap {
    let (size, dirty) = (source.disk(disk).size(), &source.tracker.maps(disk).dirty);
    let granule = granule_leaves(source, disk);
    let mut found = LeafMap::empty(size);
    for first in (0..leaves_in(size)).step_by(granule as usize) {
        let leaves = first..(first + granule).min(leaves_in(size));
        if dirty.all(blocks_of(first, size).start, blocks_of(leaves.end - 1, size).end) {
            found.insert_all(leaves);
        }
    }
    found
}

/// Reads leaves of a disk, whole granules of one span; digests of those that could be read, in order, and the first error.
fn read(source: &mut Source, disk: DiskIndex, leaves: &[u64]) -> (Vec<(u64, Digest)>, Option<CaptureError>) {
    let device = source.disks[usize::from(disk.0)].clone();
    let size = device.size();
    let blocks = leaves.iter().map(|leaf| blocks_of(*leaf, size));
    let wanted: ExtentSet =
        blocks.map(|range| Extent::new(range.start.0, (range.end.0 - range.start.0) as u32)).collect();
    let pieces: Vec<Extent> = wanted.extents().flat_map(|run| run.pieces(READ_BLOCKS)).collect();
    let (mut digests, mut failed) = (Vec::with_capacity(leaves.len()), None);
    device.run(&mut pieces.iter().map(|piece| read_op(*piece, size, 0)), &mut |op, outcome| {
        if let Err(error) = outcome {
            failed.get_or_insert(read_error(device.name(), op.offset, error));
            return;
        }
        source.tracker.note_read(disk, Block::containing(op.offset), &op.buf);
        let of_leaves = (op.offset / LEAF_BYTES..).zip(op.buf.chunks(LEAF_BYTES as usize));
        digests.extend(of_leaves.map(|(leaf, bytes)| (leaf, leaf_digest(bytes))));
    });
    digests.sort_unstable_by_key(|(leaf, _)| *leaf);
    (digests, failed)
}
