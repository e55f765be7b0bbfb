//! The disk I/O layer: the only place in the engine with `unsafe` code.
//!
//! Two small traits carry all of it. A [`Device`] is a disk, read and written by position with many
//! operations in flight. A [`Storage`] is a folder of files the journal and the spool keep. Both have one
//! real implementation per back end here, and simulated ones for tests in [`sim`].

pub mod blockdev;
mod buffer;
mod device;
mod disk_file;
mod durable;
mod lock;
mod open;
mod queue;
pub mod sim;
mod storage;
mod sync_guard;
mod threads;
mod uring;
mod words;

#[cfg(test)]
mod testing;

pub use buffer::AlignedBuf;
pub use device::{Device, Op, OpKind, read_exact_at, write_all_at};
pub use durable::{FolderStorage, remove_file_durably, write_file_atomically};
pub use lock::{DirLock, LockError};
pub use open::{Access, Backend, OpenError, open_device};
pub use storage::{Storage, StorageFile};
pub use sync_guard::DeadHandle;
pub use words::SharedWords;
