//! The process server: relays frames through a bounded, crash-safe spool.
//!
//! Layers, lowest first: `limits` → `spool`, `throttle` → `greeting` → `node` → `driver`. The node of a stream
//! decides, without sockets, threads or clocks; the driver runs it on real ones.

pub mod greeting;
pub mod limits;
pub mod node;
pub mod spool;
pub mod throttle;
