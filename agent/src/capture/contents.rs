//! From blocks as read to the contents of frames: zeros found, the rest packed together up to a frame's size.
//!
//! A frame takes whole granules, because a granule leaves the dirty map as a whole.

use std::borrow::Cow;

use engine::{
    extent::Extent,
    extent_set::ExtentSet,
    frame::{ContentBuilder, Payload},
    limits,
    units::{BLOCK_BYTES, Block, DiskIndex, is_zero},
};

const BLOCK: usize = BLOCK_BYTES as usize;

/// The content of one data frame, and the blocks it is about.
#[derive(Debug)]
pub struct FrameContent {
    /// Whose blocks.
    pub disk: DiskIndex,
    /// Extent table and data.
    pub bytes: Vec<u8>,
    /// Entries of the table.
    pub extents: u32,
    /// Every block that it holds, in whole granules.
    pub covers: ExtentSet,
}

/// Collects blocks of one disk, in ascending order, into contents.
#[derive(Debug)]
pub struct Contents {
    disk: DiskIndex,
    /// Blocks of one granule of the disk's dirty map.
    granule: usize,
    builder: ContentBuilder,
    /// Data bytes and extents in `builder`, or about to be pushed to it.
    data: usize,
    extents: usize,
    covers: ExtentSet,
}

impl Contents {
    /// For a disk whose dirty map has granules of `granule` blocks.
    #[must_use]
    pub fn new(disk: DiskIndex, granule: usize) -> Self {
        let builder = ContentBuilder::default();
        Self { disk, granule, builder, data: 0, extents: 0, covers: ExtentSet::new() }
    }

    /// Adds blocks from `first` on, whole granules (but for the disk's end); contents that are full go to `made`.
    /// `bytes` may end within the disk's last block, which is then padded with zeros.
    pub fn add(&mut self, first: Block, bytes: &[u8], made: &mut Vec<FrameContent>) {
        let mut bytes = Cow::Borrowed(bytes);
        if bytes.len() % BLOCK != 0 {
            let whole = bytes.len().next_multiple_of(BLOCK);
            bytes.to_mut().resize(whole, 0);
        }
        let zero: Vec<bool> = bytes.chunks_exact(BLOCK).map(is_zero).collect();

        // Blocks before `pushed` are in the builder, those before `counted` in its counts.
        let (mut pushed, mut counted) = (0, 0);
        for granule in zero.chunks(self.granule) {
            let data = granule.iter().filter(|zero| !**zero).count() * BLOCK;
            let changes = granule.windows(2).filter(|pair| pair[0] != pair[1]).count();
            if self.data + data > limits::FRAME_DATA_TARGET
                || self.extents + changes + 1 > limits::FRAME_EXTENTS
            {
                self.push_runs(first.0 + pushed as u64, &bytes[pushed * BLOCK..], &zero[pushed..counted]);
                pushed = counted;
                self.finish(made);
            }
            let joins = counted > pushed && zero[counted] == zero[counted - 1];
            self.data += data;
            self.extents += changes + usize::from(!joins);
            counted += granule.len();
        }
        self.push_runs(first.0 + pushed as u64, &bytes[pushed * BLOCK..], &zero[pushed..]);
    }

    /// Ends the content begun, if any.
    pub fn finish(&mut self, made: &mut Vec<FrameContent>) {
        let builder = std::mem::take(&mut self.builder);
        let covers = std::mem::take(&mut self.covers);
        (self.data, self.extents) = (0, 0);
        if !builder.is_empty() {
            let extents = builder.extents() as u32;
            made.push(FrameContent { disk: self.disk, bytes: builder.finish(), extents, covers });
        }
    }

    /// Pushes the blocks from `at` on, as many as `zero` tells of, as runs of data and of zeros.
    fn push_runs(&mut self, mut at: u64, mut bytes: &[u8], zero: &[bool]) {
        for run in zero.chunk_by(|a, b| a == b) {
            let extent = Extent::new(at, run.len() as u32);
            let (data, rest) = bytes.split_at(run.len() * BLOCK);
            self.builder.push(extent, if run[0] { Payload::Zero } else { Payload::Data(data) });
            self.covers.insert_extent(extent);
            at += run.len() as u64;
            bytes = rest;
        }
    }
}

#[cfg(test)]
mod tests {
    use engine::frame::Content;
    use proptest::prelude::*;

    use super::*;

    fn parsed(made: &[FrameContent]) -> Vec<(Extent, Option<Vec<u8>>)> {
        let mut all = Vec::new();
        for content in made {
            assert!(content.bytes.len() <= limits::FRAME_CONTENT);
            assert!(content.extents as usize <= limits::FRAME_EXTENTS);
            let parsed = Content::parse(content.bytes.clone(), content.extents).unwrap();
            let mut covers = ExtentSet::new();
            for (extent, payload) in parsed.extents() {
                covers.insert_extent(extent);
                all.push(match payload {
                    Payload::Data(bytes) => (extent, Some(bytes.to_vec())),
                    Payload::Zero => (extent, None),
                    Payload::Copy { .. } => panic!("nothing is copied"),
                });
            }
            assert_eq!(covers, content.covers);
        }
        all
    }

    fn contents_of(granule: usize, pieces: &[(u64, Vec<u8>)]) -> Vec<FrameContent> {
        let (mut contents, mut made) = (Contents::new(DiskIndex(0), granule), Vec::new());
        pieces.iter().for_each(|(first, bytes)| contents.add(Block(*first), bytes, &mut made));
        contents.finish(&mut made);
        made
    }

    proptest! {
        #[test]
        fn every_block_arrives_as_it_was_and_granules_stay_whole(
            shift in 0u32..4,
            pieces in prop::collection::vec((0u64..3, prop::collection::vec(any::<bool>(), 1..60)), 1..30),
        ) {
            let granule = 1usize << shift;
            let (mut at, mut given, mut expected) = (0, Vec::new(), Vec::new());
            for (gap, zero) in pieces {
                at += gap * granule as u64;
                let count = zero.len().next_multiple_of(granule);
                let zero: Vec<bool> = zero.iter().copied().cycle().take(count).collect();
                let bytes: Vec<u8> =
                    zero.iter().enumerate().flat_map(|(i, z)| [if *z { 0 } else { i as u8 + 1 }; BLOCK]).collect();
                expected.extend(bytes.chunks(BLOCK).enumerate().map(|(i, b)| (at + i as u64, b.to_vec())));
                given.push((at, bytes));
                at += count as u64;
            }
            let made = contents_of(granule, &given);
            let mut found = Vec::new();
            for (extent, data) in parsed(&made) {
                let data = data.unwrap_or_else(|| vec![0; extent.bytes() as usize]);
                found.extend(data.chunks(BLOCK).enumerate().map(|(i, b)| (extent.start.0 + i as u64, b.to_vec())));
            }
            prop_assert!(found == expected);
            for content in &made {
                for extent in content.covers.extents() {
                    prop_assert_eq!(extent.start.0 % granule as u64, 0);
                    prop_assert_eq!(extent.end().0 % granule as u64, 0);
                }
            }
        }
    }

    #[test]
    fn neighbours_share_an_extent_and_zeros_cost_none() {
        let mut bytes = vec![7; 3 * BLOCK];
        bytes[BLOCK..2 * BLOCK].fill(0);
        let zeros = vec![0; 1 << 20];
        let made = contents_of(1, &[(0, bytes), (100, zeros.clone()), (1000, zeros)]);
        assert_eq!(made.len(), 1);
        let runs: Vec<_> = parsed(&made).iter().map(|(extent, data)| (*extent, data.is_some())).collect();
        let expected = [(0, 1, true), (1, 1, false), (2, 1, true), (100, 256, false), (1000, 256, false)];
        assert_eq!(runs, expected.map(|(start, blocks, data)| (Extent::new(start, blocks), data)));
    }

    #[test]
    fn a_short_last_block_is_padded() {
        let made = contents_of(1, &[(5, vec![9; BLOCK + 512])]);
        let (extent, data) = parsed(&made).remove(0);
        assert_eq!(extent, Extent::new(5, 2));
        let data = data.unwrap();
        assert!(data[..BLOCK + 512].iter().all(|b| *b == 9) && data[BLOCK + 512..].iter().all(|b| *b == 0));
    }

    #[test]
    fn scattered_blocks_are_cut_at_both_limits() {
        let pieces: Vec<_> = (0..3000).map(|i| (i * 2, vec![1; BLOCK])).collect();
        assert!(parsed(&contents_of(1, &pieces)).len() == 3000);
        let zeros: Vec<_> = (0..3000).map(|i| (i * 2, vec![0; BLOCK])).collect();
        let made = contents_of(1, &zeros);
        assert_eq!(made.len(), 3000usize.div_ceil(limits::FRAME_EXTENTS));
    }
}
