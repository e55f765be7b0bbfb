//! Is a restored VMDK what the disk was at a point? Every way there is to find out.

use std::{
    fs,
    path::{Path, PathBuf},
};

use engine::service::shutdown::Shutdown;
use jiff::Timestamp;

use super::{
    disk::{DATA_PATH, FILES_PATH, Histories, RECORDS_PATH, below},
    fill::Manifest,
};
use crate::lab::{
    LabError, Mount, Vmdk, ext4, image,
    tool::{self, Tool},
};

/// What is known about the disk at a point.
pub(super) struct Expected<'a> {
    /// When it was.
    pub(super) taken_at: Timestamp,
    /// A copy of the disk of that moment, if the writers paused.
    pub(super) reference: Option<&'a Path>,
    /// What the writers did, up to any later moment.
    pub(super) histories: &'a Histories,
    /// The files that nobody changed.
    pub(super) manifest: &'a Manifest,
}

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Checks made.
    pub(super) checks: usize,
    /// Those that did not hold: what is wrong.
    pub(super) problems: Vec<String>,
    /// Records of the writer that are in it.
    pub(super) records: usize,
}

impl Found {
    /// Notes a check. An interrupt ends everything; any other error is the answer of a check.
    fn note<T>(
        &mut self,
        what: &str,
        outcome: Result<Result<T, String>, LabError>,
    ) -> Result<Option<T>, LabError> {
        self.checks += 1;
        let problem = match outcome {
            Ok(Ok(value)) => return Ok(Some(value)),
            Ok(Err(problem)) => problem,
            Err(LabError::Interrupted) => return Err(LabError::Interrupted),
            Err(error) => error.to_string(),
        };
        self.problems.push(format!("{what}: {problem}"));
        Ok(None)
    }
}

/// Checks a restored VMDK; needs the folder `scratch` for itself.
pub(super) fn verify(
    vmdk: &Vmdk,
    expected: &Expected<'_>,
    scratch: &Path,
    stop: &Shutdown,
) -> Result<Found, LabError> {
    let mut found = Found::default();
    if let Some(reference) = expected.reference {
        let differs = image::first_difference(&vmdk.flat, reference, stop);
        let outcome = differs.map(|at| at.map_or(Ok(()), |at| Err(format!("differs at byte {at}"))));
        found.note("byte for byte", outcome)?;
    }
    if tool::find("qemu-img").is_some() {
        found.note("qemu-img info", qemu_info(vmdk, stop).map(Ok))?;
        if let Some(reference) = expected.reference {
            found.note("qemu-img compare", qemu_compare(vmdk, reference, stop).map(Ok))?;
        }
    }
    // What follows changes the disk as mounting it would.
    let _ = fs::remove_dir_all(scratch);
    fs::create_dir(scratch).map_err(LabError::io("create", scratch))?;
    let disk = scratch.join("disk.raw");
    image::copy(&vmdk.flat, &disk, stop)?;
    found.note("journal replay", ext4::replay_journal(&disk, stop).map(Ok))?;
    found.note("e2fsck", ext4::check(&disk, stop).map(Ok))?;

    if let Some(contents) =
        found.note("reading files", Contents::open(&disk, expected, scratch, stop).map(Ok))?
    {
        let root = contents.root();
        let records = below(root, RECORDS_PATH);
        let records = fs::read(&records).map_err(LabError::io("read", &records));
        let records = records.map(|image| expected.histories.records.check(&image, expected.taken_at));
        found.records = found.note("records", records)?.unwrap_or(0);
        if let Some(history) = &expected.histories.files {
            found.note("files", Ok(history.check(&below(root, FILES_PATH), expected.taken_at)))?;
        }
        if expected.reference.is_none() {
            found.note("unchanged files", expected.manifest.check(&below(root, DATA_PATH), stop))?;
        }
    }
    fs::remove_dir_all(scratch).map_err(LabError::io("remove", scratch))?;
    Ok(found)
}

/// The files of a restored disk: mounted where the source is, otherwise those that are needed, copied out.
enum Contents {
    Mounted(Mount),
    Copied(PathBuf),
}

impl Contents {
    fn open(disk: &Path, expected: &Expected<'_>, scratch: &Path, stop: &Shutdown) -> Result<Self, LabError> {
        let root = scratch.join("root");
        if expected.histories.files.is_some() {
            return Ok(Self::Mounted(Mount::new(disk, &root, "loop,ro")?));
        }
        fs::create_dir(&root).map_err(LabError::io("create", &root))?;
        ext4::extract(disk, RECORDS_PATH, &below(&root, RECORDS_PATH), stop)?;
        if expected.reference.is_none() {
            ext4::extract(disk, DATA_PATH, &root, stop)?;
        }
        Ok(Self::Copied(root))
    }

    fn root(&self) -> &Path {
        match self {
            Self::Mounted(mount) => mount.point(),
            Self::Copied(root) => root,
        }
    }
}

fn qemu_info(vmdk: &Vmdk, stop: &Shutdown) -> Result<(), LabError> {
    Tool::new("qemu-img").args(["info", "-f", "vmdk"]).arg(&vmdk.descriptor).until(stop).run().map(drop)
}

fn qemu_compare(vmdk: &Vmdk, reference: &Path, stop: &Shutdown) -> Result<(), LabError> {
    let compare = Tool::new("qemu-img").args(["compare", "-f", "vmdk", "-F", "raw"]);
    compare.arg(&vmdk.descriptor).arg(reference).until(stop).run().map(drop)
}
