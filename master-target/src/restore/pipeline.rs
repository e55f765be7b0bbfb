//! The way back, as fast as disks allow: four stages at once, each a batch ahead of the next.
//!
//! The first reads before-images from the logs, many at once and announced ahead; the second reads what they will
//! overwrite; the third appends that to the restore's own log and syncs; the last writes the disks, many operations in
//! flight. Nothing is written before what it overwrites is synced, and a mark is set only when everything before it is.
//! Blocks that are as they should be are left alone.

use std::thread;

use crossbeam_channel::{Receiver, Sender, bounded};

use super::batch::{Batch, Batches, Changes};
use crate::{
    journal::{JournalError, Log, Mark, View, Watchers},
    replica::{ReplicaError, Target, disk_error},
};

/// Bytes from one mark to the next: what an interrupted restore looks at again.
const MARK_BYTES: u64 = 256 << 20;

/// What to follow, and what it touches.
pub(super) struct Way<'a> {
    pub(super) view: &'a View,
    pub(super) targets: &'a [Target],
    pub(super) watchers: &'a Watchers,
    /// Everything before is done.
    pub(super) from: Option<Mark>,
    /// Where what is overwritten is saved, if it is.
    pub(super) log: Option<&'a mut Log>,
}

/// Reads every image of a view once, to find damage before it is in the way. The error names the place.
pub(super) fn check(view: &View) -> Result<(), ReplicaError> {
    Batches::new(view, None)?.try_for_each(|batch| batch?.read(view).map_err(Into::into))
}

impl Way<'_> {
    /// Follows it to the end. `mark` is called when everything before a place is durable.
    pub(super) fn follow(
        self,
        progress: &mut dyn FnMut(u64, u64) -> bool,
        mark: &mut dyn FnMut(Mark) -> Result<(), ReplicaError>,
    ) -> Result<(), ReplicaError> {
        let Self { view, targets, watchers, from, log } = self;
        let batches = Batches::new(view, from)?;
        thread::scope(|scope| {
            let (read, images) = bounded(0);
            let ahead = Ahead::new(batches, view);
            scope.spawn(move || stage(ahead, &read, |mut batch| batch.read(view).map(|()| batch)));
            let ready = match log {
                None => images,
                Some(log) => {
                    let ((looked, changes), (saved, ready)) = (bounded(0), bounded(0));
                    scope.spawn(move || stage(images, &looked, |batch| batch.look(targets)));
                    scope.spawn(move || {
                        stage(changes, &saved, |changes: Changes| changes.save(watchers, log));
                    });
                    ready
                }
            };
            write_all(ready, targets, view.bytes(), progress, mark)
        })
    }
}

/// Does `work` with what comes in, and passes it on. Ends when nothing comes any more, something failed, or nobody
/// wants it.
fn stage<In, Out, E: Into<ReplicaError>>(
    incoming: impl IntoIterator<Item = Result<In, ReplicaError>>,
    outgoing: &Sender<Result<Out, ReplicaError>>,
    mut work: impl FnMut(In) -> Result<Out, E>,
) {
    for item in incoming {
        let done = item.and_then(|item| work(item).map_err(Into::into));
        let failed = done.is_err();
        // A closed channel means that a later stage failed; it says so itself.
        if outgoing.send(done).is_err() || failed {
            return;
        }
    }
}

fn write_all(
    ready: Receiver<Result<Batch, ReplicaError>>,
    targets: &[Target],
    all: u64,
    progress: &mut dyn FnMut(u64, u64) -> bool,
    mark: &mut dyn FnMut(Mark) -> Result<(), ReplicaError>,
) -> Result<(), ReplicaError> {
    let sync = |disk: u16| {
        let target = &targets[usize::from(disk)];
        target.device.sync().map_err(|e| disk_error("sync", target, 0, e))
    };
    let (mut done, mut unmarked, mut current) = (0, 0, None);
    for batch in ready {
        let batch = batch?;
        if let Some(before) = current.replace(batch.disk).filter(|before| *before != batch.disk) {
            sync(before)?;
        }
        let (disk, span, end) = (batch.disk, batch.span, batch.end);
        batch.write(&targets[usize::from(disk)])?;
        (done, unmarked) = (done + span, unmarked + span);
        let go_on = progress(done, all.max(done));
        if unmarked >= MARK_BYTES || !go_on {
            sync(disk)?;
            mark(Mark { disk, block: end })?;
            unmarked = 0;
        }
        if !go_on {
            return Err(ReplicaError::Interrupted);
        }
    }
    current.map_or(Ok(()), sync)
}

/// Batches, each but the first announced to the logs' files before the one before it is read.
struct Ahead<'a> {
    view: &'a View,
    batches: Batches,
    next: Option<Result<Batch, JournalError>>,
}

impl<'a> Ahead<'a> {
    fn new(mut batches: Batches, view: &'a View) -> Self {
        Self { next: batches.next(), batches, view }
    }
}

impl Iterator for Ahead<'_> {
    type Item = Result<Batch, ReplicaError>;

    fn next(&mut self) -> Option<Self::Item> {
        let batch = std::mem::replace(&mut self.next, self.batches.next());
        if let Some(Ok(next)) = &self.next {
            self.view.will_read(next.pieces());
        }
        batch.map(|batch| batch.map_err(Into::into))
    }
}
