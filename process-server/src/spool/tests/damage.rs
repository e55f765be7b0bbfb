//! Damage by a bad disk: noticed, named by file and offset, never read as frames.

use std::path::PathBuf;

use engine::io::sim::SimStorage;

use super::{
    super::*,
    rig::{Rig, STREAM, Step, check_holds},
};

fn rig() -> Rig {
    let mut rig = Rig::new(SimStorage::new(), None);
    for step in [Step::Append(3, 1), Step::Append(6, 7), Step::Retire(2), Step::Append(5, 5)] {
        assert!(rig.step(step));
    }
    assert!(rig.spool.segments.len() > 2);
    rig
}

fn files(rig: &Rig) -> Vec<(PathBuf, u64)> {
    let names = rig.storage.list(&rig.spool.dir).unwrap();
    let len = |path: &PathBuf| rig.storage.open(path).unwrap().len().unwrap();
    names.iter().map(|name| rig.spool.dir.join(name)).map(|path| (path.clone(), len(&path))).collect()
}

fn open(disk: SimStorage) -> Opened {
    Spool::open(Arc::new(disk), STREAM, Arc::new(Room::new(super::rig::BOUNDS))).unwrap()
}

/// One bit in every byte of headers and frame headers, and of every 13th byte elsewhere.
fn offsets(len: u64) -> impl Iterator<Item = u64> {
    (0..len).filter(|at| *at < 200 || at % 13 == 0)
}

#[test]
fn a_flipped_bit_found_at_start_is_named_and_what_stands_before_it_is_kept() {
    let mut rig = rig();
    let (durable, end) = (rig.spool.durable(), rig.spool.position());
    let life = rig.life().clone();
    let mut named = 0;
    for (path, len) in files(&rig) {
        for at in offsets(len) {
            let disk = (*rig.storage).clone();
            disk.flip_bits(&path, at, 1 << (at % 8)).unwrap();
            let opened = open(disk);
            let what = format!("byte {at} of {}", path.display());
            if path.ends_with(layout::DURABLE) {
                let mut spool = opened.spool.unwrap();
                assert!(opened.loss.is_none() && spool.position() == end, "{what}");
                assert!(spool.durable().seq < durable.seq, "{what}");
                check_holds(&mut spool, &life);
                continue;
            }
            let loss = opened.loss.expect(&what);
            assert!(
                loss.path == path && loss.offset <= at && loss.offset + loss.bytes > at,
                "{what}: {loss}"
            );
            assert!(loss.to_string().contains(&format!("{} at byte {}", path.display(), loss.offset)));
            named += 1;
            if let Some(mut spool) = opened.spool {
                assert!(spool.position().seq < end.seq, "{what}");
                check_holds(&mut spool, &life);
            }
        }
    }
    assert!(named > 1000);
}

#[test]
fn a_bit_flipped_while_running_is_named_and_never_forwarded() {
    let mut rig = rig();
    let life = rig.life().clone();
    for (path, len) in files(&rig).into_iter().filter(|(path, _)| path.extension().is_some()) {
        if path.ends_with(layout::DESCRIPTION) {
            continue;
        }
        for at in (MARK as u64..len).step_by(331) {
            let disk = Arc::new((*rig.storage).clone());
            let mut spool = open((*disk).clone()).spool.unwrap();
            spool.revive(disk.clone());
            disk.flip_bits(&path, at, 0x10).unwrap();
            let base = spool.base();
            assert!(spool.join(&base).unwrap());
            let mut expected = life.after(base.seq).iter();
            let (found, offset, flaw) = loop {
                match spool.read_next() {
                    Ok(Some(frame)) => assert_eq!(frame.bytes(), expected.next().unwrap().bytes()),
                    Err(SpoolError::Damaged { path, offset, flaw }) => break (path, offset, flaw),
                    other => panic!("byte {at} of {}: {other:?}", path.display()),
                }
            };
            assert!(found == path && offset <= at);
            let loss = spool.cut(flaw).unwrap();
            assert!(loss.path == path && loss.offset == offset && loss.bytes > 0);
            let next = expected.next().unwrap();
            assert_eq!(spool.position().seq.next(), next.header().seq);
            assert!(spool.read_next().unwrap().is_none());
            spool.append(std::slice::from_ref(next)).unwrap();
            assert_eq!(spool.read_next().unwrap().unwrap().bytes(), next.bytes());
            check_holds(&mut spool, &life);
        }
    }
}

#[test]
fn joining_over_damage_names_it() {
    let mut rig = rig();
    let end = rig.spool.position();
    let last = rig.spool.last().path(&rig.spool.dir);
    rig.storage.flip_bits(&last, MARK as u64 + 8, 1).unwrap();
    let error = rig.spool.join(&end).unwrap_err();
    let SpoolError::Damaged { path, offset, flaw } = error else { panic!("{error}") };
    assert!(path == last && offset == MARK as u64);
    rig.spool.cut(flaw).unwrap();
    assert!(!rig.spool.join(&end).unwrap());
}

#[test]
fn a_torn_tail_of_any_length_is_cut_and_the_spool_goes_on() {
    let mut rig = rig();
    let life = rig.life().clone();
    let path = rig.spool.last().path(&rig.spool.dir);
    let len = rig.spool.last().len;
    let start = rig.spool.last().start;
    for cut in (0..len).filter(|at| *at < 300 || at % 61 == 0) {
        let disk = (*rig.storage).clone();
        disk.open(&path).unwrap().set_len(cut).unwrap();
        let opened = open(disk);
        let mut spool = opened.spool.unwrap();
        check_holds(&mut spool, &life);
        assert!(spool.position().seq >= start.seq);
        if let Some(loss) = opened.loss {
            assert!(!loss.in_the_middle && loss.path == path && cut > MARK as u64, "{loss}");
        }
        let next = &life.after(spool.position().seq)[..1];
        spool.append(next).unwrap();
        check_holds(&mut spool, &life);
    }
}

#[test]
fn a_missing_segment_is_noticed() {
    let mut rig = rig();
    let life = rig.life().clone();
    let second = rig.spool.segments[1].clone();
    let disk = (*rig.storage).clone();
    disk.remove(&second.path(&rig.spool.dir)).unwrap();
    let opened = open(disk);
    let loss = opened.loss.unwrap();
    assert!(matches!(loss.flaw, Flaw::Start { found } if found == second.end.seq), "{loss}");
    let mut spool = opened.spool.unwrap();
    assert_eq!(spool.position(), second.start);
    check_holds(&mut spool, &life);
}

#[test]
fn a_damaged_description_makes_the_stream_unknown_until_it_is_created_anew() {
    let rig = rig();
    let disk = (*rig.storage).clone();
    disk.flip_bits(&rig.spool.dir.join(layout::DESCRIPTION), 100, 4).unwrap();
    let disk = Arc::new(disk);
    let room = Arc::new(Room::new(super::rig::BOUNDS));
    assert!(Spool::open(disk.clone(), STREAM, room.clone()).unwrap().spool.is_none());
    let base = rig.spool.position();
    let spool = Spool::create(disk.clone(), super::rig::description(), base, room.clone()).unwrap();
    assert!(spool.position() == base && spool.bytes() == MARK as u64);
    drop(spool);
    assert_eq!(Spool::open(disk, STREAM, room).unwrap().spool.unwrap().base(), base);
}

#[test]
fn segments_of_another_version_are_left_alone() {
    let mut rig = rig();
    let path = rig.spool.segments[1].path(&rig.spool.dir);
    let file = rig.storage.open(&path).unwrap();
    let mut raw = layout::encode(layout::magic::SEGMENT, STREAM, &rig.spool.segments[1].start);
    raw[layout::at::VERSION] = 2;
    let crc = crc32fast::hash(&raw[..layout::at::CRC]);
    raw[layout::at::CRC..].copy_from_slice(&crc.to_le_bytes());
    file.write_all_at(&raw, 0).unwrap();
    let before = files(&rig);
    let room = Arc::new(Room::new(super::rig::BOUNDS));
    let error = Spool::open(rig.storage.clone(), STREAM, room).unwrap_err().to_string();
    assert!(error.contains("version 2") && error.contains("upgrade"), "{error}");
    assert_eq!(files(&rig), before);
    let life = rig.life().clone();
    check_holds(&mut rig.spool, &life);
}
