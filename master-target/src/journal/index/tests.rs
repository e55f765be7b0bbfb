//! Gathering against a model: for every block the first piece that was pushed, whatever the bounds.

use std::{path::PathBuf, sync::Arc};

use engine::{
    extent::Extent,
    io::{Storage, sim::SimStorage},
    units::{Block, DiskIndex, StreamId},
};
use proptest::prelude::*;

use super::*;
use crate::journal::{Image, JournalError, Layer, LogId};

const STREAM: StreamId = StreamId(uuid::Uuid::from_u128(0x1234));

/// A whole image; where its bytes are tells it from every other.
fn piece(at: u64, disk: u16, start: u64, blocks: u32) -> Piece {
    let image = Image {
        disk: DiskIndex(disk),
        extent: Extent::new(start, blocks),
        at,
        zeros: at.is_multiple_of(3),
        crc: at as u32,
    };
    Piece::whole(image, LogId { layer: 7, generation: 1 })
}

/// What each block has: disk, block, which image.
fn blocks(pieces: impl Iterator<Item = Piece>) -> Vec<(u16, u64, u64)> {
    let blocks = |piece: Piece| {
        (piece.extent.start.0..piece.extent.end().0).map(move |block| (piece.disk().0, block, piece.image.at))
    };
    pieces.flat_map(blocks).collect()
}

fn all(sorted: &Sorted) -> Vec<Piece> {
    let mut cursor = sorted.cursor();
    std::iter::from_fn(|| cursor.next().unwrap()).collect()
}

/// Some pieces, and where a set of its own begins.
fn pushes() -> impl Strategy<Value = Vec<(u16, u64, u32, bool)>> {
    prop::collection::vec((0u16..3, 0u64..300, 1u32..=20, prop::bool::weighted(0.05)), 0..400)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn the_first_piece_of_every_block_is_found(pushes in pushes(), in_memory in 1usize..200, fan_in in 2usize..6) {
        let storage: Arc<dyn Storage> = Arc::new(SimStorage::new());
        let scratch = Scratch::new(Arc::clone(&storage), PathBuf::new(), in_memory);
        let bounds = Bounds { pieces: in_memory, fan_in, unindexed: 0 };
        let mut gatherer = Gatherer::new(&scratch, &bounds);
        let mut model = std::collections::BTreeMap::new();
        let mut set = Gatherer::new(&scratch, &bounds);
        for (number, (disk, start, blocks, ends)) in pushes.into_iter().enumerate() {
            let piece = piece(number as u64, disk, start, blocks);
            set.push(&piece).unwrap();
            for block in start..start + u64::from(blocks) {
                model.entry((disk, block)).or_insert(number as u64);
            }
            if ends {
                let ready = std::mem::replace(&mut set, Gatherer::new(&scratch, &bounds));
                gatherer.push_all(ready.finish().unwrap()).unwrap();
            }
        }
        gatherer.push_all(set.finish().unwrap()).unwrap();
        let sorted = gatherer.finish().unwrap();
        let expected: Vec<_> = model.into_iter().map(|((disk, block), at)| (disk, block, at)).collect();
        let pieces = all(&sorted);
        prop_assert_eq!(blocks(pieces.iter().copied()), expected.clone());
        prop_assert_eq!(sorted.records(), pieces.len() as u64);
        prop_assert_eq!(sorted.bytes(), expected.len() as u64 * 4096);

        // Saved as an index and opened again, it says the same.
        let layer = Layer { first: 5, last: 7, generation: 1, log_bytes: 1 << 20 };
        sorted.save(storage.as_ref(), "".as_ref(), STREAM, &layer).unwrap();
        let saved = Sorted::open(storage.as_ref(), "".as_ref(), STREAM, &layer).unwrap().unwrap();
        prop_assert_eq!(all(&saved), pieces);
        for (disk, from, to) in [(0, 0, 1), (0, 17, 40), (1, 0, 400), (2, 299, 330), (3, 0, 9)] {
            let wanted: Vec<_> =
                expected.iter().copied().filter(|(d, block, _)| *d == disk && (from..to).contains(block)).collect();
            for sorted in [&sorted, &saved] {
                let found = sorted.find(DiskIndex(disk), Block(from), Block(to)).unwrap();
                prop_assert_eq!(blocks(found.into_iter()), wanted.clone());
            }
        }
    }
}

/// A damaged index, or one of another log, is not used: it is made again from the log.
#[test]
fn an_index_that_is_not_right_is_none() {
    let sim = SimStorage::new();
    let storage: &dyn Storage = &sim;
    let layer = Layer { first: 5, last: 7, generation: 1, log_bytes: 1 << 20 };
    let shared: Arc<dyn Storage> = Arc::new(SimStorage::new());
    let scratch = Scratch::new(shared, PathBuf::new(), 1000);
    let mut gatherer = Gatherer::new(&scratch, &Bounds::default());
    (0..300).for_each(|at| gatherer.push(&piece(at, 0, at * 2, 1)).unwrap());
    let sorted = gatherer.finish().unwrap();
    sorted.save(storage, "".as_ref(), STREAM, &layer).unwrap();
    let path = layer.log().index_path("".as_ref());
    let open = |layer: &Layer| Sorted::open(storage, "".as_ref(), STREAM, layer).unwrap();
    assert!(open(&layer).is_some());
    assert!(open(&Layer { log_bytes: 5, ..layer }).is_none());
    assert!(open(&Layer { generation: 2, ..layer }).is_none());
    let len = storage.open(&path).unwrap().len().unwrap();
    for at in (0..len).step_by(7) {
        sim.flip_bits(&path, at, 0x10).unwrap();
        assert!(open(&layer).is_none(), "a flipped bit at {at} is not noticed");
        sim.flip_bits(&path, at, 0x10).unwrap();
    }
    storage.open(&path).unwrap().set_len(len - 1).unwrap();
    assert!(open(&layer).is_none());
}

/// The sample that every later version must read.
#[test]
fn an_index_of_version_1_is_still_read_and_written() -> Result<(), JournalError> {
    let storage: Arc<dyn Storage> = Arc::new(SimStorage::new());
    let scratch = Scratch::new(Arc::clone(&storage), PathBuf::new(), 1000);
    let mut gatherer = Gatherer::new(&scratch, &Bounds::default());
    gatherer.push(&piece(100, 1, 7, 16))?;
    gatherer.push(&piece(204, 0, 3, 5))?;
    gatherer.push(&piece(330, 1, 0, 20))?;
    let sorted = gatherer.finish()?;
    let layer = Layer { first: 5, last: 7, generation: 1, log_bytes: 1 << 20 };
    sorted.save(storage.as_ref(), "".as_ref(), STREAM, &layer)?;
    let path = layer.log().index_path("".as_ref());
    crate::journal::tests::assert_kept("index-v1.bin", &crate::journal::tests::written(&storage, &path));
    Ok(())
}
