//! Real content for disks: this machine's own system files, in an order that is always the same.

use std::{
    collections::HashSet,
    fs::{self, Metadata},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use anyhow::Context;
use engine::service::shutdown::Shutdown;
use homeward::lab::check;

/// Where they are taken from, in this order.
const ROOTS: [&str; 5] = ["/usr", "/lib", "/opt", "/root/.rustup", "/root/.cargo"];

/// A file system gives a file whole blocks.
const BLOCK: u64 = 4096;

/// A file that can be copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// Where it is.
    pub path: PathBuf,
    /// The bytes that it takes on a disk.
    pub bytes: u64,
}

/// This machine's system files, each once, whatever links lead to it.
pub fn system_files(stop: &Shutdown) -> anyhow::Result<Vec<Item>> {
    let mut walk = Walk::default();
    for root in ROOTS {
        // `/lib` is often a link to a folder in `/usr`: that is there already.
        if fs::symlink_metadata(root).is_ok_and(|found| found.is_dir()) {
            walk.folder(Path::new(root), stop)?;
        }
    }
    Ok(walk.items)
}

/// The files below `root`, in order.
pub fn files_below(root: &Path, stop: &Shutdown) -> anyhow::Result<Vec<Item>> {
    let mut walk = Walk::default();
    walk.folder(root, stop)?;
    Ok(walk.items)
}

#[derive(Default)]
struct Walk {
    items: Vec<Item>,
    /// Files with several names.
    seen: HashSet<(u64, u64)>,
}

impl Walk {
    /// Depth first, by name, not into other file systems. What vanishes meanwhile is left out: the system is in use.
    fn folder(&mut self, folder: &Path, stop: &Shutdown) -> anyhow::Result<()> {
        check(stop)?;
        let Ok(device) = fs::symlink_metadata(folder).map(|found| found.dev()) else { return Ok(()) };
        let Ok(entries) = fs::read_dir(folder) else { return Ok(()) };
        let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        paths.sort();
        for path in paths {
            match fs::symlink_metadata(&path) {
                Ok(found) if found.is_dir() && found.dev() == device => self.folder(&path, stop)?,
                Ok(found) if found.is_file() => self.file(path, &found),
                _ => (),
            }
        }
        Ok(())
    }

    fn file(&mut self, path: PathBuf, found: &Metadata) {
        let is_new = found.nlink() == 1 || self.seen.insert((found.dev(), found.ino()));
        if is_new && found.len() > 0 {
            self.items.push(Item { path, bytes: found.len().next_multiple_of(BLOCK) });
        }
    }
}

/// Splits files into those that fit into `bytes`, in order, and the others.
pub fn split(items: Vec<Item>, bytes: u64) -> (Vec<Item>, Vec<Item>) {
    let mut left = bytes;
    items.into_iter().partition(|item| {
        let fits = item.bytes <= left;
        left -= if fits { item.bytes } else { 0 };
        fits
    })
}

/// Bytes of files.
pub fn bytes_of(items: &[Item]) -> u64 {
    items.iter().map(|item| item.bytes).sum()
}

/// Copies files into the folder `to`, under the paths that they have below `from`.
pub fn copy(items: &[Item], from: &Path, to: &Path, stop: &Shutdown) -> anyhow::Result<()> {
    for item in items {
        check(stop)?;
        let below = item.path.strip_prefix(from).unwrap_or(&item.path);
        let copy = to.join(below);
        let copied =
            copy.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::copy(&item.path, &copy));
        match copied {
            // It was there when we looked.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && !item.path.exists() => (),
            copied => drop(copied.with_context(|| format!("cannot copy {}", item.path.display()))?),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_come_in_order_and_once() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("b")).unwrap();
        for (name, len) in [("c", 5000), ("b/x", 1), ("a", 4096), ("empty", 0)] {
            fs::write(dir.path().join(name), vec![1; len]).unwrap();
        }
        fs::hard_link(dir.path().join("a"), dir.path().join("d")).unwrap();
        let stop = Shutdown::manual();
        let items = files_below(dir.path(), &stop).unwrap();
        let names: Vec<_> = items.iter().map(|item| item.path.strip_prefix(dir.path()).unwrap()).collect();
        assert_eq!(names, ["a", "b/x", "c"].map(Path::new));
        assert_eq!(bytes_of(&items), 4 * 4096);

        let (fit, others) = split(items, 2 * 4096);
        assert_eq!((fit.len(), others.len()), (2, 1));
        let to = tempfile::tempdir().unwrap();
        copy(&fit, dir.path(), to.path(), &stop).unwrap();
        assert_eq!(fs::read(to.path().join("b/x")).unwrap(), [1]);
    }
}
