//! Every bound of a drill. A drill's memory is at most connections × threads × a piece, and the overlays' maps.

/// Drills that run at once.
pub const DRILLS: usize = 16;

/// Connections to one drill; more are closed at once.
pub const CONNECTIONS: usize = 16;

/// Threads of one connection: the requests that it has in flight. More wait in its socket.
pub const THREADS: usize = 16;

/// Bytes of one read or write that a client may ask for; what every client may assume.
pub const REQUEST_BYTES: u32 = 32 << 20;

/// Bytes that a client had better read or write at once at least.
pub const PREFERRED_BYTES: u32 = 4096;

/// Bytes that a thread has in memory: longer reads and writes go in pieces.
pub const PIECE_BYTES: usize = 1 << 20;

/// Data of one option.
pub const OPTION_BYTES: u32 = 64 << 10;

/// Options of one handshake.
pub const OPTIONS: u32 = 256;

/// Extents of one answer to what is where.
pub const STATUS_EXTENTS: usize = 4096;

/// Bytes of the disk that are looked through for one answer to what is where.
pub const STATUS_BYTES: u64 = 2 << 30;

/// Bytes of the disk that are looked through at a time for it.
pub const STATUS_STEP: u64 = 64 << 20;

/// Runs of blocks of one kind that an overlay remembers (about 64 MiB); then it is full.
pub const OVERLAY_RUNS: usize = 1 << 20;
