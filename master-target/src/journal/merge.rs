//! Merging: layers between which no point is kept any more become one layer, in which the older image of a block wins.
//!
//! Works from logs alone, never reads a disk, and changes nothing that is known until the catalogue says so: the new
//! log has a name of its own, and is a leftover until then. When to merge is a pure function of the catalogue. Two rules:
//! layers of like size are merged when there are several, so that a byte is rewritten O(log n) times while a run
//! grows; and what merging could free is at most [`SLACK`] of all, however unlike the sizes.

use std::sync::Arc;

use engine::{
    extent::Extent,
    units::{BLOCK_BYTES, Block, DiskIndex},
};

use super::{
    Gatherer, JournalError, Layer, Log, LogId, Logs, Piece, State,
    layout::{ENTRY_BLOCKS, IMAGE_BLOCKS},
};

/// What merging could free at most, as a part of all logs: one in so many.
const SLACK: u64 = 50;

/// Below this it is not worth a file, whatever part of all it is.
const SLACK_BYTES: u64 = 64 << 10;

/// Layers of like size that are merged at once.
const LIKE_SIZES: usize = 4;

/// Bytes of a log that are queued before they are written.
const QUEUED: u64 = 1 << 20;

/// The layers to merge next, if any should be.
#[must_use]
pub fn plan(state: &State) -> Option<Vec<Layer>> {
    if state.restore.is_some() {
        return None;
    }
    let runs = runs(state);
    let all = state.layer_bytes();
    let could_free = runs.iter().map(|run| slack(run)).sum::<u64>();
    if could_free > (all / SLACK).max(SLACK_BYTES) {
        return runs.into_iter().max_by_key(|run| slack(run));
    }
    runs.iter().find_map(|run| like_sizes(run))
}

/// Runs of layers with no point between them, of two and more.
fn runs(state: &State) -> Vec<Vec<Layer>> {
    let mut runs = vec![Vec::new()];
    for layer in state.layers.values() {
        if let Some(run) = runs.last_mut() {
            run.push(*layer);
        }
        if state.points.contains_key(&layer.last) {
            runs.push(Vec::new());
        }
    }
    runs.retain(|run| run.len() > 1);
    runs
}

/// What merging a run could free at most: all but its largest layer might be in that one, too.
fn slack(run: &[Layer]) -> u64 {
    let sizes = run.iter().map(|layer| layer.log_bytes);
    sizes.clone().sum::<u64>() - sizes.max().unwrap_or(0)
}

/// The newest layers of a run, from the first on that is not larger than all behind it together, if they are many.
fn like_sizes(run: &[Layer]) -> Option<Vec<Layer>> {
    let mut behind: u64 = run.iter().map(|layer| layer.log_bytes).sum();
    let from = run.iter().position(|layer| {
        behind -= layer.log_bytes;
        layer.log_bytes <= behind
    })?;
    let like = &run[from..];
    (like.len() >= LIKE_SIZES).then(|| like.to_vec())
}

/// Writes the log of what `layers` become. `go_on` is called now and then with the bytes written so far; when it says
/// no, the half-written log is left for the next start to remove, and `None` returned.
pub fn merge(
    logs: &Arc<Logs>,
    layers: &[Layer],
    go_on: &mut dyn FnMut(u64) -> bool,
) -> Result<Option<Layer>, JournalError> {
    let (Some(first), Some(last)) = (layers.first(), layers.last()) else { return Ok(None) };
    let _lease = logs.lease();
    let mut gatherer = Gatherer::new(&logs.scratch, &logs.bounds);
    layers.iter().try_for_each(|layer| logs.gather(layer, &mut gatherer))?;
    let pieces = gatherer.finish()?;

    let id = LogId { layer: last.last, generation: last.generation + 1 };
    let mut writer = Writer { log: logs.create(id)?, run: None, queued: 0 };
    let mut cursor = pieces.cursor();
    while let Some(piece) = cursor.next()? {
        writer.push(logs, &piece)?;
        if writer.queued >= QUEUED {
            writer.log.flush()?;
            writer.queued = 0;
            if !go_on(writer.log.bytes()) {
                return Ok(None);
            }
        }
    }
    writer.end_run();
    writer.log.sync()?;
    let log_bytes = writer.log.bytes();
    let merged = Layer { first: first.first, last: last.last, generation: id.generation, log_bytes };
    logs.write_index(&merged)?;
    Ok(Some(merged))
}

/// Joins pieces that touch into images of the usual size.
struct Writer {
    log: Log,
    run: Option<Run>,
    queued: u64,
}

struct Run {
    disk: DiskIndex,
    extent: Extent,
    /// Empty for zeros.
    bytes: Vec<u8>,
}

impl Writer {
    fn push(&mut self, logs: &Logs, piece: &Piece) -> Result<(), JournalError> {
        let zeros = piece.image.zeros;
        let mut bytes = vec![0; if zeros { 0 } else { piece.extent.bytes() as usize }];
        if !zeros {
            logs.read_into(piece, &mut bytes)?;
        }
        let mut at = piece.extent.start;
        while at < piece.extent.end() {
            let most = if zeros { ENTRY_BLOCKS } else { IMAGE_BLOCKS };
            let fits = self.run.as_ref().is_some_and(|run| {
                run.disk == piece.disk()
                    && run.extent.end() == at
                    && run.bytes.is_empty() == zeros
                    && run.extent.blocks < most
            });
            if !fits {
                self.end_run();
            }
            let run = self.run.get_or_insert(Run {
                disk: piece.disk(),
                extent: Extent { start: at, blocks: 0 },
                bytes: Vec::new(),
            });
            let blocks = u64::from(most - run.extent.blocks).min(piece.extent.end().0 - at.0);
            if !zeros {
                let from = ((at.0 - piece.extent.start.0) * BLOCK_BYTES) as usize;
                run.bytes.extend_from_slice(&bytes[from..][..(blocks * BLOCK_BYTES) as usize]);
            }
            run.extent.blocks += blocks as u32;
            at = Block(at.0 + blocks);
        }
        Ok(())
    }

    fn end_run(&mut self) {
        let Some(run) = self.run.take() else { return };
        if run.bytes.is_empty() {
            self.log.push_zeros(run.disk, run.extent);
        } else {
            self.log.push_image(run.disk, run.extent, &run.bytes);
        }
        self.queued += run.bytes.len() as u64;
    }
}
