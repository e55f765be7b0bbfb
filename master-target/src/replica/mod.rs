//! The VM's disks at home and their journal: where frames become blocks, and points become disks again.
//!
//! Order of one batch, and the whole of crash safety: before-images of what it will overwrite → synced;
//! the blocks in place → synced; the position → synced; only then is it acknowledged. A seal is the last frame of
//! its batch. It knows files and disks only through traits, and nothing of connections.

mod batch;
mod error;
mod observe;
mod recheck;
mod upkeep;
mod write;

use std::{collections::BTreeSet, path::Path, sync::Arc};

use engine::{
    extent::Extent,
    extent_set::ExtentSet,
    frame::{Content, Frame, FrameError, Header, Opened, Payload, Position, Unpacked},
    io::{AlignedBuf, Device, Storage, read_exact_at},
    limits,
    point::Point,
    units::{BLOCK_BYTES, Block, Digest, DiskIndex, blocks_in},
};
use jiff::Timestamp;

use self::{batch::Batch, observe::Observer};
pub use self::{
    error::ReplicaError,
    upkeep::{Task, TaskDone},
};
pub(crate) use self::{
    error::disk_error,
    observe::Observed,
    recheck::{LayerCheck, Rot},
    write::{read_extents, save_images, write_extents},
};
use crate::digests::Digests;
use crate::journal::{
    self, Catalogue, JournalError, Log, LogId, Logs, OpenLayer, Record, Saved, SealedPoint, State, Watchers,
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

/// One stream's disks and journal.
pub struct Replica {
    pub(crate) logs: Arc<Logs>,
    pub(crate) catalogue: Catalogue,
    pub(crate) targets: Vec<Target>,
    /// Images that are open, to be told of what is saved.
    pub(crate) watchers: Watchers,
    /// Of the disks, as far as they are known.
    pub(crate) digests: Digests,
    observer: Observer,
    open: OpenLayer,
    position: Position,
    /// Closed layers that are known to have an index, or to be too small for one.
    indexed: BTreeSet<LogId>,
}

impl Replica {
    /// Opens the journal in `dir` of `storage` and recovers it. `targets` are the disks in the stream's order.
    pub fn open(storage: Arc<dyn Storage>, dir: &Path, targets: Vec<Target>) -> Result<Self, ReplicaError> {
        Self::open_bounded(storage, dir, targets, journal::Bounds::default())
    }

    /// As [`Self::open`], with other bounds on what sorting before-images takes.
    pub fn open_bounded(
        storage: Arc<dyn Storage>,
        dir: &Path,
        targets: Vec<Target>,
        bounds: journal::Bounds,
    ) -> Result<Self, ReplicaError> {
        let catalogue = Catalogue::open(&storage, dir)?;
        let digests = observe::open_digests(&storage, dir, catalogue.state(), &targets);
        let logs = Logs::with_bounds(storage, dir, catalogue.stream(), bounds);
        let (open, position) = journal::recover(&logs, &catalogue)?;
        let mut replica = Self {
            logs,
            catalogue,
            targets,
            watchers: Watchers::default(),
            digests,
            observer: Observer::default(),
            open,
            position,
            indexed: BTreeSet::new(),
        };
        replica.void_digests()?;
        Ok(replica)
    }

    /// Where the journal is.
    pub(crate) fn storage(&self) -> &Arc<dyn Storage> {
        &self.logs.storage
    }

    /// The stream's folder there.
    pub(crate) fn dir(&self) -> &Path {
        &self.logs.dir
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
        let open = self.open.log.as_ref().map_or(0, Log::bytes);
        self.state().layer_bytes().saturating_add(open)
    }

    /// Applies frames that continue at [`Self::position`], durably; returns the points they sealed. On an error
    /// the position tells how far it got, and the rest may be applied again.
    pub fn apply(&mut self, frames: &[Frame], now: Timestamp) -> Result<Vec<SealedPoint>, ReplicaError> {
        self.apply_unpacked(frames.iter().cloned().map(Frame::unpack).collect(), now)
    }

    /// As [`Self::apply`].
    pub fn apply_unpacked(
        &mut self,
        frames: Vec<Unpacked>,
        now: Timestamp,
    ) -> Result<Vec<SealedPoint>, ReplicaError> {
        if self.state().restore.is_some() || self.state().accepted {
            let what = "frames cannot be applied: the disks are those of a point".to_owned();
            return Err(JournalError::Refused(what).into());
        }
        let opened = open_all(self.position.chain, frames)?;
        for (header, opened) in &opened {
            match opened {
                Opened::Data(content) => self.check_place(header, content)?,
                Opened::Digests(digests) => self.check_leaves(header, digests)?,
                Opened::Seal(_) => {}
            }
        }
        let mut sealed = Vec::new();
        let mut batch = Batch::new(self.targets.len());
        for (header, opened) in &opened {
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

    fn check_place(&self, header: &Header, content: &Content) -> Result<(), ReplicaError> {
        let out_of_place = |what| Err(ReplicaError::OutOfPlace { frame: header.seq, what });
        let disk = header.disk;
        let Some(target) = self.targets.get(usize::from(disk.0)) else {
            return out_of_place(format!("the VM has no {disk}"));
        };
        for (extent, payload) in content.extents() {
            if extent.end().0 > blocks_in(target.bytes) {
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
        if self.catalogue.state().points.is_empty() {
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
            let id = LogId::first(self.catalogue.state().open);
            self.open.log = Some(self.logs.create(id)?);
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
        let is_first = self.catalogue.state().points.is_empty();
        self.catalogue.append(Record::Sealed { point: sealed.clone(), position })?;
        if is_first {
            // Nothing leads further back than to the first point.
            self.logs.remove([LogId::first(sealed.layer)]);
        }
        self.open = OpenLayer { log: None, saved: Saved::none(self.targets.len()) };
        self.position = position;
        self.observer.note(|| Observed::Sealed(Box::new(sealed.clone())));
        Ok(sealed)
    }

    /// After the open layer's log has gone with everything newer than the disks.
    pub(crate) fn forget_open_layer(&mut self) {
        self.open = OpenLayer { log: None, saved: Saved::none(self.targets.len()) };
    }
}

/// Checks that frames continue the stream after `after`.
fn open_all(after: Digest, frames: Vec<Unpacked>) -> Result<Vec<(Header, Opened)>, FrameError> {
    let mut before = after;
    let open = |frame: Unpacked| {
        let header = frame.header().clone();
        let opened = frame.open(std::mem::replace(&mut before, header.chain))?;
        Ok((header, opened))
    };
    frames.into_iter().map(open).collect()
}
