//! Frames that were received and are not applied yet: opened (decompressed and hashed, most of the CPU time here) ahead,
//! while those before them are written.
//!
//! Threads do it in the service; without them, as in simulations, it happens when a batch is taken.

use std::collections::VecDeque;

use engine::{
    frame::{Frame, Unpacked},
    limits,
    units::Seq,
    work::Queue,
};

/// Threads that open frames, one queue for each stream.
pub type Openers = Queue<Frame, Unpacked>;

/// Content of frames that are opened ahead, in bytes, and one frame; besides those of the batch that is applied.
const AHEAD_BYTES: usize = limits::BATCH_BYTES;

/// Frames in the order of the stream. Bounded by the window.
#[derive(Default)]
pub(crate) struct Opening {
    frames: VecDeque<Frame>,
    openers: Option<Openers>,
    /// How many of the first frames were handed to `openers`, and their content in bytes.
    begun: usize,
    begun_bytes: usize,
}

impl Opening {
    /// From now on, threads open frames.
    pub(crate) fn use_openers(&mut self, openers: Openers) {
        self.openers = Some(openers);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    pub(crate) fn push(&mut self, frame: Frame) {
        self.frames.push_back(frame);
        self.open_ahead();
    }

    pub(crate) fn clear(&mut self) {
        self.frames.clear();
        self.forget();
    }

    /// As many frames as may be in memory uncompressed; at least one. They stay until [`Self::applied`].
    pub(crate) fn batch(&mut self) -> Vec<Unpacked> {
        let mut bytes = 0;
        let within = self.frames.iter().take_while(|frame| {
            bytes += content_bytes(frame);
            bytes <= limits::BATCH_BYTES
        });
        let count = within.count().max(1).min(self.frames.len());
        let Some(openers) = &mut self.openers else {
            return self.frames.iter().take(count).cloned().map(Frame::unpack).collect();
        };
        for frame in self.frames.range(self.begun..count.max(self.begun)) {
            openers.submit(frame.clone());
            self.begun += 1;
            self.begun_bytes += content_bytes(frame);
        }
        let batch = (0..count).map_while(|_| openers.collect()).collect();
        self.begun_bytes -= self.frames.range(..count).map(content_bytes).sum::<usize>();
        // Those of the batch are counted still.
        self.open_ahead();
        batch
    }

    /// The last batch was applied up to `seq`; what is left of it is opened again. Returns the frames applied.
    pub(crate) fn applied(&mut self, seq: Seq, batch: usize) -> Vec<Frame> {
        let applied = self.frames.iter().take_while(|frame| frame.header().seq <= seq).count();
        let frames: Vec<Frame> = self.frames.drain(..applied).collect();
        if applied == batch {
            self.begun = self.begun.saturating_sub(batch);
        } else {
            self.forget();
        }
        self.open_ahead();
        frames
    }

    fn open_ahead(&mut self) {
        let Some(openers) = &mut self.openers else { return };
        for frame in self.frames.range(self.begun..) {
            if self.begun_bytes >= AHEAD_BYTES {
                return;
            }
            openers.submit(frame.clone());
            self.begun += 1;
            self.begun_bytes += content_bytes(frame);
        }
    }

    fn forget(&mut self) {
        self.openers.iter_mut().for_each(Openers::clear);
        (self.begun, self.begun_bytes) = (0, 0);
    }
}

fn content_bytes(frame: &Frame) -> usize {
    frame.header().content_len as usize
}

#[cfg(test)]
mod tests {
    use engine::{
        extent::Extent,
        frame::{ContentBuilder, Packed, Payload, Position},
        units::{BLOCK_BYTES, Digest, DiskIndex, StreamId},
    };
    use proptest::prelude::*;

    use super::*;

    /// Frames of stated content, larger than a batch in all.
    fn frames(count: u8) -> Vec<Frame> {
        let mut at = Position::START;
        let seal = |number| {
            let mut content = ContentBuilder::default();
            let blocks = u32::from(number) * 16;
            let bytes = vec![number; blocks as usize * BLOCK_BYTES as usize];
            content.push(Extent::new(0, blocks), Payload::Data(&bytes));
            let packed = Packed::data(DiskIndex(0), &content.finish(), 1, 1);
            let frame = packed.seal(StreamId(uuid::Uuid::nil()), &at);
            at = Position::after(frame.header());
            frame
        };
        (1..=count).map(seal).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// Whatever of a batch is applied, the next one goes on behind it, with threads as without.
        #[test]
        fn batches_go_on_where_the_last_was_applied(
            threads in 0usize..4,
            steps in prop::collection::vec((0usize..12, 0usize..100), 1..30),
        ) {
            let all = frames(40);
            let mut coming = all.iter();
            let mut opening = Opening::default();
            if threads > 0 {
                opening.use_openers(Openers::start("open", threads, Frame::unpack).unwrap());
            }
            let mut done = 0;
            for (arrive, percent) in steps {
                coming.by_ref().take(arrive).cloned().for_each(|frame| opening.push(frame));
                if opening.is_empty() {
                    continue;
                }
                let batch = opening.batch();
                let bytes: usize = batch.iter().map(|frame| frame.header().content_len as usize).sum();
                prop_assert!(!batch.is_empty() && (batch.len() == 1 || bytes <= limits::BATCH_BYTES));
                let (count, applied) = (batch.len(), batch.len() * percent / 99);
                for (frame, expected) in batch.into_iter().zip(&all[done..]) {
                    prop_assert_eq!(frame.header(), expected.header());
                    prop_assert!(frame.open(before(&all, expected)).is_ok());
                }
                let seq = Seq((done + applied) as u64);
                prop_assert_eq!(opening.applied(seq, count).len(), applied);
                done += applied;
            }
        }
    }

    fn before(all: &[Frame], frame: &Frame) -> Digest {
        match frame.header().seq.0 {
            1 => Position::START.chain,
            seq => all[seq as usize - 2].header().chain,
        }
    }
}
