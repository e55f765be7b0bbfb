//! Writers: each has at most one write, which moves one step at a time.

use rand::RngExt;

use super::{BLOCK, World, image};

#[derive(Debug, Default)]
pub(super) struct Writer {
    write: Option<Write>,
    /// The last write that was acknowledged to it: the next may depend on it.
    last: Option<(usize, u64, u64)>,
    /// Generation of a write that is complete, which the tracker did not see.
    unseen: Option<u64>,
}

impl Writer {
    pub(super) fn is_busy(&self) -> bool {
        self.write.is_some()
    }

    /// The disks were seen without a write in flight, so all that were issued are complete.
    pub(super) fn forget_unseen(&mut self) -> Option<u64> {
        self.unseen.take()
    }

    pub(super) fn is_writing(&self, disk: usize, block: u64) -> bool {
        self.write.is_some_and(|write| (write.disk, write.block) == (disk, block))
    }
}

#[derive(Clone, Copy, Debug)]
struct Write {
    disk: usize,
    block: u64,
    version: u64,
    /// Number of the generation it is marked under at present, and of the one it was issued under.
    counted: u64,
    issued: u64,
    second_half_first: bool,
    next: Step,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    CountIn,
    Check,
    Mark,
    CountOut,
    FirstHalf,
    SecondHalf,
    Complete,
    Acknowledge,
}

/// One of so many completions is not seen.
const UNSEEN: u32 = 200;

/// One step of one writer.
pub(super) fn step(world: &mut World, index: usize) {
    let Some(mut write) = world.writers[index].write.take() else {
        if !world.frozen && !world.held {
            world.writers[index].write = begin(world, index);
        }
        return;
    };
    write.next = match write.next {
        Step::CountIn => {
            write.counted = world.marks.count_in();
            Step::Check
        }
        Step::Check if world.marks.is_active(write.counted) => Step::Mark,
        Step::Check => {
            world.marks.count_out(write.counted);
            Step::CountIn
        }
        Step::Mark => {
            world.marks.mark(write.counted, write.disk, write.block);
            write.issued = write.counted;
            // The request is the one whose completion was not seen.
            let before = world.writers[index].unseen.take();
            world.marks.enter_flight(write.issued);
            before.into_iter().for_each(|before| world.marks.leave_flight(before));
            Step::CountOut
        }
        Step::CountOut => {
            world.marks.count_out(write.counted);
            Step::FirstHalf
        }
        Step::FirstHalf => {
            apply(world, &write, write.second_half_first);
            Step::SecondHalf
        }
        Step::SecondHalf => {
            apply(world, &write, !write.second_half_first);
            Step::Complete
        }
        Step::Complete => {
            if world.rng.random_ratio(1, UNSEEN) {
                world.writers[index].unseen = Some(write.issued);
            } else {
                world.marks.leave_flight(write.issued);
            }
            Step::Acknowledge
        }
        Step::Acknowledge => {
            world.history.acknowledge(write.disk, write.block, write.version);
            world.writers[index].last = Some((write.disk, write.block, write.version));
            return;
        }
    };
    world.writers[index].write = Some(write);
}

/// A new write, to a block that nobody else is writing. Few blocks are written often, many seldom.
fn begin(world: &mut World, index: usize) -> Option<Write> {
    let disk = world.rng.random_range(0..world.disks.len());
    let blocks = (world.disks[disk].len() / BLOCK) as u64;
    let within = if world.rng.random_bool(0.5) { blocks.div_ceil(8) } else { blocks };
    let block = world.rng.random_range(0..within);
    if world.writers.iter().any(|writer| writer.is_writing(disk, block)) {
        return None;
    }
    let version = world.history.begin(disk, block, world.writers[index].last);
    let second_half_first = world.rng.random_bool(0.5);
    let next = Step::CountIn;
    Some(Write { disk, block, version, counted: 0, issued: 0, second_half_first, next })
}

fn apply(world: &mut World, write: &Write, second_half: bool) {
    let at = write.block as usize * BLOCK;
    image::stamp(&mut world.disks[write.disk][at..at + BLOCK], second_half, write.version);
}
