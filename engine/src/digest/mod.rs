//! Digests of disk contents: of leaves of 64 KiB, and the tree above them.
//!
//! A tree's root stands for everything on a disk of one size; two trees of one size tell, from the top down, which
//! leaves differ. Format: docs/formats.md, "Digest tree". It reads no disk and keeps no file.

mod leaf;
mod map;
mod root;
mod tree;

pub use leaf::{LEAF_BYTES, blocks_of, leaf_digest, leaves_in, zero_leaf};
pub use map::LeafMap;
pub use root::RootBuilder;
pub use tree::{FAN_OUT, Tree, TreeError};
