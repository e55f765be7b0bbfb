//! One run of blocks and where its bytes are: a record of an index, as a checked type.

use engine::{
    extent::Extent,
    limits,
    units::{BLOCK_BYTES, Block, DiskIndex},
};

use super::layout::{PAGE, PAGE_HEAD, PAGE_RECORDS, RECORD, page_at, record_at};
use crate::journal::{
    entry::{Malformed, array},
    layer::LogId,
    layout::ENTRY_BLOCKS,
    log::Image,
};

/// A run of blocks and where its bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Which blocks: all of the image's, or some.
    pub extent: Extent,
    /// The log that holds the image.
    pub log: LogId,
    /// The image.
    pub image: Image,
}

/// Place of a block among all disks.
pub type Key = (u16, u64);

impl Piece {
    /// A whole image.
    #[must_use]
    pub fn whole(image: Image, log: LogId) -> Self {
        Self { extent: image.extent, log, image }
    }

    /// Its disk.
    #[must_use]
    pub fn disk(&self) -> DiskIndex {
        self.image.disk
    }

    /// Where it begins.
    #[must_use]
    pub fn key(&self) -> Key {
        (self.image.disk.0, self.extent.start.0)
    }

    /// Where it ends.
    #[must_use]
    pub fn end(&self) -> Key {
        (self.image.disk.0, self.extent.end().0)
    }

    /// What of it lies within `from..to`; `None` if nothing does.
    #[must_use]
    pub fn within(&self, from: Block, to: Block) -> Option<Self> {
        let (start, end) = (self.extent.start.max(from), self.extent.end().min(to));
        (start < end).then(|| Self { extent: Extent { start, blocks: (end.0 - start.0) as u32 }, ..*self })
    }

    /// Offset of its bytes within the image's.
    #[must_use]
    pub fn skip(&self) -> usize {
        ((self.extent.start.0 - self.image.extent.start.0) * BLOCK_BYTES) as usize
    }

    fn encode(&self) -> [u8; RECORD] {
        let mut raw = [0; RECORD];
        raw[record_at::START..][..8].copy_from_slice(&self.extent.start.0.to_le_bytes());
        raw[record_at::AT..][..8].copy_from_slice(&self.image.at.to_le_bytes());
        raw[record_at::LAYER..][..8].copy_from_slice(&self.log.layer.to_le_bytes());
        raw[record_at::GENERATION..][..4].copy_from_slice(&self.log.generation.to_le_bytes());
        raw[record_at::CRC..][..4].copy_from_slice(&self.image.crc.to_le_bytes());
        raw[record_at::DISK..][..2].copy_from_slice(&self.image.disk.0.to_le_bytes());
        raw[record_at::BLOCKS..][..2].copy_from_slice(&(self.extent.blocks as u16).to_le_bytes());
        raw[record_at::IMAGE_BLOCKS..][..2].copy_from_slice(&(self.image.extent.blocks as u16).to_le_bytes());
        raw[record_at::SKIP] = (self.extent.start.0 - self.image.extent.start.0) as u8;
        raw[record_at::ZEROS] = self.image.zeros.into();
        raw
    }

    fn decode(raw: &[u8; RECORD]) -> Result<Self, Malformed> {
        let u16_at = |at| u16::from_le_bytes(array(raw, at));
        let u64_at = |at| u64::from_le_bytes(array(raw, at));
        let (start, skip) = (u64_at(record_at::START), u64::from(raw[record_at::SKIP]));
        let (blocks, image_blocks) =
            (u32::from(u16_at(record_at::BLOCKS)), u32::from(u16_at(record_at::IMAGE_BLOCKS)));
        let disk = DiskIndex(u16_at(record_at::DISK));
        let sensible = blocks > 0
            && image_blocks <= ENTRY_BLOCKS
            && skip + u64::from(blocks) <= u64::from(image_blocks)
            && (skip..=limits::DISK_BYTES / BLOCK_BYTES).contains(&start)
            && usize::from(disk.0) < limits::DISKS_PER_VM
            && raw[record_at::ZEROS] <= 1;
        if !sensible {
            return Err(Malformed::Nonsense("a record of an index makes no sense"));
        }
        let image = Image {
            disk,
            extent: Extent::new(start - skip, image_blocks),
            at: u64_at(record_at::AT),
            zeros: raw[record_at::ZEROS] == 1,
            crc: u32::from_le_bytes(array(raw, record_at::CRC)),
        };
        let generation = u32::from_le_bytes(array(raw, record_at::GENERATION));
        let log = LogId { layer: u64_at(record_at::LAYER), generation };
        Ok(Self { extent: Extent::new(start, blocks), log, image })
    }
}

/// A page with at most [`PAGE_RECORDS`] records.
pub(super) fn encode_page(number: u64, pieces: &[Piece]) -> Vec<u8> {
    let mut page = vec![0; PAGE_HEAD];
    page.reserve(pieces.len() * RECORD);
    page[page_at::NUMBER..][..8].copy_from_slice(&number.to_le_bytes());
    page[page_at::RECORDS..][..2].copy_from_slice(&(pieces.len() as u16).to_le_bytes());
    pieces.iter().for_each(|piece| page.extend_from_slice(&piece.encode()));
    let crc = page_crc(&page);
    page[page_at::CRC..][..4].copy_from_slice(&crc.to_le_bytes());
    page
}

/// The records of page `number`, of which `raw` holds exactly the bytes.
pub(super) fn decode_page(number: u64, raw: &[u8]) -> Result<Vec<Piece>, Malformed> {
    let records = raw.len().saturating_sub(PAGE_HEAD) / RECORD;
    if raw.len() > PAGE || raw.len() != PAGE_HEAD + records * RECORD || records > PAGE_RECORDS {
        return Err(Malformed::Nonsense("a page of an index has the wrong length"));
    }
    if u32::from_le_bytes(array(raw, page_at::CRC)) != page_crc(raw) {
        return Err(Malformed::Checksum("page of an index"));
    }
    if u64::from_le_bytes(array(raw, page_at::NUMBER)) != number
        || usize::from(u16::from_le_bytes(array(raw, page_at::RECORDS))) != records
    {
        return Err(Malformed::Nonsense("a page of an index is out of place"));
    }
    raw[PAGE_HEAD..].chunks_exact(RECORD).map(|record| Piece::decode(&array(record, 0))).collect()
}

fn page_crc(page: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&page[..page_at::CRC]);
    hasher.update(&page[PAGE_HEAD..]);
    hasher.finalize()
}
