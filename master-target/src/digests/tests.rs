//! What is stored is what is read, whatever crashes; every bit that flips is found.

use engine::{
    extent::Extent,
    io::{StorageFile, sim::SimStorage},
    units::StreamId,
};
use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::*;

const LEAVES: u64 = 300;

fn header() -> Header {
    let (stream, disk) = (StreamId(uuid::Uuid::from_u128(0x1234)), DiskIndex(1));
    Header { stream, disk, bytes: LEAVES * engine::digest::LEAF_BYTES - 512, layer: 3, is_whole: true }
}

fn digest(leaf: u64) -> Digest {
    Digest::of(&leaf.to_le_bytes())
}

fn filled(storage: &Arc<dyn Storage>, path: &Path) -> DigestFile {
    let mut file = DigestFile::create(storage, path, header()).unwrap();
    (0..LEAVES).for_each(|leaf| file.set(leaf, digest(leaf)).unwrap());
    file.flush(7).unwrap();
    file
}

fn reopened(storage: &Arc<dyn Storage>, path: &Path) -> DigestFile {
    DigestFile::open(storage.as_ref(), path, header()).unwrap().unwrap()
}

fn flip(file: &dyn StorageFile, at: u64, bit: u32) {
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1 << bit], at).unwrap();
}

#[test]
fn what_is_flushed_is_there_and_what_was_overwritten_is_not() {
    let (storage, path): (Arc<dyn Storage>, _) = (Arc::new(SimStorage::new()), Path::new("digests"));
    let mut file = filled(&storage, path);
    file.overwritten(Extent::new(16 * 5 + 3, 20));
    assert_eq!(
        (file.get(5).unwrap(), file.get(6).unwrap(), file.get(7).unwrap()),
        (None, None, Some(digest(7)))
    );
    file.set(6, digest(66)).unwrap();
    assert_eq!(file.get(6).unwrap(), Some(digest(66)));
    file.flush(8).unwrap();
    let mut file = reopened(&storage, path);
    assert_eq!(file.layer(), 8);
    assert_eq!((file.get(5).unwrap(), file.get(6).unwrap()), (None, Some(digest(66))));
    assert_eq!(file.get(LEAVES - 1).unwrap(), Some(digest(LEAVES - 1)));
}

#[test]
fn a_power_cut_while_it_is_written_is_no_damage() {
    let storage = Arc::new(SimStorage::new());
    let (shared, path): (Arc<dyn Storage>, _) = (Arc::clone(&storage) as _, Path::new("digests"));
    let mut file = filled(&shared, path);
    let before = storage.log_len();
    (0..LEAVES).for_each(|leaf| file.set(leaf, digest(leaf + 1000)).unwrap());
    file.flush(9).unwrap();
    for at in before..=storage.log_len() {
        for seed in 0..4 {
            let after: Arc<dyn Storage> = Arc::new(storage.power_cut(at, seed));
            let mut file = match DigestFile::open(after.as_ref(), path, header()) {
                Ok(found) => found.unwrap(),
                // The header itself may be torn: then all of it is computed anew.
                Err(DigestFileError::Damaged(Damaged { at: 0, .. })) => continue,
                Err(error) => panic!("{error}"),
            };
            for leaf in 0..LEAVES {
                let known = file.get(leaf).unwrap();
                assert!(known.is_none_or(|known| known == digest(leaf) || known == digest(leaf + 1000)));
            }
        }
    }
}

#[test]
fn every_bit_that_flips_is_found_and_named() {
    let (storage, path): (Arc<dyn Storage>, _) = (Arc::new(SimStorage::new()), Path::new("digests"));
    let mut file = filled(&storage, path);
    let raw = storage.open(path).unwrap();
    let mut rng = StdRng::seed_from_u64(1);
    let len = raw.len().unwrap();
    for round in 0..400 {
        let (at, bit) = (rng.random_range(0..len), rng.random_range(0..8));
        flip(raw.as_ref(), at, bit);
        let page = at / layout::PAGE as u64;
        let mut found = Vec::new();
        for leaf in (0..LEAVES).step_by(layout::DIGESTS) {
            if let Err(DigestFileError::Damaged(damaged)) = file.recheck(leaf) {
                found.push(damaged.at);
            }
        }
        assert_eq!(found, [page * layout::PAGE as u64], "round {round}: byte {at}");
        // Known anew, as after a scrub.
        (0..LEAVES).for_each(|leaf| file.set(leaf, digest(leaf)).unwrap());
        file.flush(7).unwrap();
        assert!((0..LEAVES).all(|leaf| file.recheck(leaf).is_ok()));
    }
}

/// Version 1, kept for ever; `HOMEWARD_BLESS=1` writes it where it is missing.
#[test]
fn a_file_of_version_1_is_still_read_and_written() {
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/digests-v1.bin");
    let (storage, path): (Arc<dyn Storage>, _) = (Arc::new(SimStorage::new()), Path::new("digests"));
    let mut file = DigestFile::create(&storage, path, header()).unwrap();
    file.set(130, digest(130)).unwrap();
    file.flush(7).unwrap();
    let raw = storage.open(path).unwrap();
    let mut bytes = vec![0; raw.len().unwrap() as usize];
    raw.read_exact_at(&mut bytes, 0).unwrap();
    if std::env::var_os("HOMEWARD_BLESS").is_some() && !kept.exists() {
        std::fs::write(&kept, &bytes).unwrap();
    }
    assert!(std::fs::read(&kept).unwrap() == bytes, "it is written differently now");
    assert_eq!(reopened(&storage, path).get(130).unwrap(), Some(digest(130)));
}
