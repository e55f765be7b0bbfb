//! Hosted sparse VMDKs, `monolithicSparse` and `streamOptimized`: the layout that both share, and a reader of both.
//!
//! Layers, lowest first: [`layout`] → `error` → `header`, `source` → `grains` → `reader`. The reader is given an open file as
//! [`ReadAt`] and opens none itself. Every number of the file is checked before it is used, and nothing of it is
//! followed elsewhere: a disk with a parent, or in several files, is refused. It writes nothing.

mod error;
mod grains;
mod header;
pub mod layout;
mod reader;
mod source;
#[cfg(test)]
mod tests;

pub use error::{SparseError, SparseErrorKind};
pub use header::{Directory, Header};
pub use reader::SparseDisk;
pub use source::ReadAt;
