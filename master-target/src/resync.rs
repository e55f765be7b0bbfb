//! A resync's questions: what digests leaves have here, so that an agent that does not know need not send them.
//!
//! They are answered one at a time, between batches, from the disks as they stand then. Digests that are stored save
//! reading; what must be read is stored. Nothing here decides what is equal: the agent does, by the digests.

use std::{collections::VecDeque, io};

use engine::{
    digest::leaves_in,
    frame::{Compare, Compared, digest_of_all},
    limits,
    session::SessionError,
    units::Digest,
};

use crate::{digests::digests_of, replica::Replica};

/// Questions that wait. Bounded by what the process server passes on.
#[derive(Default)]
pub(crate) struct Questions(VecDeque<Compare>);

impl Questions {
    /// Takes a question of the agent's.
    pub(crate) fn push(&mut self, replica: &Replica, question: Compare) -> Result<(), SessionError> {
        let target = replica.targets.get(usize::from(question.span.disk.0));
        let leaves = target.map_or(0, |target| leaves_in(target.bytes));
        if question.span.leaves().any(|leaf| leaf >= leaves) {
            return Err(SessionError::OutOfTurn("a question about leaves that the VM does not have"));
        }
        if self.0.len() >= limits::QUESTIONS {
            return Err(SessionError::OutOfTurn("more questions than may be unanswered"));
        }
        self.0.push_back(question);
        Ok(())
    }

    /// Nobody waits for answers any more.
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The answer to the oldest question. Reads at most a span.
    pub(crate) fn answer(&mut self, replica: &mut Replica) -> Option<Compared> {
        let Compare { span, digest: theirs } = self.0.pop_front()?;
        // Unreadable is unlike anything that the source may have.
        let digests = leaf_digests(replica, &span.leaves().collect::<Vec<_>>(), span.disk);
        let digests: Vec<Digest> =
            digests.into_iter().map(|(_, found)| found.unwrap_or(Digest::ZERO)).collect();
        let digest = digest_of_all(&digests);
        let digests = if digest == theirs { Vec::new() } else { digests };
        Some(Compared { span, position: replica.position().seq, digest, digests })
    }
}

/// Digests of leaves of a disk with everything applied so far, in their order.
fn leaf_digests(
    replica: &mut Replica,
    leaves: &[u64],
    disk: engine::units::DiskIndex,
) -> Vec<(u64, io::Result<Digest>)> {
    // Before the first point the journal does not know what was overwritten, so that stored digests would not be void
    // after a crash.
    let stored = !replica.state().points.is_empty() && replica.state().restore.is_none();
    let mut found = Vec::with_capacity(leaves.len());
    let mut unknown = Vec::new();
    for leaf in leaves {
        match replica.digests.get(disk, *leaf).filter(|_| stored) {
            Some(digest) => found.push((*leaf, Ok(digest))),
            None => unknown.push(*leaf),
        }
    }
    let target = &replica.targets[usize::from(disk.0)];
    for (leaf, read) in digests_of(target.device.as_ref(), target.bytes, &unknown) {
        if let (Ok(digest), true) = (&read, stored) {
            replica.digests.set(disk, leaf, *digest);
        }
        found.push((leaf, read));
    }
    found.sort_unstable_by_key(|(leaf, _)| *leaf);
    found
}
