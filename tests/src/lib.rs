//! Whole-system tests. [`world`] runs agent, process server and master target in one thread on simulated disks,
//! clock and net. The other modules are for tests with real processes on real disks, by `homeward::lab`: workloads
//! and what they know of their own writes, readers and checkers of points. The tests themselves stand in `tests/`,
//! one file per promise.

#![allow(clippy::unwrap_used, clippy::expect_used)]

pub mod checkers;
pub mod churn;
pub mod fio;
pub mod gossip;
pub mod ground;
pub mod ledger;
pub mod load;
pub mod mariadb;
pub mod networks;
pub mod postgres;
pub mod proxy;
pub mod rig;
pub mod room;
pub mod settings;
pub mod shelf;
pub mod stamped;
pub mod wire;
pub mod wiring;
pub mod world;
