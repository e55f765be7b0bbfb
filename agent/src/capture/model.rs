//! The model test of the barrier: every interleaving that a seed can bring up, against what a crash may leave.
//!
//! A target takes what pre-copy and captures give, as the master target does. Whenever the barrier says that a
//! point exists, the target must be a legal image of the simulated disks at the last flip.

use std::time::Duration;

use engine::{
    digest::{LEAF_BYTES, leaf_digest, leaves_in},
    frame::{Content, Payload},
    units::DiskIndex,
};

use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::{
    Source,
    barrier::{Barrier, Captured, Round, Rules},
    contents::FrameContent,
    learned::Learned,
    precopy::Precopy,
    witness::Leaf,
};
use crate::{
    sim::{Plan, SimVm},
    tracker::Kind,
};

struct Bench {
    vm: SimVm,
    source: Source,
    target: Vec<Vec<u8>>,
    precopy: Precopy,
    learned: Learned,
    rng: StdRng,
}

#[derive(Default)]
struct Tally {
    points: u32,
    digests: u32,
    tries: u32,
    frozen: u32,
    given_up: u32,
}

impl Bench {
    fn new(plan: &Plan, seed: u64) -> Self {
        let vm = SimVm::new(plan, seed);
        let target = plan.disks.iter().map(|blocks| vec![0xEE; *blocks as usize * 4096]).collect();
        let source = vm.source();
        let rng = StdRng::seed_from_u64(seed);
        Self { vm, source, target, precopy: Precopy::default(), learned: Learned::default(), rng }
    }

    fn apply(&mut self, content: FrameContent) {
        let FrameContent { disk, bytes, extents, covers } = content;
        for (extent, payload) in Content::parse(bytes, extents).unwrap().extents() {
            let at = extent.offset() as usize..(extent.offset() + extent.bytes()) as usize;
            match payload {
                Payload::Data(data) => self.target[usize::from(disk.0)][at].copy_from_slice(data),
                Payload::Zero => self.target[usize::from(disk.0)][at].fill(0),
                Payload::Copy { .. } => panic!("nothing is copied"),
            }
        }
        let dirty = &self.source.tracker.maps(disk).dirty;
        covers.extents().for_each(|extent| dirty.clear(extent.start, extent.end()));
    }

    fn precopy(&mut self) {
        while !self.source.tracker.may_read().unwrap() {}
        while let Some(batch) = self.precopy.batch(&mut self.source, &[]) {
            assert!(batch.error.is_none());
            batch.contents.into_iter().for_each(|content| self.apply(content));
        }
    }

    fn harvest(&mut self) {
        if self.source.drain(Duration::from_millis(1)).unwrap() {
            self.source.tracker.flip().unwrap();
            for disk in self.source.indices() {
                self.source.tracker.take(disk, u64::MAX).unwrap();
            }
        }
    }

    /// About every second leaf.
    fn some_leaves(&mut self) -> Vec<Leaf> {
        let mut leaves = Vec::new();
        for disk in self.source.indices() {
            let all = 0..leaves_in(self.source.disk(disk).size());
            leaves.extend(all.filter(|_| self.rng.random()).map(|number| Leaf { disk, number }));
        }
        leaves
    }

    /// One attempt at a point.
    fn point(&mut self, kind: Kind, tally: &mut Tally) -> Result<(), String> {
        let mut barrier = Barrier::new(Rules::of(kind).with_tries(40), self.some_leaves());
        self.precopy();
        loop {
            let round = if barrier.may_try() {
                barrier.round(&mut self.source, &mut self.learned)
            } else if barrier.tries() < 60 {
                barrier.frozen_round(&mut self.source, &mut self.learned, &mut self.vm.clone())
            } else {
                tally.given_up += 1;
                return Ok(());
            };
            match round.unwrap() {
                Round::Conflict => (),
                Round::TooMuch => self.precopy(),
                Round::Settled(captured) => return self.settle(captured, tally),
            }
        }
    }

    fn settle(&mut self, mut captured: Captured, tally: &mut Tally) -> Result<(), String> {
        tally.points += 1;
        tally.tries += captured.tries;
        tally.frozen += u32::from(!captured.frozen.is_zero());
        let witnessed = captured.witnesses.digests(&self.source.divisions(), &captured.buffer);
        tally.digests += witnessed.len() as u32;
        while !captured.buffer.is_empty() {
            self.vm.work();
            let shift = self.source.tracker.maps(DiskIndex(0)).dirty.granularity().shift;
            captured.buffer.take_contents(|_| 1 << shift).into_iter().for_each(|content| self.apply(content));
        }
        if !self.source.is_clean() {
            return Err("the point exists, yet blocks are dirty".into());
        }
        for (Leaf { disk, number }, digest) in witnessed {
            let target = &self.target[usize::from(disk.0)];
            let leaf = target.chunks(LEAF_BYTES as usize).nth(number as usize).unwrap();
            if leaf_digest(leaf) != digest {
                return Err(format!("the witness of leaf {number} of {disk} is of another instant"));
            }
        }
        self.vm.at_last_flip().check(&self.target)
    }
}

/// Runs one seed; the plan follows from it.
fn run(seed: u64, tally: &mut Tally) -> Result<(), String> {
    let plan = Plan {
        disks: [vec![24, 17], vec![40], vec![8, 8]][(seed % 3) as usize].clone(),
        shift: (seed / 3 % 2) as u32,
        writers: 1 + (seed % 5) as usize,
        activity: [1, 2, 3, 6][(seed / 5 % 4) as usize],
    };
    let mut bench = Bench::new(&plan, seed);
    for _ in 0..6 {
        bench.precopy();
        bench.harvest();
        bench.precopy();
        bench.point(Kind::Ebpf, tally)?;
    }
    Ok(())
}

#[test]
fn every_point_is_a_legal_crash_image() {
    let mut tally = Tally::default();
    for seed in 0..3000 {
        if let Err(wrong) = run(seed, &mut tally) {
            panic!("seed {seed}: {wrong}");
        }
    }
    let Tally { points, digests, tries, frozen, given_up } = tally;
    println!("{points} points, {digests} witnesses, {tries} tries, {frozen} frozen, {given_up} given up");
    // The test means something only if conflicts, retries and freezes did come up.
    assert!(digests > points);
    assert!(points > 15_000 && tries > points + points / 2 && frozen > 100 && frozen < points / 2);
}
