//! Where the grains of a disk are: grain directory, grain tables, and the footer that says where they begin.

use std::sync::{Arc, Mutex, PoisonError};

use super::{
    error::{SparseError, SparseErrorKind},
    header::{Directory, Header, array},
    layout::{self, HEADER, flag, marker},
    source::{ReadAt, Source},
};
use crate::vmdk::geometry::SECTOR_BYTES;

/// Grain directory, and the grain table that was read last.
pub(super) struct Grains {
    directory: Vec<u32>,
    /// Its number and entries.
    last: Mutex<Option<(u64, Arc<[u32]>)>>,
}

/// What a grain table says of a grain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Zeros.
    None,
    /// Its data, or the marker before it, is at this sector.
    At(u64),
}

impl Grains {
    pub(super) fn open<F: ReadAt>(source: &Source<F>, header: &Header) -> Result<Self, SparseError> {
        let sector = match header.directory {
            Directory::At(sector) => sector,
            Directory::InFooter => footer(source, header)?,
        };
        let bytes = source.read("the grain directory", sector * SECTOR_BYTES, header.tables() * 4)?;
        let directory = entries(&bytes);
        Ok(Self { directory, last: Mutex::new(None) })
    }

    /// Where a grain is.
    pub(super) fn find<F: ReadAt>(
        &self,
        source: &Source<F>,
        header: &Header,
        grain: u64,
    ) -> Result<Place, SparseError> {
        let index = grain / layout::TABLE_ENTRIES as u64;
        // Grains of a disk are within its tables, and tables within the directory: `Header::tables`.
        let table_at = u64::from(self.directory[index as usize]);
        if table_at == u64::from(layout::ENTRY_NONE) {
            return Ok(Place::None);
        }
        let table = self.table(source, index, table_at)?;
        let entry_index = (grain % layout::TABLE_ENTRIES as u64) as usize;
        match table[entry_index] {
            layout::ENTRY_NONE => Ok(Place::None),
            layout::ENTRY_ZEROS if header.flags & flag::ZERO_GRAINS != 0 => Ok(Place::None),
            sector if u64::from(sector) < header.overhead.max(1) => {
                let kind = SparseErrorKind::Misplaced { what: "grain", index: grain, sector: sector.into() };
                Err(source.error(table_at * SECTOR_BYTES + 4 * entry_index as u64, kind))
            }
            sector => Ok(Place::At(sector.into())),
        }
    }

    fn table<F: ReadAt>(
        &self,
        source: &Source<F>,
        index: u64,
        sector: u64,
    ) -> Result<Arc<[u32]>, SparseError> {
        // Replaced as a whole: a panic elsewhere leaves it whole.
        let last = || self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, table)) = last().as_ref().filter(|(known, _)| *known == index) {
            return Ok(Arc::clone(table));
        }
        let bytes = source.read("a grain table", sector * SECTOR_BYTES, layout::TABLE as u64)?;
        let table: Arc<[u32]> = entries(&bytes).into();
        *last() = Some((index, Arc::clone(&table)));
        Ok(table)
    }
}

/// Checks the end of a stream, and finds the sector of its grain directory.
fn footer<F: ReadAt>(source: &Source<F>, header: &Header) -> Result<u64, SparseError> {
    let bytes = layout::FOOTER_SECTORS * SECTOR_BYTES;
    let start = source.len.checked_sub(bytes).ok_or_else(|| {
        source.error(0, SparseErrorKind::Beyond { what: "the footer", bytes, end: source.len })
    })?;
    let end = source.read("the footer", start, bytes)?;
    let sector = |number: usize| array::<HEADER>(&end, number * HEADER);
    let missing =
        |number: u64, what| source.error(start + number * SECTOR_BYTES, SparseErrorKind::NoMarker(what));
    if !is_marker(&sector(0), 1, marker::FOOTER) {
        return Err(missing(0, "marker of a footer"));
    }
    let footer = Header::parse(&sector(1)).map_err(|kind| source.error(start + SECTOR_BYTES, kind))?;
    if !is_marker(&sector(2), 0, marker::END) {
        return Err(missing(2, "end-of-stream marker"));
    }
    let same = Header { directory: header.directory, ..footer.clone() } == *header;
    match footer.directory {
        Directory::At(sector) if same => Ok(sector),
        _ => Err(source.error(start + SECTOR_BYTES, SparseErrorKind::Footer)),
    }
}

fn is_marker(sector: &[u8; HEADER], value: u64, kind: u32) -> bool {
    u64::from_le_bytes(array(sector, marker::VALUE)) == value
        && array(sector, marker::SIZE) == [0; 4]
        && u32::from_le_bytes(array(sector, marker::TYPE)) == kind
}

fn entries(bytes: &[u8]) -> Vec<u32> {
    bytes.as_chunks().0.iter().map(|entry| u32::from_le_bytes(*entry)).collect()
}
