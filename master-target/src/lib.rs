//! The master target: applies frames to VMware disks and keeps recovery points.

pub mod datastore;
pub mod vmdk;
