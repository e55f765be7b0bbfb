//! The state of a simulated file system: a tree of folders and files, and the changes that make it another.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Component, Path},
    sync::Arc,
};

use super::content::Content;
use crate::io::durable::check_relative;

/// A file's or folder's number, which it keeps when it is renamed.
pub(super) type Ino = u64;

pub(super) const ROOT: Ino = 0;

/// A name in a folder.
pub(super) type Name = (Ino, String);

#[derive(Clone, Debug)]
pub(super) enum Node {
    File(Arc<Content>),
    Dir(BTreeMap<String, Ino>),
}

/// A change to the disk, as the log keeps it.
#[derive(Clone, Debug)]
pub(super) enum Change {
    Write { file: Ino, offset: u64, bytes: Arc<[u8]> },
    SetLen { file: Ino, len: u64 },
    Zero { file: Ino, offset: u64, len: u64 },
    Flip { file: Ino, offset: u64, mask: u8 },
    Create { at: Name, node: Ino, is_dir: bool },
    Rename { from: Name, to: Name, node: Ino },
    Remove { at: Name },
}

impl Change {
    /// The file whose bytes it changes; `None` if it changes names.
    pub(super) fn file(&self) -> Option<Ino> {
        match self {
            Self::Write { file, .. }
            | Self::SetLen { file, .. }
            | Self::Zero { file, .. }
            | Self::Flip { file, .. } => Some(*file),
            Self::Create { .. } | Self::Rename { .. } | Self::Remove { .. } => None,
        }
    }

    /// The names that it changes.
    pub(super) fn names(&self) -> impl Iterator<Item = &Name> {
        let (first, second) = match self {
            Self::Create { at, .. } | Self::Remove { at } => (Some(at), None),
            Self::Rename { from, to, .. } => (Some(from), Some(to)),
            _ => (None, None),
        };
        first.into_iter().chain(second)
    }
}

/// Files and folders by number. One that no folder names any more is kept for those who have it open.
#[derive(Clone, Debug)]
pub(super) struct Disk {
    nodes: BTreeMap<Ino, Node>,
}

impl Disk {
    pub(super) fn empty() -> Self {
        Self { nodes: BTreeMap::from([(ROOT, Node::Dir(BTreeMap::new()))]) }
    }

    pub(super) fn apply(&mut self, change: &Change) {
        match change {
            Change::Write { file, offset, bytes } => {
                self.edit(*file, |content| content.write(*offset, bytes))
            }
            Change::SetLen { file, len } => self.edit(*file, |content| content.set_len(*len)),
            Change::Zero { file, offset, len } => self.edit(*file, |content| content.zero(*offset, *len)),
            Change::Flip { file, offset, mask } => self.edit(*file, |content| content.flip(*offset, *mask)),
            Change::Create { at, node, .. } => {
                self.make_node(change);
                self.link(at, *node);
            }
            Change::Rename { from, to, node } => {
                self.unlink(from);
                self.link(to, *node);
            }
            Change::Remove { at } => self.unlink(at),
        }
    }

    /// The part of a creation that needs no name: the file or folder itself.
    pub(super) fn make_node(&mut self, change: &Change) {
        if let Change::Create { node, is_dir, .. } = change {
            let empty = if *is_dir { Node::Dir(BTreeMap::new()) } else { Node::File(Arc::default()) };
            self.nodes.entry(*node).or_insert(empty);
        }
    }

    fn edit(&mut self, file: Ino, edit: impl FnOnce(&mut Content)) {
        if let Some(Node::File(content)) = self.nodes.get_mut(&file) {
            edit(Arc::make_mut(content));
        }
    }

    fn entries(&mut self, dir: Ino) -> Option<&mut BTreeMap<String, Ino>> {
        match self.nodes.get_mut(&dir) {
            Some(Node::Dir(names)) => Some(names),
            _ => None,
        }
    }

    fn link(&mut self, at: &Name, node: Ino) {
        self.entries(at.0).map(|names| names.insert(at.1.clone(), node));
    }

    fn unlink(&mut self, at: &Name) {
        self.entries(at.0).map(|names| names.remove(&at.1));
    }

    pub(super) fn node(&self, ino: Ino) -> Option<&Node> {
        self.nodes.get(&ino)
    }

    /// A file's bytes. Empty for what is no file, which no caller asks for.
    pub(super) fn content(&self, file: Ino) -> Arc<Content> {
        match self.nodes.get(&file) {
            Some(Node::File(content)) => content.clone(),
            _ => Arc::default(),
        }
    }

    pub(super) fn dir(&self, ino: Ino) -> io::Result<&BTreeMap<String, Ino>> {
        match self.nodes.get(&ino) {
            Some(Node::Dir(names)) => Ok(names),
            Some(Node::File(_)) => Err(io::ErrorKind::NotADirectory.into()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// The file or folder at `path`; the root for an empty path.
    pub(super) fn lookup(&self, path: &Path) -> io::Result<Ino> {
        names_of(path)?.iter().try_fold(ROOT, |dir, name| {
            self.dir(dir)?.get(*name).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
        })
    }

    /// Where `path` stands or would stand, and what is there.
    pub(super) fn locate(&self, path: &Path) -> io::Result<(Name, Option<Ino>)> {
        let names = names_of(path)?;
        let Some((last, parents)) = names.split_last() else {
            return Err(io::ErrorKind::ResourceBusy.into()); // The root, which can be neither made nor moved.
        };
        let dir = self.lookup(&parents.iter().collect::<std::path::PathBuf>())?;
        let found = self.dir(dir)?.get(*last).copied();
        Ok(((dir, (*last).to_owned()), found))
    }

    /// Bytes that the named files take.
    pub(super) fn used(&self) -> u64 {
        let mut used = 0;
        self.walk(|_, node| {
            if let Node::File(content) = node {
                used += content.allocated();
            }
        });
        used
    }

    /// Drops files that have no name and that nobody has open.
    pub(super) fn sweep(&mut self, is_open: impl Fn(Ino) -> bool) {
        let mut named = BTreeSet::new();
        self.walk(|ino, _| {
            named.insert(ino);
        });
        self.nodes.retain(|ino, _| named.contains(ino) || is_open(*ino));
    }

    fn walk(&self, mut visit: impl FnMut(Ino, &Node)) {
        let mut left = vec![ROOT];
        while let Some((ino, node)) = left.pop().and_then(|ino| Some((ino, self.nodes.get(&ino)?))) {
            visit(ino, node);
            if let Node::Dir(names) = node {
                left.extend(names.values());
            }
        }
    }
}

/// The parts of a relative path.
pub(super) fn names_of(path: &Path) -> io::Result<Vec<&str>> {
    check_relative(path)?;
    path.components()
        .filter(|part| matches!(part, Component::Normal(_)))
        .map(|part| part.as_os_str().to_str().ok_or_else(|| io::ErrorKind::InvalidInput.into()))
        .collect()
}
