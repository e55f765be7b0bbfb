//! The file that keeps a disk's digests across a restart of the agent. Format: docs/formats.md, "Scan digests".
//!
//! It is replaced as a whole, and one that is not exactly as expected is not used. It is bound to the boot of the
//! machine: a virtual machine set back to an older state would bring an older file along, and with it digests of what
//! the target no longer holds. Saving takes as much memory as the file has bytes, at most 33 MiB.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use engine::{
    io::{Storage, remove_file_durably, write_file_atomically},
    units::{Digest, StreamId},
};
use serde::{Deserialize, Serialize};

use super::super::{LostReason, block_device::truncated};

const MAGIC: &[u8; 8] = b"HWSCAN1\n";
const PREFIX: &str = "scan-";
const SUFFIX: &str = ".digests";

#[derive(Serialize, Deserialize)]
struct Header {
    stream: StreamId,
    /// Boot id of the machine, in hexadecimal.
    boot: String,
    /// The disk.
    path: PathBuf,
    bytes: u64,
    leaves: usize,
}

/// The file of one disk.
pub(super) struct DigestFile {
    folder: Arc<dyn Storage>,
    name: PathBuf,
    stream: StreamId,
    boot: String,
    disk: PathBuf,
    bytes: u64,
    /// Digest of what the file holds, if that is known.
    held: Option<Digest>,
}

impl DigestFile {
    /// Of the disk at `path`, of `bytes` bytes, in this replication and boot of the machine.
    pub(super) fn new(
        folder: Arc<dyn Storage>,
        disk: &Path,
        (stream, boot): (StreamId, u128),
        bytes: u64,
    ) -> Self {
        let name = truncated(Digest::of(disk.as_os_str().as_encoded_bytes()));
        Self {
            folder,
            name: format!("{PREFIX}{name:032x}{SUFFIX}").into(),
            stream,
            boot: format!("{boot:032x}"),
            disk: disk.to_owned(),
            bytes,
            held: None,
        }
    }

    /// Replaces what the file holds, if it is not that already. After an error it may be either.
    pub(super) fn save(&mut self, digests: impl ExactSizeIterator<Item = u128>) -> io::Result<()> {
        let header = Header {
            stream: self.stream,
            boot: self.boot.clone(),
            path: self.disk.clone(),
            bytes: self.bytes,
            leaves: digests.len(),
        };
        let header = serde_json::to_vec(&header)?;
        let mut file = MAGIC.to_vec();
        file.reserve_exact(8 + header.len() + digests.len() * 16 + 32);
        file.extend((header.len() as u64).to_le_bytes());
        file.extend(header);
        digests.for_each(|digest| file.extend(digest.to_le_bytes()));
        let digest = Digest::of(&file);
        if self.held == Some(digest) {
            return Ok(());
        }
        self.held = None;
        file.extend(digest.0);
        write_file_atomically(&*self.folder, &self.name, &file)?;
        self.held = Some(digest);
        Ok(())
    }

    /// What was saved, one digest for each of `leaves`.
    pub(super) fn load(&self, leaves: usize) -> Result<Vec<u128>, LostReason> {
        let read = || -> io::Result<Vec<u8>> {
            let file = self.folder.open(&self.name)?;
            let mut bytes = vec![0; file.len()? as usize];
            file.read_exact_at(&mut bytes, 0)?;
            Ok(bytes)
        };
        let file = match read() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(LostReason::New),
            other => other.map_err(|_| LostReason::Damaged)?,
        };
        if !file.starts_with(MAGIC) {
            return Err(LostReason::OtherVersion);
        }
        let (header, digests) = parse(&file).ok_or(LostReason::Damaged)?;
        if header.path != self.disk {
            Err(LostReason::New)
        } else if header.stream != self.stream {
            Err(LostReason::OtherStream)
        } else if header.boot != self.boot {
            Err(LostReason::Rebooted)
        } else if (header.bytes, header.leaves) != (self.bytes, leaves) {
            Err(LostReason::Resized)
        } else {
            Ok(digests)
        }
    }
}

fn parse(file: &[u8]) -> Option<(Header, Vec<u128>)> {
    let (content, digest) = file.split_last_chunk::<32>()?;
    if Digest::of(content).0 != *digest {
        return None;
    }
    let (length, rest) = content.strip_prefix(MAGIC)?.split_first_chunk::<8>()?;
    let (header, digests) = rest.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
    let header: Header = serde_json::from_slice(header).ok()?;
    let (digests, rest) = digests.as_chunks::<16>();
    let whole = rest.is_empty() && digests.len() == header.leaves;
    whole.then(|| (header, digests.iter().map(|digest| u128::from_le_bytes(*digest)).collect()))
}

/// Removes the files of all disks: what was sent by another tracker is not in them.
///
/// # Errors
/// If one cannot be removed; then this tracker must not be used later.
pub fn forget(folder: &dyn Storage) -> io::Result<()> {
    let names = folder.list(Path::new(""))?;
    let ours = names.iter().filter(|name| name.starts_with(PREFIX) && name.ends_with(SUFFIX));
    ours.map(Path::new).try_for_each(|name| remove_file_durably(folder, name))
}
