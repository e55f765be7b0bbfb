//! What an agent asks and is answered to find out which leaves the target holds already: for a resync.
//!
//! A question is about leaves of one *span*, [`limits::SPAN_LEAVES`] leaves from a multiple of that on. The answer says
//! what digests these leaves have at the target, with every frame up to a position applied and none after it. It
//! stands for itself: whoever reads it compares digests, and needs nothing of the question.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

use super::FrameError;
use crate::{
    digest::leaves_in,
    limits,
    units::{Digest, DiskIndex, Seq},
};

/// Leaves of one span, and not none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// Of which disk.
    pub disk: DiskIndex,
    /// The span's first leaf.
    pub first: u64,
    /// Which of its leaves.
    pub leaves: SpanLeaves,
}

/// A set of leaves of a span, a bit each: 64 hexadecimal digits in JSON.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpanLeaves([u8; SPAN_BYTES]);

const SPAN_BYTES: usize = (limits::SPAN_LEAVES / 8) as usize;

/// From the agent: does the master target hold these leaves as the source does? It may be lost on the way, and is then
/// said again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compare {
    /// Which leaves.
    #[serde(flatten)]
    pub span: Span,
    /// [`digest_of_all`] of their digests at the source.
    pub digest: Digest,
}

/// From the master target: what it holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compared {
    /// Which leaves.
    #[serde(flatten)]
    pub span: Span,
    /// The last frame that is applied; all of them are durable.
    pub position: Seq,
    /// [`digest_of_all`] of their digests at the target.
    pub digest: Digest,
    /// Their digests, in order, if `digest` is not the question's; else none. Zeros: it cannot be read.
    pub digests: Vec<Digest>,
}

/// One digest for the digests of leaves, in their order.
#[must_use]
pub fn digest_of_all(digests: &[Digest]) -> Digest {
    let bytes: Vec<u8> = digests.iter().flat_map(|digest| digest.0).collect();
    Digest::of(&bytes)
}

impl Span {
    /// Some leaves of a disk, of one span. `None` if there are none.
    ///
    /// # Panics
    /// If they are of several spans, which only a bug can make.
    #[must_use]
    pub fn of(disk: DiskIndex, leaves: impl IntoIterator<Item = u64>) -> Option<Self> {
        let mut span: Option<Self> = None;
        for leaf in leaves {
            let first = leaf / limits::SPAN_LEAVES * limits::SPAN_LEAVES;
            let span = span.get_or_insert(Self { disk, first, leaves: SpanLeaves::default() });
            assert_eq!(span.first, first, "leaves of one span");
            let index = (leaf - first) as usize;
            span.leaves.0[index / 8] |= 1 << (index % 8);
        }
        span
    }

    /// Its leaves, by their numbers on the disk, in order.
    pub fn leaves(&self) -> impl Iterator<Item = u64> + use<> {
        let Self { first, leaves, .. } = *self;
        let contains = move |index: &u64| leaves.0[(index / 8) as usize] & (1 << (index % 8)) != 0;
        (0..limits::SPAN_LEAVES).filter(contains).map(move |index| first + index)
    }

    /// Checks what a peer claims. Whether the VM has these leaves is the receiver's to see.
    fn check(&self) -> Result<(), FrameError> {
        let is_span = self.first.is_multiple_of(limits::SPAN_LEAVES)
            && self.first < leaves_in(limits::DISK_BYTES)
            && usize::from(self.disk.0) < limits::DISKS_PER_VM;
        // The first leaf of a span is far from overflow by now.
        if !is_span || self.leaves().last().is_none_or(|last| last >= leaves_in(limits::DISK_BYTES)) {
            return Err(FrameError::Malformed("leaves of no span, or none of one"));
        }
        Ok(())
    }
}

impl Compare {
    pub(super) fn check(&self) -> Result<(), FrameError> {
        self.span.check()
    }
}

impl Compared {
    pub(super) fn check(&self) -> Result<(), FrameError> {
        if self.position.0 >= limits::STREAM_NUMBER {
            return Err(FrameError::Malformed("a position that no stream reaches"));
        }
        if !self.digests.is_empty() && self.digests.len() != self.span.leaves().count() {
            return Err(FrameError::Malformed("not as many digests as leaves"));
        }
        self.span.check()
    }
}

impl Serialize for SpanLeaves {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Digest(self.0).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for SpanLeaves {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let hex = Digest::deserialize(deserializer);
        hex.map(|Digest(bytes)| Self(bytes)).map_err(|_| D::Error::custom("leaves are 64 hexadecimal digits"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_span_is_the_set_of_its_leaves(
            number in 0u64..1000,
            leaves in prop::collection::btree_set(0u64..limits::SPAN_LEAVES, 1..40),
        ) {
            let first = number * limits::SPAN_LEAVES;
            let leaves: Vec<u64> = leaves.into_iter().map(|leaf| first + leaf).collect();
            let span = Span::of(DiskIndex(3), leaves.iter().copied()).unwrap();
            prop_assert_eq!(span.first, first);
            prop_assert_eq!(span.leaves().collect::<Vec<_>>(), leaves);
            prop_assert_eq!(span.check(), Ok(()));
            let json = serde_json::to_string(&span).unwrap();
            prop_assert_eq!(serde_json::from_str::<Span>(&json).unwrap(), span);
        }
    }

    #[test]
    fn what_is_no_span_is_refused() {
        let good = Span::of(DiskIndex(59), [leaves_in(limits::DISK_BYTES) - 1]).unwrap();
        assert_eq!(good.check(), Ok(()));
        let beyond = leaves_in(limits::DISK_BYTES).next_multiple_of(limits::SPAN_LEAVES);
        for wrong in [
            Span { first: good.first + 1, ..good },
            Span { first: beyond, ..good },
            Span { first: u64::MAX - limits::SPAN_LEAVES + 1, ..good },
            Span { disk: DiskIndex(60), ..good },
            Span { leaves: SpanLeaves::default(), ..good },
        ] {
            assert!(wrong.check().is_err(), "{wrong:?}");
        }
        assert_eq!(Span::of(DiskIndex(0), []), None);
    }

    #[test]
    fn an_answer_has_a_digest_for_each_leaf_or_none() {
        let span = Span::of(DiskIndex(0), [1, 2]).unwrap();
        let answer = |digests| Compared { span, position: Seq(1), digest: Digest::ZERO, digests };
        assert!(answer(vec![]).check().is_ok() && answer(vec![Digest::ZERO; 2]).check().is_ok());
        assert!(
            answer(vec![Digest::ZERO]).check().is_err() && answer(vec![Digest::ZERO; 3]).check().is_err()
        );
        let far = Compared { position: Seq(limits::STREAM_NUMBER), ..answer(vec![]) };
        assert!(far.check().is_err());
    }
}
