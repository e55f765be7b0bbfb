//! Real files for the scratch disk: copied from this machine, with a digest of each.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use engine::service::shutdown::Shutdown;

use crate::lab::{LabError, check};

/// Where files are taken from, in this order.
const FROM: [&str; 2] = ["/usr", "/etc"];

/// A file takes at least this much of the budget: inodes are limited, too.
const LEAST_COST: u64 = 16 << 10;

/// What was copied: by path within the copy, its digest.
#[derive(Debug, Default)]
pub(super) struct Manifest {
    files: BTreeMap<PathBuf, blake3::Hash>,
    /// Bytes of them.
    pub(super) bytes: u64,
}

impl Manifest {
    pub(super) fn len(&self) -> usize {
        self.files.len()
    }

    /// Checks that the folder `copy` holds the same.
    pub(super) fn check(&self, copy: &Path, stop: &Shutdown) -> Result<Result<(), String>, LabError> {
        for (name, digest) in &self.files {
            check(stop)?;
            match fs::read(copy.join(name)) {
                Ok(content) if blake3::hash(&content) == *digest => {}
                Ok(_) => return Ok(Err(format!("/{} has changed", name.display()))),
                Err(error) => return Ok(Err(format!("/{} cannot be read: {error}", name.display()))),
            }
        }
        Ok(Ok(()))
    }
}

/// Copies readable files into the folder `to`, at most `budget` bytes.
pub(super) fn copy_files(to: &Path, budget: u64, stop: &Shutdown) -> Result<Manifest, LabError> {
    let mut copying = Copying { to, budget, largest: budget / 8, manifest: Manifest::default(), stop };
    for from in FROM {
        copying.folder(Path::new(from))?;
    }
    Ok(copying.manifest)
}

struct Copying<'a> {
    to: &'a Path,
    budget: u64,
    largest: u64,
    manifest: Manifest,
    stop: &'a Shutdown,
}

impl Copying<'_> {
    /// What cannot be read, or vanishes meanwhile, is left out: any files will do.
    fn folder(&mut self, from: &Path) -> Result<(), LabError> {
        let Ok(entries) = fs::read_dir(from) else { return Ok(()) };
        let mut entries: Vec<_> = entries.filter_map(Result::ok).collect();
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            check(self.stop)?;
            if self.budget < LEAST_COST {
                return Ok(());
            }
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => self.folder(&entry.path())?,
                Ok(kind) if kind.is_file() => self.file(&entry)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn file(&mut self, entry: &fs::DirEntry) -> Result<(), LabError> {
        let path = entry.path();
        let size = entry.metadata().map_or(u64::MAX, |found| found.len());
        let cost = size.max(LEAST_COST);
        if size > self.largest || cost > self.budget {
            return Ok(());
        }
        let Ok(content) = fs::read(&path) else { return Ok(()) };
        let name = path.strip_prefix("/").unwrap_or(&path);
        let copy = self.to.join(name);
        write(&copy, &content).map_err(LabError::io("write", &copy))?;
        self.budget -= cost;
        self.manifest.bytes += content.len() as u64;
        self.manifest.files.insert(name.into(), blake3::hash(&content));
        Ok(())
    }
}

fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(path, content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_within_the_budget_and_finds_what_changed() {
        let dir = tempfile::tempdir().unwrap();
        let stop = Shutdown::manual();
        let manifest = copy_files(dir.path(), 4 << 20, &stop).unwrap();
        assert!(manifest.len() > 0 && manifest.bytes <= 4 << 20);
        assert_eq!(manifest.check(dir.path(), &stop).unwrap(), Ok(()));
        let victim = dir.path().join(manifest.files.keys().next_back().unwrap());
        fs::write(&victim, "other").unwrap();
        assert!(manifest.check(dir.path(), &stop).unwrap().unwrap_err().contains("has changed"));
        fs::remove_file(&victim).unwrap();
        assert!(manifest.check(dir.path(), &stop).unwrap().unwrap_err().contains("cannot be read"));
    }
}
