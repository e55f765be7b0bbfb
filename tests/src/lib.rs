//! Whole-system tests. [`world`] runs agent, process server and master target in one thread on simulated disks,
//! clock and net; the tests themselves stand in `tests/`, one file per promise.

#![allow(clippy::unwrap_used, clippy::expect_used)]

pub mod wire;
pub mod world;
