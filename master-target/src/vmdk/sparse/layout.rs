//! The bytes of hosted sparse and streamOptimized VMDKs: offsets, flags, values.
//!
//! Source: VMware, "Virtual Disk Format 5.0" (technical note, 2011), "Hosted Sparse Extents" and "Stream-Optimized
//! Compressed Sparse Extents", and where it is silent what QEMU (`block/vmdk.c`) and open-vmdk read and write: grains are
//! zlib streams (RFC 1950, though the note says 1951), and the `value` of a marker counts the sectors behind it. The
//! header is packed: fields are not aligned. docs/formats.md lists what we write.

/// First bytes of the file and of the footer.
pub const MAGIC: [u8; 4] = *b"KDMV";

/// First bytes of a snapshot's delta (`vmfsSparse`), which is another format.
pub const COWD_MAGIC: [u8; 4] = *b"COWD";

/// Bytes of the header, a sector.
pub const HEADER: usize = 512;

/// Offsets in the header.
pub mod at {
    /// `MAGIC`.
    pub const MAGIC: usize = 0;
    /// u32.
    pub const VERSION: usize = 4;
    /// u32, of [`super::flag`].
    pub const FLAGS: usize = 8;
    /// u64, sectors.
    pub const CAPACITY: usize = 12;
    /// u64, sectors of a grain.
    pub const GRAIN: usize = 20;
    /// u64, sector of the embedded descriptor; 0 if there is none.
    pub const DESCRIPTOR: usize = 28;
    /// u64, sectors of the embedded descriptor.
    pub const DESCRIPTOR_SECTORS: usize = 36;
    /// u32, entries of a grain table.
    pub const TABLE_ENTRIES: usize = 44;
    /// u64, sector of the second grain directory.
    pub const SECOND_DIRECTORY: usize = 48;
    /// u64, sector of the grain directory.
    pub const DIRECTORY: usize = 56;
    /// u64, sectors before the first grain.
    pub const OVERHEAD: usize = 64;
    /// u8, 1 while a program has it open to write.
    pub const UNCLEAN: usize = 72;
    /// `NEWLINES`.
    pub const NEWLINES: usize = 73;
    /// u16, of [`super::compression`].
    pub const COMPRESSION: usize = 77;
    /// Zeros from here to the end of the sector.
    pub const RESERVED: usize = 79;
}

/// Bits of `FLAGS`.
pub mod flag {
    /// `NEWLINES` are there, to find copies that turned line ends.
    pub const NEWLINE_TEST: u32 = 1;
    /// There is a second grain directory, with tables of its own.
    pub const SECOND_DIRECTORY: u32 = 1 << 1;
    /// An entry of 1 in a grain table is a grain of zeros.
    pub const ZERO_GRAINS: u32 = 1 << 2;
    /// Grains are compressed.
    pub const COMPRESSED: u32 = 1 << 16;
    /// Grains, tables and directory have markers before them.
    pub const MARKERS: u32 = 1 << 17;
    /// All that are known.
    pub const ALL: u32 = NEWLINE_TEST | SECOND_DIRECTORY | ZERO_GRAINS | COMPRESSED | MARKERS;
}

/// Values of `COMPRESSION`.
pub mod compression {
    /// None.
    pub const NONE: u16 = 0;
    /// zlib.
    pub const DEFLATE: u16 = 1;
}

/// Line ends that a transfer as text would change.
pub const NEWLINES: [u8; 4] = *b"\n \r\n";

/// Versions that are read: 1, 2 (with zero grains), 3 (compressed). Written: [`WRITTEN_VERSION`].
pub const VERSIONS: std::ops::RangeInclusive<u32> = 1..=3;

/// What streamOptimized files of VMware's products and ours say.
pub const WRITTEN_VERSION: u32 = 3;

/// `DIRECTORY` of a stream, whose directory was not known when the header was written: the footer says it.
pub const DIRECTORY_AT_END: u64 = u64::MAX;

/// Entries of a grain table, u32 sectors; the only number that VMware's products make.
pub const TABLE_ENTRIES: usize = 512;

/// Bytes of a grain table.
pub const TABLE: usize = 4 * TABLE_ENTRIES;

/// Sectors of a grain that we write: 64 KiB.
pub const GRAIN_SECTORS: u64 = 128;

/// Sectors of a grain that are read: powers of two from 4 KiB to 1 MiB.
pub const GRAIN_SECTORS_READ: std::ops::RangeInclusive<u64> = 8..=2048;

/// Entry of a grain table: nothing is stored.
pub const ENTRY_NONE: u32 = 0;

/// Entry of a grain table, with [`flag::ZERO_GRAINS`]: zeros.
pub const ENTRY_ZEROS: u32 = 1;

/// Where we put the descriptor, in sectors, and room for it.
pub const DESCRIPTOR_AT: u64 = 1;
/// Sectors of it.
pub const DESCRIPTOR_SECTORS: u64 = 20;

/// Sectors before the first grain that we write: header, descriptor and zeros up to a whole grain.
pub const OVERHEAD: u64 = 128;

/// Bytes before the data of a compressed grain: u64 first sector of the disk that it holds, u32 bytes of data.
pub const GRAIN_MARKER: usize = 12;

/// A marker that is no grain's is a sector: u64 value, u32 zero, u32 type, zeros.
pub mod marker {
    /// Offset of the value: sectors of what follows.
    pub const VALUE: usize = 0;
    /// Offset of the size, which is zero.
    pub const SIZE: usize = 8;
    /// Offset of the type.
    pub const TYPE: usize = 12;

    /// The last sector of the file.
    pub const END: u32 = 0;
    /// A grain table follows.
    pub const TABLE: u32 = 1;
    /// The grain directory follows.
    pub const DIRECTORY: u32 = 2;
    /// A copy of the header follows that says where the directory is.
    pub const FOOTER: u32 = 3;
}

/// Sectors of a file from the footer's marker to the end.
pub const FOOTER_SECTORS: u64 = 3;

/// Most bytes that a grain of `grain` bytes has when compressed: data that cannot be compressed grows a little.
#[must_use]
pub const fn compressed_bound(grain: usize) -> usize {
    grain + grain / 8 + 1024
}

/// Most entries of a grain directory that are read: a disk of 62 TiB in grains of 64 KiB has 2,031,616.
pub const DIRECTORY_ENTRIES_READ: u64 = 4 << 20;

const _: () = assert!(at::RESERVED <= HEADER && GRAIN_SECTORS * 512 == 64 << 10);
const _: () = assert!(OVERHEAD >= DESCRIPTOR_AT + DESCRIPTOR_SECTORS && TABLE.is_multiple_of(512));
