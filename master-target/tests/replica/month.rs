//! A month of points every five seconds, through journal and catalogue, under the default policy: exactly the points are
//! kept that it says, each is exact, and the journal takes no more than a twentieth more than they need.
//!
//! 518,400 points with `HOMEWARD_ROUNDS=30`; in CI a day.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
};

use engine::{
    extent::Extent,
    frame::{ContentBuilder, DiskInfo, Frame, Packed, Payload, Position, StreamInfo},
    io::{Storage, sim::SimStorage},
    point::{Consistency, Method, Point, PointId},
    units::{BLOCK_BYTES, DiskIndex},
};
use jiff::Timestamp;
use master_target::{config::RetentionConfig, replica::Replica};
use rand::{RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom};

use crate::{merging::work, rounds, scenario};

const HOUR: u64 = 3600;
const DAY: u64 = 24 * HOUR;

/// Seconds from point to point, and to an application-consistent one.
const EVERY: u64 = 5;
const APPLICATION_EVERY: u64 = 900;

/// When it begins: in the middle of an hour.
const BEGIN: u64 = 1_700_000_000 / EVERY * EVERY;

const BLOCKS: usize = 64;

/// Blocks written between two points.
const WRITES: usize = 8;

/// Which write every block holds.
type Disk = [u32; BLOCKS];

/// The source, and what it knows of its points.
struct Source {
    rng: StdRng,
    position: Position,
    disk: Disk,
    writes: u32,
    /// Blocks written before each point, since the one before it; by second.
    written: BTreeMap<u64, u64>,
    /// What the disk held, of points that may be kept.
    held: BTreeMap<u64, Disk>,
}

fn stream() -> StreamInfo {
    let bytes = BLOCKS as u64 * BLOCK_BYTES;
    StreamInfo {
        disks: vec![DiskInfo { name: "sda".into(), bytes, used_bytes: bytes }],
        ..scenario::stream()
    }
}

fn bytes_of(block: usize, write: u32) -> [u8; BLOCK_BYTES as usize] {
    let mut bytes = [block as u8 + 1; BLOCK_BYTES as usize];
    bytes[..4].copy_from_slice(&write.to_le_bytes());
    bytes
}

fn id_of(second: u64) -> PointId {
    PointId(uuid::Uuid::from_u128(u128::from(second)))
}

fn is_application(second: u64) -> bool {
    second.is_multiple_of(APPLICATION_EVERY)
}

fn at(second: u64) -> Timestamp {
    Timestamp::from_second(second as i64).unwrap()
}

impl Source {
    /// Writes some blocks, the first time all of them, and makes a point.
    fn epoch(&mut self, second: u64) -> [Frame; 2] {
        let all = self.writes == 0;
        let blocks: BTreeSet<usize> = match all {
            true => (0..BLOCKS).collect(),
            false => (0..WRITES).map(|_| self.rng.random_range(0..BLOCKS)).collect(),
        };
        let mut content = ContentBuilder::default();
        for &block in &blocks {
            self.writes += 1;
            self.disk[block] = self.writes;
            let bytes = bytes_of(block, self.writes);
            content.push(Extent::new(block as u64, 1), Payload::Data(&bytes));
        }
        self.written.insert(second, blocks.iter().fold(0, |mask, block| mask | 1 << block));
        self.held.insert(second, self.disk);
        let extents = content.extents() as u32;
        let data = self.place(Packed::data(DiskIndex(0), &content.finish(), extents, 1));
        let consistency = match is_application(second) {
            true => Consistency::ApplicationConsistent,
            false => Consistency::CrashConsistent,
        };
        let point = Point {
            id: id_of(second),
            epoch: self.position.epoch,
            taken_at: at(second),
            consistency,
            method: Method::Barrier,
            barrier_tries: 1,
            window_us: 1,
            residual_bytes: 0,
            frozen_us: 0,
            application: None,
            group: None,
        };
        [data, self.place(Packed::seal_of(&point))]
    }

    fn place(&mut self, packed: Packed) -> Frame {
        let frame = packed.seal(stream().id, &self.position);
        self.position = Position::after(frame.header());
        frame
    }

    /// Bytes of images that the kept points need: of every block that was written between two of them, one.
    fn need(&self, kept: &BTreeSet<u64>) -> u64 {
        let mut blocks = 0;
        for (from, to) in kept.iter().zip(kept.iter().skip(1)) {
            let run = self.written.range(from + 1..=*to).fold(0, |run, (_, written)| run | written);
            blocks += u64::from(run.count_ones());
        }
        blocks * BLOCK_BYTES
    }
}

#[test]
fn a_month_of_points_every_five_seconds() {
    let policy = RetentionConfig::default().policy();
    let storage = Arc::new(SimStorage::new());
    let mut replica = scenario::home(&storage).admit("agent-1", &stream()).unwrap();
    let mut source = Source {
        rng: StdRng::seed_from_u64(1),
        position: Position::START,
        disk: [0; BLOCKS],
        writes: 0,
        written: BTreeMap::new(),
        held: BTreeMap::new(),
    };
    let (mut points, mut most, mut all) = (0, 0.0_f64, Vec::new());
    for second in (BEGIN..BEGIN + rounds(1) * DAY).step_by(EVERY as usize) {
        replica.apply(&source.epoch(second), at(second)).unwrap();
        all.push(second);
        points += 1;
        // As a service looks at ages.
        if second.is_multiple_of(60) {
            replica.retire(&policy, at(second)).unwrap();
        }
        work(&mut replica, |_| {});
        if second.is_multiple_of(HOUR * 5 / 2) {
            replica.retire(&policy, at(second)).unwrap();
            work(&mut replica, |_| {});
            let kept = check_kept(&replica, &all, second);
            source.held.retain(|point, _| kept.contains(point));
            most = most.max(check_space(&storage, &source, &kept));
            let some: Vec<u64> = kept.iter().copied().collect();
            let some: Vec<u64> = some.sample(&mut source.rng, 20).copied().collect();
            some.into_iter().for_each(|point| check_exact(&mut replica, &source, point));
            storage.forget_log();
        }
    }
    let left: Vec<u64> =
        replica.state().points.values().map(|point| point.point.taken_at.as_second() as u64).collect();
    let (oldest, some) = (left[0], left.sample(&mut source.rng, 20).copied().collect::<Vec<u64>>());
    some.into_iter().chain([oldest]).for_each(|point| check_restore(&storage, &source, point));
    println!(
        "{points} points, {} of them left; the journal took at most {most:.3} of what they need",
        left.len()
    );
    assert!(most > 1.0, "the space was never measured: {most}");
}

/// The points that there must be of `all`, counted out; `now` a full minute.
fn check_kept(replica: &Replica, all: &[u64], now: u64) -> BTreeSet<u64> {
    let first_application = all.iter().copied().find(|second| is_application(*second));
    // Of a period the first point; the very first period may have begun before.
    let began = |second: u64, every: u64| second.is_multiple_of(every) || second == all[0];
    let began_application =
        |second: u64, every: u64| second.is_multiple_of(every) || Some(second) == first_application;
    let until = |second: u64, every: u64, span: u64| (second / every + 1) * every + span;
    let is_kept = |second: u64| {
        now - second < 2 * HOUR
            || began(second, HOUR) && until(second, HOUR, DAY) > now
            || began(second, DAY) && until(second, DAY, 7 * DAY) > now
            || is_application(second)
                && (now - second < DAY
                    || began_application(second, DAY) && until(second, DAY, 14 * DAY) > now)
    };
    let expected: BTreeSet<u64> = all.iter().copied().filter(|second| is_kept(*second)).collect();
    let points = replica.state().points.values();
    let found: BTreeSet<u64> = points.map(|point| point.point.taken_at.as_second() as u64).collect();
    assert_eq!(found, expected, "at {now}");
    found
}

/// What the journal takes, as a part of what is needed.
fn check_space(storage: &SimStorage, source: &Source, kept: &BTreeSet<u64>) -> f64 {
    let dir = stream().id.to_string();
    let len = |name: &String| storage.open(&Path::new(&dir).join(name)).unwrap().len().unwrap();
    let names = storage.list(dir.as_ref()).unwrap();
    let taken: u64 = names.iter().filter(|name| name.starts_with("layer-")).map(len).sum();
    let part = taken as f64 / source.need(kept) as f64;
    assert!(part <= 1.05, "{taken} bytes are {part:.3} of what is needed");
    part
}

/// A point, read as it is.
fn check_exact(replica: &mut Replica, source: &Source, second: u64) {
    let point = replica.state().point(id_of(second)).unwrap().clone();
    let image = replica.open_image(&point).unwrap();
    let mut bytes = vec![0; BLOCKS * BLOCK_BYTES as usize];
    image.read_at(DiskIndex(0), 0, &mut bytes).unwrap();
    compare(&bytes, &source.held[&second], second);
}

/// A point, restored.
fn check_restore(storage: &SimStorage, source: &Source, second: u64) {
    let storage = Arc::new(SimStorage::clone(storage));
    let mut replica = scenario::home(&storage).open(stream().id).unwrap();
    let point = replica.state().point(id_of(second)).unwrap().clone();
    replica.restore(&point, &mut |_, _| true).unwrap();
    let device = storage.device(Path::new("web-01/web-01-flat.vmdk")).unwrap();
    let bytes = engine::io::read_exact_at(device.as_ref(), 0, BLOCKS * BLOCK_BYTES as usize).unwrap();
    compare(&bytes, &source.held[&second], second);
}

fn compare(bytes: &[u8], expected: &Disk, second: u64) {
    for (block, (found, write)) in bytes.chunks(BLOCK_BYTES as usize).zip(expected).enumerate() {
        assert!(found == bytes_of(block, *write), "block {block} of the point of {second} is wrong");
    }
}
