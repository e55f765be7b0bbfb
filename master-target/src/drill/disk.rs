//! One disk of a drill: a point's disk, and what the drill has written to it.

use std::sync::Arc;

use super::{
    limits,
    nbd::{Errno, layout::extent},
    overlay::{Kind, Overlay, OverlayError},
};
use crate::image::Image;

/// A disk as its clients see it.
pub struct DrillDisk {
    image: Arc<dyn Image>,
    /// `None`: it takes no writes.
    overlay: Option<Overlay>,
}

impl DrillDisk {
    /// `image`, with what is written going to `overlay`.
    #[must_use]
    pub fn new(image: Arc<dyn Image>, overlay: Option<Overlay>) -> Self {
        Self { image, overlay }
    }

    /// Fills `buf` from `offset`. Ranges here and below lie within the disk.
    pub fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), OverlayError> {
        let Some(overlay) = &self.overlay else { return Ok(self.image.read_at(offset, buf)?) };
        for (part, kind) in overlay.parts(offset, buf.len() as u64) {
            let piece = &mut buf[(part.start - offset) as usize..(part.end - offset) as usize];
            match kind {
                None => self.image.read_at(part.start, piece)?,
                Some(Kind::Data) => overlay.read_data(part.start, piece)?,
                Some(Kind::Zero) => piece.fill(0),
            }
        }
        Ok(())
    }

    /// The overlay of a disk that takes writes, and what lies below it.
    pub fn writable(&self) -> Option<(&Overlay, &dyn Image)> {
        self.overlay.as_ref().map(|overlay| (overlay, self.image.as_ref()))
    }

    /// What is where, from `offset` on: lengths and flags, `most` of them at most, of `len` bytes at most.
    pub fn status(&self, offset: u64, len: u64, most: usize) -> Result<Vec<(u32, u32)>, OverlayError> {
        let end = offset + len.min(limits::STATUS_BYTES);
        let mut extents: Vec<(u32, u32)> = Vec::new();
        let mut at = offset;
        while at < end && extents.len() <= most {
            // A step at a time: the whole may be cut very finely.
            let step = (end - at).min(limits::STATUS_STEP);
            for (bytes, flags) in self.status_of(at, step)? {
                match extents.last_mut() {
                    // Lengths of ranges below `STATUS_BYTES` fit.
                    Some((last, last_flags)) if *last_flags == flags => *last += bytes as u32,
                    _ => extents.push((bytes as u32, flags)),
                }
            }
            at += step;
        }
        extents.truncate(most);
        Ok(extents)
    }

    fn status_of(&self, offset: u64, len: u64) -> Result<Vec<(u64, u32)>, OverlayError> {
        let hole = extent::HOLE | extent::ZERO;
        let parts = match &self.overlay {
            Some(overlay) => overlay.parts(offset, len),
            None => vec![(offset..offset + len, None)],
        };
        let mut extents = Vec::new();
        for (part, kind) in parts {
            let bytes = part.end - part.start;
            match kind {
                Some(Kind::Data) => extents.push((bytes, 0)),
                Some(Kind::Zero) => extents.push((bytes, hole)),
                None => {
                    let holes = self.image.holes(part.start, bytes)?;
                    extents.extend(holes.into_iter().map(|(len, zeros)| (len, if zeros { hole } else { 0 })));
                }
            }
        }
        Ok(extents)
    }
}

/// What a client is told of a failure.
#[must_use]
pub fn errno(error: &OverlayError) -> Errno {
    match error {
        OverlayError::Full { .. } | OverlayError::Scattered => Errno::NoSpace,
        OverlayError::Slow { .. } => Errno::NotSupported,
        OverlayError::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => Errno::NoSpace,
        OverlayError::Io { .. } | OverlayError::Below(_) => Errno::Io,
    }
}
