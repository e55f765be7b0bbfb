//! What both ends of a replication must agree on: units, extents, frames, sessions, recovery points;
//! and, in [`io`] and [`net`], the only code that touches disks and sockets on everybody's behalf.
//!
//! Layers, lowest first: `units` → `limits` → `extent` → `extent_set` → `dirty_map`; `units` → `point`; on these
//! `frame` → `session`. Beside them, using only `limits`: `io`, and `net` → `service`; alone: `work`.
//! It knows nothing of agents, servers or VMware.

pub mod digest;
pub mod dirty_map;
pub mod extent;
pub mod extent_set;
pub mod frame;
pub mod io;
pub mod limits;
pub mod net;
pub mod point;
pub mod service;
pub mod session;
pub mod units;
pub mod work;
