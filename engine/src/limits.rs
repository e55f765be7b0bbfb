//! Every bound of the data path, in one place: what can grow has a limit, and here it stands.
//!
//! Sizes in bytes unless the name says otherwise. Formats may carry more than these allow; readers refuse it.

use std::time::Duration;

use crate::units::BLOCK_BYTES;

/// Numbers of frames and epochs stay below this: a frame each nanosecond would take 146 years to get there.
/// Keeps arithmetic far from overflow.
pub const STREAM_NUMBER: u64 = 1 << 62;

/// Uncompressed content of one frame: extent table and data. A frame claiming more is refused unread.
pub const FRAME_CONTENT: usize = 4 << 20;

/// Block bytes that a sender packs into one frame. Large enough to compress well, small enough to interleave.
pub const FRAME_DATA_TARGET: usize = 1 << 20;

/// Extents in one frame.
pub const FRAME_EXTENTS: usize = (FRAME_DATA_TARGET / BLOCK_BYTES as usize) * 4;

/// Blocks that one extent may cover (32 GiB): keeps arithmetic far from overflow.
pub const EXTENT_BLOCKS: u32 = 8 << 20;

/// Body of a control message.
pub const CONTROL_BODY: usize = 64 << 10;

/// Ranges of leaves in one control message: with the longest numbers they fit [`CONTROL_BODY`].
pub const LEAF_RANGES: usize = 512;

/// Leaves that one question of a resync is about: 16 MiB of a disk. Their digests fit [`CONTROL_BODY`].
pub const SPAN_LEAVES: u64 = 256;

/// Questions of one stream's resync that may be unanswered: enough that a round trip of 50 ms is no wait.
pub const QUESTIONS: usize = 32;

/// Disks of one VM.
pub const DISKS_PER_VM: usize = 60;

/// Largest disk: VMware's 62 TiB.
pub const DISK_BYTES: u64 = 62 << 40;

/// Frame bytes that may be unacknowledged on one hop of one stream.
pub const WINDOW_BYTES: usize = 8 << 20;

/// Frames that may be unacknowledged on one hop of one stream.
pub const WINDOW_FRAMES: usize = 4096;

/// Streams that one process server or master target serves at once; times the window this bounds its buffers.
pub const STREAMS: usize = 16;

/// One generation of one disk's dirty map. The granule doubles with the disk until the map fits.
pub const DIRTY_MAP_BYTES: u64 = 32 << 20;

/// Residual bytes that a barrier may hold in memory.
pub const CAPTURE_BYTES: usize = 32 << 20;

/// Reads or writes in flight on one disk. Many: a barrier that reads scattered blocks must outrun the writers, and
/// how the disk is shared among those who queue follows how much each has queued (docs/performance.md).
pub const IO_DEPTH: usize = 128;

/// Bytes of their buffers after which no further one is begun.
pub const IO_FLIGHT_BYTES: u64 = 16 << 20;

/// Bytes of one read or write.
pub const IO_BYTES: usize = 1 << 20;

/// Bytes that one journal batch takes in before it is made durable.
pub const BATCH_BYTES: usize = 8 << 20;

/// How long file systems may stay frozen for one point.
pub const FREEZE: Duration = Duration::from_millis(80);

/// Bytes of log lines that wait in memory while file systems are frozen.
pub const HELD_LOG: usize = 64 << 10;

/// How long applications may be held for one point, from when the last of them holds until they are told to go on.
pub const HOLD: Duration = Duration::from_secs(10);

/// Hooks of one VM.
pub const HOOKS: usize = 32;

/// What a hook's time limit may be at most.
pub const HOOK: Duration = Duration::from_secs(3600);
/// How long file systems may stay frozen for a point that the VMs of a group share: until the slowest is frozen, too,
/// and the word to go on has arrived.
pub const GROUP_FREEZE: Duration = Duration::from_millis(100);

/// VMs of one group.
pub const GROUP_MEMBERS: usize = STREAMS;

/// How long a peer may take over the TLS and session handshakes.
pub const HANDSHAKE: Duration = Duration::from_secs(10);

/// A connection on which nothing arrives for this long is dead. Idle peers ping at a third of it.
pub const IDLE: Duration = Duration::from_secs(30);

/// TLS handshakes that a listener runs at once.
pub const HANDSHAKES: usize = 64;

/// Bytes of a question to a service's admin interface, and of a report of progress.
pub const ADMIN_LINE: usize = 1 << 20;

/// Bytes of an answer of the admin interface: the points of a VM, of which there may be [`POINTS`].
pub const ADMIN_ANSWER: usize = 32 << 20;

/// Points that may be kept of one VM.
pub const POINTS: usize = 20_000;

/// Clients of a service's admin interface at once.
pub const ADMIN_CLIENTS: usize = 16;
