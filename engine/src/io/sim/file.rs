//! Open files and devices of a simulated storage.

use std::{io, path::Path, sync::Arc};

use super::{
    disk::Ino,
    faults::SimOp,
    machine::{Machine, SharedMachine},
};
use crate::io::{Device, Op, OpKind, StorageFile, sync_guard::SyncGuard};

pub(super) struct SimFile {
    machine: Arc<SharedMachine>,
    ino: Ino,
    guard: SyncGuard,
}

impl SimFile {
    pub(super) fn new(machine: Arc<SharedMachine>, ino: Ino, path: &Path) -> Self {
        machine.lock().handle_opened(ino);
        Self { machine, ino, guard: SyncGuard::new(path.display().to_string()) }
    }

    /// Starts an operation that has no effect if it fails.
    fn begin(&self, op: SimOp) -> io::Result<std::sync::MutexGuard<'_, Machine>> {
        self.guard.check()?;
        match self.machine.begin(op, self.guard.name()) {
            (_, Some(fault)) => Err(fault.into()),
            (machine, None) => Ok(machine),
        }
    }

    fn zero(&self, offset: u64, len: u64) -> io::Result<()> {
        self.begin(SimOp::Zero)?.zero(self.ino, offset, len);
        Ok(())
    }
}

impl Drop for SimFile {
    fn drop(&mut self) {
        self.machine.lock().handle_closed(self.ino);
    }
}

impl StorageFile for SimFile {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let content = self.begin(SimOp::Read)?.disk.content(self.ino);
        if content.read(offset, buf) { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.guard.check()?;
        let (mut machine, fault) = self.machine.begin(SimOp::Write, self.guard.name());
        machine.write(self.ino, offset, bytes, fault)
    }

    fn len(&self) -> io::Result<u64> {
        self.guard.check()?;
        Ok(self.machine.lock().disk.content(self.ino).len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.begin(SimOp::SetLen)?.set_len(self.ino, len);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.guard.sync(|| {
            let (mut machine, fault) = self.machine.begin(SimOp::Sync, self.guard.name());
            machine.sync(self.ino, fault)
        })
    }
}

/// A file as a device: one operation after the other.
pub(super) struct SimDevice {
    file: SimFile,
    size: u64,
}

impl SimDevice {
    pub(super) fn new(file: SimFile, size: u64) -> Self {
        Self { file, size }
    }

    fn perform(&self, op: &mut Op) -> io::Result<()> {
        self.file.guard.check()?;
        op.check(self.size)?;
        match op.kind {
            OpKind::Read => self.file.read_exact_at(&mut op.buf, op.offset),
            OpKind::Write => self.file.write_all_at(&op.buf, op.offset),
            OpKind::Zero => self.file.zero(op.offset, op.len),
        }
    }
}

impl Device for SimDevice {
    fn size(&self) -> u64 {
        self.size
    }

    fn name(&self) -> &str {
        self.file.guard.name()
    }

    fn run(&self, ops: &mut dyn Iterator<Item = Op>, done: &mut dyn FnMut(Op, io::Result<()>)) {
        for mut op in ops {
            let result = self.perform(&mut op);
            done(op, result);
        }
    }

    fn holes(&self, offset: u64, len: u64) -> io::Result<Vec<(u64, bool)>> {
        self.file.guard.check()?;
        Ok(self.file.machine.lock().disk.content(self.file.ino).holes(offset, len))
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync()
    }
}
