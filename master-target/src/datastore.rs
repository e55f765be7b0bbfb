//! Datastores: folders in which VMs keep their disks, and what each kind of them can promise.
//!
//! It knows names and space, and nothing of disk formats.

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

use serde::{Deserialize, Serialize};

/// Bytes that Homeward leaves free on a datastore unless told otherwise: other VMs need room for swap and logs.
const DEFAULT_RESERVE: u64 = 1 << 30;

/// Longest name of a VM in vSphere, in characters.
const MAX_NAME_CHARACTERS: usize = 80;

/// Longest name in bytes: file systems end at 255, and up to 24 bytes are put behind it.
const MAX_NAME_BYTES: usize = 220;

/// Ends of names that mark the helper files of a disk. `a-flat` next to `a` would claim the same file.
const RESERVED_ENDINGS: [&str; 6] = ["-flat", "-delta", "-sesparse", "-ctk", "-rdm", "-rdmp"];

/// A datastore, as configured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Datastore {
    /// Its name in vCenter; messages use it.
    pub name: String,
    /// The folder at which it is mounted here.
    pub path: PathBuf,
    /// What it is.
    pub kind: DatastoreKind,
    /// Bytes to leave free.
    #[serde(default = "default_reserve")]
    pub reserve_bytes: u64,
}

fn default_reserve() -> u64 {
    DEFAULT_RESERVE
}

/// The kinds of datastore.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DatastoreKind {
    /// VMware's cluster file system.
    Vmfs,
    /// VMware's object store: disks are objects, not files.
    Vsan,
    /// A folder of an NFS server.
    Nfs,
}

/// Whether space given to a thick disk stays given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reservation {
    /// Kept by the file system.
    Kept,
    /// Up to the server: it may refuse, or take the request and share the space all the same.
    ServerDecides,
}

/// Why a datastore cannot be used for something.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DatastoreError {
    /// Files are no disks there.
    #[error(
        "datastore {name:?} is vSAN, where disks are objects and not files: create the disk in vCenter, \
         attach it to the master target's VM, and configure its block device as the target"
    )]
    NoFiles {
        /// The datastore.
        name: String,
    },
    /// Too full.
    #[error(
        "datastore {name:?} has {have} bytes free and {need} are needed (of which {reserve} stay in reserve): \
         free some space, choose another datastore, or lower reserve_bytes"
    )]
    NoSpace {
        /// The datastore.
        name: String,
        /// Bytes needed, with the reserve.
        need: u64,
        /// Bytes free.
        have: u64,
        /// Bytes of `need` that are kept free.
        reserve: u64,
    },
}

impl Datastore {
    /// Whether space reserved there stays reserved.
    #[must_use]
    pub const fn reservation(&self) -> Reservation {
        match self.kind {
            DatastoreKind::Vmfs | DatastoreKind::Vsan => Reservation::Kept,
            DatastoreKind::Nfs => Reservation::ServerDecides,
        }
    }

    /// Refuses a datastore on which flat files are not disks.
    pub fn check_flat_files(&self) -> Result<(), DatastoreError> {
        match self.kind {
            DatastoreKind::Vmfs | DatastoreKind::Nfs => Ok(()),
            DatastoreKind::Vsan => Err(DatastoreError::NoFiles { name: self.name.clone() }),
        }
    }

    /// Refuses to put `required` more bytes on a datastore that has `free`, unless its reserve is left.
    pub fn check_space(&self, required: u64, free: u64) -> Result<(), DatastoreError> {
        let need = required.saturating_add(self.reserve_bytes);
        if need <= free {
            return Ok(());
        }
        let (name, reserve) = (self.name.clone(), self.reserve_bytes);
        Err(DatastoreError::NoSpace { name, need, have: free, reserve })
    }
}

/// A name of a VM or a disk that can be a folder or the stem of a file: `web-01` in `web-01/web-01.vmdk`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct EntryName(String);

/// A name that cannot be one of a file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} cannot be the name of a folder or file on a datastore: {reason}")]
pub struct NameError {
    name: String,
    reason: &'static str,
}

impl EntryName {
    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The folder of the VM of this name, relative to its datastore.
    #[must_use]
    pub fn folder(&self) -> &Path {
        Path::new(&self.0)
    }
}

impl FromStr for EntryName {
    type Err = NameError;

    fn from_str(name: &str) -> Result<Self, NameError> {
        match objection(name) {
            None => Ok(Self(name.to_owned())),
            Some(reason) => Err(NameError { name: name.chars().take(MAX_NAME_CHARACTERS).collect(), reason }),
        }
    }
}

/// What speaks against a name.
fn objection(name: &str) -> Option<&'static str> {
    let lower = name.to_lowercase();
    if name.is_empty() {
        Some("it is empty")
    } else if name.chars().count() > MAX_NAME_CHARACTERS || name.len() > MAX_NAME_BYTES {
        Some("it is longer than 80 characters or 220 bytes")
    } else if name.contains(['/', '\\']) {
        Some("it holds a path separator")
    } else if name.contains('"') {
        Some("it holds a quote, which a descriptor cannot express")
    } else if name.chars().any(char::is_control) {
        Some("it holds a control character")
    } else if name.starts_with('.') {
        Some("it starts with a dot, as hidden files and locks do")
    } else if name.trim() != name || name.ends_with('.') {
        Some("it starts or ends with a blank, or ends with a dot")
    } else if RESERVED_ENDINGS.iter().any(|ending| lower.ends_with(ending)) || is_snapshot_link(name) {
        Some("it ends like a helper file of another disk")
    } else {
        None
    }
}

/// Whether it ends like `disk-000001`.
fn is_snapshot_link(name: &str) -> bool {
    name.rsplit_once('-')
        .is_some_and(|(_, end)| end.len() == 6 && end.bytes().all(|byte| byte.is_ascii_digit()))
}

impl fmt::Display for EntryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for EntryName {
    type Error = NameError;

    fn try_from(name: String) -> Result<Self, NameError> {
        name.parse()
    }
}

impl From<EntryName> for String {
    fn from(name: EntryName) -> Self {
        name.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn datastore(kind: &str) -> Datastore {
        let json =
            format!(r#"{{ "name": "gold", "path": "/mnt/gold", "kind": "{kind}", "reserve_bytes": 100 }}"#);
        serde_json::from_str(&json).expect("a datastore")
    }

    #[test]
    fn kinds_permit_what_they_can_keep() {
        assert_eq!(datastore("vmfs").check_flat_files(), Ok(()));
        assert_eq!(datastore("nfs").check_flat_files(), Ok(()));
        assert_eq!(datastore("vmfs").reservation(), Reservation::Kept);
        assert_eq!(datastore("nfs").reservation(), Reservation::ServerDecides);
        let refused = datastore("vsan").check_flat_files().expect_err("vSAN has no flat files").to_string();
        assert!(refused.contains("\"gold\"") && refused.contains("block device"), "{refused}");
    }

    #[test]
    fn configuration_is_strict_and_has_a_reserve() {
        let parse = |json| serde_json::from_str::<Datastore>(json);
        let read = parse(r#"{ "name": "a", "path": "/a", "kind": "nfs" }"#).expect("the short form");
        assert_eq!(read.reserve_bytes, DEFAULT_RESERVE);
        assert!(parse(r#"{ "name": "a", "path": "/a", "kind": "vvol" }"#).is_err());
        assert!(parse(r#"{ "name": "a", "path": "/a", "kind": "nfs", "reserve": 1 }"#).is_err());
    }

    #[test]
    fn space_is_counted_with_the_reserve() {
        let store = datastore("vmfs");
        assert_eq!(store.check_space(900, 1000), Ok(()));
        let error = store.check_space(901, 1000).expect_err("one byte short");
        assert_eq!(
            error,
            DatastoreError::NoSpace { name: "gold".to_owned(), need: 1001, have: 1000, reserve: 100 }
        );
        let text = error.to_string();
        assert!(text.contains("gold") && text.contains("1001") && text.contains("1000"), "{text}");
        assert!(store.check_space(u64::MAX, u64::MAX - 1).is_err());
    }

    #[test]
    fn names_that_are_fine() {
        for name in
            ["web-01", "SAP Prod (old)", "Büro", "データ", "a-00001", "flat", "disk.0", &"x".repeat(80)]
        {
            assert_eq!(name.parse::<EntryName>().map(String::from).as_deref(), Ok(name));
        }
    }

    #[test]
    fn names_that_are_refused() {
        let long = "x".repeat(81);
        let many_bytes = "語".repeat(74);
        for name in [
            "",
            ".",
            "..",
            "../x",
            "a/b",
            "a\\b",
            "a\nb",
            "a\0",
            "a\u{7f}",
            ".hidden",
            " a",
            "a ",
            "a.",
            "a\"b",
            "a-flat",
            "a-FLAT",
            "a-000001",
            "a-ctk",
            &long,
            &many_bytes,
        ] {
            let error = name.parse::<EntryName>().expect_err(name).to_string();
            assert!(error.contains("cannot be the name"), "{error}");
        }
        assert!(serde_json::from_str::<EntryName>(r#""a/b""#).is_err());
    }
}
