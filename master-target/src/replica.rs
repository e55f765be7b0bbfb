//! The VM's disks at home and their journal: where frames become blocks, and points become disks again.
//!
//! Order of one batch, and the whole of crash safety: before-images of what it will overwrite → synced;
//! the blocks in place → synced; the position → synced; only then is it acknowledged. A seal is the last frame of
//! its batch. It knows files and disks only through traits, and nothing of connections.

mod observe;
mod recheck;

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use engine::{
    extent::Extent,
    extent_set::ExtentSet,
    frame::{Content, Frame, FrameError, Opened, Payload, Position},
    io::{AlignedBuf, Device, Op, Storage, read_exact_at},
    limits,
    point::Point,
    units::{BLOCK_BYTES, Block, Digest, DiskIndex},
};
use jiff::Timestamp;

use self::observe::Observer;
pub(crate) use self::{observe::Observed, recheck::LayerCheck};
use crate::digests::Digests;
use crate::journal::{
    self, Catalogue, ENTRY_BLOCKS, Image, JournalError, Log, OpenLayer, Record, SealedPoint, State, Watchers,
    log_path,
};

/// A disk at home.
pub struct Target {
    /// How it is written.
    pub device: Arc<dyn Device>,
    /// The VM's disk size; the device may be larger.
    pub bytes: u64,
    /// Whether zeros may become holes. Thick disks keep their space.
    pub thin: bool,
}

/// Why a batch, restore or point did not work out. Nothing wrong was acknowledged.
#[derive(Debug, thiserror::Error)]
pub enum ReplicaError {
    /// From the journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// A frame that must not be applied.
    #[error("refused a frame: {0}")]
    Frame(#[from] FrameError),
    /// A frame that names blocks or disks that are not there.
    #[error("refused {frame}: {what}")]
    OutOfPlace {
        /// Which frame.
        frame: engine::units::Seq,
        /// What is wrong with it.
        what: String,
    },
    /// A disk said no.
    #[error("cannot {action} {disk} at byte {offset}: {source}")]
    Disk {
        /// What was tried.
        action: &'static str,
        /// On which device.
        disk: String,
        /// Where.
        offset: u64,
        /// What the system said.
        source: io::Error,
    },
    /// No room on the datastore; goes on when there is some.
    #[error("no space left on the datastore for {disk}: free some, replication then goes on by itself")]
    NoSpace {
        /// Which disk.
        disk: String,
    },
}

impl ReplicaError {
    /// Whether it goes away when somebody frees space.
    #[must_use]
    pub fn is_no_space(&self) -> bool {
        matches!(self, Self::NoSpace { .. } | Self::Journal(JournalError::NoSpace { .. }))
    }

    /// Whether the peer sent something that must not be applied.
    #[must_use]
    pub fn is_peers_fault(&self) -> bool {
        matches!(self, Self::Frame(_) | Self::OutOfPlace { .. })
    }
}

/// Runs that a layer may remember as saved. Beyond it they are forgotten, and saved again: harmless.
const SAVED_RUNS: usize = 1 << 20;

/// Before-images that are in memory at once.
const IMAGE_BYTES: u64 = 4 << 20;

/// One stream's disks and journal.
pub struct Replica {
    pub(crate) storage: Arc<dyn Storage>,
    pub(crate) dir: PathBuf,
    pub(crate) catalogue: Catalogue,
    pub(crate) targets: Vec<Target>,
    /// Images that are open, to be told of what is saved.
    pub(crate) watchers: Watchers,
    /// Of the disks, as far as they are known.
    pub(crate) digests: Digests,
    observer: Observer,
    open: OpenLayer,
    position: Position,
}

impl Replica {
    /// Opens the journal in `dir` of `storage` and recovers it. `targets` are the disks in the stream's order.
    pub fn open(storage: Arc<dyn Storage>, dir: &Path, targets: Vec<Target>) -> Result<Self, ReplicaError> {
        let catalogue = Catalogue::open(&storage, dir)?;
        let (open, position) = journal::recover(&storage, dir, &catalogue)?;
        let digests = observe::open_digests(&storage, dir, catalogue.state(), &targets);
        let mut replica = Self {
            storage,
            dir: dir.to_owned(),
            catalogue,
            targets,
            watchers: Watchers::default(),
            digests,
            observer: Observer::default(),
            open,
            position,
        };
        replica.finish_restore()?;
        replica.void_digests()?;
        Ok(replica)
    }

    /// Everything up to here is durable on the disks.
    #[must_use]
    pub fn position(&self) -> Position {
        self.position
    }

    /// Points, targets, owner.
    #[must_use]
    pub fn state(&self) -> &State {
        self.catalogue.state()
    }

    /// Bytes of undo logs that are kept, the open one included.
    #[must_use]
    pub fn journal_bytes(&self) -> u64 {
        let state = self.state();
        let logs = state.points.values().filter(|p| p.layer > state.oldest).map(|p| p.log_bytes);
        let open = self.open.log.as_ref().map_or(0, Log::bytes);
        logs.fold(open, u64::saturating_add)
    }

    /// Opens frames: decompresses them and checks that they continue the stream after `after`.
    pub fn open_frames(after: Digest, frames: &[Frame]) -> Result<Vec<Opened>, FrameError> {
        let mut before = after;
        let open = |frame: &Frame| {
            let opened = frame.open(before);
            before = frame.header().chain;
            opened
        };
        frames.iter().map(open).collect()
    }

    /// Applies frames that continue at [`Self::position`], durably; returns the points they sealed. On an error
    /// the position tells how far it got, and the rest may be applied again.
    pub fn apply(&mut self, frames: &[Frame], now: Timestamp) -> Result<Vec<SealedPoint>, ReplicaError> {
        let opened = Self::open_frames(self.position.chain, frames)?;
        for (frame, opened) in frames.iter().zip(&opened) {
            match opened {
                Opened::Data(content) => self.check_place(frame, content)?,
                Opened::Digests(digests) => self.check_leaves(frame.header(), digests)?,
                Opened::Seal(_) => {}
            }
        }
        let mut sealed = Vec::new();
        let mut batch = Batch::new(self.targets.len());
        for (frame, opened) in frames.iter().zip(&opened) {
            let header = frame.header();
            match opened {
                Opened::Data(content) => {
                    if batch.must_come_before(header.disk, content) {
                        self.apply_batch(&mut batch)?;
                    }
                    batch.push(header.disk, content, Position::after(header));
                }
                Opened::Seal(point) => {
                    self.write_batch(&batch)?;
                    batch = Batch::new(self.targets.len());
                    sealed.push(self.seal(point, Position::after(header), now)?);
                }
                Opened::Digests(digests) => {
                    self.apply_batch(&mut batch)?;
                    self.compare(header, digests);
                    // At once: were they compared again after a failure, what follows might be on the disks in part.
                    self.commit(Position::after(header))?;
                }
            }
        }
        self.apply_batch(&mut batch)?;
        Ok(sealed)
    }

    fn apply_batch(&mut self, batch: &mut Batch<'_>) -> Result<(), ReplicaError> {
        self.write_batch(batch)?;
        if let Some(position) = batch.position {
            self.commit(position)?;
        }
        *batch = Batch::new(self.targets.len());
        Ok(())
    }

    fn check_place(&self, frame: &Frame, content: &Content) -> Result<(), ReplicaError> {
        let frame_seq = frame.header().seq;
        let out_of_place = |what| Err(ReplicaError::OutOfPlace { frame: frame_seq, what });
        let disk = frame.header().disk;
        let Some(target) = self.targets.get(usize::from(disk.0)) else {
            return out_of_place(format!("the VM has no {disk}"));
        };
        for (extent, payload) in content.extents() {
            if extent.end().0 > engine::units::blocks_in(target.bytes) {
                return out_of_place(format!("{extent} lie beyond the end of {disk}"));
            }
            if let Payload::Copy { disk: from_disk, from, .. } = payload {
                let from = Extent { start: from, blocks: extent.blocks };
                let Some(source) = self.targets.get(usize::from(from_disk.0)) else {
                    return out_of_place(format!("it copies from {from_disk}, which the VM does not have"));
                };
                if from.offset() + from.bytes() > source.bytes || from.bytes() > limits::FRAME_CONTENT as u64
                {
                    return out_of_place(format!("it copies {from} of {from_disk}, beyond the limits"));
                }
                let overwrites =
                    content.extents().any(|(to, _)| to.start < from.end() && from.start < to.end());
                if from_disk == disk && overwrites {
                    return out_of_place(format!("it copies {from}, which it overwrites itself"));
                }
            }
        }
        Ok(())
    }

    /// Before-images, sync; blocks, sync.
    fn write_batch(&mut self, batch: &Batch<'_>) -> Result<(), ReplicaError> {
        if batch.contents.is_empty() {
            return Ok(());
        }
        self.save(&batch.written)?;
        self.note_overwritten(&batch.written);
        // Within one run no two operations may touch the same bytes: frames that overlap go one after the other.
        let mut running = vec![ExtentSet::new(); self.targets.len()];
        let mut queued: Vec<Vec<(Extent, Payload<'_>)>> = vec![Vec::new(); self.targets.len()];
        for (disk, content) in &batch.contents {
            let at = usize::from(disk.0);
            if content.extents().any(|(extent, _)| running[at].intersects(extent.start, extent.end())) {
                self.write_queued(at, &mut queued[at])?;
                running[at] = ExtentSet::new();
            }
            for (extent, payload) in content.extents() {
                running[at].insert_extent(extent);
                queued[at].push((extent, payload));
            }
        }
        for (at, queued) in queued.iter_mut().enumerate() {
            self.write_queued(at, queued)?;
        }
        for (target, _) in self.targets.iter().zip(&batch.written).filter(|(_, written)| !written.is_empty())
        {
            target.device.sync().map_err(|e| disk_error("sync", target, 0, e))?;
        }
        Ok(())
    }

    /// Saves before-images of what is about to be overwritten and is not saved in this layer yet, and syncs them.
    fn save(&mut self, touched: &[ExtentSet]) -> Result<(), ReplicaError> {
        self.open_log()?;
        // The first layer fills new disks: there is nothing before it to go back to.
        if self.catalogue.state().open == 1 {
            return Ok(());
        }
        let OpenLayer { log: Some(log), saved } = &mut self.open else { return Ok(()) };
        save_images(log, &self.targets, touched, saved, &self.watchers)
    }

    fn write_queued(&self, at: usize, queued: &mut Vec<(Extent, Payload<'_>)>) -> Result<(), ReplicaError> {
        if queued.is_empty() {
            return Ok(());
        }
        let mut copies = Vec::new();
        for (extent, payload) in queued.iter() {
            if let Payload::Copy { disk, from, digest } = payload {
                copies.push((*extent, self.read_copy(*disk, *from, extent.blocks, *digest)?));
            }
        }
        let copied = copies.iter().map(|(extent, bytes)| (*extent, Some(&bytes[..])));
        let direct = queued.iter().filter_map(|(extent, payload)| match payload {
            Payload::Data(bytes) => Some((*extent, Some(*bytes))),
            Payload::Zero => Some((*extent, None)),
            Payload::Copy { .. } => None,
        });
        write_extents(&self.targets[at], direct.chain(copied))?;
        queued.clear();
        Ok(())
    }

    fn read_copy(
        &self,
        disk: DiskIndex,
        from: Block,
        blocks: u32,
        digest: Digest,
    ) -> Result<AlignedBuf, ReplicaError> {
        let source = &self.targets[usize::from(disk.0)];
        let (offset, len) = (from.offset(), blocks as usize * BLOCK_BYTES as usize);
        let bytes = read_exact_at(source.device.as_ref(), offset, len)
            .map_err(|e| disk_error("read", source, offset, e))?;
        if Digest::of(&bytes) != digest {
            let what =
                format!("the bytes to copy at block {} of {disk} are not those the sender means", from.0);
            return Err(ReplicaError::OutOfPlace { frame: self.position.seq.next(), what });
        }
        Ok(bytes)
    }

    fn open_log(&mut self) -> Result<(), ReplicaError> {
        if self.open.log.is_none() {
            let (stream, layer) = (self.catalogue.stream(), self.catalogue.state().open);
            self.open.log = Some(Log::create(&self.storage, &log_path(&self.dir, layer), stream, layer)?);
        }
        Ok(())
    }

    fn commit(&mut self, position: Position) -> Result<(), ReplicaError> {
        self.open_log()?;
        let Some(log) = &mut self.open.log else { return Ok(()) };
        let mark = log.mark();
        log.push_commit(&position);
        if let Err(error) = log.sync() {
            log.give_back(mark)?;
            return Err(error.into());
        }
        self.position = position;
        Ok(())
    }

    fn seal(
        &mut self,
        point: &Point,
        position: Position,
        now: Timestamp,
    ) -> Result<SealedPoint, ReplicaError> {
        // Every sealed layer has a log, if only an empty one: a missing log is then always damage.
        self.open_log()?;
        let sealed = SealedPoint {
            point: point.clone(),
            layer: self.catalogue.state().open,
            log_bytes: self.open.log.as_ref().map_or(0, Log::bytes),
            sealed_at: now,
            chain: position.chain,
        };
        self.catalogue.append(Record::Sealed { point: sealed.clone(), position })?;
        self.open = OpenLayer { log: None, saved: vec![ExtentSet::new(); self.targets.len()] };
        self.position = position;
        self.observer.note(|| Observed::Sealed(Box::new(sealed.clone())));
        Ok(sealed)
    }

    /// Drops the oldest points until at most `keep` are left and logs take at most `bytes`; at least one stays.
    pub fn retire(&mut self, keep: usize, bytes: u64) -> Result<(), ReplicaError> {
        while self.state().restore.is_none()
            && self.state().points.len() > 1
            && (self.state().points.len() > keep || self.journal_bytes() > bytes)
        {
            let next = self.state().points.keys().nth(1).copied();
            let Some(oldest) = next else { break };
            let before = self.state().oldest;
            self.catalogue.append(Record::Retired { oldest })?;
            for layer in before.max(1)..=oldest {
                journal::remove_log(&self.storage, &self.dir, layer)?;
            }
        }
        Ok(())
    }
}

/// Frames that become durable together. They may be applied again after a failure, so none may copy from what
/// another of them overwrites.
struct Batch<'a> {
    contents: Vec<(DiskIndex, &'a Content)>,
    written: Vec<ExtentSet>,
    copied: Vec<ExtentSet>,
    /// The position after the last of them.
    position: Option<Position>,
}

impl<'a> Batch<'a> {
    fn new(disks: usize) -> Self {
        let none = vec![ExtentSet::new(); disks];
        Self { contents: Vec::new(), written: none.clone(), copied: none, position: None }
    }

    /// Whether the batch must be durable before a frame with this content.
    fn must_come_before(&self, disk: DiskIndex, content: &Content) -> bool {
        content.extents().any(|(extent, payload)| {
            let copies_written = source(extent, payload).is_some_and(|(from_disk, from)| {
                self.written[usize::from(from_disk.0)].intersects(from.start, from.end())
            });
            copies_written || self.copied[usize::from(disk.0)].intersects(extent.start, extent.end())
        })
    }

    fn push(&mut self, disk: DiskIndex, content: &'a Content, position: Position) {
        for (extent, payload) in content.extents() {
            self.written[usize::from(disk.0)].insert_extent(extent);
            if let Some((from_disk, from)) = source(extent, payload) {
                self.copied[usize::from(from_disk.0)].insert_extent(from);
            }
        }
        self.contents.push((disk, content));
        self.position = Some(position);
    }
}

/// What an extent copies from.
fn source(extent: Extent, payload: Payload<'_>) -> Option<(DiskIndex, Extent)> {
    match payload {
        Payload::Copy { disk, from, .. } => Some((disk, Extent { start: from, blocks: extent.blocks })),
        Payload::Data(_) | Payload::Zero => None,
    }
}

/// Appends images of what `touched` holds and `saved` does not, syncs, adds it to `saved` and tells `watchers`.
pub(crate) fn save_images(
    log: &mut Log,
    targets: &[Target],
    touched: &[ExtentSet],
    saved: &mut [ExtentSet],
    watchers: &Watchers,
) -> Result<(), ReplicaError> {
    let mark = log.mark();
    let mut missing = Vec::new();
    for (at, touched) in touched.iter().enumerate() {
        for extent in touched.extents() {
            let gaps = saved[at].gaps(extent.start, extent.end());
            missing
                .extend(gaps.into_iter().flat_map(|gap| gap.pieces(ENTRY_BLOCKS)).map(|piece| (at, piece)));
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    let read_and_append = |log: &mut Log| -> Result<Vec<Image>, ReplicaError> {
        let mut appended = Vec::with_capacity(missing.len());
        for chunk in chunks(&missing) {
            let target = &targets[chunk[0].0];
            let mut ops = chunk.iter().enumerate().map(|(index, (_, extent))| {
                Op::read(extent.offset(), extent.bytes_within(target.bytes) as usize, index as u64)
            });
            let mut result = Ok(());
            let mut images: Vec<Vec<u8>> = vec![Vec::new(); chunk.len()];
            target.device.run(&mut ops, &mut |op, outcome| match outcome {
                Ok(()) => images[op.tag as usize] = op.buf.to_vec(),
                Err(error) => result = Err(disk_error("read", target, op.offset, error)),
            });
            result?;
            for ((disk, extent), mut image) in chunk.iter().zip(images) {
                // The end of a disk may lie within a block.
                image.resize(extent.bytes() as usize, 0);
                appended.push(log.push_image(DiskIndex(*disk as u16), *extent, &image));
            }
            log.flush()?;
        }
        log.sync()?;
        Ok(appended)
    };
    match read_and_append(log) {
        Ok(images) => watchers.saved(&images, log.file()),
        Err(error) => {
            log.give_back(mark)?;
            return Err(error);
        }
    }
    for (at, extent) in missing {
        if saved[at].runs() >= SAVED_RUNS {
            saved[at] = ExtentSet::new();
        }
        saved[at].insert_extent(extent);
    }
    Ok(())
}

/// Cuts `pieces` into runs on one disk of at most [`IMAGE_BYTES`].
fn chunks(pieces: &[(usize, Extent)]) -> impl Iterator<Item = &[(usize, Extent)]> {
    let mut bytes = 0;
    pieces.chunk_by(move |before, next| {
        bytes += before.1.bytes();
        let together = before.0 == next.0 && bytes + next.1.bytes() <= IMAGE_BYTES;
        if !together {
            bytes = 0;
        }
        together
    })
}

/// Writes extents that do not overlap: bytes of whole blocks, or `None` for zeros. Not durable before a sync.
pub(crate) fn write_extents<'a>(
    target: &Target,
    extents: impl Iterator<Item = (Extent, Option<&'a [u8]>)>,
) -> Result<(), ReplicaError> {
    const PIECE: u32 = (limits::IO_BYTES as u64 / BLOCK_BYTES) as u32;
    let mut ops = extents.flat_map(|(extent, bytes)| {
        // A hole may be made in one go; bytes are copied into buffers a piece at a time.
        let piece = if bytes.is_none() && target.thin { extent.blocks } else { PIECE };
        extent.pieces(piece).map(move |piece| {
            let (offset, len) = (piece.offset(), piece.bytes_within(target.bytes));
            match bytes {
                Some(bytes) => {
                    let from = (offset - extent.offset()) as usize;
                    Op::write(offset, AlignedBuf::copy_of(&bytes[from..][..len as usize]), 0)
                }
                None if target.thin => Op::zero(offset, len, 0),
                None => Op::write(offset, AlignedBuf::zeroed(len as usize), 0),
            }
        })
    });
    let mut result = Ok(());
    target.device.run(&mut ops, &mut |op, outcome| {
        if let Err(error) = outcome {
            result = Err(disk_error("write", target, op.offset, error));
        }
    });
    result
}

/// An I/O error with its place; running out of space is its own kind.
pub(crate) fn disk_error(
    action: &'static str,
    target: &Target,
    offset: u64,
    source: io::Error,
) -> ReplicaError {
    let disk = target.device.name().to_owned();
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ReplicaError::NoSpace { disk },
        _ => ReplicaError::Disk { action, disk, offset, source },
    }
}
