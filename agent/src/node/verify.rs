//! Digests of the disks as they were at a point, for the master target to compare with what it holds.
//!
//! A leaf that nobody wrote since the last point is read when there is time, at a bounded rate. Right after the read it
//! is *settled* for that point if no write to it was issued since: not marked, not dirty, and in no frame sealed since
//! the point. The argument is that of the barrier, docs/barrier.md section 9. A leaf that is written too often for
//! that is read as a witness by the barrier of a later point. What is settled goes out as a digests frame at once, so
//! that the frames before it, applied in order, give exactly the leaf that was hashed.
//!
//! Bounds: three bits a leaf (6 MiB for each TiB of disk) while digests are wanted, [`BATCH`] leaves being read.

use std::time::{Duration, Instant};

use engine::{
    digest::{LEAF_BYTES, LeafMap, blocks_of, leaf_digest},
    extent_set::ExtentSet,
    frame::{LeafDigests, LeafRange, Packed},
    io::Op,
    units::{Block, Digest, DiskIndex},
};

use super::Node;
use crate::capture::{CaptureError, Source, precopy::read_error, witness::Leaf};

/// Leaves read at once: 4 MiB.
const BATCH: usize = 64;

/// Leaves that one point may take as witnesses: 4 MiB more to be read in its window.
pub const WITNESSES: usize = 64;

/// The leaves whose digests are wanted.
#[derive(Debug)]
pub(super) struct Verification {
    disks: Vec<Disk>,
    /// Bytes read per second at most.
    rate: u64,
    /// When the next batch may be read.
    due: Instant,
    /// There is a point to settle leaves for: it was sealed since digests are wanted, and the target has not lost it.
    point: bool,
    /// Where the pass over wanted leaves stands; `None` when it is over until the next point.
    cursor: Option<(usize, u64)>,
    /// Witnesses that the next point is asked to take; fewer while they are too many for it.
    budget: usize,
    /// Digests of witnesses of the point that is being sealed.
    witnessed: Vec<(Leaf, Digest)>,
}

#[derive(Debug)]
struct Disk {
    wanted: LeafMap,
    /// Wanted leaves that were looked at, and had been written since the point.
    written: LeafMap,
    /// Leaves of which a frame after the point holds something.
    sent: LeafMap,
}

impl Verification {
    /// Nothing is wanted yet from disks of these sizes.
    fn new(sizes: impl Iterator<Item = u64>, rate: u64, now: Instant) -> Self {
        let disk = |bytes| Disk {
            wanted: LeafMap::empty(bytes),
            written: LeafMap::empty(bytes),
            sent: LeafMap::empty(bytes),
        };
        Self {
            disks: sizes.map(disk).collect(),
            rate: rate.max(1),
            due: now,
            point: false,
            cursor: None,
            budget: WITNESSES,
            witnessed: Vec::new(),
        }
    }

    fn want(&mut self, leaves: &[LeafRange]) {
        for range in leaves {
            // What this VM does not have was asked of another, or by one that is mistaken: there is no digest of it.
            let Some(disk) = self.disks.get_mut(usize::from(range.disk.0)) else { continue };
            disk.wanted.insert_all(range.first..range.first + range.count);
        }
        if self.point {
            self.cursor.get_or_insert((0, 0));
        }
    }

    /// Leaves still to be settled.
    pub(super) fn left(&self) -> u64 {
        self.disks.iter().map(|disk| disk.wanted.count()).sum()
    }

    fn is_over(&self) -> bool {
        self.left() == 0
    }

    /// Leaves that a point should read as witnesses.
    pub(super) fn witnesses(&self) -> Vec<Leaf> {
        let of_disk = |(index, disk)| {
            let disk: &Disk = disk;
            disk.written.iter_from(0).map(move |number| Leaf { disk: DiskIndex(index), number })
        };
        (0..).zip(&self.disks).flat_map(of_disk).take(self.budget).collect()
    }

    /// A point was captured; it asked for `asked` witnesses and has these.
    pub(super) fn captured(&mut self, asked: usize, witnessed: Vec<(Leaf, Digest)>) {
        self.budget = if witnessed.len() < asked / 2 { self.budget / 2 } else { self.budget * 2 };
        self.budget = self.budget.clamp(1, WITNESSES);
        self.witnessed = witnessed;
    }

    /// A frame with these blocks was sealed.
    pub(super) fn sent(&mut self, disk: DiskIndex, blocks: &ExtentSet) {
        let sent = &mut self.disks[usize::from(disk.0)].sent;
        blocks.extents().for_each(|extent| sent.insert_blocks(extent.start, extent.end()));
    }

    /// Leaves settle for no earlier point any more.
    fn forget_point(&mut self) {
        self.point = false;
        self.cursor = None;
        self.witnessed.clear();
    }

    /// A point was sealed: the frames after it begin.
    fn begin_point(&mut self) {
        self.point = true;
        self.disks.iter_mut().for_each(|disk| disk.sent.clear());
        self.cursor = Some((0, 0));
    }

    fn settled(&mut self, leaf: Leaf) {
        let disk = &mut self.disks[usize::from(leaf.disk.0)];
        disk.wanted.remove(leaf.number);
        disk.written.remove(leaf.number);
    }

    /// The next leaves to look at, all of one disk. Empty when the pass is over.
    fn next_batch(&mut self) -> (usize, Vec<u64>) {
        while let Some((index, from)) = self.cursor {
            let Some(disk) = self.disks.get_mut(index) else { break };
            let mut batch = Vec::new();
            for leaf in disk.wanted.iter_from(from) {
                if batch.len() == BATCH {
                    break;
                }
                if disk.sent.contains(leaf) {
                    disk.written.insert(leaf);
                } else {
                    batch.push(leaf);
                }
            }
            self.cursor = Some(match batch.last() {
                Some(last) => (index, last + 1),
                None => (index + 1, 0),
            });
            if !batch.is_empty() {
                return (index, batch);
            }
        }
        self.cursor = None;
        (0, Vec::new())
    }
}

impl Node {
    /// The master target wants digests of these leaves.
    pub(super) fn verify(&mut self, leaves: &[LeafRange], now: Instant) {
        if self.verification.is_none() {
            let sizes = self.source.indices().map(|disk| self.source.disk(disk).size());
            self.verification = Some(Box::new(Verification::new(sizes, self.verify_rate, now)));
            // What was sent since the last point was not noted.
            self.points.hurry(now);
        }
        if let Some(verification) = &mut self.verification {
            verification.want(leaves);
        }
    }

    /// These leaves differ at the target: they are sent again, and then their digests.
    pub(super) fn resend(&mut self, leaves: &[LeafRange], now: Instant) {
        for range in leaves.iter().filter(|range| usize::from(range.disk.0) < self.source.disks.len()) {
            let bytes = self.source.disk(range.disk).size();
            let (first, last) =
                (blocks_of(range.first, bytes), blocks_of(range.first + range.count - 1, bytes));
            self.source.tracker.maps(range.disk).dirty.set(first.start, last.end);
        }
        // What differs may not be found equal by what the target had stored of it.
        self.give_up_comparing(leaves);
        tracing::warn!(
            ranges = leaves.len(),
            "the disks at home differ from these: what differs is sent again"
        );
        self.points.hurry(now);
        self.verify(leaves, now);
    }

    /// When the next leaves may be read; `None` if there is nothing to read before the next point.
    pub(super) fn verify_due(&self) -> Option<Instant> {
        self.verification.as_ref().filter(|v| v.cursor.is_some()).map(|verification| verification.due)
    }

    /// Reads a batch of leaves and sends what settles. Nothing may be waiting to be sealed.
    pub(super) fn step_verify(&mut self, now: Instant) {
        debug_assert!(self.resync.is_none(), "no marks are taken while leaves are compared");
        let Some(mut verification) = self.verification.take() else { return };
        let (index, leaves) = verification.next_batch();
        let disk = DiskIndex(index as u16);
        let outcome = read_settled(&mut self.source, disk, &leaves);
        let pause = (leaves.len() as u64 * LEAF_BYTES) as f64 / verification.rate as f64;
        // From the end of the read on, so that on a slow disk there is time left for other work, too.
        verification.due = self.source.clock.now() + Duration::from_secs_f64(pause);
        match outcome {
            Ok(settled) => {
                let unsettled =
                    leaves.iter().filter(|leaf| settled.binary_search_by_key(leaf, |s| &s.0).is_err());
                for leaf in unsettled {
                    verification.disks[index].written.insert(*leaf);
                }
                settled.iter().for_each(|(number, _)| verification.settled(Leaf { disk, number: *number }));
                self.send_digests(disk, settled);
            }
            Err(error) => self.fail(&error, now),
        }
        self.verification = (!verification.is_over()).then_some(verification);
    }

    /// The target may have lost frames since the last point.
    pub(super) fn reset_verification(&mut self) {
        self.verification.iter_mut().for_each(|verification| verification.forget_point());
    }

    /// A point was sealed: sends the digests of its witnesses.
    pub(super) fn verify_from_here(&mut self) {
        let Some(mut verification) = self.verification.take() else { return };
        verification.begin_point();
        let witnessed = std::mem::take(&mut verification.witnessed);
        for of_disk in witnessed.chunk_by(|(a, _), (b, _)| a.disk == b.disk) {
            of_disk.iter().for_each(|(leaf, _)| verification.settled(*leaf));
            let digests = of_disk.iter().map(|(leaf, digest)| (leaf.number, *digest)).collect();
            self.send_digests(of_disk[0].0.disk, digests);
        }
        self.verification = (!verification.is_over()).then_some(verification);
    }

    fn send_digests(&mut self, disk: DiskIndex, digests: Vec<(u64, Digest)>) {
        let Some(sender) = self.uplink.sender().filter(|_| !digests.is_empty()) else { return };
        self.totals.verified_leaves += digests.len() as u64;
        sender.push(Packed::digests(disk, &LeafDigests::new(digests)).seal(self.stream.id, &sender.last()));
    }
}

/// Reads leaves of a disk; returns the digests of those to which no write was issued since the last flip, in order,
/// and which are not dirty.
fn read_settled(
    source: &mut Source,
    disk: DiskIndex,
    leaves: &[u64],
) -> Result<Vec<(u64, Digest)>, CaptureError> {
    // A flip that failed may have left marks to take, of writes that the active generation does not show.
    source.tracker.take(disk, 0)?;
    let device = source.disks[usize::from(disk.0)].clone();
    let size = device.size();
    let op = |leaf: &u64| {
        let range = blocks_of(*leaf, size);
        let len = LEAF_BYTES.min(size - range.start.offset());
        Op::read(range.start.offset(), len as usize, *leaf)
    };
    let (mut settled, mut failed) = (Vec::with_capacity(leaves.len()), None);
    device.run(&mut leaves.iter().map(op), &mut |op, outcome| {
        if let Err(error) = outcome {
            failed.get_or_insert(read_error(device.name(), op.offset, error));
            return;
        }
        let range = blocks_of(op.tag, size);
        let blocks = (range.end.0 - range.start.0) as u32;
        // After the read, as in a barrier.
        let written = source.tracker.written_since_flip(disk, Block::containing(op.offset), blocks)
            || source.tracker.maps(disk).dirty.any(range.start, range.end);
        if !written {
            settled.push((op.tag, leaf_digest(&op.buf)));
        }
    });
    settled.sort_unstable_by_key(|(leaf, _)| *leaf);
    failed.map_or(Ok(settled), Err)
}
