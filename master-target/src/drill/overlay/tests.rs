use engine::units::blocks_in;
use proptest::prelude::*;

use super::*;
use crate::drill::DrillDisk;

/// Ten blocks and a bit; the bytes tell where they are.
const BYTES: u64 = 10 * BLOCK_BYTES + 100;

struct Below(Vec<u8>);

impl Image for Below {
    fn bytes(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReplicaError> {
        buf.copy_from_slice(&self.0[offset as usize..][..buf.len()]);
        Ok(())
    }

    fn holes(&self, _: u64, len: u64) -> Result<Vec<(u64, bool)>, ReplicaError> {
        Ok(vec![(len, false)])
    }
}

fn below() -> Vec<u8> {
    (0..BYTES).map(|at| (at / 64 % 251) as u8 + 1).collect()
}

fn overlay(limit: u64) -> (Overlay, Arc<Budget>) {
    let budget = Budget::new(limit);
    (Overlay::create(&std::env::temp_dir(), BYTES, Arc::clone(&budget)).unwrap(), budget)
}

#[derive(Clone, Debug)]
enum Step {
    Write(u64, u64, u8),
    Zero(u64, u64, bool),
    Trim(u64, u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    // Often at the edges of blocks.
    let at =
        || prop_oneof![0..=BYTES, (0..=blocks_in(BYTES)).prop_map(|block| (block * BLOCK_BYTES).min(BYTES))];
    let range = move || (at(), at()).prop_map(|(a, b)| (a.min(b), a.max(b) - a.min(b)));
    let step = prop_oneof![
        (range(), any::<u8>()).prop_map(|((at, len), byte)| Step::Write(at, len, byte)),
        (range(), any::<bool>()).prop_map(|((at, len), keep)| Step::Zero(at, len, keep)),
        range().prop_map(|(at, len)| Step::Trim(at, len)),
    ];
    prop::collection::vec(step, 0..24)
}

proptest! {
    #[test]
    fn it_is_a_disk(steps in steps()) {
        let mut model = below();
        let (overlay, budget) = overlay(u64::MAX);
        let disk = DrillDisk::new(Arc::new(Below(below())), Some(overlay));
        let (overlay, below) = disk.writable().unwrap();
        for step in steps {
            match step {
                Step::Write(at, len, byte) => {
                    overlay.write(below, at, &vec![byte; len as usize]).unwrap();
                    model[at as usize..][..len as usize].fill(byte);
                }
                Step::Zero(at, len, keep_space) => {
                    overlay.zero(below, at, len, keep_space, true).unwrap();
                    model[at as usize..][..len as usize].fill(0);
                }
                Step::Trim(at, len) => {
                    overlay.trim(at, len).unwrap();
                    let whole = overlay.whole_blocks(at, at + len);
                    let end = (whole.end * BLOCK_BYTES).min(BYTES);
                    model[(whole.start * BLOCK_BYTES).min(end) as usize..end as usize].fill(0);
                }
            }
            let mut read = vec![0; BYTES as usize];
            disk.read(0, &mut read).unwrap();
            prop_assert!(read == model);
            let extents = disk.status(0, BYTES, usize::MAX).unwrap();
            let mut at = 0;
            for (len, flags) in extents {
                let part = &model[at..at + len as usize];
                prop_assert!(flags == 0 || part.iter().all(|byte| *byte == 0), "a hole with bytes at {at}");
                at += len as usize;
            }
            prop_assert_eq!(at as u64, BYTES);
        }
        prop_assert_eq!(budget.used(), overlay.map().data_blocks() * BLOCK_BYTES);
        drop(disk);
        prop_assert_eq!(budget.used(), 0);
    }
}

#[test]
fn beyond_its_budget_it_takes_no_more_and_rewrites_what_it_has() {
    let (overlay, budget) = overlay(2 * BLOCK_BYTES);
    let image = Below(below());
    let block = [7; BLOCK_BYTES as usize];
    overlay.write(&image, 0, &block).unwrap();
    overlay.write(&image, 3 * BLOCK_BYTES + 5, &[7]).unwrap();
    let full = overlay.write(&image, 5 * BLOCK_BYTES, &block);
    assert!(matches!(full, Err(OverlayError::Full { limit: 8192 })), "{full:?}");
    overlay.write(&image, 0, &block).unwrap();
    // What is trimmed makes room.
    overlay.trim(0, BLOCK_BYTES).unwrap();
    assert_eq!(budget.used(), BLOCK_BYTES);
    overlay.write(&image, 5 * BLOCK_BYTES, &block).unwrap();
}

/// Takes its time, so that those who do not wait for each other overlap.
struct Slow(Below);

impl Image for Slow {
    fn bytes(&self) -> u64 {
        self.0.bytes()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReplicaError> {
        self.0.read_at(offset, buf)?;
        std::thread::sleep(std::time::Duration::from_millis(2));
        Ok(())
    }

    fn holes(&self, offset: u64, len: u64) -> Result<Vec<(u64, bool)>, ReplicaError> {
        self.0.holes(offset, len)
    }
}

/// Each thread writes bytes of its own in blocks that all share: none may lose another's.
#[test]
fn writers_of_one_block_do_not_lose_each_other() {
    let (overlay, _) = overlay(u64::MAX);
    let image = Slow(Below(below()));
    std::thread::scope(|scope| {
        for writer in 0..4u64 {
            let (overlay, image) = (&overlay, &image);
            scope.spawn(move || {
                for block in 0..8 {
                    overlay.write(image, block * BLOCK_BYTES + writer * 1000, &[0xee; 1000]).unwrap();
                }
            });
        }
    });
    let mut read = [0; 4000];
    for block in 0..8 {
        overlay.read_data(block * BLOCK_BYTES, &mut read).unwrap();
        assert!(read.iter().all(|byte| *byte == 0xee), "block {block}");
    }
}

#[test]
fn its_file_has_no_name() {
    let folder = tempfile::tempdir().unwrap();
    let overlay = Overlay::create(folder.path(), BYTES, Budget::new(u64::MAX)).unwrap();
    overlay.write(&Below(below()), 0, &[1; 5000]).unwrap();
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}
