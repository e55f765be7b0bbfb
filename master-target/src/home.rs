//! Home: which VM goes to which disks. Finds the replica of a known stream, creates or adopts the disks of a new one.
//!
//! Everything an operator would have to decide before a byte is copied is decided and checked here, that of new streams in
//! [`place`]. It knows datastores and configuration; frames and connections are others' business.

mod place;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use engine::{
    frame::{DiskInfo, Refusal, StreamInfo},
    io::{Access, Backend, Device, Storage, open_device},
    point::PointId,
    units::StreamId,
};
use jiff::Timestamp;

use self::place::Placed;
pub(crate) use self::place::objection;
pub use self::place::{Content, DeviceTarget, Original, Placement};
use crate::{
    datastore::Datastore,
    journal::{Catalogue, JournalError, SealedPoint, State, TargetDisk},
    proof::{Verdict, Verdicts},
    replica::{Replica, ReplicaError, Target},
    vmdk::{adopt, flat},
};

/// A no to a stream, for its sender and for the log.
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
pub struct Rejected {
    /// The kind of no.
    pub why: Refusal,
    /// What, where, what to do.
    pub reason: String,
}

impl Rejected {
    fn new(why: Refusal, reason: impl ToString) -> Self {
        Self { why, reason: reason.to_string() }
    }
}

impl From<ReplicaError> for Rejected {
    fn from(error: ReplicaError) -> Self {
        let why = match &error {
            ReplicaError::Journal(JournalError::Damaged { .. } | JournalError::Missing { .. }) => {
                Refusal::Lost
            }
            error if error.is_no_space() => Refusal::NoSpace,
            _ => Refusal::Unavailable,
        };
        Self::new(why, error)
    }
}

impl From<JournalError> for Rejected {
    fn from(error: JournalError) -> Self {
        ReplicaError::from(error).into()
    }
}

/// All journals and datastores of a master target.
pub struct Home {
    /// Where journals are kept, one folder per stream.
    pub journal: Arc<dyn Storage>,
    /// Datastores with the folder each is.
    pub datastores: Vec<(Datastore, Arc<dyn Storage>)>,
    /// Where new disks go.
    pub placement: Option<Placement>,
    /// Disks that were at home before the disaster, and are written in place.
    pub originals: Vec<Original>,
    /// Disks that go to block devices.
    pub devices: Vec<DeviceTarget>,
    /// How block devices are written.
    pub backend: Backend,
}

impl Home {
    /// The replica for a stream that `agent` wants to send, with disks made for it if it is new.
    pub fn admit(&self, agent: &str, stream: &StreamInfo) -> Result<Replica, Rejected> {
        self.prepare(agent, stream)?;
        self.open_to_write(stream.id)
    }

    /// Checks whether `agent` may send `stream`, and makes disks and journal for it if it is new.
    pub fn prepare(&self, agent: &str, stream: &StreamInfo) -> Result<(), Rejected> {
        let dir = folder(stream.id);
        if !Catalogue::exists(self.journal.as_ref(), &dir)? {
            self.check_owner(agent, stream)?;
            let Placed { targets, found } = self.place(stream)?;
            let found = found.then(|| SealedPoint::before_failback(stream.id, Timestamp::now()));
            self.journal.create_dir_all(&dir).map_err(JournalError::io("create", &dir))?;
            self.journal.sync_dir(Path::new("")).map_err(JournalError::io("sync", &dir))?;
            let adopted = found.is_some();
            Catalogue::create_with(&self.journal, &dir, agent, stream, targets, found)?;
            tracing::info!(vm = %stream.vm, stream = %stream.id, agent, adopted, "new replication");
        }
        let known = self.state(stream.id)?;
        if known.agent != agent {
            let reason = format!("stream {} of VM {} belongs to another agent", stream.id, known.stream.vm);
            return Err(Rejected::new(Refusal::NotYours, reason));
        }
        if known.stream.vm != stream.vm || !same_disks(&known.stream, stream) {
            let reason = format!(
                "the disks of VM {} are not those this replication began with: begin a new one",
                stream.vm
            );
            return Err(Rejected::new(Refusal::BadRequest, reason));
        }
        check_goes_on(&known)
    }

    /// Opens a stream that is about to be written.
    pub fn open_to_write(&self, stream: StreamId) -> Result<Replica, Rejected> {
        let replica = self.open(stream)?;
        self.mark_written(stream)?;
        Ok(replica)
    }

    /// Opens a stream's journal and disks. A restore that was interrupted stays so.
    pub fn open(&self, stream: StreamId) -> Result<Replica, Rejected> {
        let dir = folder(stream);
        let catalogue = Catalogue::open(&self.journal, &dir)?;
        let state = catalogue.state();
        let disks = state.stream.disks.iter().zip(&state.targets);
        let targets =
            disks.map(|(disk, target)| self.open_target(disk, target)).collect::<Result<Vec<_>, _>>()?;
        drop(catalogue);
        Ok(Replica::open(Arc::clone(&self.journal), &dir, targets)?)
    }

    /// Streams with a journal here.
    pub fn streams(&self) -> Result<Vec<StreamId>, JournalError> {
        let names = self.journal.list(Path::new("")).map_err(JournalError::io("list", Path::new(".")))?;
        let ids = names.iter().filter_map(|name| name.parse().ok().map(StreamId));
        let mut streams = Vec::new();
        for id in ids {
            if Catalogue::exists(self.journal.as_ref(), &folder(id))? {
                streams.push(id);
            }
        }
        Ok(streams)
    }

    /// What a stream's catalogue says, without opening its disks.
    pub fn state(&self, stream: StreamId) -> Result<State, JournalError> {
        Catalogue::peek(self.journal.as_ref(), &folder(stream))
    }

    /// Which points of a stream were verified.
    #[must_use]
    pub fn verdicts(&self, stream: StreamId) -> BTreeMap<PointId, Verdict> {
        Verdicts::open(&self.journal, &folder(stream)).all().clone()
    }

    fn check_owner(&self, agent: &str, stream: &StreamInfo) -> Result<(), Rejected> {
        for id in self.streams()? {
            let other = self.state(id)?;
            if other.stream.vm == stream.vm && other.agent != agent {
                let reason = format!("VM {} is replicated by another agent, {}", stream.vm, other.agent);
                return Err(Rejected::new(Refusal::NotYours, reason));
            }
        }
        Ok(())
    }

    fn open_target(&self, disk: &DiskInfo, target: &TargetDisk) -> Result<Target, Rejected> {
        let (device, thin) = match target {
            TargetDisk::Vmdk { datastore, descriptor, thin } => {
                let (_, storage) = self.datastore(datastore)?;
                let flat = adopt::open_for_writing(storage.as_ref(), Path::new(descriptor)).map_err(|e| {
                    Rejected::new(Refusal::Unavailable, format!("datastore {datastore}: {e}"))
                })?;
                (storage.device(&flat.flat).map_err(JournalError::io("open", &flat.flat))?, *thin)
            }
            TargetDisk::Device { path } => (self.open_block_device(Path::new(path))?, false),
        };
        if device.size() < disk.bytes {
            let (name, size, need) = (device.name(), device.size(), disk.bytes);
            let reason = format!("{name} has {size} bytes, disk {} needs {need}: enlarge it", disk.name);
            return Err(Rejected::new(Refusal::BadRequest, reason));
        }
        Ok(Target { device, bytes: disk.bytes, thin })
    }

    fn open_block_device(&self, path: &Path) -> Result<Arc<dyn Device>, Rejected> {
        // The kernel refuses exclusive access to a device that is mounted or otherwise in use.
        use std::os::unix::fs::OpenOptionsExt;
        let in_use = |e: std::io::Error| {
            let reason = format!(
                "cannot use {} as a target: {e}; unmount it, and check that it is the right one",
                path.display()
            );
            Rejected::new(Refusal::Unavailable, reason)
        };
        let exclusive = rustix::fs::OFlags::EXCL.bits() as i32;
        std::fs::OpenOptions::new().write(true).custom_flags(exclusive).open(path).map_err(in_use)?;
        open_device(path, Access::ReadWrite, self.backend).map_err(|e| Rejected::new(Refusal::Unavailable, e))
    }

    /// New content, new content id: before the first write after an opening.
    pub fn mark_written(&self, stream: StreamId) -> Result<(), Rejected> {
        for target in &self.state(stream)?.targets {
            let TargetDisk::Vmdk { datastore, descriptor, .. } = target else { continue };
            let (_, storage) = self.datastore(datastore)?;
            flat::change_content_id(storage.as_ref(), Path::new(descriptor), &mut rand::rng())
                .map_err(|e| Rejected::new(Refusal::Unavailable, format!("datastore {datastore}: {e}")))?;
        }
        Ok(())
    }

    fn datastore(&self, name: &str) -> Result<&(Datastore, Arc<dyn Storage>), Rejected> {
        self.datastores.iter().find(|(datastore, _)| datastore.name == name).ok_or_else(|| {
            Rejected::new(Refusal::Unavailable, format!("datastore {name} is not configured here any more"))
        })
    }
}

fn folder(stream: StreamId) -> PathBuf {
    PathBuf::from(stream.to_string())
}

/// Whether the disks are the same; what is in use on them may have changed.
fn same_disks(a: &StreamInfo, b: &StreamInfo) -> bool {
    a.disks.len() == b.disks.len()
        && a.disks.iter().zip(&b.disks).all(|(a, b)| a.name == b.name && a.bytes == b.bytes)
}

/// Whether a stream's frames may be applied: not while its disks are those of a point.
pub(crate) fn check_goes_on(state: &State) -> Result<(), Rejected> {
    let vm = &state.stream.vm;
    if state.accepted {
        let reason = format!(
            "a restore of VM {vm} was accepted, so its disks are not what the sender left: begin a new replication"
        );
        return Err(Rejected::new(Refusal::Restored, reason));
    }
    if state.restore.is_some() {
        let reason = format!(
            "VM {vm} is restored to a point: undo that (`homeward-master-target restore --undo`) to replicate on"
        );
        return Err(Rejected::new(Refusal::Restored, reason));
    }
    Ok(())
}
