//! Faults that a test orders, and the hook by which it watches or pauses.

use std::io;

/// A kind of operation on a simulated storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SimOp {
    /// Opening a file, or as a device.
    Open,
    /// Reading bytes.
    Read,
    /// Writing bytes.
    Write,
    /// Zeroing a range of a device.
    Zero,
    /// Changing a length.
    SetLen,
    /// Creating a file.
    Create,
    /// Creating a folder.
    CreateDir,
    /// Renaming.
    Rename,
    /// Removing a file.
    Remove,
    /// Syncing a file or device.
    Sync,
    /// Syncing a folder.
    SyncDir,
}

/// An operation that is about to happen, as the hook sees it.
#[derive(Clone, Copy, Debug)]
pub struct SimEvent<'a> {
    /// Its kind.
    pub op: SimOp,
    /// What it is about: a path, of a rename the new one.
    pub path: &'a str,
    /// Length of the log before it.
    pub at: usize,
}

/// How an operation fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// EIO.
    Io,
    /// ENOSPC.
    NoSpace,
}

impl From<Fault> for io::Error {
    fn from(fault: Fault) -> Self {
        Self::from_raw_os_error(match fault {
            Fault::Io => libc::EIO,
            Fault::NoSpace => libc::ENOSPC,
        })
    }
}

/// Faults that are still to come.
#[derive(Debug, Default)]
pub(super) struct Faults {
    orders: Vec<(SimOp, u64, Fault)>,
}

impl Faults {
    /// Orders that the `nth` operation of the kind from now on fails; the next is the first.
    pub(super) fn order(&mut self, op: SimOp, nth: u64, fault: Fault) {
        self.orders.push((op, nth, fault));
    }

    /// Counts an operation; returns how it is to fail.
    pub(super) fn strike(&mut self, op: SimOp) -> Option<Fault> {
        let mut struck = None;
        self.orders.retain_mut(|(kind, nth, fault)| {
            if *kind != op {
                return true;
            }
            *nth = nth.saturating_sub(1);
            if *nth == 0 {
                struck = Some(*fault);
            }
            *nth != 0
        });
        struck
    }
}
