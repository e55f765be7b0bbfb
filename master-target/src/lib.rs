//! The master target: applies frames to VMware disks and keeps recovery points.
//!
//! Layers, lowest first: `datastore` → `vmdk`; `journal` → `digests`, `retention` → `replica` → `restore`, `image` →
//! `proof`, `resync` → `home`, `opening` → `node` → `status`, `metrics`, `tasks` → `driver`; `image` → `drill` → `config`, `export` → `admin`.

pub mod admin;
pub mod config;
pub mod datastore;
pub mod digests;
pub mod drill;
pub mod driver;
pub mod export;
pub mod home;
pub mod image;
pub mod journal;
pub mod metrics;
pub mod node;
pub mod opening;
pub mod proof;
pub mod replica;
pub mod restore;
mod resync;
pub mod retention;
pub mod status;
mod tasks;
pub mod vmdk;
