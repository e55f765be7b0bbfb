//! Scattered writes of 4 KiB to a disk that is tracked: what they cost on the link, and whether the size of the disk
//! matters.
//!
//! Each block is one of the disk's own with a stamp in it: it compresses as real content does, and is nowhere else.

use std::{collections::BTreeSet, fs::File, os::unix::fs::FileExt, time::Instant};

use anyhow::Context;
use engine::{io::AlignedBuf, service::quantity::Size, units::BLOCK_BYTES};
use homeward::lab::{LoopDevice, image};
use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::{
    Figures, Place,
    blocks::Direct,
    link::Link,
    meter::Usage,
    ours::{Ours, Setup, VM},
    report::{OURS, Run, median_seconds},
};
use crate::figures::Spread;

/// Bytes that are written.
const WRITTEN: u64 = 64 << 20;

/// How much larger the large disk is; what it has more is zero.
const LARGER: u64 = 64;

/// The level of the compression that is compared with: the agent's by default.
const LEVEL: i32 = 1;

/// Both disks.
pub(super) fn run(place: &Place, notes: &mut Vec<String>) -> anyhow::Result<(Vec<Run>, Figures)> {
    let bytes = place.ground.about.bytes;
    let large_name = format!("{OURS}, {}", Size(bytes * LARGER));
    let small = disk(place, OURS, bytes)?;
    let large = disk(place, &large_name, bytes * LARGER)?;
    let runs: Vec<Run> = small.runs.into_iter().chain(large.runs).collect();
    notes.push("the first copy of each disk is not in the figures".into());
    notes.push(format!("compressed alone: the blocks one after the other in one zstd stream, level {LEVEL}"));
    let figures = Figures::from([
        ("wire_bytes_to_blocks_compressed_alone", small.ratio),
        ("wire_bytes_to_blocks_compressed_alone_large_disk", large.ratio),
        ("seconds_of_large_disk_to_small", median_seconds(&large_name, &runs) / median_seconds(OURS, &runs)),
        ("wire_bytes_of_one_block", small.one_block),
        ("wire_bytes_of_one_block_large_disk", large.one_block),
    ]);
    Ok((runs, figures))
}

struct Disk {
    runs: Vec<Run>,
    /// Bytes on the link to those of the blocks compressed alone: the median.
    ratio: f64,
    /// Bytes on the link of a single block, with the point: the most.
    one_block: f64,
}

fn disk(place: &Place, name: &str, bytes: u64) -> anyhow::Result<Disk> {
    let (dir, link) = (place.work.run()?, Link::new(place.rate, place.stop)?);
    let file = dir.path().join("disk.img");
    image::copy(&place.ground.image, &file, place.stop)?;
    File::options().write(true).open(&file)?.set_len(bytes)?;
    let device = LoopDevice::over(&file)?;
    let setup = Setup { link: &link, delay: None, disk: device.path(), dir: dir.path() };
    let ours = Ours::start(place, setup, |_| {})?;
    eprintln!("{name}: the first copy");
    ours.start_agent(None)?;
    let mut writer = Writer {
        rng: StdRng::seed_from_u64(bytes),
        content: File::open(&place.ground.image)?,
        content_blocks: place.ground.about.bytes / BLOCK_BYTES,
        device: Direct::open(device.path())?,
        blocks: bytes / BLOCK_BYTES,
    };
    let (mut runs, mut ratios, mut single) = (Vec::new(), Vec::new(), Vec::new());
    for round in 1..=place.rounds {
        let (one, ..) = writes(&ours, &mut writer, 1)?;
        eprintln!("round {round} of {}: one block, {} bytes on the link", place.rounds, one.wire_bytes);
        single.push(one.wire_bytes as f64);

        let (Cost { seconds, wire_bytes, usage }, written) =
            writes(&ours, &mut writer, WRITTEN / BLOCK_BYTES)?;
        let compressed = zstd::bulk::compress(&written, LEVEL).context("cannot compress the blocks")?;
        ratios.push(wire_bytes as f64 / compressed.len() as f64);
        let verified = ours.is_equal(&file)?;
        runs.push(place.told(Run::new(name, round, seconds, wire_bytes, usage, verified)));
    }
    Ok(Disk { runs, ratio: Spread::of(ratios).median, one_block: Spread::of(single).max })
}

struct Cost {
    /// From the end of the writes until they were at home.
    seconds: f64,
    wire_bytes: u64,
    usage: Usage,
}

/// Writes so many blocks: what that costs, and their bytes.
fn writes(ours: &Ours, writer: &mut Writer, blocks: u64) -> anyhow::Result<(Cost, Vec<u8>)> {
    let taken = ours.measure()?;
    let written = writer.write(blocks)?;
    let began = Instant::now();
    ours.lab.point_now(VM)?;
    let seconds = began.elapsed().as_secs_f64();
    let (wire_bytes, usage) = taken.end(ours)?;
    Ok((Cost { seconds, wire_bytes, usage }, written))
}

struct Writer {
    rng: StdRng,
    content: File,
    content_blocks: u64,
    device: Direct,
    blocks: u64,
}

impl Writer {
    /// Writes so many different blocks anywhere on the disk; their bytes, in order of place.
    fn write(&mut self, blocks: u64) -> anyhow::Result<Vec<u8>> {
        let mut places = BTreeSet::new();
        while (places.len() as u64) < blocks {
            places.insert(self.rng.random_range(0..self.blocks));
        }
        let mut written = Vec::new();
        let mut block = AlignedBuf::zeroed(BLOCK_BYTES as usize);
        for place in places {
            block.fill(0);
            while block.iter().all(|&byte| byte == 0) {
                let from = self.rng.random_range(0..self.content_blocks);
                self.content.read_exact_at(&mut block, from * BLOCK_BYTES)?;
            }
            block[..8].copy_from_slice(&self.rng.random::<u64>().to_le_bytes());
            self.device.write(place, &block)?;
            written.extend_from_slice(&block);
        }
        self.device.sync()?;
        Ok(written)
    }
}
