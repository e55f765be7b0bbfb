//! The records of a catalogue, and what they are about.

use std::path::Path;

use engine::{
    frame::{Position, StreamInfo},
    point::{Consistency, Method, Point, PointId},
    units::{Digest, Epoch, StreamId},
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::journal::layer::Layer;

/// Version of the catalogue, in its first record. 1, 2026-11: the first. 2, 2026-11: layers may be merged, points
/// dropped and pinned, restores accepted and gone on with; numbers of layers are not used again. 3, 2026-11: the disks as they
/// were before the first frame may be a point, the end of layer 0.
pub(super) const VERSION: u32 = 3;

/// The oldest version that is read. It is written anew when it is opened.
pub(super) const OLDEST_VERSION: u32 = 1;

/// Where a disk of the VM is at home.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum TargetDisk {
    /// A VMDK: the path of its descriptor, within a datastore.
    Vmdk {
        /// Name of the datastore.
        datastore: String,
        /// Descriptor, relative to the datastore.
        descriptor: String,
        /// Whether holes may be made in it.
        thin: bool,
    },
    /// A block device, such as a hot-added VMDK.
    Device {
        /// Its path.
        path: String,
    },
}

impl TargetDisk {
    /// Whether both are the same disk.
    #[must_use]
    pub fn is_same_place(&self, other: &Self) -> bool {
        match (self, other) {
            (
                Self::Vmdk { datastore, descriptor, .. },
                Self::Vmdk { datastore: other_store, descriptor: other, .. },
            ) => datastore == other_store && Path::new(descriptor) == Path::new(other),
            (Self::Device { path }, Self::Device { path: other }) => Path::new(path) == Path::new(other),
            _ => false,
        }
    }
}

impl std::fmt::Display for TargetDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Vmdk { datastore, descriptor, .. } => write!(f, "{descriptor} on datastore {datastore}"),
            Self::Device { path } => f.write_str(path),
        }
    }
}

/// A sealed point as the master target keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedPoint {
    /// What the agent observed.
    #[serde(flatten)]
    pub point: Point,
    /// The layer it is the end of.
    pub layer: u64,
    /// Bytes of that epoch's undo log when it was sealed.
    pub log_bytes: u64,
    /// When it was durable here, by this machine's clock.
    pub sealed_at: Timestamp,
    /// Digest that names exactly the frames that made it.
    pub chain: Digest,
}

impl SealedPoint {
    /// The disks of a new stream as they are before its first frame, at `now`.
    #[must_use]
    pub fn before_failback(stream: StreamId, now: Timestamp) -> Self {
        // It follows from the stream: there is one of each.
        let Digest(hash) = Digest::of(format!("before failback {stream}").as_bytes());
        let point = Point {
            id: PointId(uuid::Builder::from_random_bytes(std::array::from_fn(|at| hash[at])).into_uuid()),
            epoch: Epoch(0),
            taken_at: now,
            consistency: Consistency::BeforeFailback,
            method: Method::Found,
            barrier_tries: 0,
            window_us: 0,
            residual_bytes: 0,
            frozen_us: 0,
            application: None,
            group: None,
        };
        Self { point, layer: 0, log_bytes: 0, sealed_at: now, chain: Position::START.chain }
    }

    /// Whether its applications took part in it.
    #[must_use]
    pub fn is_application_consistent(&self) -> bool {
        self.point.consistency == Consistency::ApplicationConsistent
    }
}

/// How far a restore or its undoing is durable: everything before this place is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Mark {
    /// Index of the disk.
    pub disk: u16,
    /// Its first block that is not done.
    pub block: u64,
}

/// A change of the catalogue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "record", rename_all = "kebab-case")]
pub(crate) enum Record {
    /// The first record: what is replicated, whose it is, where it goes. Written again when the catalogue is.
    Created {
        version: u32,
        agent: String,
        stream: StreamInfo,
        targets: Vec<TargetDisk>,
        oldest: u64,
        open: u64,
        position: Position,
        /// The highest number of a layer so far, if it is not the open one's.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        used: Option<u64>,
        /// Whether a restore was accepted.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        accepted: bool,
    },
    /// When the catalogue was written anew: a layer that it knows.
    Layer { layer: Layer },
    /// When the catalogue was written anew: a point that it knows. In a new one: the disks as they were found.
    Kept { point: SealedPoint },
    /// A layer was sealed; replication goes on in the next one, after `position`.
    Sealed { point: SealedPoint, position: Position },
    /// Version 1: points before this layer are gone, and the logs up to it.
    Retired { oldest: u64 },
    /// The points that end these layers are gone.
    Dropped { layers: Vec<u64> },
    /// A point is never dropped by itself, or is again.
    Pinned { layer: u64, pinned: bool },
    /// All layers from `first` to `last` are one, in a new log.
    Merged { layer: Layer },
    /// A restore to the end of layer `to` begins, as layer `layer`.
    RestoreBegun { to: u64, layer: u64 },
    /// It, or its undoing, is done up to here.
    RestoreAt { mark: Mark },
    /// It is complete, and so is its undo log.
    RestoreDone { layer: u64, log_bytes: u64 },
    /// All restores since replication stopped are being undone.
    UndoBegun,
    /// The disks are again as replication left them.
    UndoDone,
    /// The disks stay as of the point that was restored; what was newer is gone.
    Accepted,
}
