//! The master target: applies frames to VMware disks and keeps recovery points.

pub mod datastore;
pub mod home;
pub mod journal;
pub mod node;
pub mod replica;
pub mod restore;
pub mod vmdk;
