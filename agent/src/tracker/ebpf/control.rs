//! The mapped `control` array by name: generations, counts, and what the set of maps says of itself.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::*, fence},
};

use engine::io::SharedWords;

use super::layout::{VERSION, control as at};

/// The mapped `control` array.
#[derive(Debug)]
pub(super) struct Control(Arc<SharedWords>);

/// What a set of maps was made for; continuity holds only where all of it is the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Purpose {
    pub(super) boot: u128,
    pub(super) stream: u128,
}

/// The disk that a record in the set is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DiskRecord {
    /// Device number, major in the upper half.
    pub(super) id: u64,
    pub(super) bytes: u64,
    pub(super) identity: Option<u128>,
}

impl Control {
    pub(super) fn new(words: Arc<SharedWords>) -> Self {
        Self(words)
    }

    fn word(&self, index: usize) -> &AtomicU64 {
        &(*self.0).as_ref()[index]
    }

    /// Describes a new set, still in the making.
    pub(super) fn describe(&self, serial: u64, purpose: Purpose, object: u128, disks: &[DiskRecord]) {
        self.word(at::STATE).store(at::BUILDING, SeqCst);
        self.word(at::SERIAL).store(serial, Relaxed);
        self.put(at::BOOT, purpose.boot);
        self.put(at::STREAM, purpose.stream);
        self.put(at::OBJECT, object);
        self.word(at::DISK_COUNT).store(disks.len() as u64, Relaxed);
        for (index, disk) in disks.iter().enumerate() {
            self.word(record(index) + at::DISK_ID).store(disk.id, Relaxed);
            self.word(record(index) + at::DISK_BYTES).store(disk.bytes, Relaxed);
            self.put(record(index) + at::DISK_IDENTITY, disk.identity.unwrap_or(0));
        }
        self.word(at::MAGIC).store(at::MAGIC_VALUE | VERSION << 56, SeqCst);
    }

    /// From now on the set may be continued.
    pub(super) fn complete(&self) {
        self.word(at::STATE).store(at::COMPLETE, SeqCst);
    }

    pub(super) fn is_complete(&self) -> bool {
        self.word(at::STATE).load(SeqCst) == at::COMPLETE
    }

    /// Whether it is of this layout.
    pub(super) fn is_ours(&self) -> bool {
        self.word(at::MAGIC).load(Relaxed) == at::MAGIC_VALUE | VERSION << 56
    }

    pub(super) fn serial(&self) -> u64 {
        self.word(at::SERIAL).load(Relaxed)
    }

    pub(super) fn purpose(&self) -> Purpose {
        Purpose { boot: self.get(at::BOOT), stream: self.get(at::STREAM) }
    }

    pub(super) fn object(&self) -> u128 {
        self.get(at::OBJECT)
    }

    /// The disks, or `None` if there are impossibly many.
    pub(super) fn disks(&self) -> Option<Vec<DiskRecord>> {
        let count = self.word(at::DISK_COUNT).load(Relaxed) as usize;
        (count <= super::layout::DISKS).then(|| (0..count).map(|index| self.disk(index)).collect())
    }

    fn disk(&self, index: usize) -> DiskRecord {
        let identity = self.get(record(index) + at::DISK_IDENTITY);
        DiskRecord {
            id: self.word(record(index) + at::DISK_ID).load(Relaxed),
            bytes: self.word(record(index) + at::DISK_BYTES).load(Relaxed),
            identity: (identity != 0).then_some(identity),
        }
    }

    /// The active generation.
    pub(super) fn active(&self) -> usize {
        (self.word(at::FLIPS).load(SeqCst) & 1) as usize
    }

    /// Makes the other generation active. This is the instant of a flip.
    pub(super) fn flip(&self) {
        self.word(at::FLIPS).fetch_add(1, SeqCst);
        // The counts must be looked at after this, or a program could count itself in unseen.
        fence(SeqCst);
    }

    /// Whether no program is counted in under `generation`.
    pub(super) fn is_still(&self, generation: usize, cpus: usize) -> bool {
        (0..cpus).all(|cpu| self.word(of_cpu(cpu) + generation).load(Acquire) == 0)
    }

    /// Writes that may be in flight without being known one by one.
    pub(super) fn unknown(&self) -> &AtomicU64 {
        self.word(at::UNKNOWN)
    }

    /// Skipped runs of the program at the issue after which all was taken for dirty.
    pub(super) fn missed(&self) -> &AtomicU64 {
        self.word(at::MISSED)
    }

    /// Not 0: anything on the disk may have been written under `generation`.
    pub(super) fn overflow(&self, disk: usize, generation: usize) -> &AtomicU64 {
        self.word(record(disk) + at::DISK_OVERFLOW + generation)
    }

    fn put(&self, index: usize, value: u128) {
        self.word(index).store(value as u64, Relaxed);
        self.word(index + 1).store((value >> 64) as u64, Relaxed);
    }

    fn get(&self, index: usize) -> u128 {
        u128::from(self.word(index).load(Relaxed)) | u128::from(self.word(index + 1).load(Relaxed)) << 64
    }
}

fn of_cpu(cpu: usize) -> usize {
    at::CPU + cpu * at::CPU_WORDS
}

fn record(disk: usize) -> usize {
    at::DISK + disk * at::DISK_WORDS
}
