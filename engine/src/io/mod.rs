//! The disk I/O layer: the only place in the engine with `unsafe` code.
//!
//! Two small traits carry all of it. A [`Device`] is a disk, read and written by position with many
//! operations in flight. A [`Storage`] is a folder of files the journal and the spool keep. Both have one
//! real implementation per back end here, and simulated ones for tests in [`sim`].

mod buffer;
mod device;
mod storage;

pub use buffer::AlignedBuf;
pub use device::{Device, Op, OpKind, read_exact_at, write_all_at};
pub use storage::{Storage, StorageFile};
