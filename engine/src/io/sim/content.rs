//! The bytes of one simulated file, in shared pages: a copy costs nothing until one of the two is written.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    sync::Arc,
};

/// Bytes of a page, and of the space that a file system gives out at a time.
pub(super) const PAGE: u64 = 4096;

/// Pages that are missing read as zeros and take no space. Nothing but zeros stands past `len` in a page.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Content {
    len: u64,
    pages: BTreeMap<u64, Arc<[u8; PAGE as usize]>>,
}

impl Content {
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Bytes that it takes on disk.
    pub(super) fn allocated(&self) -> u64 {
        self.pages.len() as u64 * PAGE
    }

    /// Fills `buf` from `offset`; false if the file ends before.
    pub(super) fn read(&self, offset: u64, buf: &mut [u8]) -> bool {
        if offset.checked_add(buf.len() as u64).is_none_or(|end| end > self.len) {
            return buf.is_empty();
        }
        for (page, start, range) in pieces(offset, buf.len() as u64) {
            let target = &mut buf[range];
            match self.pages.get(&page) {
                Some(bytes) => target.copy_from_slice(&bytes[start..start + target.len()]),
                None => target.fill(0),
            }
        }
        true
    }

    /// A range, cut into missing pages and others: lengths and whether they are missing.
    pub(super) fn holes(&self, offset: u64, len: u64) -> Vec<(u64, bool)> {
        let mut parts: Vec<(u64, bool)> = Vec::new();
        for (page, _, range) in pieces(offset, len) {
            let hole = !self.pages.contains_key(&page);
            match parts.last_mut() {
                Some((len, last)) if *last == hole => *len += range.len() as u64,
                _ => parts.push((range.len() as u64, hole)),
            }
        }
        parts
    }

    /// Writes, growing the file as needed.
    pub(super) fn write(&mut self, offset: u64, bytes: &[u8]) {
        for (page, start, range) in pieces(offset, bytes.len() as u64) {
            let target = Arc::make_mut(self.pages.entry(page).or_insert_with(empty_page));
            target[start..start + range.len()].copy_from_slice(&bytes[range]);
        }
        if !bytes.is_empty() {
            self.len = self.len.max(offset + bytes.len() as u64);
        }
    }

    /// How many of `len` bytes at `offset` can be written with `space` bytes of disk more than now.
    pub(super) fn writable(&self, offset: u64, len: u64, space: u64) -> u64 {
        let mut pages_left = space / PAGE;
        for (page, _, range) in pieces(offset, len) {
            if !self.pages.contains_key(&page) {
                let Some(left) = pages_left.checked_sub(1) else { return range.start as u64 };
                pages_left = left;
            }
        }
        len
    }

    /// Makes a range read as zeros. Bytes past the end stay past it.
    pub(super) fn zero(&mut self, offset: u64, len: u64) {
        let end = (offset + len).min(self.len);
        for page in self.pages_in(offset, end) {
            let start = page * PAGE;
            if offset <= start && (start + PAGE <= end || end == self.len) {
                self.pages.remove(&page);
            } else if let Entry::Occupied(mut bytes) = self.pages.entry(page) {
                let range = (offset.max(start) - start) as usize..(end.min(start + PAGE) - start) as usize;
                Arc::make_mut(bytes.get_mut())[range].fill(0);
            }
        }
    }

    pub(super) fn set_len(&mut self, len: u64) {
        if len < self.len {
            self.zero(len, self.len - len);
        }
        self.len = len;
    }

    /// Inverts the bits of `mask` in the byte at `offset`, if there is one.
    pub(super) fn flip(&mut self, offset: u64, mask: u8) {
        if offset < self.len {
            let page = Arc::make_mut(self.pages.entry(offset / PAGE).or_insert_with(empty_page));
            page[(offset % PAGE) as usize] ^= mask;
        }
    }

    /// Numbers of the pages that exist in `from..to`.
    fn pages_in(&self, from: u64, to: u64) -> Vec<u64> {
        if from >= to {
            return Vec::new();
        }
        self.pages.range(from / PAGE..to.div_ceil(PAGE)).map(|(&page, _)| page).collect()
    }
}

fn empty_page() -> Arc<[u8; PAGE as usize]> {
    Arc::new([0; PAGE as usize])
}

/// Cuts a range at pages: page number, where in the page, and where in the range.
fn pieces(offset: u64, len: u64) -> impl Iterator<Item = (u64, usize, std::ops::Range<usize>)> {
    let end = offset + len;
    (offset / PAGE..end.div_ceil(PAGE)).filter(move |_| len > 0).map(move |page| {
        let from = offset.max(page * PAGE);
        let to = end.min((page + 1) * PAGE);
        (page, (from % PAGE) as usize, (from - offset) as usize..(to - offset) as usize)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Write(u64, Vec<u8>),
        Zero(u64, u64),
        SetLen(u64),
        Flip(u64, u8),
    }

    fn step() -> impl Strategy<Value = Step> {
        let offset = || prop_oneof![0u64..20_000, (0u64..5).prop_map(|page| page * PAGE)];
        prop_oneof![
            (offset(), prop::collection::vec(1u8.., 0..9000)).prop_map(|(at, bytes)| Step::Write(at, bytes)),
            (offset(), offset()).prop_map(|(at, len)| Step::Zero(at, len)),
            offset().prop_map(Step::SetLen),
            (offset(), any::<u8>()).prop_map(|(at, mask)| Step::Flip(at, mask)),
        ]
    }

    proptest! {
        #[test]
        fn behaves_like_a_vector(steps in prop::collection::vec(step(), 0..30)) {
            let mut content = Content::default();
            let mut model = Vec::new();
            for step in steps {
                let before = (content.clone(), model.clone());
                match step {
                    Step::Write(at, bytes) => {
                        content.write(at, &bytes);
                        let end = at as usize + bytes.len();
                        if !bytes.is_empty() {
                            model.resize(model.len().max(end), 0);
                            model[at as usize..end].copy_from_slice(&bytes);
                        }
                    }
                    Step::Zero(at, len) => {
                        content.zero(at, len);
                        let end = ((at + len) as usize).min(model.len());
                        model[(at as usize).min(end)..end].fill(0);
                    }
                    Step::SetLen(len) => {
                        content.set_len(len);
                        model.resize(len as usize, 0);
                    }
                    Step::Flip(at, mask) => {
                        content.flip(at, mask);
                        if let Some(byte) = model.get_mut(at as usize) {
                            *byte ^= mask;
                        }
                    }
                }
                for (content, model) in [(&content, &model), (&before.0, &before.1)] {
                    let mut bytes = vec![9; model.len()];
                    prop_assert!(content.read(0, &mut bytes));
                    prop_assert!(bytes == *model);
                    prop_assert_eq!(content.len(), model.len() as u64);
                    prop_assert!(!content.read(1, &mut bytes) || model.is_empty());
                }
            }
        }
    }
}
