//! One verification: digests of the source are compared as they arrive, until every leaf was found equal.
//!
//! A leaf counts as *direct* if the disk here has not overwritten it since the point when it is found equal: then both
//! sides hold what they held at the point. One that was overwritten meanwhile counts as settled *later*, as of the
//! point that its digest is of. What differs is sent again, and compared again; a point that holds it is marked.
//! In the end the root of each disk at the point is computed, from the digests that were compared and, for leaves that were
//! overwritten since, from the journal.

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use engine::{
    digest::{LEAF_BYTES, RootBuilder, leaf_digest},
    frame::{Control, LeafRange},
    limits,
    units::{Digest, DiskIndex, Epoch},
};
use jiff::Timestamp;

use super::{
    certificate::{Certificate, Coverage, DiskProof, Sign, Statement, VERSION},
    disk::DiskRun,
    report::{Difference, Phase, Report},
};
use crate::{
    digests::{DigestFile, Header},
    image::PointImage,
    journal::SealedPoint,
    replica::{Observed, Replica, ReplicaError},
};

/// Differences that are reported one by one.
pub const DIFFERENCES: usize = 1024;

/// How long nothing may arrive before the agent is asked again: what was asked may have been lost on the way.
const ASK_AGAIN: Duration = Duration::from_secs(20);

/// Leaves that are looked up, or read from the journal, in one step of computing the roots.
const STEP_KNOWN: u64 = 16 << 10;
const STEP_READ: u64 = 64;

/// A verification under way.
pub(super) struct Run {
    point: SealedPoint,
    begun_at: Timestamp,
    signer: Arc<dyn Sign>,
    image: PointImage,
    disks: Vec<DiskRun>,
    /// The first and the last point as of which something was compared.
    first: Option<Epoch>,
    settled_by: Epoch,
    differences: Vec<Difference>,
    different_leaves: u64,
    ask_at: Instant,
    resend: bool,
    computing: Option<Computing>,
}

/// Where computing the roots stands.
struct Computing {
    completed_at: Timestamp,
    roots: Vec<Digest>,
    leaf: u64,
    builder: RootBuilder,
}

impl Run {
    /// Begins to verify `point`.
    pub(super) fn begin(
        replica: &mut Replica,
        point: SealedPoint,
        signer: Arc<dyn Sign>,
        wall: Timestamp,
        now: Instant,
    ) -> Result<Self, ReplicaError> {
        let mut changed = replica.leaf_maps();
        let image = replica.open_image(&point)?;
        replica.overwritten_since(point.layer, |disk, extent| {
            changed[usize::from(disk.0)].insert_blocks(extent.start, extent.end());
        })?;
        let mut disks = Vec::new();
        for ((index, disk), changed) in (0..).map(DiskIndex).zip(image.disks()).zip(changed) {
            let stream = replica.state().stream.id;
            let header =
                Header { stream, disk: index, bytes: disk.bytes, layer: point.layer, is_whole: true };
            let path = replica.dir().join(format!("verify-{:02}", index.0));
            let digests = DigestFile::create(replica.storage(), &path, header)?;
            disks.push(DiskRun::new(index, &disk.name, disk.bytes, changed, digests));
        }
        replica.observe(true);
        Ok(Self {
            settled_by: point.point.epoch,
            point,
            begun_at: wall,
            signer,
            image,
            disks,
            first: None,
            differences: Vec::new(),
            different_leaves: 0,
            ask_at: now,
            resend: false,
            computing: None,
        })
    }

    /// Removes what it kept on disk.
    pub(super) fn end(self, replica: &mut Replica) {
        replica.observe(false);
        replica.flush_digests();
        for disk in 0..self.disks.len() {
            let path = replica.dir().join(format!("verify-{disk:02}"));
            if let Err(error) = replica.storage().remove(&path) {
                tracing::warn!(file = %path.display(), %error, "cannot remove a file that is not needed any more");
            }
        }
    }

    /// The point that is verified.
    pub(super) fn point(&self) -> &SealedPoint {
        &self.point
    }

    /// Takes what happened. Returns the points that are now known to hold something wrong, by epoch.
    pub(super) fn observe(
        &mut self,
        observed: Vec<Observed>,
        now: Instant,
    ) -> Result<Vec<Epoch>, ReplicaError> {
        let mut wrong = Vec::new();
        for observed in observed {
            match observed {
                Observed::Overwritten(written) => {
                    self.disks.iter_mut().zip(&written).for_each(|(disk, written)| disk.overwritten(written));
                }
                Observed::Sealed(point) => {
                    if self.disks.iter().any(DiskRun::is_wrong) {
                        wrong.push(point.point.epoch);
                    }
                }
                Observed::Compared { point, disk, leaves } => {
                    self.ask_at = now + ASK_AGAIN;
                    self.first.get_or_insert(point);
                    for (leaf, source, here) in leaves {
                        wrong.extend(self.compare(disk, point, leaf, source, here)?);
                    }
                }
            }
        }
        wrong.sort_unstable();
        wrong.dedup();
        Ok(wrong)
    }

    fn compare(
        &mut self,
        disk: DiskIndex,
        point: Epoch,
        leaf: u64,
        source: Digest,
        here: io::Result<Digest>,
    ) -> Result<Vec<Epoch>, ReplicaError> {
        let disk = &mut self.disks[usize::from(disk.0)];
        if here.as_ref().is_ok_and(|here| *here == source) {
            if disk.equal(leaf, source).map_err(stored)? {
                let offset = leaf * LEAF_BYTES;
                let of_this =
                    |d: &&mut Difference| d.disk == disk.name && d.offset == offset && d.repaired.is_none();
                self.differences.iter_mut().filter(|d| of_this(d)).for_each(|d| d.repaired = Some(point));
            }
            self.settled_by = self.settled_by.max(point);
            return Ok(Vec::new());
        }
        let is_new = disk.differs(leaf);
        self.resend = true;
        if is_new {
            let difference = disk.difference(leaf, point, here.err().map(|error| error.to_string()));
            tracing::error!(point = %self.point.point.id, "verification: {difference}");
            self.different_leaves += 1;
            if self.differences.len() < DIFFERENCES {
                self.differences.push(difference);
            }
        }
        let of_ours = disk.is_unchanged(leaf).then_some(self.point.point.epoch);
        Ok([point].into_iter().chain(of_ours).collect())
    }

    /// When the agent should be asked again.
    pub(super) fn ask_at(&self) -> Option<Instant> {
        (!self.is_settled()).then_some(self.ask_at)
    }

    /// A new connection: what was asked before may be lost.
    pub(super) fn handle_connected(&mut self, now: Instant) {
        self.ask_at = now;
        self.resend = true;
    }

    /// What the agent should be told now.
    pub(super) fn wishes(&mut self, now: Instant) -> Vec<Control> {
        let mut wishes = Vec::new();
        let ask = !self.is_settled() && now >= self.ask_at;
        if std::mem::take(&mut self.resend) || ask {
            let leaves = self.ranges(DiskRun::wrong);
            wishes.extend((!leaves.is_empty()).then_some(Control::Resend { leaves }));
        }
        if ask {
            self.ask_at = now + ASK_AGAIN;
            wishes.push(Control::Verify { leaves: self.ranges(DiskRun::wanted) });
        }
        wishes
    }

    fn ranges(&self, of: impl Fn(&DiskRun, usize) -> Vec<LeafRange>) -> Vec<LeafRange> {
        let share = (limits::LEAF_RANGES / self.disks.len()).max(1);
        self.disks.iter().flat_map(|disk| of(disk, share)).collect()
    }

    /// Whether every leaf was found equal.
    pub(super) fn is_settled(&self) -> bool {
        self.disks.iter().all(DiskRun::is_settled)
    }

    /// One step of computing the roots, once everything is settled; the certificate after the last. If something
    /// differed, there is none.
    pub(super) fn step(&mut self, replica: &Replica, wall: Timestamp) -> Result<Done, ReplicaError> {
        if self.different_leaves > 0 {
            return Ok(Done::Different);
        }
        let first = &self.disks[0];
        let computing = self.computing.get_or_insert_with(|| Computing {
            completed_at: wall,
            roots: Vec::new(),
            leaf: 0,
            builder: RootBuilder::new(first.bytes),
        });
        let disk = &mut self.disks[computing.roots.len()];
        let index = DiskIndex(computing.roots.len() as u16);
        let (mut known, mut read, mut bytes) = (0, 0, Vec::new());
        while computing.leaf < disk.coverage.leaves && known < STEP_KNOWN && read < STEP_READ {
            let digest = match disk.digests.get(computing.leaf).map_err(stored)? {
                Some(digest) => digest,
                None => {
                    let offset = computing.leaf * LEAF_BYTES;
                    bytes.resize(LEAF_BYTES.min(disk.bytes - offset) as usize, 0);
                    self.image.read_at(index, offset, &mut bytes)?;
                    read += 1;
                    leaf_digest(&bytes)
                }
            };
            computing.builder.push(digest);
            computing.leaf += 1;
            known += 1;
        }
        if computing.leaf < disk.coverage.leaves {
            return Ok(Done::NotYet);
        }
        let next = self.disks.get(computing.roots.len() + 1).map_or(0, |disk| disk.bytes);
        let builder = std::mem::replace(&mut computing.builder, RootBuilder::new(next));
        // Every leaf was pushed.
        let root = builder.finish().map_err(|error| refused(error.to_string()))?;
        computing.roots.push(root);
        computing.leaf = 0;
        if computing.roots.len() < self.disks.len() {
            return Ok(Done::NotYet);
        }
        let statement = self.statement(replica);
        let certificate =
            statement.certify(self.signer.as_ref()).map_err(|error| refused(error.to_string()))?;
        Ok(Done::Proven(Box::new(certificate)))
    }

    fn statement(&self, replica: &Replica) -> Statement {
        let (roots, completed_at) = match &self.computing {
            Some(computing) => (&computing.roots[..], computing.completed_at),
            None => (&[][..], self.begun_at),
        };
        let proof = |(disk, root): (&DiskRun, &Digest)| DiskProof {
            name: disk.name.clone(),
            bytes: disk.bytes,
            root: *root,
            coverage: disk.coverage,
        };
        let (point, state) = (&self.point.point, replica.state());
        Statement {
            version: VERSION,
            homeward: env!("CARGO_PKG_VERSION").into(),
            issuer: self.signer.name().to_owned(),
            vm: state.stream.vm.clone(),
            stream: state.stream.id,
            agent: state.agent.clone(),
            point: point.id,
            epoch: point.epoch,
            taken_at: point.taken_at,
            chain: self.point.chain,
            disks: self.disks.iter().zip(roots).map(proof).collect(),
            begun_at: self.begun_at,
            completed_at,
            settled_by: self.settled_by,
        }
    }

    /// How it stands.
    pub(super) fn report(&self) -> Report {
        let mut coverage = Coverage::default();
        self.disks.iter().for_each(|disk| coverage.add(disk.coverage));
        let mut differences: Vec<Difference> = Vec::new();
        for difference in &self.differences {
            match differences.last_mut() {
                Some(last) if last.goes_on_in(difference) => last.bytes += difference.bytes,
                _ => differences.push(difference.clone()),
            }
        }
        Report {
            point: self.point.point.id,
            begun_at: self.begun_at,
            phase: if self.is_settled() { Phase::Computing } else { Phase::Comparing },
            coverage,
            points: self.first.map_or(0, |first| self.settled_by.0.saturating_sub(first.0) + 1),
            differences,
            different_leaves: self.different_leaves,
            certificate: None,
        }
    }
}

/// How far computing is.
pub(super) enum Done {
    /// There is more to do.
    NotYet,
    /// Everything was equal.
    Proven(Box<Certificate>),
    /// Something differed.
    Different,
}

fn stored(error: crate::digests::DigestFileError) -> ReplicaError {
    refused(format!("the verification's own file cannot be used: {error}; verify again"))
}

fn refused(reason: String) -> ReplicaError {
    crate::journal::JournalError::Refused(reason).into()
}

/// Removes what a verification left that a crash ended.
pub(super) fn sweep(replica: &Replica) {
    for disk in 0..replica.targets.len() {
        let path = replica.dir().join(format!("verify-{disk:02}"));
        if replica.storage().exists(&path).unwrap_or(false) {
            // If it stays, the next verification writes it anew.
            let _ = replica.storage().remove(&path);
        }
    }
}
