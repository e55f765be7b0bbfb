//! A spool on a simulated disk, beside a model of what it must hold.

use std::sync::atomic::{AtomicU64, Ordering};

use engine::{
    extent::Extent,
    frame::{ContentBuilder, DiskInfo, Frame, Packed, Payload, StreamInfo},
    io::sim::{Fault, SimOp, SimStorage},
    units::{Digest, DiskIndex, Epoch, Seq},
};

use super::super::*;

pub(super) const STREAM: StreamId = StreamId(uuid::Uuid::from_u128(0x51));

pub(super) const BOUNDS: Bounds =
    Bounds { total: 1 << 20, per_stream: 256 << 10, segment: 24 << 10, keep_free: 0 };

pub(super) fn description() -> Description {
    let disk = DiskInfo { name: "sda".into(), bytes: 1 << 30, used_bytes: 1 << 20 };
    let stream = StreamInfo { id: STREAM, vm: "web".into(), disks: vec![disk] };
    Description { agent: "web".into(), stream }
}

/// The frame after `before` in life `life` of the stream, of about `kib` KiB.
pub(super) fn frame(before: &Position, life: u64, kib: u64) -> Frame {
    let mut noise = vec![0; kib as usize * 4096 / 4];
    let seed = [before.seq.0.to_le_bytes(), life.to_le_bytes()].concat();
    blake3::Hasher::new().update(&seed).finalize_xof().fill(&mut noise);
    noise.resize(noise.len().next_multiple_of(4096), 0);
    let mut content = ContentBuilder::default();
    content.push(Extent::new(life, 1), Payload::Zero);
    if !noise.is_empty() {
        content.push(Extent::new(1000 + before.seq.0, noise.len() as u32 / 4096), Payload::Data(&noise));
    }
    let extents = content.extents() as u32;
    Packed::data(DiskIndex(0), &content.finish(), extents, 1).seal(STREAM, before)
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    /// Append this many frames of this size in KiB.
    Append(u64, u64),
    /// The master target has this share, in eighths, of what is safe and was not yet there.
    Retire(u64),
    Compact,
    Adopt,
    /// Killed and started again.
    Kill,
}

/// A history of the stream; each adoption begins another.
#[derive(Clone, Debug)]
pub(super) struct Life {
    pub(super) base: Position,
    pub(super) frames: Vec<Frame>,
}

impl Life {
    pub(super) fn position(&self, seq: Seq) -> Position {
        match seq.0.checked_sub(self.base.seq.0 + 1) {
            Some(index) => Position::after(self.frames[index as usize].header()),
            None => self.base,
        }
    }

    pub(super) fn end(&self) -> Position {
        self.position(Seq(self.base.seq.0 + self.frames.len() as u64))
    }

    /// The frames after `seq`, which must not be before the base.
    pub(super) fn after(&self, seq: Seq) -> &[Frame] {
        &self.frames[(seq.0 - self.base.seq.0) as usize..]
    }
}

/// What the outside may count on.
#[derive(Clone, Debug)]
pub(super) struct Promise {
    /// Length of the log when it was made.
    pub(super) at: usize,
    pub(super) life: usize,
    pub(super) safe: Seq,
    pub(super) durable: Seq,
}

pub(super) struct Rig {
    pub(super) storage: Arc<SimStorage>,
    pub(super) spool: Spool,
    pub(super) room: Arc<Room>,
    pub(super) lives: Vec<Life>,
    pub(super) promises: Vec<Promise>,
    fault: Option<Ordered>,
}

/// One operation that fails, counted over kills and reopenings.
#[derive(Clone)]
pub(super) struct Ordered {
    pub(super) op: SimOp,
    pub(super) nth: u64,
    pub(super) fault: Fault,
    pub(super) met: Arc<AtomicU64>,
}

impl Ordered {
    pub(super) fn struck(&self) -> bool {
        self.met.load(Ordering::Relaxed) >= self.nth
    }

    fn order(&self, storage: &SimStorage) {
        if !self.struck() {
            storage.fail(self.op, self.nth - self.met.load(Ordering::Relaxed), self.fault);
        }
        let Self { op, met, .. } = self.clone();
        storage.set_hook(move |event| {
            met.fetch_add(u64::from(event.op == op), Ordering::Relaxed);
        });
    }
}

/// Does `f` until it succeeds, each time on the same disk opened anew; one fault must not last.
fn insist<T>(
    storage: &mut Arc<SimStorage>,
    fault: &Option<Ordered>,
    mut f: impl FnMut(Arc<SimStorage>) -> Result<T, SpoolError>,
) -> Result<T, SpoolError> {
    let mut result = f(storage.clone());
    for _ in 0..3 {
        let Err(error) = &result else { break };
        assert!(!matches!(error, SpoolError::Damaged { .. }), "{error}");
        *storage = reopened(storage, fault);
        result = f(storage.clone());
    }
    result
}

fn reopened(storage: &SimStorage, fault: &Option<Ordered>) -> Arc<SimStorage> {
    let storage = storage.clone();
    fault.iter().for_each(|fault| fault.order(&storage));
    Arc::new(storage)
}

impl Rig {
    pub(super) fn new(storage: SimStorage, fault: Option<Ordered>) -> Self {
        let room = Arc::new(Room::new(BOUNDS));
        let mut storage = reopened(&storage, &fault);
        let create = |storage| Spool::create(storage, description(), Position::START, room.clone());
        let spool = insist(&mut storage, &fault, |storage| create(storage)).unwrap();
        let lives = vec![Life { base: Position::START, frames: Vec::new() }];
        let mut rig = Self { storage, spool, room, lives, promises: Vec::new(), fault };
        rig.promise();
        rig
    }

    fn promise(&mut self) {
        self.spool.check();
        let at = self.storage.log_len();
        let (safe, durable) = (self.spool.position().seq, self.spool.durable().seq);
        self.promises.push(Promise { at, life: self.lives.len() - 1, safe, durable });
    }

    pub(super) fn life(&mut self) -> &mut Life {
        let last = self.lives.len() - 1;
        &mut self.lives[last]
    }

    fn insist(&mut self, mut f: impl FnMut(&mut Spool) -> Result<(), SpoolError>) -> Result<(), SpoolError> {
        let (spool, mut first) = (&mut self.spool, true);
        insist(&mut self.storage, &self.fault, |storage| {
            if !std::mem::take(&mut first) {
                spool.revive(storage);
            }
            let result = f(spool);
            spool.check();
            result
        })
    }

    /// Does `step`. False if there was no room for it.
    pub(super) fn step(&mut self, step: Step) -> bool {
        let mut done = true;
        match step {
            Step::Append(count, kib) => {
                let life = self.lives.len() as u64;
                for _ in 0..count {
                    let next = frame(&self.life().end(), life, kib);
                    self.life().frames.push(next);
                }
                let given = self.life().clone();
                done = self.insist(|spool| spool.append(given.after(spool.position().seq))).is_ok();
                let safe = self.spool.position().seq.0 - given.base.seq.0;
                assert!(!done || safe == given.frames.len() as u64);
                self.life().frames.truncate(safe as usize);
            }
            Step::Retire(share) => {
                let (from, to) = (self.spool.durable().seq.0, self.spool.position().seq.0);
                let position = self.life().position(Seq(from + (to - from) * share / 8));
                self.insist(|spool| spool.retire(position)).unwrap();
                assert_eq!(self.spool.durable(), position);
            }
            Step::Compact => self.insist(|spool| spool.compact().map(|_| ())).unwrap(),
            Step::Adopt => {
                let life = self.lives.len() as u64;
                let seq = Seq(self.life().end().seq.0 / 2 + life);
                let base = Position { seq, epoch: Epoch(life), chain: Digest::of(&life.to_le_bytes()) };
                self.lives.push(Life { base, frames: Vec::new() });
                self.insist(|spool| spool.discard_and_adopt(base)).unwrap();
                assert!(self.spool.position() == base && self.spool.durable() == base);
            }
            Step::Kill => {
                let durable = self.spool.durable();
                self.storage = reopened(&self.storage, &self.fault);
                let opened = insist(&mut self.storage, &self.fault, |storage| {
                    Spool::open(storage, STREAM, self.room.clone())
                });
                self.spool = opened.unwrap().spool.unwrap();
                let exact = self.spool.durable() == durable;
                assert!(exact || self.fault.is_some(), "a mark outlives kill -9");
                assert!(self.spool.durable().seq <= durable.seq);
            }
        }
        assert_eq!(self.spool.position(), self.life().end());
        assert_eq!(*self.spool.description(), description());
        self.promise();
        done
    }
}

/// Checks that `spool` holds a part of `life` without a gap, unchanged, and gives it from any position on.
pub(super) fn check_holds(spool: &mut Spool, life: &Life) {
    spool.check();
    let (base, end) = (spool.base(), spool.position());
    assert!(life.base.seq <= base.seq && base == life.position(base.seq));
    let mut from = base.seq;
    while from <= end.seq {
        assert!(spool.join(&life.position(from)).unwrap());
        let mut expected = life.after(from).iter();
        while let Some(frame) = spool.read_next().unwrap() {
            assert_eq!(frame.bytes(), expected.next().unwrap().bytes());
            if from > base.seq && from.0 % 5 > 0 {
                break;
            }
        }
        from = from.next();
    }
    let elsewhere = Position { chain: Digest::of(b"elsewhere"), ..end };
    assert!(!spool.join(&elsewhere).unwrap());
    assert!(!spool.join(&Position { seq: end.seq.next(), ..end }).unwrap());
}
