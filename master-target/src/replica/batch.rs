//! Frames that become durable together.

use engine::{
    extent::Extent,
    extent_set::ExtentSet,
    frame::{Content, Payload, Position},
    units::DiskIndex,
};

/// Frames that become durable together. They may be applied again after a failure, so none may copy from what
/// another of them overwrites.
pub(super) struct Batch<'a> {
    pub(super) contents: Vec<(DiskIndex, &'a Content)>,
    pub(super) written: Vec<ExtentSet>,
    copied: Vec<ExtentSet>,
    /// The position after the last of them.
    pub(super) position: Option<Position>,
}

impl<'a> Batch<'a> {
    pub(super) fn new(disks: usize) -> Self {
        let none = vec![ExtentSet::new(); disks];
        Self { contents: Vec::new(), written: none.clone(), copied: none, position: None }
    }

    /// Whether the batch must be durable before a frame with this content.
    pub(super) fn must_come_before(&self, disk: DiskIndex, content: &Content) -> bool {
        content.extents().any(|(extent, payload)| {
            let copies_written = source(extent, payload).is_some_and(|(from_disk, from)| {
                self.written[usize::from(from_disk.0)].intersects(from.start, from.end())
            });
            copies_written || self.copied[usize::from(disk.0)].intersects(extent.start, extent.end())
        })
    }

    pub(super) fn push(&mut self, disk: DiskIndex, content: &'a Content, position: Position) {
        for (extent, payload) in content.extents() {
            self.written[usize::from(disk.0)].insert_extent(extent);
            if let Some((from_disk, from)) = source(extent, payload) {
                self.copied[usize::from(from_disk.0)].insert_extent(from);
            }
        }
        self.contents.push((disk, content));
        self.position = Some(position);
    }
}

/// What an extent copies from.
fn source(extent: Extent, payload: Payload<'_>) -> Option<(DiskIndex, Extent)> {
    match payload {
        Payload::Copy { disk, from, .. } => Some((disk, Extent { start: from, blocks: extent.blocks })),
        Payload::Data(_) | Payload::Zero => None,
    }
}
