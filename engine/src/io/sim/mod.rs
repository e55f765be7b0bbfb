//! Test support: a file system in memory that survives simulated power cuts, full disks and I/O errors.
//!
//! [`SimStorage`] is a [`Storage`] whose every change and sync goes to one log. For any prefix of the log it gives
//! the disks that a power cut there may leave ([`SimStorage::power_cut`]); a clone of it is what a killed process
//! leaves. Nothing is cached or reordered while it runs: what may be lost is decided at the cut.
//!
//! It is part of the library and not behind `cfg(test)`, so that the tests of other crates can use it.

mod content;
mod disk;
mod faults;
mod file;
mod machine;
mod power_cut;
#[cfg(test)]
mod tests;

use std::{fmt, io, path::Path, sync::Arc};

pub use faults::{Fault, SimEvent, SimOp};

use self::{
    disk::Disk,
    file::{SimDevice, SimFile},
    machine::{Machine, SharedMachine},
    power_cut::Luck,
};
use super::{Device, Storage, StorageFile, sync_guard::SyncGuard};

/// A simulated storage. Share it with an [`Arc`]; a clone is another disk with the same contents, log and quota,
/// on which no fault is ordered and no handle is open: what a killed process leaves behind.
pub struct SimStorage {
    machine: Arc<SharedMachine>,
    guard: SyncGuard,
}

impl SimStorage {
    /// An empty storage.
    #[must_use]
    pub fn new() -> Self {
        Self::of(Machine::over(Disk::empty()))
    }

    fn of(machine: Machine) -> Self {
        Self { machine: Arc::new(SharedMachine::new(machine)), guard: SyncGuard::new("simulated storage") }
    }

    /// Entries in the log: changes and syncs.
    #[must_use]
    pub fn log_len(&self) -> usize {
        self.machine.lock().log.len()
    }

    /// Begins the log anew, so that a long run does not fill memory: what was done so far counts as durable.
    pub fn forget_log(&self) {
        self.machine.lock().forget_log();
    }

    /// Entry `at` of the log in words, for a failing test's message.
    ///
    /// # Panics
    /// If the log has no such entry.
    #[must_use]
    pub fn describe(&self, at: usize) -> String {
        self.machine.lock().log[at].to_string()
    }

    /// A disk that a power cut after the first `at` entries of the log may leave; which of them, `seed` decides.
    /// Everything synced is there; of the rest any subset, writes torn at sectors of 512 bytes. Quick if `at` does
    /// not go back from call to call.
    ///
    /// # Panics
    /// If the log is shorter than `at`.
    #[must_use]
    pub fn power_cut(&self, at: usize, seed: u64) -> Self {
        self.cut(at, &mut Luck::of_seed(seed))
    }

    /// Like [`Self::power_cut`], with every unsynced change kept.
    ///
    /// # Panics
    /// If the log is shorter than `at`.
    #[must_use]
    pub fn power_cut_all_kept(&self, at: usize) -> Self {
        self.cut(at, &mut Luck::All)
    }

    /// Like [`Self::power_cut`], with every unsynced change lost.
    ///
    /// # Panics
    /// If the log is shorter than `at`.
    #[must_use]
    pub fn power_cut_none_kept(&self, at: usize) -> Self {
        self.cut(at, &mut Luck::None)
    }

    fn cut(&self, at: usize, luck: &mut Luck) -> Self {
        Self::of(self.machine.lock().after_power_cut(at, luck))
    }

    /// Orders that the `nth` operation of the kind from now on fails, counted from 1. A write that fails has
    /// written its first half; a sync that fails leaves what it should have made durable in doubt for good, and
    /// its handle dead; everything else that fails has no effect.
    pub fn fail(&self, op: SimOp, nth: u64, fault: Fault) {
        self.machine.lock().faults.order(op, nth, fault);
    }

    /// Limits the bytes that files may take, in pages of 4 KiB; holes take none. Writes beyond it write what fits
    /// and fail with ENOSPC. What a removed file took is free at once.
    pub fn set_quota(&self, bytes: Option<u64>) {
        self.machine.lock().quota = bytes;
    }

    /// Inverts the bits of `mask` in the byte at `offset` of a file, as a bad disk does. It needs no sync to last.
    pub fn flip_bits(&self, path: &Path, offset: u64, mask: u8) -> io::Result<()> {
        self.machine.lock().flip(path, offset, mask)
    }

    /// Has `hook` called before each operation, on the thread that does it. It may block, to hold the operation,
    /// and may use this storage's methods except those that are operations themselves.
    pub fn set_hook(&self, hook: impl Fn(&SimEvent<'_>) + Send + Sync + 'static) {
        self.machine.set_hook(Arc::new(hook));
    }

    /// Starts an operation by name on a live storage.
    fn begin(&self, op: SimOp, path: &Path) -> io::Result<std::sync::MutexGuard<'_, Machine>> {
        self.guard.check()?;
        let (machine, fault) = self.machine.begin(op, &path.to_string_lossy());
        match fault {
            Some(fault) => Err(fault.into()),
            None => Ok(machine),
        }
    }

    fn file(&self, path: &Path, ino: disk::Ino) -> SimFile {
        SimFile::new(self.machine.clone(), ino, path)
    }
}

impl Default for SimStorage {
    fn default() -> Self {
        Self::new()
    }
}

impl Clone for SimStorage {
    fn clone(&self) -> Self {
        Self::of(self.machine.lock().after_kill())
    }
}

impl fmt::Debug for SimStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SimStorage(log of {})", self.log_len())
    }
}

impl Storage for SimStorage {
    fn open(&self, path: &Path) -> io::Result<Box<dyn StorageFile>> {
        let ino = self.begin(SimOp::Open, path)?.open(path)?;
        Ok(Box::new(self.file(path, ino)))
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn StorageFile>> {
        let ino = self.begin(SimOp::Create, path)?.create(path)?;
        Ok(Box::new(self.file(path, ino)))
    }

    fn device(&self, path: &Path) -> io::Result<Arc<dyn Device>> {
        let (ino, size) = {
            let machine = self.begin(SimOp::Open, path)?;
            let ino = machine.open(path).map_err(|error| match error.kind() {
                io::ErrorKind::IsADirectory => io::ErrorKind::InvalidInput.into(),
                _ => error,
            })?;
            (ino, machine.disk.content(ino).len())
        };
        Ok(Arc::new(SimDevice::new(self.file(path, ino), size)))
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.begin(SimOp::CreateDir, path)?.create_dir_all(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.guard.check()?;
        let machine = self.machine.lock();
        Ok(machine.disk.dir(machine.disk.lookup(dir)?)?.keys().cloned().collect())
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        self.guard.check()?;
        match self.machine.lock().disk.lookup(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            found => found.map(|_| true),
        }
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.begin(SimOp::Rename, to)?.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.begin(SimOp::Remove, path)?.remove(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.guard.check()?;
        let node = self.machine.lock().folder(dir)?;
        self.guard.sync(|| {
            let (mut machine, fault) = self.machine.begin(SimOp::SyncDir, &dir.to_string_lossy());
            machine.sync(node, fault)
        })
    }

    fn free_space(&self) -> io::Result<u64> {
        self.guard.check()?;
        Ok(self.machine.lock().free_space())
    }
}
