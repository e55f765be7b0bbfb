//! Every bound of an export. Its memory is about `AHEAD` pieces, each at most twice. Exports at once are bounded by the
//! clients of the admin interface, since each has one of them wait.

/// Bytes of a disk that are read, compressed or checked at a time: whole leaves, which are whole grains.
pub const PIECE_BYTES: u64 = 1 << 20;

/// Pieces that are worked on, or wait for their turn to be written.
pub const AHEAD: usize = 32;

/// Threads that work on pieces, if there are as many processors.
pub const WORKERS: usize = 8;

/// Bytes of a disk whose holes are looked for at a time.
pub const LOOK_BYTES: u64 = 64 << 20;
