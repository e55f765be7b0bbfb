//! A replication of two small disks on simulated storage, with a model of what they must hold.

use std::{path::Path, sync::Arc};

use engine::{
    extent::Extent,
    frame::{Codec, ContentBuilder, DiskInfo, Frame, Packed, Payload, Position, StreamInfo},
    io::{Backend, Storage, read_exact_at, sim::SimStorage},
    point::{Consistency, Method, Point, PointId},
    units::{BLOCK_BYTES, Digest, DiskIndex, StreamId},
};
use jiff::Timestamp;
use master_target::{
    datastore::{Datastore, DatastoreKind},
    home::{Home, Placement},
    replica::Replica,
    vmdk::flat::Provisioning,
};
use rand::{RngExt, SeedableRng, rngs::StdRng};

/// Blocks of each disk; the last one is short.
pub const BLOCKS: u64 = 40;
pub const DISK_BYTES: u64 = BLOCKS * BLOCK_BYTES - 3 * 512;
const DISKS: usize = 2;

/// What the disks hold at one moment.
pub type Images = Vec<Vec<u8>>;

pub fn stream() -> StreamInfo {
    let disk = |name: &str| DiskInfo { name: name.into(), bytes: DISK_BYTES, used_bytes: DISK_BYTES };
    StreamInfo {
        id: StreamId(uuid::Uuid::from_u128(77)),
        vm: "web-01".into(),
        disks: vec![disk("sda"), disk("sdb")],
    }
}

/// A home whose journal and datastore are one simulated storage, so that one log holds the order of everything.
pub fn home(storage: &Arc<SimStorage>) -> Home {
    let storage: Arc<dyn Storage> = Arc::clone(storage) as _;
    let (name, path) = ("ds1".to_owned(), "/vmfs/volumes/ds1".into());
    let datastore = Datastore { name: name.clone(), path, kind: DatastoreKind::Vmfs, reserve_bytes: 0 };
    Home {
        journal: Arc::clone(&storage),
        datastores: vec![(datastore, storage)],
        placement: Some(Placement { datastore: name, provisioning: Provisioning::Thin }),
        originals: Vec::new(),
        devices: Vec::new(),
        backend: Backend::Auto,
    }
}

/// The frames of a replication, made from a seed, and what they must lead to.
pub struct Source {
    rng: StdRng,
    pub position: Position,
    pub images: Images,
    /// Every sealed point with what the disks held.
    pub points: Vec<(PointId, Images)>,
}

impl Source {
    pub fn new(seed: u64) -> Self {
        let images = vec![vec![0; DISK_BYTES as usize]; DISKS];
        Self { rng: StdRng::seed_from_u64(seed), position: Position::START, images, points: Vec::new() }
    }

    /// A frame of random writes.
    pub fn data(&mut self) -> Frame {
        let disk = self.rng.random_range(0..DISKS);
        let before = self.images.clone();
        let mut content = ContentBuilder::default();
        let mut at = self.rng.random_range(0..BLOCKS / 2);
        for _ in 0..self.rng.random_range(1..5) {
            let blocks = self.rng.random_range(1..6).min(BLOCKS - at) as u32;
            if blocks == 0 {
                break;
            }
            let extent = Extent::new(at, blocks);
            match self.rng.random_range(0..6) {
                0 => {
                    content.push(extent, Payload::Zero);
                    self.write(disk, extent, &vec![0; extent.bytes() as usize]);
                }
                1 => {
                    // Whole blocks only can be copied: the short last one is no source.
                    // Of the other disk, because a frame must not copy what it overwrites itself.
                    let from = self.rng.random_range(0..BLOCKS - u64::from(blocks));
                    let from_disk = 1 - disk;
                    let start = (from * BLOCK_BYTES) as usize;
                    let bytes = before[from_disk][start..][..extent.bytes() as usize].to_vec();
                    let (disk_from, from) = (DiskIndex(from_disk as u16), engine::units::Block(from));
                    content.push(extent, Payload::Copy { disk: disk_from, from, digest: Digest::of(&bytes) });
                    self.write(disk, extent, &bytes);
                }
                _ => {
                    let mut bytes = vec![self.rng.random(); extent.bytes() as usize];
                    self.rng.fill(&mut bytes[..64]);
                    content.push(extent, Payload::Data(&bytes));
                    self.write(disk, extent, &bytes);
                }
            }
            at = extent.end().0 + self.rng.random_range(0..6);
            if at >= BLOCKS {
                break;
            }
        }
        let extents = content.extents() as u32;
        let packed = Packed::data(DiskIndex(disk as u16), &content.finish(), extents, 1);
        self.place(packed)
    }

    /// A frame that seals a point of what the disks hold now.
    pub fn seal(&mut self) -> Frame {
        let id = PointId(uuid::Uuid::from_u128(self.rng.random()));
        let point = Point {
            id,
            epoch: self.position.epoch,
            taken_at: Timestamp::from_second(self.position.seq.0 as i64).unwrap(),
            consistency: Consistency::CrashConsistent,
            method: Method::Barrier,
            barrier_tries: 1,
            window_us: 1,
            residual_bytes: 0,
            frozen_us: 0,
            application: None,
            group: None,
        };
        self.points.push((id, self.images.clone()));
        self.place(Packed::seal_of(&point))
    }

    /// Some data, and now and then a seal.
    pub fn next(&mut self) -> Frame {
        if self.rng.random_range(0..5) == 0 { self.seal() } else { self.data() }
    }

    fn place(&mut self, packed: Packed) -> Frame {
        let frame = packed.seal(stream().id, &self.position);
        assert!(matches!(frame.header().codec, Codec::Stored | Codec::Zstd));
        self.position = Position::after(frame.header());
        frame
    }

    fn write(&mut self, disk: usize, extent: Extent, bytes: &[u8]) {
        let len = extent.bytes_within(DISK_BYTES) as usize;
        self.images[disk][extent.offset() as usize..][..len].copy_from_slice(&bytes[..len]);
    }
}

/// What the replica's disks hold.
pub fn images(storage: &SimStorage) -> Images {
    ["web-01/web-01-flat.vmdk", "web-01/web-01_1-flat.vmdk"]
        .map(|path| {
            let device = storage.device(Path::new(path)).unwrap();
            read_exact_at(device.as_ref(), 0, DISK_BYTES as usize).unwrap().to_vec()
        })
        .into()
}

/// Restores each of `points` and compares; then undoes, and the disks must be as before.
pub fn check_points(storage: &SimStorage, replica: &mut Replica, points: &[(PointId, Images)]) {
    if replica.restore_state().is_some() {
        replica.undo_restore(&mut |_, _| true).unwrap();
    }
    let newest = images(storage);
    for (id, expected) in points {
        let point = replica.state().point(*id).unwrap_or_else(|| panic!("point {id} is lost")).clone();
        replica.restore(&point, &mut |_, _| true).unwrap();
        assert!(images(storage) == *expected, "point {id} of {} is wrong", point.layer);
    }
    if replica.restore_state().is_some() {
        replica.undo_restore(&mut |_, _| true).unwrap();
    }
    assert!(images(storage) == newest, "undoing all restores must lead back");
}
