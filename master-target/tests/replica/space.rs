//! What the journal takes against what the kept points need.

use std::{collections::BTreeSet, path::Path, sync::Arc};

use engine::{
    extent::Extent,
    frame::{ContentBuilder, DiskInfo, Frame, Packed, Payload, Position, StreamInfo},
    io::{Storage, sim::SimStorage},
    point::{Consistency, Method, Point, PointId},
    units::DiskIndex,
};
use jiff::Timestamp;
use master_target::{replica::Replica, retention::Policy};
use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::{
    merging::{drop_some, work},
    rounds, scenario,
};

const BLOCKS: u64 = 4096;

/// Writes scattered over one disk.
struct Load {
    rng: StdRng,
    position: Position,
    /// Since the last point.
    written: BTreeSet<u64>,
}

impl Load {
    fn stream() -> StreamInfo {
        let disk = DiskInfo { name: "sda".into(), bytes: BLOCKS * 4096, used_bytes: BLOCKS * 4096 };
        StreamInfo { disks: vec![disk], ..scenario::stream() }
    }

    fn data(&mut self) -> Frame {
        let mut content = ContentBuilder::default();
        let (mut at, mut extents) = (0, 0);
        loop {
            at += self.rng.random_range(1..150);
            let extent = Extent::new(at, self.rng.random_range(1..5));
            if extent.end().0 > BLOCKS {
                break;
            }
            let mut bytes = vec![0; extent.bytes() as usize];
            bytes.chunks_mut(4096).for_each(|block| self.rng.fill(&mut block[..64]));
            content.push(extent, Payload::Data(&bytes));
            self.written.extend(at..extent.end().0);
            (at, extents) = (extent.end().0, extents + 1);
        }
        self.place(Packed::data(DiskIndex(0), &content.finish(), extents, 1))
    }

    /// Every block, none of it zeros, and the first point: from then on every image has bytes.
    fn fill(&mut self, replica: &mut Replica) -> PointId {
        for start in (0..BLOCKS).step_by(256) {
            let mut content = ContentBuilder::default();
            let mut bytes = vec![0; 256 * 4096];
            bytes.chunks_mut(4096).for_each(|block| self.rng.fill(&mut block[..64]));
            content.push(Extent::new(start, 256), Payload::Data(&bytes));
            let frame = self.place(Packed::data(DiskIndex(0), &content.finish(), 1, 1));
            replica.apply(&[frame], Timestamp::UNIX_EPOCH).unwrap();
        }
        self.epoch(replica, 0)
    }

    /// So many frames of writes, and a point.
    fn epoch(&mut self, replica: &mut Replica, frames: usize) -> PointId {
        let frames: Vec<Frame> = (0..frames).map(|_| self.data()).collect();
        replica.apply(&frames, Timestamp::UNIX_EPOCH).unwrap();
        let (seal, id) = self.seal();
        replica.apply(&[seal], Timestamp::UNIX_EPOCH).unwrap();
        id
    }

    fn seal(&mut self) -> (Frame, PointId) {
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
        (self.place(Packed::seal_of(&point)), id)
    }

    fn place(&mut self, packed: Packed) -> Frame {
        let frame = packed.seal(Self::stream().id, &self.position);
        self.position = Position::after(frame.header());
        frame
    }
}

/// Bytes of images that there must be: of every block that changed between two kept points, one.
fn need(replica: &Replica, sealed: &[(PointId, BTreeSet<u64>)]) -> u64 {
    let (mut blocks, mut run, mut begun) = (0, BTreeSet::new(), false);
    for (id, written) in sealed {
        run.extend(written.iter().copied().filter(|_| begun));
        if replica.state().point(*id).is_some() {
            blocks += run.len() as u64;
            run.clear();
            begun = true;
        }
    }
    blocks * 4096
}

fn taken(storage: &SimStorage) -> u64 {
    let dir = scenario::stream().id.to_string();
    let names = storage.list(dir.as_ref()).unwrap();
    let len = |name: &String| storage.open(&Path::new(&dir).join(name)).unwrap().len().unwrap();
    names.iter().filter(|name| name.starts_with("layer-")).map(len).sum()
}

#[test]
fn the_journal_takes_at_most_a_twentieth_more_than_the_kept_points_need() {
    let mut most: f64 = 0.0;
    for seed in 0..rounds(2) {
        let storage = Arc::new(SimStorage::new());
        let rng = StdRng::seed_from_u64(seed);
        let mut load = Load { rng, position: Position::START, written: BTreeSet::new() };
        let mut rng = StdRng::seed_from_u64(seed);
        let mut replica = scenario::home(&storage).admit("agent-1", &Load::stream()).unwrap();
        let mut sealed = vec![(load.fill(&mut replica), BTreeSet::new())];
        for _ in 0..80 {
            let id = load.epoch(&mut replica, 2);
            sealed.push((id, std::mem::take(&mut load.written)));
            if rng.random_range(0..12) == 0 {
                drop_some(&mut replica, &mut rng);
            }
            work(&mut replica, |_| {});
            let (need, taken) = (need(&replica, &sealed), taken(&storage));
            // Of less, files and headers are a larger part.
            if need > 4 << 20 {
                most = most.max(taken as f64 / need as f64);
                assert!(taken as f64 <= need as f64 * 1.05, "seed {seed}: {taken} bytes for {need}");
            }
        }
        assert!(
            replica.state().layers.values().any(|layer| layer.generation > 1),
            "hardly anything was merged"
        );
    }
    println!("at most {most:.3} of what is needed");
    assert!(most > 0.99, "there was never much, or images are missing: {most}");
}

/// A limit of space drops the oldest points, after merging has freed what it can; a pinned one stays.
#[test]
fn a_limit_of_space_drops_the_oldest_points() {
    let storage = Arc::new(SimStorage::new());
    let mut load =
        Load { rng: StdRng::seed_from_u64(1), position: Position::START, written: BTreeSet::new() };
    let mut replica = scenario::home(&storage).admit("agent-1", &Load::stream()).unwrap();
    // The pinned point will need nearly all of the disk, 16 MiB.
    let policy = Policy { bytes: 24 << 20, ..Policy::everything() };
    let mut ids = vec![load.fill(&mut replica)];
    for number in 0..60 {
        ids.push(load.epoch(&mut replica, 2));
        if number == 10 {
            let point = replica.state().point(ids[3]).unwrap().clone();
            replica.pin(&point, true).unwrap();
        }
        // Dropping and merging in turns, as the service does.
        loop {
            let before = replica.state().points.len();
            replica.retire(&policy, Timestamp::UNIX_EPOCH).unwrap();
            work(&mut replica, |_| {});
            if replica.state().points.len() == before {
                break;
            }
        }
        assert!(taken(&storage) < 26 << 20, "{} bytes after {number}", taken(&storage));
    }
    let kept: Vec<usize> = (0..ids.len()).filter(|at| replica.state().point(ids[*at]).is_some()).collect();
    assert_eq!(kept[0], 3, "the pinned one");
    assert!(kept.len() > 3 && kept[1] > 30, "the others are the newest: {kept:?}");
    assert!(kept[1..].windows(2).all(|pair| pair[0] + 1 == pair[1]), "{kept:?}");
}
