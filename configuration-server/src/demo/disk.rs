//! The scratch disk, in use: a loop device with a mounted ext4, or, without root, a file with one that is changed
//! from outside; and the writers that keep it busy.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use engine::service::shutdown::Shutdown;

use super::fill::{Manifest, copy_files};
use crate::lab::{
    self, LabError, LoopDevice, Mount, ext4,
    files::{self, FileWriter},
    records::{self, RecordWriter, Slots},
};

/// Of the disk, what real files may take.
const FULL: f64 = 0.6;

/// Slots of records, 4 MiB.
const SLOTS: usize = 1024;

/// What the writers do in a second.
pub(super) const RECORDS: u32 = 400;
pub(super) const FILES: u32 = 20;

/// Paths in the file system.
pub(super) const DATA_PATH: &str = "/data";
pub(super) const RECORDS_PATH: &str = "/records";
pub(super) const FILES_PATH: &str = "/files";

/// A disk with real files and writers on it.
pub(super) struct Disk {
    // Dropped in this order.
    records: RecordWriter,
    files: Option<FileWriter>,
    ground: Ground,
    /// The real files.
    pub(super) manifest: Manifest,
    batches: u32,
}

/// What is below the writers.
pub(super) enum Ground {
    /// In use, as on any machine.
    Live { mount: Mount, device: LoopDevice },
    /// A file; nobody has it mounted.
    File(PathBuf),
}

/// What the writers did.
pub(super) struct Histories {
    pub(super) records: records::History,
    pub(super) files: Option<files::History>,
}

impl Ground {
    /// A loop device, formatted and mounted; not yet filled.
    pub(super) fn live(dir: &Path, bytes: u64, stop: &Shutdown) -> Result<Self, LabError> {
        let device = LoopDevice::create(&dir.join("disk.img"), bytes)?;
        ext4::make(device.path(), None, stop)?;
        let mount = Mount::new(device.path(), &dir.join("mnt"), "")?;
        Ok(Self::Live { mount, device })
    }

    /// A file of zeros.
    pub(super) fn file(dir: &Path, bytes: u64) -> Result<Self, LabError> {
        let path = dir.join("disk.img");
        let file = File::create_new(&path).map_err(LabError::io("create", &path))?;
        file.set_len(bytes).map_err(LabError::io("size", &path))?;
        Ok(Self::File(path))
    }

    /// What the agent protects.
    pub(super) fn path(&self) -> &Path {
        match self {
            Self::Live { device, .. } => device.path(),
            Self::File(path) => path,
        }
    }
}

impl Disk {
    /// Fills the disk; the writers begin.
    pub(super) fn fill(
        ground: Ground,
        dir: &Path,
        bytes: u64,
        seed: u64,
        stop: &Shutdown,
    ) -> Result<Self, LabError> {
        let budget = (bytes as f64 * FULL) as u64;
        let (manifest, slots, files) = match &ground {
            Ground::Live { mount, .. } => {
                let root = mount.point();
                let manifest = copy_files(&below(root, DATA_PATH), budget, stop)?;
                mount.sync()?;
                (manifest, Slots::in_file(&below(root, RECORDS_PATH), SLOTS), Some(below(root, FILES_PATH)))
            }
            Ground::File(path) => {
                let staging = dir.join("staging");
                let manifest = copy_files(&below(&staging, DATA_PATH), budget, stop)?;
                let records = below(&staging, RECORDS_PATH);
                fs::write(&records, vec![0xff; SLOTS * records::SLOT])
                    .map_err(LabError::io("write", &records))?;
                let files = below(&staging, FILES_PATH);
                fs::create_dir(&files).map_err(LabError::io("create", &files))?;
                ext4::make(path, Some(&staging), stop)?;
                fs::remove_dir_all(&staging).map_err(LabError::io("remove", &staging))?;
                let offsets = ext4::blocks_of(path, RECORDS_PATH, stop)?;
                (manifest, Slots { path: path.clone(), offsets }, None)
            }
        };
        let records = RecordWriter::start(&slots, seed, RECORDS)?;
        let files = files.map(|dir| FileWriter::start(&dir, seed, FILES)).transpose()?;
        Ok(Self { records, files, ground, manifest, batches: 0 })
    }

    /// Whether points can be made while the writers run.
    pub(super) fn is_live(&self) -> bool {
        matches!(self.ground, Ground::Live { .. })
    }

    /// Waits until `more` records were written.
    pub(super) fn let_write(&self, more: usize, stop: &Shutdown) -> Result<(), LabError> {
        let until = self.records.history().acknowledged() + more;
        lab::wait_until(stop, "the disk is written", std::time::Duration::from_secs(120), || {
            let now = self.records.history().acknowledged();
            Ok(if now >= until {
                lab::Look::Done(())
            } else {
                lab::Look::NotYet(format!("{now} of {until}"))
            })
        })
    }

    /// Does `body` while nobody writes to the disk and everything written is on it.
    pub(super) fn at_rest<T>(
        &mut self,
        dir: &Path,
        stop: &Shutdown,
        body: impl FnOnce(&Path) -> Result<T, LabError>,
    ) -> Result<T, LabError> {
        self.records.pause();
        if let Some(files) = &self.files {
            files.pause();
        }
        let done = match &self.ground {
            Ground::Live { mount, device } => mount.freeze().and_then(|_frozen| body(device.path())),
            Ground::File(path) => change_files(path, dir, &mut self.batches, stop).and_then(|()| body(path)),
        };
        self.records.resume();
        if let Some(files) = &self.files {
            files.resume();
        }
        done
    }

    /// What the writers did up to now.
    pub(super) fn histories(&self) -> Histories {
        Histories { records: self.records.history(), files: self.files.as_ref().map(FileWriter::history) }
    }

    /// Ends the writers, and everything below them. Returns the real files.
    ///
    /// # Errors
    /// If a write failed.
    pub(super) fn finish(self) -> Result<Manifest, LabError> {
        let failed = |source| LabError::Io { doing: "write to", path: self.ground.path().into(), source };
        self.records.finish().map_err(failed)?;
        self.files.map(FileWriter::finish).transpose().map_err(failed)?;
        Ok(self.manifest)
    }
}

/// Without a mount, files come and go by `debugfs`, while nobody else writes.
fn change_files(disk: &Path, dir: &Path, batches: &mut u32, stop: &Shutdown) -> Result<(), LabError> {
    const BATCH: u32 = 10;
    let content = dir.join("content");
    let mut commands = String::new();
    for file in *batches * BATCH..(*batches + 1) * BATCH {
        commands += &format!("write {} {FILES_PATH}/file-{file}\n", content.display());
        if let Some(old) = file.checked_sub(BATCH) {
            commands += &format!("rm {FILES_PATH}/file-{old}\n");
        }
    }
    *batches += 1;
    fs::write(&content, commands.repeat(100)).map_err(LabError::io("write", &content))?;
    ext4::change(disk, &commands, stop)
}

/// A path in the file system, where that is mounted or copied to.
pub(super) fn below(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}
