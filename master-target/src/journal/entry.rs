//! Headers of undo logs and of their entries: raw bytes to checked types and back. Opens nothing.

use engine::{
    extent::Extent,
    frame::Position,
    limits,
    units::{BLOCK_BYTES, Digest, DiskIndex, Epoch, Seq, StreamId},
};

use super::layout::{self, COMMIT, ENTRY, ENTRY_BLOCKS, HEADER, at, commit_at, entry_at, kind};

/// What is wrong with bytes of a log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Not a log.
    #[error("no undo log")]
    Foreign,
    /// Written by another version.
    #[error("it is of format version {0}, which is unknown here")]
    Version(u32),
    /// A checksum does not match.
    #[error("{0} is damaged: its checksum does not match")]
    Checksum(&'static str),
    /// Checksums hold, but a field makes no sense.
    #[error("{0}")]
    Nonsense(&'static str),
}

/// The header of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogHeader {
    /// Whose disks it is about.
    pub stream: StreamId,
    /// Its place among the layers of the journal.
    pub layer: u64,
}

impl LogHeader {
    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER] {
        let mut raw = [0; HEADER];
        raw[at::MAGIC..][..4].copy_from_slice(&layout::MAGIC);
        raw[at::VERSION] = layout::VERSION;
        raw[at::STREAM..][..16].copy_from_slice(self.stream.0.as_bytes());
        raw[at::LAYER..][..8].copy_from_slice(&self.layer.to_le_bytes());
        let crc = crc32fast::hash(&raw[..at::CRC]);
        raw[at::CRC..].copy_from_slice(&crc.to_le_bytes());
        raw
    }

    /// Parses and checks a header.
    pub fn decode(raw: &[u8; HEADER]) -> Result<Self, Malformed> {
        if raw[at::MAGIC..][..4] != layout::MAGIC {
            return Err(Malformed::Foreign);
        }
        // Every version keeps length and checksum of the header, so that another version is told from damage.
        if u32_at(raw, at::CRC) != crc32fast::hash(&raw[..at::CRC]) {
            return Err(Malformed::Checksum("log header"));
        }
        if raw[at::VERSION] != layout::VERSION {
            return Err(Malformed::Version(u32::from(raw[at::VERSION])));
        }
        if raw[at::RESERVED..at::STREAM] != [0; 3] || raw[at::RESERVED2..at::CRC] != [0; 4] {
            return Err(Malformed::Nonsense("reserved bytes of a log header are not zero"));
        }
        Ok(Self {
            stream: StreamId(uuid::Uuid::from_bytes(array(raw, at::STREAM))),
            layer: u64::from_le_bytes(array(raw, at::LAYER)),
        })
    }
}

/// What an entry says; its data follows in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// The extent held the bytes that follow.
    Image(DiskIndex, Extent),
    /// The extent was zeros.
    Zeros(DiskIndex, Extent),
    /// A position follows, up to which everything is on the disks.
    Commit,
}

/// The header of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What it says.
    pub what: What,
    /// Its number in its log.
    pub number: u32,
    /// CRC-32 of its data.
    pub data_crc: u32,
}

impl Entry {
    /// Bytes of data that follow.
    #[must_use]
    pub fn data_len(&self) -> usize {
        match self.what {
            What::Image(_, extent) => extent.bytes() as usize,
            What::Zeros(..) => 0,
            What::Commit => COMMIT,
        }
    }

    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; ENTRY] {
        let mut raw = [0; ENTRY];
        let (code, disk, extent) = match self.what {
            What::Image(disk, extent) => (kind::IMAGE, disk.0, Some(extent)),
            What::Zeros(disk, extent) => (kind::ZEROS, disk.0, Some(extent)),
            What::Commit => (kind::COMMIT, 0, None),
        };
        let (start, blocks) = extent.map_or((0, 0), |extent| (extent.start.0, extent.blocks));
        raw[entry_at::KIND] = code;
        raw[entry_at::DISK..][..2].copy_from_slice(&disk.to_le_bytes());
        raw[entry_at::BLOCKS..][..4].copy_from_slice(&blocks.to_le_bytes());
        raw[entry_at::START..][..8].copy_from_slice(&start.to_le_bytes());
        raw[entry_at::DATA_LEN..][..4].copy_from_slice(&(self.data_len() as u32).to_le_bytes());
        raw[entry_at::DATA_CRC..][..4].copy_from_slice(&self.data_crc.to_le_bytes());
        raw[entry_at::NUMBER..][..4].copy_from_slice(&self.number.to_le_bytes());
        let crc = crc32fast::hash(&raw[..entry_at::CRC]);
        raw[entry_at::CRC..].copy_from_slice(&crc.to_le_bytes());
        raw
    }

    /// Parses and checks the header of entry `number`.
    pub fn decode(raw: &[u8; ENTRY], number: u32) -> Result<Self, Malformed> {
        if u32_at(raw, entry_at::CRC) != crc32fast::hash(&raw[..entry_at::CRC]) {
            return Err(Malformed::Checksum("entry header"));
        }
        let disk = DiskIndex(u16::from_le_bytes(array(raw, entry_at::DISK)));
        let blocks = u32_at(raw, entry_at::BLOCKS);
        let start = u64::from_le_bytes(array(raw, entry_at::START));
        let extent = Extent::new(start, blocks);
        let what = match raw[entry_at::KIND] {
            kind::IMAGE => What::Image(disk, extent),
            kind::ZEROS => What::Zeros(disk, extent),
            kind::COMMIT => What::Commit,
            _ => return Err(Malformed::Nonsense("unknown kind of entry")),
        };
        let entry = Self { what, number, data_crc: u32_at(raw, entry_at::DATA_CRC) };
        let within = (1..=ENTRY_BLOCKS).contains(&blocks) && start <= limits::DISK_BYTES / BLOCK_BYTES;
        if !within && what != What::Commit {
            return Err(Malformed::Nonsense("entry over the limits of a disk"));
        }
        if raw[entry_at::RESERVED] != 0
            || u32_at(raw, entry_at::NUMBER) != number
            || u32_at(raw, entry_at::DATA_LEN) as usize != entry.data_len()
            || usize::from(disk.0) >= limits::DISKS_PER_VM
        {
            return Err(Malformed::Nonsense("entry is out of place or of the wrong length"));
        }
        Ok(entry)
    }
}

/// A commit's data.
#[must_use]
pub fn encode_position(position: &Position) -> [u8; COMMIT] {
    let mut raw = [0; COMMIT];
    raw[commit_at::SEQ..][..8].copy_from_slice(&position.seq.0.to_le_bytes());
    raw[commit_at::EPOCH..][..8].copy_from_slice(&position.epoch.0.to_le_bytes());
    raw[commit_at::CHAIN..][..32].copy_from_slice(&position.chain.0);
    raw
}

/// The position in a commit's data.
#[must_use]
pub fn decode_position(raw: &[u8; COMMIT]) -> Position {
    Position {
        seq: Seq(u64::from_le_bytes(array(raw, commit_at::SEQ))),
        epoch: Epoch(u64::from_le_bytes(array(raw, commit_at::EPOCH))),
        chain: Digest(array(raw, commit_at::CHAIN)),
    }
}

pub(super) fn array<const N: usize>(raw: &[u8], at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&raw[at..at + N]);
    bytes
}

fn u32_at(raw: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array(raw, at))
}
