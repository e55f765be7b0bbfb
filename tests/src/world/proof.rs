//! Verification in the simulated world: points are verified, disks at home rot, a tracker misses writes.

use std::path::PathBuf;

use engine::{
    digest::{LEAF_BYTES, Tree, leaf_digest},
    io::{StorageFile, write_all_at},
    net::{SignError, Signature},
    units::{Digest, StreamId},
};
use master_target::proof::{Finding, Report, ScrubPlan, Sign};

use super::*;

/// Signs without a key: what a signature is worth is tested elsewhere.
struct Stamp;

impl Sign for Stamp {
    fn name(&self) -> &str {
        "simulated"
    }

    fn sign(&self, message: &[u8]) -> Result<Signature, SignError> {
        let digest = Digest::of(message).to_string();
        Ok(Signature { algorithm: "none".into(), value: digest, certificate: String::new() })
    }
}

/// A byte at home.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Of which disk.
    pub disk: usize,
    /// Where.
    pub offset: u64,
}

impl World {
    /// Lets the world run without mishaps for `steps` steps, its writers as busy as they like.
    pub fn live(&mut self, steps: u32) {
        (0..steps).for_each(|_| self.step(true));
    }

    /// As [`Self::live`], until home equals the VM, whose writers then rest.
    pub fn come_to_rest(&mut self) {
        self.settle();
    }

    /// Begins to verify the newest point, if there is one.
    pub fn begin_to_verify(&mut self) -> bool {
        let (now, wall) = (self.now(), self.vm.wall());
        let Some(target) = &mut self.target else { return false };
        let Some(point) = target.replica().state().replicated().next_back().cloned() else { return false };
        target.verify(&point, Arc::new(Stamp), wall, now).unwrap();
        true
    }

    /// Verifies the newest point and waits until that is over.
    pub fn verify(&mut self) -> Report {
        for _ in 0..20_000 {
            if self.begin_to_verify() {
                break;
            }
            self.step(true);
        }
        self.await_report()
    }

    /// The same of the oldest point.
    pub fn verify_oldest(&mut self) -> Report {
        let (now, wall) = (self.now(), self.vm.wall());
        let target = self.target();
        let point = target.replica().state().replicated().next().expect("there are points").clone();
        target.verify(&point, Arc::new(Stamp), wall, now).unwrap();
        self.await_report()
    }

    fn await_report(&mut self) -> Report {
        for _ in 0..400_000 {
            self.step(true);
            if let Some(report) = self.report().filter(Report::is_over) {
                return report;
            }
        }
        panic!("the verification does not end: {:?}", self.report());
    }

    /// How the verification stands.
    pub fn report(&self) -> Option<Report> {
        self.target.as_ref().and_then(|target| target.proof().report())
    }

    /// The master target's node.
    pub fn target(&mut self) -> &mut target_node::StreamNode {
        self.target.as_mut().expect("the master target was connected")
    }

    /// Flips a random bit of a random disk at home.
    pub fn rot_disk(&mut self) -> Place {
        let disk = self.rng.random_range(0..self.plan.disks.len());
        let offset = self.rng.random_range(0..self.plan.disks[disk] * BLOCK_BYTES);
        let device = self.target_storage.device(&self.flat_file(disk)).unwrap();
        let mut byte = read_exact_at(device.as_ref(), offset / 512 * 512, 512).unwrap().to_vec();
        byte[(offset % 512) as usize] ^= 1 << self.rng.random_range(0..8);
        write_all_at(device.as_ref(), offset / 512 * 512, &byte).unwrap();
        Place { disk, offset }
    }

    /// Flips a random bit of a random file of the journal's folder that `wanted` says yes to, and says which and where.
    pub fn rot_file(&mut self, wanted: impl Fn(&str) -> bool) -> Option<(PathBuf, u64)> {
        let dir = PathBuf::from(StreamId::to_string(&STREAM));
        let names = self.target_storage.list(&dir).unwrap().into_iter().filter(|name| wanted(name));
        let open = |name: String| {
            let path = dir.join(name);
            let file = self.target_storage.open(&path).unwrap();
            let len = file.len().unwrap();
            (path, file, len)
        };
        let files: Vec<(PathBuf, Box<dyn StorageFile>, u64)> =
            names.map(open).filter(|(_, _, len)| *len > 0).collect();
        if files.is_empty() {
            return None;
        }
        let (path, file, len) = &files[self.rng.random_range(0..files.len())];
        let (at, mut byte) = (self.rng.random_range(0..*len), [0]);
        file.read_exact_at(&mut byte, at).unwrap();
        byte[0] ^= 1 << self.rng.random_range(0..8);
        file.write_all_at(&byte, at).unwrap();
        Some((path.clone(), at))
    }

    /// Scrubs everything once, with nothing else going on, and says what was found.
    pub fn scrub(&mut self) -> Vec<Finding> {
        let (mut now, wall) = (self.now(), self.vm.wall());
        let target = self.target();
        if target.proof().scrub_status().is_none() {
            target.scrub(ScrubPlan { rate: 1 << 40, every: Duration::ZERO }, now);
        }
        let passes = |target: &target_node::StreamNode| target.proof().scrub_status().unwrap().passes;
        let before = passes(target);
        while passes(target) == before {
            now += Duration::from_secs(1);
            target.work(now, wall);
        }
        target.proof().scrub_status().unwrap().findings
    }

    /// The undo log that is appended to.
    pub fn open_log(&mut self) -> String {
        format!("layer-{:010}.undo", self.target().replica().state().open)
    }

    /// Leaves at home that are not as on the VM's disks, as disk and first byte.
    pub fn stale_leaves(&self) -> BTreeSet<(usize, u64)> {
        let mut stale = BTreeSet::new();
        for (disk, home) in self.images().iter().enumerate() {
            let source = self.vm.bytes(DiskIndex(disk as u16));
            let leaves = home.chunks(LEAF_BYTES as usize).zip(source.chunks(LEAF_BYTES as usize));
            let differing = (0..).zip(leaves).filter(|(_, (home, source))| home != source);
            stale.extend(differing.map(|(leaf, _): (u64, _)| (disk, leaf * LEAF_BYTES)));
        }
        stale
    }

    /// Root of the digest tree of a disk of the VM as it is now.
    #[must_use]
    pub fn source_root(&self, disk: usize) -> Digest {
        let bytes = self.vm.bytes(DiskIndex(disk as u16));
        let leaves = bytes.chunks(LEAF_BYTES as usize).map(leaf_digest).collect();
        Tree::new(bytes.len() as u64, leaves).unwrap().root()
    }

    /// Name of a disk, as in reports.
    #[must_use]
    pub fn disk_name(disk: usize) -> String {
        format!("sd{disk}")
    }

    /// A world whose agent's tracker misses one write in `one_in`.
    #[must_use]
    pub fn with_broken_tracker(seed: u64, one_in: u32) -> Self {
        let mut world = Self::new(seed);
        world.misses_one_in = Some(one_in);
        world.agent = start_agent(&world.vm, &world.plan, seed, world.misses_one_in);
        world
    }

    /// Everything that the tracker knows of is at home, and the VM rests.
    pub fn rest_as_known(&mut self) {
        self.vm.set_activity(2);
        self.vm.quiesced(|| ());
        self.vm.set_activity(0);
        let request = self.agent.handle_point_request(Consistency::CrashConsistent);
        for _ in 0..100_000 {
            self.step(true);
            if self.answers.remove(&request).is_some() {
                return;
            }
        }
        panic!("no point was made: {:?}", self.agent.status(self.now()));
    }
}
