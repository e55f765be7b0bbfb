//! The scrub: a bit that flips in any file of a journal is found, named, and mended where that can be.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use engine::{
    frame::{DiskInfo, Frame},
    io::{Storage, sim::SimStorage},
};
use jiff::Timestamp;
use master_target::{
    journal::{Bounds, TargetDisk},
    node::StreamNode,
    proof::{Finding, ScrubPlan},
    replica::{Replica, Target},
    retention::Policy,
};
use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::{
    admit, apply,
    merging::{drop_some, work},
    rounds,
    scenario::{Source, check_points, home as make_home, stream},
};

/// A stream at rest with merged layers, each with an index, and an open layer with a log.
fn at_rest(storage: &Arc<SimStorage>, source: &mut Source, rng: &mut StdRng) -> StreamNode {
    drop(admit(&make_home(storage)));
    let state = make_home(storage).state(stream().id).unwrap();
    let dir = stream().id.to_string();
    let flat = |target: &TargetDisk| match target {
        TargetDisk::Vmdk { descriptor, .. } => descriptor.replace(".vmdk", "-flat.vmdk"),
        TargetDisk::Device { path } => path.clone(),
    };
    let target = |(target, disk): (&TargetDisk, &DiskInfo)| Target {
        device: storage.device(Path::new(&flat(target))).unwrap(),
        bytes: disk.bytes,
        thin: true,
    };
    let targets = state.targets.iter().zip(&state.stream.disks).map(target).collect();
    let bounds = Bounds { unindexed: 0, ..Bounds::default() };
    let shared: Arc<dyn Storage> = Arc::clone(storage) as _;
    let mut replica = Replica::open_bounded(shared, Path::new(&dir), targets, bounds).unwrap();
    for _ in 0..20 {
        let frames: Vec<Frame> = (0..6).map(|_| source.next()).collect();
        apply(&mut replica, &frames);
        if rng.random_range(0..3) == 0 {
            drop_some(&mut replica, rng);
        }
    }
    let frames = [source.seal(), source.data()];
    apply(&mut replica, &frames);
    work(&mut replica, |_| {});
    StreamNode::new(replica, Policy::everything())
}

/// One pass of the scrub.
fn scrub(node: &mut StreamNode, now: &mut Instant) -> Vec<Finding> {
    let passes = |node: &StreamNode| node.proof().scrub_status().map_or(0, |status| status.passes);
    let before = passes(node);
    while passes(node) == before {
        *now += Duration::from_secs(1);
        node.work(*now, Timestamp::UNIX_EPOCH);
    }
    node.proof().scrub_status().unwrap().findings
}

#[test]
fn a_flipped_bit_of_any_file_of_the_journal_is_found_and_named() {
    let mut kinds = BTreeMap::<String, u32>::new();
    for seed in 0..rounds(100) {
        let storage = Arc::new(SimStorage::new());
        let (mut source, mut rng) = (Source::new(seed), StdRng::seed_from_u64(seed));
        let mut node = at_rest(&storage, &mut source, &mut rng);
        let mut now = Instant::now();
        node.scrub(ScrubPlan { rate: 1 << 40, every: Duration::ZERO }, now);
        assert_eq!(scrub(&mut node, &mut now), [], "seed {seed}");
        assert_eq!(scrub(&mut node, &mut now), [], "seed {seed}");

        let dir = stream().id.to_string();
        // Each kind of file as often as another.
        let kind = ["catalogue", ".undo", ".index", "digests-"][seed as usize % 4];
        let names = storage.list(dir.as_ref()).unwrap();
        let names: Vec<&String> = names.iter().filter(|name| name.contains(kind)).collect();
        let name = names[rng.random_range(0..names.len())];
        let path = Path::new(&dir).join(name);
        let at = rng.random_range(0..storage.open(&path).unwrap().len().unwrap());
        storage.flip_bits(&path, at, 1 << rng.random_range(0..8)).unwrap();

        let findings = scrub(&mut node, &mut now);
        let [finding] = &findings[..] else { panic!("seed {seed}, {name} at {at}: {findings:?}") };
        assert_eq!(finding.file, path.display().to_string(), "seed {seed}, {name} at {at}");
        let place = finding.offset..finding.offset + finding.bytes;
        assert!(place.contains(&at), "seed {seed}, {name} at {at}: found at {place:?}");
        *kinds.entry(kind.to_owned()).or_default() += 1;

        // What can be made again is.
        if kind == ".undo" {
            assert_eq!(scrub(&mut node, &mut now), findings, "seed {seed}: a log cannot be mended");
        } else {
            work(node.replica_mut(), |_| {});
            assert_eq!(scrub(&mut node, &mut now), [], "seed {seed}, {name} at {at}");
            let is_kept = |(id, _): &&(_, _)| node.replica().state().point(*id).is_some();
            let kept: Vec<_> = source.points.iter().filter(is_kept).cloned().collect();
            check_points(&storage, node.replica_mut(), &kept);
        }
    }
    println!("{kinds:?}");
}
