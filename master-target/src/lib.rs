//! The master target: applies frames to VMware disks and keeps recovery points.
