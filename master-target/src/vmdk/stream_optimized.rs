//! Writes streamOptimized VMDKs, the form of disks in OVF packages, strictly from beginning to end.
//!
//! What is written, in whole sectors: a header that leaves the place of the grain directory open, the descriptor, zeros
//! up to a grain; grains, each compressed, behind a marker that says which it is, none where the disk has zeros; after the
//! grains of a table, if it has any, a marker and the table; a marker and the grain directory; a marker and the footer, a
//! header that says where the directory is; an end marker. Offsets: `sparse/layout.rs`, docs/formats.md.
//!
//! It says which bytes come next and writes none. Memory: a grain table, and the directory with 4 bytes for every 32 MiB of disk.

use flate2::{Compress, Compression, FlushCompress, Status};
use rand::Rng;

use super::{
    content_id::ContentId,
    descriptor::{CreateType, NewText, random_long_prefix},
    geometry::{AdapterType, Capacity, SECTOR_BYTES},
    sparse::{
        Directory, Header,
        layout::{self, flag, marker},
    },
};

/// Bytes of a grain.
pub const GRAIN_BYTES: usize = (layout::GRAIN_SECTORS * SECTOR_BYTES) as usize;

/// Of zlib, 1 to 9: below its default of 6, since an export should not take long.
const LEVEL: u32 = 4;

/// The file would be too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a streamOptimized VMDK ends at 2 TiB, its tables reach no further, and the data of this disk takes more: export it as raw"
)]
pub struct TooLong;

/// Compresses grains. Kept for many of them.
pub struct GrainWriter(Compress);

impl GrainWriter {
    /// A compressor of grains.
    #[must_use]
    pub fn new() -> Self {
        Self(Compress::new(Compression::new(LEVEL), true))
    }

    /// The grain of this number as it is in the file: marker, compressed data, zeros up to a sector. `data` is
    /// [`GRAIN_BYTES`] long.
    pub fn compress(&mut self, grain: u64, data: &[u8]) -> Vec<u8> {
        debug_assert_eq!(data.len(), GRAIN_BYTES);
        self.0.reset();
        let mut record = vec![0; layout::GRAIN_MARKER + layout::compressed_bound(GRAIN_BYTES)];
        let status = self.0.compress(data, &mut record[layout::GRAIN_MARKER..], FlushCompress::Finish);
        // zlib stores what it cannot compress, with 5 bytes for every 16 KiB or more: the bound leaves room for that.
        assert!(matches!(status, Ok(Status::StreamEnd)), "zlib needs more than its bound: {status:?}");
        let len = self.0.total_out() as u32;
        record[..8].copy_from_slice(&(grain * layout::GRAIN_SECTORS).to_le_bytes());
        record[8..layout::GRAIN_MARKER].copy_from_slice(&len.to_le_bytes());
        record.truncate(layout::GRAIN_MARKER + len as usize);
        record.resize(record.len().next_multiple_of(SECTOR_BYTES as usize), 0);
        record
    }
}

impl Default for GrainWriter {
    fn default() -> Self {
        Self::new()
    }
}

/// A file on the way: which bytes come next.
pub struct StreamWriter {
    header: Header,
    /// The sector that comes next.
    at: u64,
    /// The table whose grains come.
    table: [u32; layout::TABLE_ENTRIES],
    /// Tables that are over; 0 for one without grains.
    directory: Vec<u32>,
}

impl StreamWriter {
    /// Begins a file for a disk of `capacity`; its first bytes go to `out`.
    pub fn begin(capacity: Capacity, rng: &mut (impl Rng + ?Sized), out: &mut Vec<u8>) -> Self {
        let header = Header {
            version: layout::WRITTEN_VERSION,
            flags: flag::NEWLINE_TEST | flag::COMPRESSED | flag::MARKERS,
            capacity,
            grain_sectors: layout::GRAIN_SECTORS,
            descriptor: (layout::DESCRIPTOR_AT, layout::DESCRIPTOR_SECTORS),
            directory: Directory::InFooter,
            overhead: layout::OVERHEAD,
        };
        let text = NewText {
            create_type: CreateType::StreamOptimized,
            extent: ("RDONLY", "SPARSE"),
            // Names the file itself, whatever it is called: readers do not use it.
            file: "generated-stream.vmdk",
            capacity,
            adapter: AdapterType::LsiLogic,
            thin: false,
            // An import gives the disk an identity of its own.
            uuid: None,
            content_id: ContentId::after(ContentId::FRESH, rng),
            long_prefix: random_long_prefix(rng),
        };
        let start = out.len();
        out.extend(header.to_bytes());
        out.resize(start + (layout::DESCRIPTOR_AT * SECTOR_BYTES) as usize, 0);
        out.extend(text.to_string().bytes());
        out.resize(start + (layout::OVERHEAD * SECTOR_BYTES) as usize, 0);
        Self { header, at: layout::OVERHEAD, table: [0; layout::TABLE_ENTRIES], directory: Vec::new() }
    }

    /// Adds a grain, as [`GrainWriter::compress`] made it. Grains come in order.
    ///
    /// # Errors
    /// [`TooLong`]: the file cannot be completed.
    pub fn grain(&mut self, grain: u64, record: &[u8], out: &mut Vec<u8>) -> Result<(), TooLong> {
        let table = (grain / layout::TABLE_ENTRIES as u64) as usize;
        while self.directory.len() < table {
            self.end_table(out)?;
        }
        debug_assert_eq!(self.directory.len(), table, "grains come in order");
        self.table[(grain % layout::TABLE_ENTRIES as u64) as usize] = self.put(record, out)?;
        Ok(())
    }

    /// The last bytes.
    ///
    /// # Errors
    /// [`TooLong`]: the file cannot be completed.
    pub fn finish(mut self, out: &mut Vec<u8>) -> Result<(), TooLong> {
        while (self.directory.len() as u64) < self.header.tables() {
            self.end_table(out)?;
        }
        let mut directory = to_bytes(&self.directory);
        directory.resize(directory.len().next_multiple_of(SECTOR_BYTES as usize), 0);
        self.marker(marker::DIRECTORY, directory.len(), out)?;
        let at = self.put(&directory, out)?;
        let footer = Header { directory: Directory::At(at.into()), ..self.header.clone() }.to_bytes();
        self.marker(marker::FOOTER, footer.len(), out)?;
        self.put(&footer, out)?;
        self.marker(marker::END, 0, out)
    }

    /// The table's grains are over: it follows them, if there were any.
    fn end_table(&mut self, out: &mut Vec<u8>) -> Result<(), TooLong> {
        let table = std::mem::replace(&mut self.table, [0; layout::TABLE_ENTRIES]);
        let mut at = layout::ENTRY_NONE;
        if table.iter().any(|entry| *entry != layout::ENTRY_NONE) {
            self.marker(marker::TABLE, layout::TABLE, out)?;
            at = self.put(&to_bytes(&table), out)?;
        }
        self.directory.push(at);
        Ok(())
    }

    /// A marker of what comes next, so many `bytes`.
    fn marker(&mut self, kind: u32, bytes: usize, out: &mut Vec<u8>) -> Result<(), TooLong> {
        let mut sector = [0; SECTOR_BYTES as usize];
        let sectors = bytes as u64 / SECTOR_BYTES;
        sector[marker::VALUE..][..8].copy_from_slice(&sectors.to_le_bytes());
        sector[marker::TYPE..][..4].copy_from_slice(&kind.to_le_bytes());
        self.put(&sector, out).map(drop)
    }

    /// Adds whole sectors, and says where they begin.
    fn put(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<u32, TooLong> {
        debug_assert!((bytes.len() as u64).is_multiple_of(SECTOR_BYTES));
        let at = u32::try_from(self.at).map_err(|_| TooLong)?;
        self.at += bytes.len() as u64 / SECTOR_BYTES;
        out.extend(bytes);
        Ok(at)
    }
}

fn to_bytes(entries: &[u32]) -> Vec<u8> {
    entries.iter().flat_map(|entry| entry.to_le_bytes()).collect()
}
