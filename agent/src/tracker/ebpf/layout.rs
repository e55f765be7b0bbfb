//! Layout of the mapped BPF arrays, as user space and `../bpf/tracker.bpf.c` both see them.
//!
//! `control` is one value of [`control::WORDS`] 64-bit words, `marks` an array of words holding for each disk
//! in turn, every part starting on a cache line:
//!
//! ```text
//!     issued 0 | issued 1 | completed 0 | completed 1 | dirty | sent 0 | sent 1
//! ```
//!
//! The first four, called planes, are written by the programs, one for each event and generation: one bit for
//! each granule, followed by a summary with one bit for each 64-bit word, so that taking a few marks does not
//! scan the whole plane. The last three belong to user space and have no summary.
//!
//! `inflight` is [`FLIGHT_WORDS`] words, one for each write that may be in flight.
//!
//! Versions: 2; 1 also counted writes in flight by CPU.

use std::ops::Range;

use engine::dirty_map::Granularity;

/// Version of both layouts. Maps of another version are not continued.
pub const VERSION: u64 = 2;

/// Disks that one tracker can follow.
pub const DISKS: usize = 64;

/// CPUs that the machine may have.
pub const CPUS: usize = 1024;

/// Words of `inflight`: so many writes can be in flight.
pub(super) const FLIGHT_WORDS: usize = 2048 * 8;

/// Words of `struct disk`.
pub const DESCRIPTION_WORDS: usize = 9;

/// Entries of the table of `struct disk`.
const TABLE: u32 = 1024;

/// How many in a row of them may hold a disk.
const PROBES: u32 = 8;

/// The entries of the table that may hold the disk `dev`, in order: the programs stop at the first empty one.
pub(super) fn places_of(dev: u32) -> impl Iterator<Item = u32> {
    let first = dev.wrapping_mul(0x9e37_79b1) >> 22;
    (first..first + PROBES).map(|index| index % TABLE)
}

/// Word offsets within `control`.
pub mod control {
    use super::{CPUS, DISKS};

    /// "HWTRACK" and the version.
    pub const MAGIC: usize = 0;
    /// [`BUILDING`], or [`COMPLETE`] once the maps may be continued.
    pub const STATE: usize = 1;
    /// Larger than that of the set before.
    pub const SERIAL: usize = 2;
    /// Number of disks.
    pub const DISK_COUNT: usize = 3;
    /// Boot id of the kernel, two words.
    pub const BOOT: usize = 4;
    /// Digest of the object the programs were loaded from, two words.
    pub const OBJECT: usize = 6;
    /// Stream id, two words.
    pub const STREAM: usize = 8;
    /// Skipped runs of the program at the issue after which all was taken for dirty.
    pub const MISSED: usize = 10;

    /// Number of flips; the active generation is its lowest bit.
    pub const FLIPS: usize = 16;
    /// Writes that may be in flight without being counted for a CPU.
    pub const UNKNOWN: usize = 17;

    /// First record of a disk, and words per record.
    pub const DISK: usize = 24;
    /// Words of such a record.
    pub const DISK_WORDS: usize = 8;
    /// In a disk's record: device number, major in the upper half.
    pub const DISK_ID: usize = 0;
    /// Size in bytes.
    pub const DISK_BYTES: usize = 1;
    /// Identity, two words.
    pub const DISK_IDENTITY: usize = 2;
    /// Anything on the disk may have been written, by generation; two words.
    pub const DISK_OVERFLOW: usize = 4;

    /// First record of a CPU, and words per record. It begins with the programs counted in, by generation.
    pub const CPU: usize = DISK + DISKS * DISK_WORDS;
    /// Words of such a record.
    pub const CPU_WORDS: usize = 8;

    /// Words of the whole value.
    pub const WORDS: usize = CPU + CPUS * CPU_WORDS;

    /// Value of [`MAGIC`], without the version.
    pub const MAGIC_VALUE: u64 = u64::from_le_bytes(*b"HWTRACK\0");
    /// [`STATE`] of a set that is not yet complete.
    pub const BUILDING: u64 = 0;
    /// [`STATE`] of a set that can be continued.
    pub const COMPLETE: u64 = 1;
}

/// What a program saw.
#[derive(Clone, Copy)]
pub(super) enum Event {
    Issued,
    Completed,
}

/// Where one disk's parts lie in `marks`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DiskLayout {
    pub(super) granularity: Granularity,
    base: usize,
}

impl DiskLayout {
    /// Lays the disks out one after the other; returns also the words of the whole array.
    pub(super) fn of_disks(bytes: impl IntoIterator<Item = u64>) -> (Vec<Self>, usize) {
        let mut base = 0;
        let disks = bytes
            .into_iter()
            .map(|bytes| {
                let disk = Self { granularity: Granularity::of_disk(bytes), base };
                base = disk.user(2).start + disk.bits_words();
                disk
            })
            .collect();
        // A BPF array cannot be empty.
        (disks, base.max(LINE_WORDS))
    }

    /// The bits of a plane.
    pub(super) fn plane(self, event: Event, generation: usize) -> Range<usize> {
        let start =
            self.base + (event as usize * 2 + generation) * (self.bits_words() + self.summary_words());
        start..start + self.granularity.words()
    }

    /// The summary of a plane.
    pub(super) fn summary(self, event: Event, generation: usize) -> Range<usize> {
        let start = self.plane(event, generation).start + self.bits_words();
        start..start + self.granularity.words().div_ceil(64)
    }

    /// The `dirty` map.
    pub(super) fn dirty(self) -> Range<usize> {
        self.user(0)
    }

    /// A half of the `sent` maps.
    pub(super) fn sent(self, half: usize) -> Range<usize> {
        self.user(1 + half)
    }

    /// The disk as the programs want it described: `struct disk`. `dev` is its number as the kernel writes it.
    pub(super) fn describe(self, dev: u32, slot: usize) -> [u64; DESCRIPTION_WORDS] {
        let plane = |event, generation| self.plane(event, generation).start as u64;
        [
            u64::from(dev),
            plane(Event::Issued, 0),
            plane(Event::Issued, 1),
            plane(Event::Completed, 0),
            plane(Event::Completed, 1),
            self.bits_words() as u64,
            self.granularity.granules(),
            u64::from(self.granularity.shift + BLOCK_SHIFT),
            slot as u64,
        ]
    }

    fn user(self, index: usize) -> Range<usize> {
        let start = self.base + 4 * (self.bits_words() + self.summary_words()) + index * self.bits_words();
        start..start + self.granularity.words()
    }

    fn bits_words(self) -> usize {
        self.granularity.words().next_multiple_of(LINE_WORDS)
    }

    fn summary_words(self) -> usize {
        self.granularity.words().div_ceil(64).next_multiple_of(LINE_WORDS)
    }
}

/// Words of a cache line.
const LINE_WORDS: usize = 8;

/// log2 of [`engine::units::BLOCK_BYTES`].
const BLOCK_SHIFT: u32 = engine::units::BLOCK_BYTES.ilog2();

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, fs, path::Path};

    use super::*;

    #[test]
    fn parts_of_disks_do_not_overlap() {
        let (disks, total) = DiskLayout::of_disks([4096, 1 << 20, (1 << 40) + 1, 5000 << 12]);
        let mut parts = Vec::new();
        for disk in &disks {
            for event in [Event::Issued, Event::Completed] {
                for generation in [0, 1] {
                    parts.push(disk.plane(event, generation));
                    parts.push(disk.summary(event, generation));
                }
            }
            parts.extend([disk.dirty(), disk.sent(0), disk.sent(1)]);
        }
        for pair in parts.windows(2) {
            assert!(pair[0].end <= pair[1].start, "{pair:?}");
            assert!(!pair[0].is_empty());
            assert_eq!(pair[1].start % LINE_WORDS, 0);
        }
        assert!(parts.last().unwrap().end <= total);
    }

    /// Offsets within `struct control` of the C source, computed from its text.
    #[test]
    fn control_is_laid_out_as_in_the_c_source() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/tracker/bpf/tracker.bpf.c");
        let source = fs::read_to_string(path).unwrap();
        let define = |name: &str| -> usize {
            let line =
                source.lines().find_map(|line| line.strip_prefix(&format!("#define {name} "))).unwrap();
            line.split_whitespace().next().unwrap().parse().unwrap()
        };
        assert_eq!((define("DISKS"), define("CPUS")), (DISKS, CPUS));
        assert_eq!((define("TABLE"), define("PROBES")), (TABLE as usize, PROBES as usize));
        assert_eq!(define("BUCKETS") * define("BUCKET_ENTRIES"), FLIGHT_WORDS);

        let body = source.split("struct control {").nth(1).unwrap().split("\n};").next().unwrap();
        let (mut at, mut found) = (0, HashMap::new());
        for line in body.lines().filter(|line| line.trim_start().starts_with("__u64")) {
            let (name, words) =
                member(line.trim().trim_start_matches("__u64").split(';').next().unwrap(), &define);
            found.insert(name, at);
            at += words;
        }
        // The records, in order: struct { __u64 members } name[count];
        for line in body.lines().filter(|line| line.trim_start().starts_with("struct {")) {
            let (members, rest) = line.split_once("__u64").unwrap().1.split_once('}').unwrap();
            let (name, count) = member(rest.split(';').next().unwrap(), &define);
            let mut inner = 0;
            for text in members.trim().trim_end_matches(';').split(',') {
                let (field, words) = member(text, &define);
                found.insert(format!("{name}.{field}"), at + inner);
                inner += words;
            }
            found.insert(format!("{name} step"), inner);
            at += inner * count;
        }
        let is = |name: &str, offset: usize| assert_eq!(found[name], offset, "{name}");
        is("header", 0);
        is("flips", control::FLIPS);
        is("unknown", control::UNKNOWN);
        is("disk.header", control::DISK);
        is("disk.overflow", control::DISK + control::DISK_OVERFLOW);
        is("disk step", control::DISK_WORDS);
        is("cpu.inside", control::CPU);
        is("cpu step", control::CPU_WORDS);
        assert_eq!(at, control::WORDS);
    }

    /// Name and words of a member like `pad[6]`.
    fn member(text: &str, define: &dyn Fn(&str) -> usize) -> (String, usize) {
        match text.trim().split_once('[') {
            None => (text.trim().to_owned(), 1),
            Some((name, count)) => {
                let count = count.trim_end_matches(']');
                (name.to_owned(), count.parse().unwrap_or_else(|_| define(count)))
            }
        }
    }
}
