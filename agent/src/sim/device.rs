//! A simulated disk, read while it is written.

use std::io;

use engine::{
    io::{Device, Op, OpKind},
    units::DiskIndex,
};
use rand::RngExt;

use super::{BLOCK, SimVm};

/// Operations in flight.
const DEPTH: usize = 4;

/// One disk of a [`SimVm`], as the agent reads it: half a block at a time, operations in any order.
pub struct SimDisk {
    vm: SimVm,
    index: DiskIndex,
    name: String,
}

impl SimDisk {
    pub(super) fn new(vm: SimVm, index: DiskIndex) -> Self {
        Self { vm, index, name: format!("simulated {index}") }
    }

    fn read(&self, op: &mut Op) {
        let mut at = op.offset as usize;
        for half in op.buf.chunks_mut(BLOCK / 2) {
            let mut world = self.vm.lock();
            half.copy_from_slice(&world.disks[usize::from(self.index.0)][at..at + half.len()]);
            at += half.len();
            world.work();
        }
    }
}

impl Device for SimDisk {
    fn size(&self) -> u64 {
        self.vm.lock().disks[usize::from(self.index.0)].len() as u64
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn run(&self, ops: &mut dyn Iterator<Item = Op>, done: &mut dyn FnMut(Op, io::Result<()>)) {
        let mut in_flight = Vec::new();
        loop {
            while in_flight.len() < DEPTH
                && let Some(op) = ops.next()
            {
                in_flight.push(op);
            }
            if in_flight.is_empty() {
                return;
            }
            let next = self.vm.lock().rng.random_range(0..in_flight.len());
            let mut op = in_flight.swap_remove(next);
            if op.kind == OpKind::Read {
                self.read(&mut op);
                done(op, Ok(()));
            } else {
                done(op, Err(io::Error::new(io::ErrorKind::Unsupported, "the agent only reads")));
            }
        }
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}
