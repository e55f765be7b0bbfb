//! Digests of leaves as a disk holds them.

use std::io;

use engine::{
    digest::{LEAF_BYTES, blocks_of, leaf_digest},
    io::{Device, Op},
    units::Digest,
};

/// Reads leaves of a disk of `bytes` and hashes them; in their order. One that cannot be read has the reason instead.
pub(crate) fn digests_of(device: &dyn Device, bytes: u64, leaves: &[u64]) -> Vec<(u64, io::Result<Digest>)> {
    let op = |leaf: &u64| {
        let start = blocks_of(*leaf, bytes).start.offset();
        Op::read(start, LEAF_BYTES.min(bytes - start) as usize, *leaf)
    };
    let mut found = Vec::with_capacity(leaves.len());
    device.run(&mut leaves.iter().map(op), &mut |op, outcome| {
        found.push((op.tag, outcome.map(|()| leaf_digest(&op.buf))));
    });
    found.sort_unstable_by_key(|(leaf, _)| *leaf);
    found
}
