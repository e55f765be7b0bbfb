//! The file that keeps digests across a restart of the agent.
//!
//! ```text
//!     "HWSCAN1\n" | header length, u64 | header, JSON | per disk: 16 bytes per leaf, 0 = unknown | BLAKE3 of it all
//! ```
//!
//! Numbers are little-endian. The file is replaced as a whole. One that is not exactly as expected is not used.

use std::{
    io,
    path::{Path, PathBuf},
};

use engine::{
    io::{Storage, write_file_atomically},
    units::{Digest, StreamId},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::super::LostReason;

const MAGIC: &[u8; 8] = b"HWSCAN1\n";

/// Where the file is: a folder, and its path there.
pub type Place<'a> = (&'a dyn Storage, &'a Path);

#[derive(Serialize, Deserialize)]
struct Header {
    stream: StreamId,
    /// What the caller needs to tell whether the target still is as it was.
    position: Value,
    disks: Vec<DiskHeader>,
}

#[derive(Serialize, Deserialize, PartialEq, Eq)]
struct DiskHeader {
    path: PathBuf,
    bytes: u64,
    leaves: usize,
}

/// The digests of one disk.
pub(super) struct DiskDigests<'a> {
    pub(super) path: &'a Path,
    pub(super) bytes: u64,
    pub(super) digests: Vec<u128>,
}

/// Writes the file.
pub(super) fn save(
    (folder, path): Place,
    stream: StreamId,
    position: &Value,
    disks: &[DiskDigests],
) -> io::Result<()> {
    let disk = |disk: &DiskDigests| DiskHeader {
        path: disk.path.to_owned(),
        bytes: disk.bytes,
        leaves: disk.digests.len(),
    };
    let header = Header { stream, position: position.clone(), disks: disks.iter().map(disk).collect() };
    let header = serde_json::to_vec(&header)?;
    let mut file = MAGIC.to_vec();
    file.extend((header.len() as u64).to_le_bytes());
    file.extend(header);
    for digest in disks.iter().flat_map(|disk| &disk.digests) {
        file.extend(digest.to_le_bytes());
    }
    file.extend(Digest::of(&file).0);
    write_file_atomically(folder, path, &file)
}

/// What was saved: the position, and the digests by disk.
pub(super) struct Saved {
    pub(super) position: Value,
    disks: Vec<(DiskHeader, Vec<u128>)>,
}

/// Reads the file, if it is of `stream`.
pub(super) fn load((folder, path): Place, stream: StreamId) -> Result<Saved, LostReason> {
    let read = || -> io::Result<Vec<u8>> {
        let file = folder.open(path)?;
        let mut bytes = vec![0; file.len()? as usize];
        file.read_exact_at(&mut bytes, 0)?;
        Ok(bytes)
    };
    let file = match read() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(LostReason::New),
        other => other.map_err(|_| LostReason::Damaged)?,
    };
    let body = file.strip_prefix(MAGIC).ok_or(LostReason::OtherVersion)?;
    let (body, digest) = body.split_last_chunk::<32>().ok_or(LostReason::Damaged)?;
    if Digest::of(&file[..file.len() - 32]).0 != *digest {
        return Err(LostReason::Damaged);
    }
    let parse = || {
        let (length, rest) = body.split_first_chunk::<8>()?;
        let (header, digests) = rest.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
        Some((serde_json::from_slice::<Header>(header).ok()?, digests))
    };
    let (header, digests) = parse().ok_or(LostReason::Damaged)?;
    if header.stream != stream {
        return Err(LostReason::OtherStream);
    }
    let (mut digests, rest) = digests.as_chunks::<16>();
    let mut disks = Vec::new();
    for disk in header.disks {
        let (own, others) = digests.split_at_checked(disk.leaves).ok_or(LostReason::Damaged)?;
        disks.push((disk, own.iter().map(|digest| u128::from_le_bytes(*digest)).collect()));
        digests = others;
    }
    if !digests.is_empty() || !rest.is_empty() {
        return Err(LostReason::Damaged);
    }
    Ok(Saved { position: header.position, disks })
}

impl Saved {
    /// The digests of a disk.
    pub(super) fn take(&mut self, path: &Path, bytes: u64, leaves: usize) -> Result<Vec<u128>, LostReason> {
        let (disk, digests) =
            self.disks.iter_mut().find(|(disk, _)| disk.path == path).ok_or(LostReason::New)?;
        if disk.bytes != bytes || disk.leaves != leaves {
            return Err(LostReason::Resized);
        }
        Ok(std::mem::take(digests))
    }
}
