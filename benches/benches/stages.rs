//! The stages that every replicated byte, or every round of a barrier, passes through, each alone and in memory.
//!
//! `cargo bench -p homeward-bench` (no root). Throughputs are of uncompressed bytes.

use std::hint::black_box;

use agent::capture::contents::Contents;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use engine::{
    digest::{LEAF_BYTES, RootBuilder, leaf_digest},
    dirty_map::{DirtyMap, Granularity},
    extent::Extent,
    extent_set::ExtentSet,
    frame::{ContentBuilder, Deframer, Frame, Packed, Payload, Position},
    limits,
    units::{BLOCK_BYTES, Block, Digest, DiskIndex, StreamId},
};
use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};

const DISK: DiskIndex = DiskIndex(0);
const DATA: usize = limits::FRAME_DATA_TARGET;
const BLOCK: usize = BLOCK_BYTES as usize;

/// Half noise, half a repeated phrase in each block: compresses to about half, as much of a server's data does.
fn data() -> Vec<u8> {
    let mut rng = StdRng::seed_from_u64(7);
    let mut data: Vec<u8> =
        b"the quick brown fox jumps over the lazy dog; ".iter().copied().cycle().take(DATA).collect();
    data.chunks_exact_mut(BLOCK).for_each(|block| rng.fill_bytes(&mut block[..BLOCK / 2]));
    data
}

/// A content of scattered blocks, as a busy disk gives them.
fn content() -> (Vec<u8>, u32) {
    let mut builder = ContentBuilder::default();
    for (number, block) in data().chunks_exact(BLOCK).enumerate() {
        builder.push(Extent::new(number as u64 * 3, 1), Payload::Data(block));
    }
    let extents = builder.extents() as u32;
    (builder.finish(), extents)
}

fn packed(level: i32) -> Packed {
    let (content, extents) = content();
    Packed::data(DISK, &content, extents, level)
}

fn frame(level: i32) -> Frame {
    packed(level).seal(StreamId::random(), &Position::START)
}

fn frames(c: &mut Criterion) {
    let mut group = c.benchmark_group("frame");
    group.throughput(Throughput::Bytes(DATA as u64));
    let (content, extents) = content();
    for (name, level) in [("pack stored", 0), ("pack zstd 1", 1), ("pack zstd 3", 3), ("pack zstd 6", 6)] {
        group.bench_function(name, |b| b.iter(|| Packed::data(DISK, black_box(&content), extents, level)));
    }
    for (name, level) in [("open stored", 0), ("open zstd 1", 1)] {
        let frame = frame(level);
        group.bench_function(name, |b| b.iter(|| black_box(&frame).open(Digest::ZERO).is_ok()));
    }
    let stored = frame(0);
    group.bench_function("deframe in 64 KiB pieces", |b| {
        b.iter_batched_ref(
            Deframer::default,
            |deframer| {
                stored.bytes().chunks(64 << 10).for_each(|piece| deframer.feed(piece));
                deframer.next_frame().is_ok_and(|frame| frame.is_some())
            },
            BatchSize::LargeInput,
        );
    });
    group.finish();
    // With the header's own work: what a frame costs the one thread that puts frames in order.
    c.bench_function("frame/chain and seal, one block", |b| {
        let stream = StreamId::random();
        let mut content = ContentBuilder::default();
        content.push(Extent::new(1, 1), Payload::Data(&[1; BLOCK]));
        let content = content.finish();
        b.iter_batched(
            || Packed::data(DISK, &content, 1, 0),
            |packed| packed.seal(stream, black_box(&Position::START)),
            BatchSize::SmallInput,
        );
    });
}

/// What a resync and a proof do with every byte of both disks.
fn digests(c: &mut Criterion) {
    let mut group = c.benchmark_group("digest");
    let leaf: Vec<u8> = data().into_iter().cycle().take(LEAF_BYTES as usize).collect();
    group.throughput(Throughput::Bytes(LEAF_BYTES));
    group.bench_function("leaf", |b| b.iter(|| leaf_digest(black_box(&leaf))));
    let digest = leaf_digest(&leaf);
    let bytes = 1 << 30;
    group.throughput(Throughput::Bytes(bytes));
    group.bench_function("root of 1 GiB, from leaves", |b| {
        b.iter(|| {
            let mut root = RootBuilder::new(bytes);
            (0..bytes / LEAF_BYTES).for_each(|_| root.push(black_box(digest)));
            root.finish().is_ok()
        });
    });
    group.finish();
}

fn zeros(c: &mut Criterion) {
    let mut group = c.benchmark_group("contents");
    group.throughput(Throughput::Bytes(DATA as u64));
    let collect = |bytes: &[u8]| {
        let (mut contents, mut made) = (Contents::new(DISK, 1), Vec::new());
        contents.add(Block(0), bytes, &mut made);
        contents.finish(&mut made);
        made
    };
    let (zeros, data) = (vec![0; DATA], data());
    group.bench_function("zero detection, all zeros", |b| b.iter(|| collect(black_box(&zeros))));
    group.bench_function("zero detection, no zeros", |b| b.iter(|| collect(black_box(&data))));
    group.finish();
}

fn sets(c: &mut Criterion) {
    let mut rng = StdRng::seed_from_u64(11);
    // 64 GiB, of which 1,000 scattered blocks are dirty: a harvest's usual catch.
    let granularity = Granularity::of_disk(64 << 30);
    let map = DirtyMap::in_memory(granularity);
    let blocks: Vec<u64> = (0..1000).map(|_| rng.random_range(0..granularity.blocks)).collect();
    blocks.iter().for_each(|&block| map.set(Block(block), Block(block + 1)));
    c.bench_function("dirty map/collect 1,000 of 16 Mi blocks", |b| {
        b.iter(|| map.collect(Block(0), black_box(u64::MAX)))
    });
    // As pre-copy does it: what is collected is cleared, and what a write marks meanwhile is found next time.
    c.bench_function("dirty map/take 1,000 of 16 Mi blocks", |b| {
        b.iter_batched(
            || blocks.iter().for_each(|&block| map.set(Block(block), Block(block + 1))),
            |()| {
                let set = map.collect(Block(0), u64::MAX);
                set.extents().for_each(|extent| map.clear(extent.start, extent.end()));
                set
            },
            BatchSize::PerIteration,
        );
    });
    blocks.iter().for_each(|&block| map.set(Block(block), Block(block + 1)));
    c.bench_function("dirty map/ask for a block", |b| {
        let mut at = 0;
        b.iter(|| {
            at = (at + 1) % blocks.len();
            map.any(Block(blocks[at]), Block(blocks[at] + 1))
        });
    });
    c.bench_function("extent set/insert 1,000 scattered blocks", |b| {
        b.iter(|| {
            let mut set = ExtentSet::new();
            black_box(&blocks).iter().for_each(|&block| set.insert(Block(block), Block(block + 1)));
            set
        });
    });
}

criterion_group! {
    name = stages;
    config = Criterion::default()
        .sample_size(30)
        .warm_up_time(std::time::Duration::from_millis(500))
        .measurement_time(std::time::Duration::from_secs(2));
    targets = frames, digests, zeros, sets
}
criterion_main!(stages);
