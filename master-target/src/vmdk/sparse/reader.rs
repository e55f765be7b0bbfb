//! Reads the disk in a hosted sparse file, grain by grain.

use std::path::Path;

use flate2::{Decompress, FlushDecompress, Status};

use super::{
    error::{SparseError, SparseErrorKind},
    grains::{Grains, Place},
    header::{Header, array},
    layout::{self, HEADER},
    source::{ReadAt, Source},
};
use crate::vmdk::{
    content_id::ContentId,
    descriptor::{self, CreateType, Descriptor, ExtentType, RawDescriptor},
    geometry::{Capacity, SECTOR_BYTES},
};

/// The disk in a `monolithicSparse` or `streamOptimized` file. Memory: the grain directory, at most 16 MiB, and a grain.
pub struct SparseDisk<F> {
    source: Source<F>,
    header: Header,
    capacity: Capacity,
    grains: Grains,
}

impl<F: ReadAt> SparseDisk<F> {
    /// Checks header, descriptor, footer and directory of `file`, which messages call `name`. Tables and grains are
    /// checked as they are read.
    pub fn open(name: &Path, file: F) -> Result<Self, SparseError> {
        let source = Source::new(name, file)?;
        let sector = array::<HEADER>(&source.read("the header", 0, HEADER as u64)?, 0);
        let header = Header::parse(&sector).map_err(|kind| source.error(0, kind))?;
        let capacity = check_descriptor(&source, &header)?;
        let grains = Grains::open(&source, &header)?;
        Ok(Self { source, header, capacity, grains })
    }

    /// Size of the disk.
    pub fn capacity(&self) -> Capacity {
        self.capacity
    }

    /// Bytes of a grain: a power of two.
    pub fn grain_bytes(&self) -> u64 {
        self.header.grain_bytes() as u64
    }

    /// Reads the grain of this number, as much of it as the disk has, into `buf`; `None` if nothing is stored, so that
    /// it is zeros.
    ///
    /// # Panics
    /// If the disk has no such grain.
    pub fn read_grain<'b>(&self, grain: u64, buf: &'b mut Vec<u8>) -> Result<Option<&'b [u8]>, SparseError> {
        let start = grain * self.grain_bytes();
        assert!(start < self.capacity.bytes(), "a disk of {:?} has no grain {grain}", self.capacity);
        let bytes = self.grain_bytes().min(self.capacity.bytes() - start) as usize;
        let Place::At(sector) = self.grains.find(&self.source, &self.header, grain)? else { return Ok(None) };
        let offset = sector * SECTOR_BYTES;
        if self.header.is_compressed() {
            self.inflate(grain, offset, bytes, buf)?;
        } else {
            self.source.read_into("a grain", offset, bytes as u64, buf)?;
        }
        Ok(Some(&buf[..bytes]))
    }

    /// Decompresses a whole grain, or as much as the disk has of it: at least `bytes`.
    fn inflate(&self, grain: u64, offset: u64, bytes: usize, buf: &mut Vec<u8>) -> Result<(), SparseError> {
        let sector = grain * self.header.grain_sectors;
        let damaged = |reason: String| self.source.error(offset, SparseErrorKind::Inflate { sector, reason });
        let marker = self.source.read("the marker of a grain", offset, layout::GRAIN_MARKER as u64)?;
        let found = u64::from_le_bytes(array(&marker, 0));
        if found != sector {
            return Err(self.source.error(offset, SparseErrorKind::OtherGrain { expected: sector, found }));
        }
        let whole = self.header.grain_bytes();
        let len = u32::from_le_bytes(array(&marker, 8)) as usize;
        if len == 0 || len > layout::compressed_bound(whole) {
            return Err(damaged(format!("its length is said to be {len} bytes")));
        }
        let data = self.source.read("a grain", offset + layout::GRAIN_MARKER as u64, len as u64)?;
        buf.resize(whole, 0);
        let mut zlib = Decompress::new(true);
        let status = zlib.decompress(&data, buf, FlushDecompress::Finish);
        match status {
            // Whole grains, or as much as is on the disk.
            Ok(Status::StreamEnd) if [bytes, whole].contains(&(zlib.total_out() as usize)) => {}
            Ok(Status::StreamEnd) => {
                return Err(damaged(format!("it has {} bytes and not {whole}", zlib.total_out())));
            }
            Ok(_) => return Err(damaged(format!("it does not end after {whole} bytes"))),
            Err(error) => return Err(damaged(error.to_string())),
        }
        if zlib.total_in() as usize != len {
            return Err(damaged(format!("it ends after {} of its {len} bytes", zlib.total_in())));
        }
        Ok(())
    }
}

/// Checks that the embedded descriptor is that of a whole disk in this one file, and how large it is.
fn check_descriptor<F: ReadAt>(source: &Source<F>, header: &Header) -> Result<Capacity, SparseError> {
    let (sector, sectors) = header.descriptor;
    let refused = |offset, why| source.error(offset, SparseErrorKind::Refused(why));
    if sector == 0 || sectors == 0 {
        return Err(refused(
            0,
            "it has no descriptor: it is one of several files of a disk; convert the disk to one file",
        ));
    }
    let (Some(offset), Some(bytes)) = (sector.checked_mul(SECTOR_BYTES), sectors.checked_mul(SECTOR_BYTES))
    else {
        return Err(refused(0, "the place of its descriptor is none"));
    };
    if bytes > descriptor::MAX_BYTES as u64 {
        return Err(refused(0, "its descriptor is too long"));
    }
    let text = source.read("the descriptor", offset, bytes)?;
    let raw = RawDescriptor::parse(&text).map_err(|error| source.error(offset, error.into()))?;
    let found = Descriptor::try_from(&raw).map_err(|error| source.error(offset, error.into()))?;
    let expected =
        if header.is_compressed() { CreateType::StreamOptimized } else { CreateType::MonolithicSparse };
    let why = match &found {
        found if found.parent_content_id != ContentId::NO_PARENT || found.parent_hint.is_some() => {
            "it is a snapshot: most of the disk is in its parent; merge or convert it first"
        }
        found if found.encrypted => "it is encrypted: decrypt it with the program that made it",
        found if found.version != 1 => {
            "its descriptor is of a version other than 1, which a disk file of its own never is"
        }
        found if found.create_type != expected => {
            "its createType is not that of its data (streamOptimized if compressed, else monolithicSparse)"
        }
        Descriptor { extents, .. } => match &extents[..] {
            [extent] if extent.kind == ExtentType::Sparse => {
                let room = header.capacity.sectors();
                // A header may round the disk up to whole grains.
                match Capacity::from_sectors(extent.sectors) {
                    Ok(capacity)
                        if (extent.sectors..extent.sectors + header.grain_sectors).contains(&room) =>
                    {
                        return Ok(capacity);
                    }
                    _ => "its descriptor and its header say different sizes",
                }
            }
            _ => "its descriptor has other extents than one that is sparse",
        },
    };
    Err(refused(offset, why))
}
