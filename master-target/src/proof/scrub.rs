//! The scrub: disks, stored digests and journal are read again in the background, so that rot is found before somebody
//! needs what has rotted.
//!
//! Pass by pass, a little at a time between batches of replication, at a bounded rate. Disks are compared with the
//! digests that are stored of them; a leaf of which none is gets one, which the next pass compares. Logs, their indexes, the
//! catalogue and stored digests are compared with their checksums. What is found is reported; what can be made again from
//! something else here is, but no disk is written: only a verification, which asks the source, can tell what is right.

use std::{
    collections::BTreeMap,
    io,
    time::{Duration, Instant},
};

use engine::{
    digest::{LEAF_BYTES, leaves_in},
    units::DiskIndex,
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    digests::{Damaged, digests_of, layout},
    replica::{LayerCheck, Replica, Rot},
};

/// Leaves, or bytes of a log, of one step.
const STEP: u64 = 64;
const STEP_BYTES: u64 = STEP * LEAF_BYTES;

/// Findings that are reported one by one.
const FINDINGS: usize = 1024;

/// How fast and how often.
#[derive(Clone, Copy, Debug)]
pub struct ScrubPlan {
    /// Bytes read per second, at most; 0 is never.
    pub rate: u64,
    /// Time from the beginning of one pass to that of the next.
    pub every: Duration,
}

/// Something that is not what it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// The file or device.
    pub file: String,
    /// The first byte that may be wrong.
    pub offset: u64,
    /// How many bytes may be.
    pub bytes: u64,
    /// Name of the disk, if it is one's content.
    pub disk: Option<String>,
    /// What is wrong, and what to do.
    pub what: String,
    /// When it was found.
    pub found_at: Timestamp,
}

/// The scrub as it stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubStatus {
    /// Passes completed since the stream was opened.
    pub passes: u64,
    /// When the last of them was.
    pub completed_at: Option<Timestamp>,
    /// Bytes read in the pass under way; `None` between passes.
    pub bytes: Option<u64>,
    /// About how many a pass reads.
    pub of: u64,
    /// What was found, and not found right since.
    pub findings: Vec<Finding>,
}

/// The scrub of one stream.
pub(super) struct Scrub {
    plan: ScrubPlan,
    due: Instant,
    begun: Instant,
    at: Option<Place>,
    passes: u64,
    completed_at: Option<Timestamp>,
    bytes: u64,
    of: u64,
    /// The open layer when the pass came to the journal.
    last_layer: u64,
    /// By file and offset, with the pass in which it was found last.
    findings: BTreeMap<(String, u64), (u64, Finding)>,
}

/// Where a pass stands.
enum Place {
    Disk(DiskIndex, u64),
    Layer(u64, Option<Box<LayerCheck>>),
}

impl Scrub {
    pub(super) fn new(plan: ScrubPlan, now: Instant) -> Self {
        Self {
            plan,
            due: now,
            begun: now,
            at: None,
            passes: 0,
            completed_at: None,
            bytes: 0,
            of: 0,
            last_layer: 0,
            findings: BTreeMap::new(),
        }
    }

    /// When [`Self::step`] should be called next.
    pub(super) fn due(&self) -> Option<Instant> {
        (self.plan.rate > 0).then_some(self.due)
    }

    pub(super) fn status(&self) -> ScrubStatus {
        ScrubStatus {
            passes: self.passes,
            completed_at: self.completed_at,
            bytes: self.at.as_ref().map(|_| self.bytes),
            of: self.of,
            findings: self.findings.values().map(|(_, finding)| finding.clone()).collect(),
        }
    }

    /// A bounded piece of a pass.
    pub(super) fn step(&mut self, replica: &mut Replica, now: Instant, wall: Timestamp) {
        // Restored disks are not those of the digests, and before the first point there is nothing to keep.
        if replica.state().restore.is_some() || replica.state().points.is_empty() {
            self.at = None;
            self.due = now + PAUSE;
            return;
        }
        let place = match self.at.take() {
            Some(place) => place,
            None => {
                self.begun = now;
                self.bytes = 0;
                self.of =
                    replica.targets.iter().map(|target| target.bytes).sum::<u64>() + replica.journal_bytes();
                Place::Disk(DiskIndex(0), 0)
            }
        };
        let (read, next) = match place {
            Place::Disk(disk, leaf) => self.step_disk(replica, disk, leaf, wall),
            Place::Layer(layer, check) => self.step_layer(replica, layer, check, wall),
        };
        self.bytes += read;
        self.at = next;
        if self.at.is_some() {
            self.due = now + Duration::from_secs_f64(read as f64 / self.plan.rate as f64);
        } else {
            // A disk's are found right leaf by leaf; of files it only shows in the end.
            self.findings.retain(|_, (pass, finding)| finding.disk.is_some() || *pass == self.passes);
            self.passes += 1;
            self.completed_at = Some(wall);
            self.due = (self.begun + self.plan.every).max(now);
            replica.flush_digests();
            tracing::info!(
                vm = replica.state().stream.vm,
                bytes = self.bytes,
                findings = self.findings.len(),
                "scrub pass is complete"
            );
        }
    }

    fn step_disk(
        &mut self,
        replica: &mut Replica,
        disk: DiskIndex,
        leaf: u64,
        wall: Timestamp,
    ) -> (u64, Option<Place>) {
        let Some(target) = replica.targets.get(usize::from(disk.0)) else {
            // Layers that come later are read in the next pass, or this one might never end.
            self.last_layer = replica.state().open;
            return (0, Some(Place::Layer(0, None)));
        };
        let (device, bytes) = (target.device.clone(), target.bytes);
        let end = (leaf + STEP).min(leaves_in(bytes));
        if leaf >= end {
            return (0, Some(Place::Disk(DiskIndex(disk.0 + 1), 0)));
        }
        let pages = (leaf..end).filter(|leaf| leaf.is_multiple_of(layout::DIGESTS as u64));
        pages.for_each(|leaf| replica.digests.recheck(disk, leaf));
        let wanted: Vec<u64> = (leaf..end).collect();
        for (leaf, found) in digests_of(device.as_ref(), bytes, &wanted) {
            let known = replica.digests.get(disk, leaf);
            let what = match (known, found) {
                (Some(known), Ok(found)) if known == found => None,
                // A bad read is told from a bad disk by reading again.
                (Some(known), _) => wrong(known, digests_of(device.as_ref(), bytes, &[leaf]).pop()),
                (None, Ok(found)) => {
                    replica.digests.set(disk, leaf, found);
                    None
                }
                (None, Err(error)) => Some(unreadable(&error)),
            };
            let offset = leaf * LEAF_BYTES;
            let key = (device.name().to_owned(), offset);
            let Some(what) = what else {
                self.findings.remove(&key);
                continue;
            };
            let name = replica.state().stream.disks.get(usize::from(disk.0)).map(|disk| disk.name.clone());
            let bytes = LEAF_BYTES.min(bytes - offset);
            self.report(Finding { file: key.0, offset, bytes, disk: name, what, found_at: wall });
        }
        for Damaged { path, at, .. } in replica.digests.take_damage() {
            let what = "the stored digests there have rotted; they are computed anew".to_owned();
            let (file, bytes) = (path.display().to_string(), layout::PAGE as u64);
            self.report(Finding { file, offset: at, bytes, disk: None, what, found_at: wall });
        }
        ((end - leaf) * LEAF_BYTES, Some(Place::Disk(disk, end)))
    }

    fn step_layer(
        &mut self,
        replica: &mut Replica,
        layer: u64,
        check: Option<Box<LayerCheck>>,
        wall: Timestamp,
    ) -> (u64, Option<Place>) {
        let mut rot = Vec::new();
        let read = check.and_then(|mut check| {
            let read = replica.go_on_with(&mut check, STEP_BYTES, &mut rot)?;
            Some((read, Some(Place::Layer(layer, Some(check)))))
        });
        let next =
            read.unwrap_or_else(|| match replica.next_layer(layer).filter(|next| *next <= self.last_layer) {
                Some(next) => {
                    (0, Some(Place::Layer(next, replica.check_layer(next, &mut rot).map(Box::new))))
                }
                None => {
                    replica.check_catalogue(&mut rot);
                    (0, None)
                }
            });
        for Rot { path, at, bytes, what } in rot {
            let file = path.display().to_string();
            self.report(Finding { file, offset: at, bytes, disk: None, what, found_at: wall });
        }
        next
    }

    fn report(&mut self, finding: Finding) {
        let key = (finding.file.clone(), finding.offset);
        if let Some((pass, _)) = self.findings.get_mut(&key) {
            *pass = self.passes;
            return;
        }
        let Finding { file, offset, what, .. } = &finding;
        tracing::error!(file, offset, what, "scrub: this is not what it was");
        if self.findings.len() < FINDINGS {
            self.findings.insert(key, (self.passes, finding));
        }
    }
}

/// How long to wait where there is nothing to scrub.
const PAUSE: Duration = Duration::from_secs(60);

/// What is wrong with a leaf whose digest is known, after a second read.
fn wrong(
    known: engine::units::Digest,
    again: Option<(u64, io::Result<engine::units::Digest>)>,
) -> Option<String> {
    match again?.1 {
        Ok(found) if found == known => None,
        Ok(_) => Some(
            "the disk's content has changed although nobody wrote it; verify the newest point, which sends it again"
                .into(),
        ),
        Err(error) => Some(unreadable(&error)),
    }
}

fn unreadable(error: &io::Error) -> String {
    format!("the disk cannot be read there: {error}; verify the newest point, which sends it again")
}
