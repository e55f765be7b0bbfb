//! What the services answer, as far as a lab needs it: the public face of their `--json`, not their types.

use std::path::{Path, PathBuf};

use engine::point::Point;
use jiff::Timestamp;
use serde::Deserialize;

use super::{Tracker, error::LabError};

/// An agent's answer.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum AgentAnswer {
    Status(Box<AgentStatus>),
    Durable(Point),
    Requested,
}

/// A master target's answer.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum TargetAnswer {
    Status(Vec<TargetStatus>),
    Points(Vec<SealedPoint>),
    Restored(serde::de::IgnoredAny),
    Drill(Drill),
    Drills(Vec<Drill>),
}

/// A drill of a point.
#[derive(Clone, Debug, Deserialize)]
pub struct Drill {
    /// Its number.
    pub id: u64,
    /// Its disks, in the order of the VM's.
    pub disks: Vec<DrillDisk>,
    /// Bytes that were written to it.
    pub overlay_bytes: u64,
}

/// A disk of a drill.
#[derive(Clone, Debug, Deserialize)]
pub struct DrillDisk {
    /// How NBD clients name it.
    pub uri: String,
}

/// How an agent stands.
#[derive(Clone, Debug, Deserialize)]
pub struct AgentStatus {
    /// How it finds writes.
    pub tracker: Tracker,
    /// What it does, in words.
    pub activity: String,
    /// How it is connected, in words.
    pub connection: String,
    /// Why it is not.
    pub connection_error: Option<String>,
    /// Why the other side waits.
    pub hold: Option<String>,
    /// What went wrong last.
    pub trouble: Option<String>,
    /// Why the last attempt at a point made none.
    pub point_failure: Option<String>,
    /// Bytes that the target may lack.
    pub lag_bytes: u64,
    /// Bytes to be sent.
    pub dirty_bytes: u64,
    /// The copy of everything dirty after a start; `None` when it is over.
    pub copy: Option<CopyStatus>,
    /// Sums since the process started.
    pub totals: Totals,
    /// The disks, as found at the start.
    pub disks: Vec<DiskStatus>,
}

/// One disk of an agent, as found at the start.
#[derive(Clone, Debug, Deserialize)]
pub struct DiskStatus {
    /// Its name.
    pub name: String,
    /// `proven`: every write since the agent before was known. Else why not.
    pub continuity: String,
}

impl AgentStatus {
    /// In a line, for messages.
    #[must_use]
    pub fn describe(&self) -> String {
        let troubles = [&self.hold, &self.trouble, &self.connection_error, &self.point_failure];
        let troubles = troubles.into_iter().flatten();
        let line = format!("{}, {}, {} bytes behind", self.activity, self.connection, self.lag_bytes);
        troubles.fold(line, |line, trouble| format!("{line}; {trouble}"))
    }
}

/// Progress of a copy, in bytes.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct CopyStatus {
    /// Sent.
    pub done: u64,
    /// To send.
    pub total: u64,
}

/// Sums since an agent's process started.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub struct Totals {
    /// Disk bytes in frames.
    pub logical_bytes: u64,
    /// Bytes of these frames.
    pub wire_bytes: u64,
    /// Points that became durable.
    pub points: u64,
}

impl std::ops::AddAssign for Totals {
    fn add_assign(&mut self, other: Self) {
        self.logical_bytes += other.logical_bytes;
        self.wire_bytes += other.wire_bytes;
        self.points += other.points;
    }
}

/// How the master target stands with a VM.
#[derive(Clone, Debug, Deserialize)]
pub struct TargetStatus {
    /// The VM.
    pub vm: String,
    /// Where its disks are.
    pub targets: Vec<TargetDisk>,
    /// Whether a process server is connected.
    pub connected: bool,
    /// Points kept.
    pub points: usize,
    /// Bytes of before-images.
    pub journal_bytes: Option<u64>,
    /// Why replication waits.
    pub hold: Option<String>,
    /// Frame bytes received since the stream was opened.
    pub wire_bytes: u64,
    /// Bytes of content applied since then.
    pub logical_bytes: u64,
}

/// Where a disk is at home.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum TargetDisk {
    /// In a datastore.
    Vmdk {
        /// The descriptor, relative to the datastore.
        descriptor: PathBuf,
    },
    /// On a device.
    Device {
        /// Its path.
        path: PathBuf,
    },
}

impl TargetDisk {
    pub(super) fn vmdk(&self, datastore: &Path) -> Result<Vmdk, LabError> {
        let Self::Vmdk { descriptor } = self else {
            return Err(LabError::unexpected("master-target", "keeps this disk on a device, not in a VMDK"));
        };
        let descriptor = datastore.join(descriptor);
        let stem = descriptor.file_stem().unwrap_or_default().to_string_lossy();
        Ok(Vmdk { flat: descriptor.with_file_name(format!("{stem}-flat.vmdk")), descriptor })
    }
}

/// The files of a VMDK.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vmdk {
    /// The text that describes it; what VMware and qemu open.
    pub descriptor: PathBuf,
    /// The disk's content.
    pub flat: PathBuf,
}

/// A point as the master target keeps it.
#[derive(Clone, Debug, Deserialize)]
pub struct SealedPoint {
    /// What the agent observed.
    #[serde(flatten)]
    pub point: Point,
    /// When it was durable.
    pub sealed_at: Timestamp,
    /// Bytes of before-images that lead back to it from the next.
    pub log_bytes: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vmdk_has_two_files() {
        let target: TargetDisk = serde_json::from_str(
            r#"{"kind":"vmdk","datastore":"d","descriptor":"web.1/web.1.vmdk","thin":true}"#,
        )
        .unwrap();
        let vmdk = target.vmdk(Path::new("/d")).unwrap();
        assert_eq!(vmdk.flat, Path::new("/d/web.1/web.1-flat.vmdk"));
        let device: TargetDisk = serde_json::from_str(r#"{"kind":"device","path":"/dev/sdb"}"#).unwrap();
        assert!(device.vmdk(Path::new("/d")).is_err());
    }
}
