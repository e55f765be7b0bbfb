//! The process server: relays frames through a bounded, crash-safe spool.
//!
//! Layers, lowest first: `limits` → `spool`, `throttle` → `greeting` → `node` → `admin`, `metrics`, `config` →
//! `driver`. The node of a stream decides, without sockets, threads or clocks; the driver runs it on real ones.

pub mod admin;
pub mod config;
pub mod driver;
pub mod greeting;
pub mod group;
pub mod limits;
pub mod metrics;
pub mod node;
pub mod spool;
pub mod throttle;
