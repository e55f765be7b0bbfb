//! Is a restored VMDK what the disk was at a point? Every way there is to find out.

use std::{
    fs,
    path::{Path, PathBuf},
};

use engine::service::shutdown::Shutdown;
use jiff::Timestamp;

use super::{
    disk::{DATA_PATH, FILES_PATH, Histories, RECORDS_PATH},
    fill::Manifest,
};
use crate::lab::{
    LabError, Vmdk, ext4, image,
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

    let records = extract(&disk, RECORDS_PATH, &scratch.join("records"), stop).and_then(|file| {
        let image = fs::read(&file).map_err(LabError::io("read", &file))?;
        Ok(expected.histories.records.check(&image, expected.taken_at))
    });
    found.records = found.note("records", records)?.unwrap_or(0);
    if let Some(history) = &expected.histories.files {
        let files = extract_folder(&disk, FILES_PATH, scratch, stop);
        found.note("files", files.map(|folder| history.check(&folder, expected.taken_at)))?;
    }
    if expected.reference.is_none() {
        let data = extract_folder(&disk, DATA_PATH, scratch, stop);
        found.note("unchanged files", data.and_then(|folder| expected.manifest.check(&folder, stop)))?;
    }
    fs::remove_dir_all(scratch).map_err(LabError::io("remove", scratch))?;
    Ok(found)
}

fn extract(disk: &Path, path: &str, to: &Path, stop: &Shutdown) -> Result<PathBuf, LabError> {
    ext4::extract(disk, path, to, stop)?;
    Ok(to.into())
}

/// debugfs puts the folder into `to` under its own name.
fn extract_folder(disk: &Path, path: &str, to: &Path, stop: &Shutdown) -> Result<PathBuf, LabError> {
    ext4::extract(disk, path, to, stop)?;
    Ok(to.join(path.trim_start_matches('/')))
}

fn qemu_info(vmdk: &Vmdk, stop: &Shutdown) -> Result<(), LabError> {
    Tool::new("qemu-img").args(["info", "-f", "vmdk"]).arg(&vmdk.descriptor).until(stop).run().map(drop)
}

fn qemu_compare(vmdk: &Vmdk, reference: &Path, stop: &Shutdown) -> Result<(), LabError> {
    let compare = Tool::new("qemu-img").args(["compare", "-f", "vmdk", "-F", "raw"]);
    compare.arg(&vmdk.descriptor).arg(reference).until(stop).run().map(drop)
}
