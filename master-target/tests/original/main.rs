//! The promise: a disk that was at home before is adopted in place, or refused with a reason of its own; then it, its
//! descriptor and everything beside it stay byte for byte as they were, and no journal is made.

#![allow(clippy::unwrap_used)]

mod accepted;
mod config;
mod folder;
mod refused;
