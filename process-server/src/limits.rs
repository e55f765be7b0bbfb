//! Every bound of the process server that is not the whole data path's (those stand in [`engine::limits`]).
//!
//! **Memory.** A stream holds at most: its window of frames received and not yet in the spool
//! ([`engine::limits::WINDOW_BYTES`] and one frame), one frame half received, and the two queues to and from the
//! sockets below, each and one frame. Frames on their way to the master target are not held: they stand in the
//! spool. With frames of the size that agents make (1 MiB) that is about 14 MiB a stream, 224 MiB for
//! [`engine::limits::STREAMS`] streams that are all stalled at once.

use std::time::Duration;

/// Bytes of one segment file at most, unless one frame is longer. Small spools have smaller segments: see
/// [`crate::spool::Bounds::new`].
pub const SEGMENT: u64 = 64 << 20;

/// The smallest spool that one stream can work with: a window of frames and the segments around it.
pub const SPOOL: u64 = 64 << 20;

/// Bytes that the spool leaves free on its file system.
pub const KEEP_FREE: u64 = 64 << 20;

/// Received bytes after which a commit is made even though more input is waiting.
pub const COMMIT: usize = 4 << 20;

/// How long to wait before a spool that failed or was full is tried again, if nothing happens before.
pub const SPOOL_RETRY: Duration = Duration::from_secs(1);

/// How long a stream without agent and without anything to forward is kept in memory.
pub const LINGER: Duration = Duration::from_secs(60);

/// Bytes read from a socket at once.
pub const READ: usize = 64 << 10;

/// Chunks of [`READ`] bytes that wait for a stream's thread.
pub const INBOX: usize = 8;

/// Frame bytes that wait for the socket to the master target; one frame is always allowed.
pub const OUTBOX: usize = 1 << 20;

/// Reports of one agent that wait until the frames before them are spooled. A barrier takes five.
pub const REPORTS: usize = 64;

/// How long the members of a group may take at most until little is left to capture, and then to hold applications and
/// write out what file systems hold back. Agents wait for the next order longer than that.
pub const GROUP_PATIENCE: Duration = Duration::from_secs(60);

/// How long they may take to freeze and capture. What is left of [`engine::limits::GROUP_FREEZE`] is for the word to
/// go on, and for those that were quick.
pub const GROUP_HOLD: Duration = Duration::from_millis(70);

/// How long they may take to say that they go on. Nothing is frozen any more.
pub const GROUP_RELEASE: Duration = Duration::from_secs(5);

/// How often a group is held for one point, before those that it fails for are left out or it is given up.
pub const GROUP_TRIES: u32 = 5;

/// How long after a failure a group's next point is tried, if its interval is not shorter.
pub const GROUP_RETRY: Duration = Duration::from_secs(30);

/// How long a common point may take to become durable before it is no longer waited for.
pub const GROUP_CONFIRM: Duration = Duration::from_secs(600);

/// Common points of a group that are waited for at once.
pub const GROUP_UNCONFIRMED: usize = 16;

/// Groups of a process server.
pub const GROUPS: usize = 16;
