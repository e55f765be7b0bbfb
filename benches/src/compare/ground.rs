//! The disks that are copied: images of an ext4 file system with real content, kept between runs.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use anyhow::Context;
use engine::{
    service::{quantity::Size, shutdown::Shutdown},
    units::BLOCK_BYTES,
};
use homeward::lab::{LoopDevice, Mount, ext4, image};
use serde::{Deserialize, Serialize};

use super::{blocks, content, work::Work};

/// Raised when disks are made otherwise: those of before are then made anew.
const VERSION: u32 = 1;

/// Percent of a disk that are files.
const FILES: u64 = 75;

/// Percent of a disk that change by copying files that are on it already, and by new ones.
const MOVED: u64 = 14;
const NEW: u64 = 2;

/// A disk with real content.
pub struct Ground {
    /// Its bytes, in a sparse file.
    pub image: PathBuf,
    /// What is on it.
    pub about: About,
    /// What the files of it are called.
    name: String,
}

/// What is on a disk.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct About {
    version: u32,
    /// Size of the disk.
    pub bytes: u64,
    /// Files on it.
    pub files: u64,
    /// Their bytes.
    pub file_bytes: u64,
    /// Of these, bytes of copies, since this machine has too few files: they flatter whoever finds duplicates.
    pub repeated_bytes: u64,
}

/// The disk some time later.
pub struct Changed {
    /// Its bytes.
    pub image: PathBuf,
    /// What became of it.
    pub about: Change,
}

/// How a disk differs from what it was.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Change {
    version: u32,
    /// Bytes of 4 KiB blocks that differ.
    pub changed_bytes: u64,
    /// Bytes of files that were copied to another place on the disk.
    pub copied_bytes: u64,
    /// Bytes of files that were not on it before.
    pub new_bytes: u64,
}

impl Ground {
    /// The disk of this size; made if there is none yet, which takes about a minute for 8 GiB.
    pub fn get(work: &Work, bytes: u64, stop: &Shutdown) -> anyhow::Result<Self> {
        let name = format!("ground-{bytes}");
        let image = work.kept(&format!("{name}.img"));
        let about = kept(&image, |about: &About| about.version == VERSION);
        let about = match about {
            Some(about) => about,
            None => {
                eprintln!("making a disk of {} from this machine's system files", Size(bytes));
                make(&image, |image| fill(image, bytes, work, stop))?
            }
        };
        if about.repeated_bytes > 0 {
            let repeated = Size(about.repeated_bytes);
            eprintln!("note: this machine has too few files: {repeated} on the disk are there twice");
        }
        Ok(Self { image, about, name })
    }

    /// The disk after 16 % of it changed: most by copying files that are on it, some by files that are not.
    pub fn changed(&self, work: &Work, stop: &Shutdown) -> anyhow::Result<Changed> {
        let image = work.kept(&format!("{}-changed.img", self.name));
        let about = match kept(&image, |about: &Change| about.version == VERSION) {
            Some(about) => about,
            None => {
                eprintln!("changing 16 % of it");
                make(&image, |image| self.change(image, work, stop))?
            }
        };
        Ok(Changed { image, about })
    }

    fn change(&self, image: &Path, work: &Work, stop: &Shutdown) -> anyhow::Result<Change> {
        let share = |percent: u64| self.about.bytes * percent / 100;
        image::copy(&self.image, image, stop)?;
        let (copied, new) = on_mounted(image, work, |root| {
            let there = content::files_below(&root.join("0"), stop)?;
            // From all over the disk.
            let every = (content::bytes_of(&there) / share(MOVED).max(1)).max(1) as usize;
            let some = there.into_iter().step_by(every).collect();
            let (copied, _) = content::split(some, share(MOVED));
            content::copy(&copied, root, &root.join("moved"), stop)?;
            let (_, others) =
                content::split(content::system_files(stop)?, files_bytes(self.about.bytes, stop)?);
            let (new, _) = content::split(others, share(NEW));
            content::copy(&new, Path::new("/"), &root.join("new"), stop)?;
            Ok((copied, new))
        })?;
        Ok(Change {
            version: VERSION,
            changed_bytes: blocks::differing(&self.image, image, stop)?.len() as u64 * BLOCK_BYTES,
            copied_bytes: content::bytes_of(&copied),
            new_bytes: content::bytes_of(&new),
        })
    }
}

/// Bytes of files that are put on a disk, before any is put there twice: some are left for changes.
fn files_bytes(disk: u64, stop: &Shutdown) -> anyhow::Result<u64> {
    let all = content::bytes_of(&content::system_files(stop)?);
    Ok((disk * FILES / 100).min(all.saturating_sub(disk * NEW / 100)))
}

fn fill(image: &Path, bytes: u64, work: &Work, stop: &Shutdown) -> anyhow::Result<About> {
    File::create(image)?.set_len(bytes)?;
    ext4::make(image, None, stop)?;
    let (items, _) = content::split(content::system_files(stop)?, files_bytes(bytes, stop)?);
    let wanted = bytes * FILES / 100;
    let mut about = About { version: VERSION, bytes, files: 0, file_bytes: 0, repeated_bytes: 0 };
    on_mounted(image, work, |root| {
        // Each time in a folder of its own.
        for time in 0.. {
            let (now, _) = content::split(items.clone(), wanted - about.file_bytes);
            if now.is_empty() || time > 0 && wanted - about.file_bytes < bytes / 100 {
                break;
            }
            content::copy(&now, Path::new("/"), &root.join(time.to_string()), stop)?;
            let copied = content::bytes_of(&now);
            about.files += now.len() as u64;
            about.file_bytes += copied;
            about.repeated_bytes += if time > 0 { copied } else { 0 };
        }
        Ok(())
    })?;
    Ok(about)
}

fn on_mounted<T>(
    image: &Path,
    work: &Work,
    change: impl FnOnce(&Path) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let dir = work.run()?;
    let device = LoopDevice::over(image)?;
    let mount = Mount::new(device.path(), &dir.path().join("mnt"), "noatime")?;
    let made = change(mount.point())?;
    mount.sync()?;
    Ok(made)
}

/// What is said of an image, if it is whole.
fn kept<T: for<'a> Deserialize<'a>>(image: &Path, is_valid: impl Fn(&T) -> bool) -> Option<T> {
    let about = serde_json::from_slice(&fs::read(image.with_extension("json")).ok()?).ok()?;
    Some(about).filter(|about| image.is_file() && is_valid(about))
}

/// Makes an image; what is said of it comes last.
fn make<T: Serialize>(image: &Path, body: impl FnOnce(&Path) -> anyhow::Result<T>) -> anyhow::Result<T> {
    let about_file = image.with_extension("json");
    for file in [&about_file, image] {
        match fs::remove_file(file) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => (),
        }
    }
    let about = body(image).with_context(|| format!("cannot make {}", image.display()))?;
    fs::write(about_file, serde_json::to_vec(&about)?)?;
    Ok(about)
}
