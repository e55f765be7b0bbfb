//! Export: a disk of any point, written out as a file of its own, while replication goes on.
//!
//! As a streamOptimized VMDK, for import by OVF, or raw. The disk is read as drills read it, piece by piece on several
//! threads; what is zero is left out. A file is then read again and compared by the digest tree's root, which is also what
//! a certificate of a proof says of the disk. Opening the point, and making or removing the file, is others' business.
//!
//! Layers, lowest first: `limits`, `error`, `format` → `pipeline`, `output` → `check`, `piece` → `write`.

mod check;
mod error;
mod format;
mod limits;
mod output;
mod piece;
mod pipeline;
mod write;

use std::{fs::File, sync::Arc};

use engine::{
    point::{Point, PointId},
    units::DiskIndex,
};
pub use error::ExportError;
pub use format::{Format, GoOn};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
pub use write::{Written, write};

use crate::image::{PointDisk, PointImage};

/// What to export, and how.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Plan {
    /// Name of the disk; may be left out where there is only one.
    pub disk: Option<String>,
    /// As what.
    pub format: Format,
    /// Whether it goes to a pipe, which has no holes and cannot be read again.
    pub stream: bool,
}

/// What was exported.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exported {
    /// The point.
    pub point: PointId,
    /// When it was taken.
    pub taken_at: Timestamp,
    /// Name of the disk.
    pub disk: String,
    /// What was written of it.
    #[serde(flatten)]
    pub written: Written,
}

/// Writes a disk of `image`, which is that of `point`, to `file`: a new file, open to read and write, or a pipe.
pub fn export(
    image: PointImage,
    point: &Point,
    plan: &Plan,
    file: &File,
    go_on: &mut GoOn<'_>,
) -> Result<Exported, ExportError> {
    let index = choose(&image, plan.disk.as_deref())?;
    let name = image.disks()[index].name.clone();
    let disk = PointDisk { image: Arc::new(image), disk: DiskIndex(index as u16) };
    let written = write(&disk, plan.format, file, plan.stream, go_on)?;
    Ok(Exported { point: point.id, taken_at: point.taken_at, disk: name, written })
}

fn choose(image: &PointImage, name: Option<&str>) -> Result<usize, ExportError> {
    let names: Vec<&str> = image.disks().iter().map(|disk| disk.name.as_str()).collect();
    let wrong = |what| Err(ExportError::Disk { what, known: names.join(", ") });
    match (name, names.len()) {
        (Some(name), _) => {
            let found = names.iter().position(|known| *known == name);
            found.map_or_else(|| wrong(format!("the VM has no disk {name:?}")), Ok)
        }
        (None, 1) => Ok(0),
        (None, disks) => wrong(format!("the VM has {disks} disks, and an export is of one")),
    }
}
