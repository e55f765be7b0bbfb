//! Writers: each has at most one write, which moves one step at a time.

use rand::RngExt;

use super::{BLOCK, World, image};

#[derive(Debug, Default)]
pub(super) struct Writer {
    write: Option<Write>,
    /// The last write that was acknowledged to it: the next may depend on it.
    last: Option<(usize, u64, u64)>,
}

impl Writer {
    pub(super) fn is_busy(&self) -> bool {
        self.write.is_some()
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
    CountIn(Event),
    Check(Event),
    Mark(Event),
    CountOut(Event),
    FirstHalf,
    SecondHalf,
    Acknowledge,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    Issued,
    Completed,
}

/// One step of one writer.
pub(super) fn step(world: &mut World, index: usize) {
    let Some(mut write) = world.writers[index].write.take() else {
        if !world.frozen && !world.held {
            world.writers[index].write = begin(world, index);
        }
        return;
    };
    write.next = match write.next {
        Step::CountIn(event) => {
            write.counted = world.marks.count_in();
            Step::Check(event)
        }
        Step::Check(event) if world.marks.is_active(write.counted) => Step::Mark(event),
        Step::Check(event) => {
            world.marks.count_out(write.counted);
            Step::CountIn(event)
        }
        Step::Mark(event) => {
            world.marks.mark(event, write.counted, write.disk, write.block);
            match event {
                Event::Issued => {
                    write.issued = write.counted;
                    world.marks.enter_flight(write.issued);
                }
                Event::Completed => world.marks.leave_flight(write.issued),
            }
            Step::CountOut(event)
        }
        Step::CountOut(event) => {
            world.marks.count_out(write.counted);
            if event == Event::Issued { Step::FirstHalf } else { Step::Acknowledge }
        }
        Step::FirstHalf => {
            apply(world, &write, write.second_half_first);
            Step::SecondHalf
        }
        Step::SecondHalf => {
            apply(world, &write, !write.second_half_first);
            Step::CountIn(Event::Completed)
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
    let next = Step::CountIn(Event::Issued);
    Some(Write { disk, block, version, counted: 0, issued: 0, second_half_first, next })
}

fn apply(world: &mut World, write: &Write, second_half: bool) {
    let at = write.block as usize * BLOCK;
    image::stamp(&mut world.disks[write.disk][at..at + BLOCK], second_half, write.version);
}
